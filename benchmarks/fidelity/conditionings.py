"""State denoisers trained with every conditioning, and asked about another policy's actions: part of the suite `conditions`.

Linear dynamics, and a behaviour that reacts to states. Denoisers share network, steps and windows; the anchored one has an
ensemble of its own data. Actions drawn independently of states are given, and DyDiff iterates as it does for a policy: from the
rollout of the mean of its elites.
"""

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpgd.diffusion.solvers import SamplerConfig
from jaxpgd.synthesis.dydiff import DyDiffConfig, DyDiffSynthesizer, make_dydiff
from jaxpgd.training.behaviour import train_behaviour
from jaxpgd.training.denoiser import DenoiserConfig
from jaxpgd.training.innovation_windows import innovation_windows
from jaxpgd.training.state_denoiser import train_state_denoiser
from jaxpgd.training.windows import Windows
from jaxpgd.training.world_model import train_world_model
from jaxpgd.types import Policy, Trajectory
from jaxpgd.world_model.behaviour import BehaviourConfig
from jaxpgd.world_model.data import prepare_transitions
from jaxpgd.world_model.model import WorldModel, WorldModelConfig
from jaxpgd.world_model.termination import make_rule

ITERATIONS = (1, 2, 4)


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes of the measurement; the denoiser's are those of the suite."""

    samples: int = 32  # per (start, actions) pair
    world_model: WorldModelConfig = WorldModelConfig(
        members=4, elites=3, hidden=(64, 64), reward_hidden=(32,), epochs=20, steps_per_epoch=250
    )
    behaviour: BehaviourConfig = BehaviourConfig(hidden=(64, 64), epochs=20, steps_per_epoch=250)
    sampler: SamplerConfig = SamplerConfig("dpmpp_3m", steps=12, sigma_min=0.01, sigma_max=20.0)


def first_states(model: WorldModel, start: Array, a: Array) -> Array:
    """States [T, O] of the ensemble's mean from start [O] under actions a [T, A]."""

    def step(s: Array, a: Array) -> tuple[Array, Array]:
        return model.next_states(s, a)[0].mean(0), s

    states: Array = jax.lax.scan(step, start, a)[1]
    return states


PLAYED = Policy((), lambda params, action, obs: action, lambda params, obs: obs)  # takes an action where others take a key


@functools.partial(jax.jit, static_argnames=("samples", "iterations"))
def chains(key: Array, synthesizer: DyDiffSynthesizer, start: Array, a: Array, samples: int, iterations: int) -> Array:
    """States [N, samples, iterations, T, O] sampled in each iteration, before mixing, from start [N, O] under a [N, T, A]."""
    given, mix = synthesizer.denoiser.entries, synthesizer.mix

    def one(key: Array, start: Array, a: Array) -> Array:
        def step(carry: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], Array]:
            condition, new, _ = given.follow(PLAYED, a, *carry)
            sampled = synthesizer.sample_given(key, start, condition)
            return (mix * given.moved(*carry, new) + (1.0 - mix) * sampled, new), sampled

        begun = synthesizer.begin(key, a, PLAYED, start)
        states: Array = jax.lax.scan(step, begun, jax.random.split(key, iterations))[1]
        return states

    keys = jax.random.split(key, (start.shape[0], samples))
    return jax.lax.map(lambda x: jax.vmap(one, in_axes=(0, None, None))(*x), (keys, start, a))


def measure(
    key: Array,
    windows: Windows,
    config: DenoiserConfig,
    data: Trajectory,
    mean: np.ndarray,
    std: np.ndarray,
    size: Size = Size(),
) -> list[dict[str, Any]]:
    """Rows by conditioning and iteration: error of the mean states, in standard deviations of the data.

    `data` has the starts and actions that are asked about, `mean` [N, T - 1, O] and `std` [T - 1, O] the moments of the states
    that the dynamics give them.
    """
    keys = jax.random.split(key, 4)
    prepared = prepare_transitions(jax.tree.map(np.asarray, windows.transitions), size.world_model)
    world, _ = jax.jit(train_world_model, static_argnames=("config", "terminates"))(
        keys[0], prepared, config=size.world_model, terminates=make_rule("never")
    )
    behaviour, _ = jax.jit(train_behaviour, static_argnames="config")(keys[1], prepared, config=size.behaviour)
    kinds = {
        "published": windows,
        "innovations": innovation_windows(windows, behaviour),
        "anchored": innovation_windows(windows, behaviour, world),
    }
    unit = np.asarray(windows.unit.std[windows.unit.obs], np.float64)
    error = lambda states: float(np.sqrt(np.mean(((np.asarray(states, np.float64)[:, 1:] - mean) / unit) ** 2)))
    start, a = jnp.asarray(data.obs[:, 0]), jnp.asarray(data.action)
    ensemble = jax.jit(jax.vmap(first_states, in_axes=(None, 0, 0)))(world, start, a)
    rows: list[dict[str, Any]] = [{"conditioning": "none: the ensemble", "iteration": 0, "error_of_the_mean": error(ensemble)}]
    floor = float(np.sqrt(np.mean((std / unit) ** 2) / size.samples))  # of exact samples in one iteration, without mixing
    for kind, chosen in kinds.items():
        began = time.perf_counter()
        trained, losses = jax.block_until_ready(
            jax.jit(train_state_denoiser, static_argnames="config")(keys[2], chosen, config=config)
        )
        seconds = time.perf_counter() - began
        synthesizer = make_dydiff(world, trained, DyDiffConfig(conditioning=kind, elite="mean"), size.sampler)  # type: ignore[arg-type]
        states = np.asarray(chains(keys[3], synthesizer, start, a, size.samples, max(ITERATIONS)), np.float64)
        shared = {"conditioning": kind, "training_seconds": seconds, "validation_loss": float(losses["validation_loss"][-1])}
        rows += [
            shared | {"iteration": i, "error_of_the_mean": error(states[:, :, i - 1].mean(1)), "its_floor": floor}
            for i in ITERATIONS
        ]
    return rows
