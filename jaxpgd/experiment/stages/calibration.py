"""`guidance.max_dynamics_error`: the largest coefficient at which guided trajectories still follow the real dynamics."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpgd.dataset import state_entries
from jaxpgd.errors import check
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.run.directory import RunDirectory
from jaxpgd.experiment.stages.parts import Prepared
from jaxpgd.experiment.sweep import read_sweep, with_setting
from jaxpgd.metrics.dynamics_error import dynamics_error
from jaxpgd.simulators.resimulation import has_simulator, make_simulator
from jaxpgd.synthesis.diffusion import DiffusionSynthesizer, synthesize
from jaxpgd.types import Policy, Trajectory

COEFFICIENT = "guidance_coefficient"  # in metrics.jsonl
TRAJECTORIES = 128  # of each coefficient looked at, over all seeds
_SPAN = 256.0  # between the largest coefficient and what counts as none
_LOOKS = 4  # after the first: halvings of the span's logarithm, to a factor of 1.41


def check_calibration(config: Config, prepared: Prepared) -> None:
    """Raise InputError where a run asks for a bound on the dynamics error and the environment has no simulator."""
    bound, info = config.guidance.max_dynamics_error, prepared.dataset.info
    if bound > 0 and "guided" in config.arms:
        expected = f"0 for {info.env_id!r}, which no simulator replays"
        check(has_simulator(info), "guidance.max_dynamics_error", bound, expected, "Use guidance.target_ess instead.")
        make_simulator(info)  # raises where it cannot be made for this data


def settled(run: RunDirectory, agent: int = 0) -> Config:
    """The config of one agent of the guided arm (in order, the seeds of a setting together): as run, but for what a sweep set.

    With the coefficient that the arm was last given where the dynamics error chose it.
    """
    settings = read_sweep(run.config).settings
    if run.config.guidance.max_dynamics_error == 0:
        return with_setting(run.config, settings[min(agent // run.config.seeds, len(settings) - 1)])
    chosen = _logged(run, COEFFICIENT)
    return _at(run.config, chosen[-1]) if chosen else run.config


def scored(run: RunDirectory) -> Config:
    """As `settled`, and with one number where the effective size chose coefficients: the mean over seeds of the last ones.

    A coefficient of 0 is that of an unguided generation or of a lost seed, and does not count.
    """
    if run.config.guidance.target_ess == 0:
        return settled(run)
    chosen = [[c for c in seeds if c > 0] for seeds in _logged(run, "synthetic_coefficient")]
    guided = [seeds for seeds in chosen if seeds]
    config = _at(settled(run), float(np.mean(guided[-1]))) if guided else settled(run)
    return dataclasses.replace(config, guidance=dataclasses.replace(config.guidance, target_ess=0.0))


def _logged(run: RunDirectory, name: str) -> list[Any]:
    return [row[name] for row in run.log.read() if row["stage"] == "agent-guided" and name in row]


def _at(config: Config, coefficient: float) -> Config:
    return dataclasses.replace(config, guidance=dataclasses.replace(config.guidance, coefficient=coefficient))


def largest_within(error: Callable[[float], float], most: float, bound: float) -> float:
    """The largest coefficient found, up to `most`, whose error is at most `bound`, where errors grow with it; 0: none."""
    if error(most) <= bound:
        return most
    good, low, high = 0.0, math.log(most / _SPAN), math.log(most)
    for _ in range(_LOOKS):
        middle = 0.5 * (low + high)
        if error(math.exp(middle)) <= bound:
            good, low = math.exp(middle), middle
        else:
            high = middle
    return good


def calibrate(
    key: Array,
    synthesizer: DiffusionSynthesizer,
    policies: Policy,
    prepared: Prepared,
    most: float,
    times: float,
    count: int = TRAJECTORIES,
) -> tuple[float, dict[str, float]]:
    """The largest coefficient up to `most` whose dynamics error is within `times` that of unguided trajectories.

    `policies` have a leading axis of seeds; those that are still numbers are looked at together, by at least `count`
    trajectories, and as many of each as make a population where guidance is weighted. Returns the coefficient, and it with
    the two errors for the log. The noise is the same at every coefficient.
    """
    windows, info = prepared.windows, prepared.dataset.info
    simulator, entries = make_simulator(info), state_entries(info)
    scale = np.asarray(windows.unit.std[windows.unit.obs])
    measure = lambda made: float(dynamics_error(_flat(made), simulator.step, scale, entries)["rms"])
    policies = _healthy(policies)
    seeds = jax.tree.leaves(policies)[0].shape[0]
    keys, count = jax.random.split(key, seeds), -(-count // seeds)
    if synthesizer.guidance is not None and synthesizer.weighted:
        count = max(count, synthesizer.guidance.particles)
    plain = measure(_samples(keys, synthesizer.unguided(), policies, count))
    errors: dict[float, float] = {0.0: plain}

    def error(coefficient: float) -> float:
        guided = synthesizer.with_coefficient(jnp.asarray(coefficient, jnp.float32))
        errors[coefficient] = measure(_samples(keys, guided, policies, count))
        return errors[coefficient]

    found = largest_within(error, most, times * plain)
    return found, {COEFFICIENT: found, "unguided_dynamics_error": plain, "guided_dynamics_error": errors[found]}


def _healthy(policies: Policy) -> Policy:
    """The policies [S'] whose numbers are finite; all [S] where none is."""
    finite = [np.isfinite(np.asarray(x, np.float64)).reshape(len(x), -1).all(-1) for x in jax.tree.leaves(policies)]
    kept = np.logical_and.reduce(finite)
    return jax.tree.map(lambda x: x[kept], policies) if kept.any() and not kept.all() else policies


@jax.jit(static_argnames="count")
def _samples(keys: Array, synthesizer: DiffusionSynthesizer, policies: Policy, count: int) -> Trajectory:
    """Trajectories [S, N, T] for policies [S]."""
    return jax.vmap(lambda key, policy: synthesize(key, synthesizer, policy, count=count))(keys, policies)


def _flat(made: Trajectory) -> Trajectory:
    return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), made)
