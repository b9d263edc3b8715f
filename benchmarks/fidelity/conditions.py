"""How to condition a state denoiser: on clean conditions, with the sampler's churn noise on them, or noised (in-painting).

With linear dynamics, the distribution of the states given the first state and all actions is known. Errors compare the mean and
spread of samples with it, in standard deviations of the data. Network and training are the same for all.

If the behaviour policy reacts to states, later actions carry information about earlier states. A model of states given all
actions learns that too, and is then wrong about actions of another policy: `error_given_other_actions` measures by how much.
`conditionings` holds denoisers that are given innovations, or innovations and an anchor, against it; `closed_form` exact ones.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks.fidelity import conditionings
from benchmarks.timing import describe_device
from jaxpgd.diffusion.conditioning import Conditions
from jaxpgd.diffusion.single_step import EDMConfig
from jaxpgd.diffusion.solvers import SamplerConfig
from jaxpgd.envs.linear_gaussian import LinearGaussian, collect, linear_policy, make_env
from jaxpgd.envs.linear_states import innovations, later_states
from jaxpgd.synthesis.dydiff import DyDiffConfig, DyDiffSynthesizer, make_dydiff
from jaxpgd.tokens import fit_codec
from jaxpgd.training.denoiser import DenoiserConfig
from jaxpgd.training.state_denoiser import train_state_denoiser
from jaxpgd.training.windows import Windows
from jaxpgd.types import Policy, Trajectory, Transition

# DyDiff's churn: published for sigma in [0.37, 52.2] and sigma_data = 0.5; tokens have unit variance here, so twice that
CHURN = EDMConfig(churn=60.0, churn_min=0.74, churn_max=104.4, churn_noise=1.002)


ITERATIONS = (1, 2, 4, 6)
_MORE = np.array([[-0.4, -0.3]])  # K of a policy that reacts more than the behaviour


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes of the measurement."""

    episodes: int = 4000
    conditions: int = 64  # (start, actions) pairs
    samples: int = 128  # per pair
    denoiser: DenoiserConfig = DenoiserConfig(features=32, steps=10_000, batch_size=64, validate_every=1000)
    sampler: SamplerConfig = SamplerConfig("heun", steps=32, heun=CHURN)
    trained: conditionings.Size = conditionings.Size()  # denoisers with every conditioning


def problems() -> tuple[LinearGaussian, dict[str, Policy]]:
    """Two states, one action within its bounds, 16 steps; one behaviour ignores the state, the other reacts to it."""
    env = make_env([[1.0, 0.2], [0.0, 0.95]], [[0.06], [0.6]], 0.02 * np.eye(2), 0.5 * np.eye(2), horizon=16)
    blind = linear_policy([[0.0, 0.0]], [0.0], 0.25)
    return env, {"blind": blind, "reacting": linear_policy([[-0.17, -0.2]], [0.0], 0.17)}


def windows_of(data: Trajectory, next_obs: Array) -> Windows:
    """Every episode as one window, for training and for validation."""
    count, length = data.reward.shape
    flat = lambda x: x.reshape(count * length, *x.shape[2:])
    transitions = Transition(flat(data.obs), flat(data.action), flat(data.reward), flat(data.discount), flat(next_obs))
    starts = np.arange(0, count * length, length)
    first = jnp.asarray(starts)
    return Windows(transitions, first, first, fit_codec(transitions, starts, length), length)


TRAINED: tuple[tuple[str, tuple[Conditions, ...]], ...] = (("clean", ("clean", "churned")), ("noised", ("noised",)))


class Test(NamedTuple):
    """Episodes, and the moments of their later states given the first state and all actions."""

    data: Trajectory
    mean: np.ndarray  # [N, T - 1, O]
    std: np.ndarray  # [T - 1, O]


def make_test(key: Array, env: LinearGaussian, policy: Policy, count: int) -> Test:
    """Test episodes of a policy."""
    data, _ = collect(key, env, policy, count)
    return Test(data, *exact_moments(env, policy, data))


def exact_moments(env: LinearGaussian, policy: Policy, data: Trajectory) -> tuple[np.ndarray, np.ndarray]:
    """Mean [N, T - 1, O] and standard deviation [T - 1, O] of the later states given the first state and all actions.

    Gaussian conditioning in the joint distribution of trajectories under `policy`. The actions of a blind policy say nothing
    about earlier states; for it, these are the moments of the dynamics.
    """
    found = later_states(env, policy, "actions")
    return found.mean(np.asarray(data.obs[:, 0]), np.asarray(data.action)), found.std


def closed_form(env: LinearGaussian, policies: dict[str, Policy], count: int) -> list[dict[str, Any]]:
    """Errors of the exact mean states given actions and given innovations of the reacting behaviour, by iteration.

    Against the dynamics, for actions of the blind policy, and for the mode of a policy that reacts more than the behaviour,
    which acts again in every iteration. Mean states start as the dynamics say; an anchored denoiser's are those given
    innovations, as its anchor is a function of them.
    """
    behaviour, start = (
        policies["reacting"],
        np.asarray(make_test(jax.random.key(1), env, policies["blind"], count).data.obs[:, 0]),
    )
    blind = np.asarray(make_test(jax.random.key(1), env, policies["blind"], count).data.action, np.float64)
    unit = np.asarray(collect(jax.random.key(0), env, behaviour, 4000)[0].obs, np.float64).std((0, 1))
    acts = {"another policy's actions": lambda s: blind, "a policy that reacts more": lambda s: s @ _MORE.T}
    rows = []
    for name, act in acts.items():
        truth = dynamics_mean(env, start, act)
        for given in ("actions", "innovations"):
            found, states = later_states(env, behaviour, given), truth
            for iteration in range(1, max(ITERATIONS) + 1):
                a = act(states)
                later = found.mean(start, innovations(behaviour, states, a) if given == "innovations" else a)
                states = np.concatenate([states[:, :1], 0.5 * states[:, 1:] + 0.5 * later], axis=1)
                if iteration in ITERATIONS:
                    error = float(np.sqrt(np.mean(((later - truth[:, 1:]) / unit) ** 2)))
                    rows.append({"actions_of": name, "given": given, "iteration": iteration, "error_of_the_mean": error})
    return rows


def dynamics_mean(env: LinearGaussian, start: np.ndarray, act: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """States [N, T, O] without noise from start [N, O]; `act` maps states [N, T, O] to actions [N, T, A] step by step."""
    states, (A, B) = (
        np.repeat(start[:, None].astype(np.float64), env.horizon, 1),
        (np.asarray(x, np.float64) for x in (env.A, env.B)),
    )
    for t in range(env.horizon - 1):
        states[:, t + 1] = states[:, t] @ A.T + act(states)[:, t] @ B.T
    return states


@functools.partial(jax.jit, static_argnames="samples")
def draw(key: Array, synthesizer: DyDiffSynthesizer, start: Array, actions: Array, samples: int) -> Array:
    """States [N, samples, T, O] given start [N, O] and actions [N, T, A]."""
    keys = jax.random.split(key, (start.shape[0], samples))
    one = jax.vmap(synthesizer.sample_states, in_axes=(0, None, None))
    return jax.lax.map(lambda x: one(*x), (keys, start, actions))


def score(key: Array, synthesizer: DyDiffSynthesizer, test: Test, samples: int) -> dict[str, float]:
    """Errors of states sampled given the first state and the actions of every test episode."""
    unit = np.asarray(synthesizer.denoiser.codec.std[synthesizer.denoiser.codec.obs], np.float64)
    states = np.asarray(draw(key, synthesizer, test.data.obs[:, 0], test.data.action, samples), np.float64)[:, :, 1:]
    spread = np.sqrt(states.var(1, ddof=1).mean(0)) / test.std
    return {
        "error_of_the_mean": float(np.sqrt(np.mean(((states.mean(1) - test.mean) / unit) ** 2))),
        "its_floor": float(np.sqrt(np.mean((test.std / unit) ** 2) / samples)),  # of exact samples
        "spread_over_exact": float(spread.mean()),
        "spread_over_exact_last_step": float(spread[-1].mean()),
    }


def run(size: Size = Size()) -> dict[str, Any]:
    """For each behaviour, train one denoiser with clean and one with noised conditions, and sample in all ways that apply."""
    env, policies = problems()
    keys = jax.random.split(jax.random.key(0), 4)
    train = jax.jit(train_state_denoiser, static_argnames=("config", "conditions"))
    tests = {name: make_test(keys[1], env, policy, size.conditions) for name, policy in policies.items()}
    rows = []
    for name, policy in policies.items():
        windows = windows_of(*collect(keys[0], env, policy, size.episodes))
        for trained, kinds in TRAINED:
            began = time.perf_counter()
            denoiser, losses = jax.block_until_ready(train(keys[2], windows, config=size.denoiser, conditions=trained))
            seconds, loss = time.perf_counter() - began, float(losses["validation_loss"][-1])
            for kind in kinds:
                synthesizer = make_dydiff(None, denoiser, DyDiffConfig(conditions=kind), size.sampler)  # type: ignore[arg-type]
                found = {
                    n: score(keys[3], synthesizer, test, size.samples) for n, test in tests.items() if n in (name, "blind")
                }
                row = {
                    "behaviour": name,
                    "conditions": kind,
                    "training_seconds": seconds,
                    "validation_loss": loss,
                    **found[name],
                }
                rows.append(row | {"error_given_other_actions": found["blind"]["error_of_the_mean"]})
    reacting = windows_of(*collect(keys[0], env, policies["reacting"], size.episodes))
    trained_rows = conditionings.measure(keys[3], reacting, size.denoiser, *tests["blind"], size.trained)
    return {"suite": "conditions", **describe_device(), "size": dataclasses.asdict(size), "rows": rows,
            "conditionings": trained_rows, "closed_form": closed_form(env, policies, size.conditions)}  # fmt: skip
