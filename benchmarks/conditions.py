"""How a state denoiser should see its conditions: clean, clean with the sampler's churn noise on them, or noised (in-painting).

On linear dynamics the distribution of the states given the first state and all actions is known: errors are those of the
samples' mean and spread against it, in standard deviations of the data. The same network and training for all.
"""

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks.timing import describe_device
from jaxpgd.diffusion.constraints import Conditions
from jaxpgd.envs.linear_gaussian import LinearGaussian, collect, linear_policy, make_env
from jaxpgd.packing import fit_codec
from jaxpgd.settings import DenoiserConfig, DyDiffConfig, SamplerConfig
from jaxpgd.synthesis.dydiff import DyDiffSynthesizer, StateDenoiser, make_dydiff
from jaxpgd.training.denoiser import Windows, train_state_denoiser
from jaxpgd.types import Policy, Trajectory, Transition


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes of the measurement."""

    episodes: int = 4000
    conditions: int = 64  # (start, actions) pairs
    samples: int = 128  # per pair
    denoiser: DenoiserConfig = DenoiserConfig(features=32, steps=4000, batch_size=64, validate_every=1000)
    sampler: SamplerConfig = SamplerConfig(steps=32, churn=60.0, churn_min=0.37, churn_max=52.2, churn_noise=1.002)


def problem() -> tuple[LinearGaussian, Policy]:
    """Two states, one action that stays within its bounds, 16 steps."""
    env = make_env([[1.0, 0.2], [0.0, 0.95]], [[0.06], [0.6]], 0.02 * np.eye(2), 0.5 * np.eye(2), horizon=16)
    return env, linear_policy([[-0.17, -0.2]], [0.0], 0.17)


def windows_of(made: Trajectory, next_obs: Array) -> Windows:
    """Every episode as one training window; the same ones validate."""
    count, length = made.reward.shape
    flat = lambda x: x.reshape(count * length, *x.shape[2:])
    data = Transition(flat(made.obs), flat(made.action), flat(made.reward), flat(made.discount), flat(next_obs))
    starts = np.arange(0, count * length, length)
    return Windows(data, jnp.asarray(starts), jnp.asarray(starts), fit_codec(data, starts, length), length)


def exact_moments(env: LinearGaussian, start: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [N, T, O] and standard deviation [T, O] of the states given start [N, O] and actions [N, T, A]."""
    a, b, q = (np.asarray(x, np.float64) for x in (env.A, env.B, env.Q))
    mean, cov, means, covs = start.astype(np.float64), np.zeros_like(q), [], []
    for t in range(actions.shape[1]):
        means.append(mean)
        covs.append(np.diag(cov))
        mean, cov = mean @ a.T + actions[:, t] @ b.T, a @ cov @ a.T + q
    return np.stack(means, axis=1), np.sqrt(np.stack(covs))


@functools.partial(jax.jit, static_argnames="samples")
def draw(key: Array, synthesizer: DyDiffSynthesizer, start: Array, actions: Array, samples: int) -> Array:
    """States [N, samples, T, O] given start [N, O] and actions [N, T, A]."""
    keys = jax.random.split(key, (start.shape[0], samples))
    one = jax.vmap(synthesizer.sample_states, in_axes=(0, None, None))
    return jax.lax.map(lambda x: one(*x), (keys, start, actions))


def score(key: Array, denoiser: StateDenoiser, env: LinearGaussian, test: Trajectory, size: Size, kind: Conditions) -> dict:
    """Errors of sampled states, over all steps but the first."""
    synthesizer = make_dydiff(None, denoiser, DyDiffConfig(conditions=kind), size.sampler)  # type: ignore[arg-type]
    states = np.asarray(draw(key, synthesizer, test.obs[:, 0], test.action, size.samples), np.float64)
    mean, std = exact_moments(env, np.asarray(test.obs[:, 0]), np.asarray(test.action))
    unit = np.asarray(denoiser.codec.std[denoiser.codec.obs], np.float64)
    error = (states.mean(1) - mean)[:, 1:] / unit
    floor = np.sqrt(np.mean((std[1:] / unit) ** 2) / size.samples)  # of exact samples
    spread = np.sqrt(states.var(1, ddof=1).mean(0))[1:] / std[1:]
    return {
        "error_of_the_mean": float(np.sqrt(np.mean(error**2))),
        "its_floor": float(floor),
        "spread_over_exact": float(spread.mean()),
        "spread_over_exact_last_step": float(spread[-1].mean()),
    }


def run(size: Size = Size()) -> dict[str, Any]:
    """Train one denoiser with clean and one with noised conditions; sample each way that fits."""
    env, policy = problem()
    keys = jax.random.split(jax.random.key(0), 5)
    windows = windows_of(*collect(keys[0], env, policy, size.episodes))
    test, _ = collect(keys[1], env, policy, size.conditions)
    train = jax.jit(train_state_denoiser, static_argnames=("config", "conditions"))
    rows: dict[str, Any] = {}
    for trained, kinds in (("clean", ("clean", "churned")), ("noised", ("noised",))):
        began = time.perf_counter()
        denoiser, losses = jax.block_until_ready(train(keys[2], windows, config=size.denoiser, conditions=trained))
        seconds = time.perf_counter() - began
        for kind in kinds:
            found = score(keys[3], denoiser, env, test, size, kind)  # type: ignore[arg-type]
            rows[kind] = {"trained_on": trained, "training_seconds": seconds, **found}
            rows[kind]["validation_loss"] = float(losses["validation_loss"][-1])
    return {"suite": "conditions", **describe_device(), "size": dataclasses.asdict(size), "rows": rows}
