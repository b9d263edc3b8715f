"""`guidance.max_dynamics_error`: the largest coefficient at which guided trajectories still follow the real dynamics."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpgd.dataset import state_entries
from jaxpgd.errors import check
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.stages.prepare import Prepared
from jaxpgd.guidance.smc import SMCGuidance
from jaxpgd.guidance.strength import largest_within
from jaxpgd.metrics.dynamics_error import dynamics_error
from jaxpgd.simulators.resimulation import has_simulator, make_simulator
from jaxpgd.synthesis.diffusion import DiffusionSynthesizer, synthesize
from jaxpgd.types import Policy, Trajectory

TRAJECTORIES = 128  # of each coefficient that is tried, over all seeds


def check_coefficient_choice(config: Config, prepared: Prepared) -> None:
    """Raise InputError where a run asks for a bound on the dynamics error and the environment has no simulator."""
    bound, info = config.guidance.max_dynamics_error, prepared.dataset.info
    if bound > 0 and "guided" in config.arms:
        expected = f"0 for {info.env_id!r}, which no simulator replays"
        check(has_simulator(info), "guidance.max_dynamics_error", bound, expected, "Use guidance.target_ess instead.")
        make_simulator(info)  # raises where it cannot be made for this data


def choose_coefficient(
    key: Array,
    synthesizer: DiffusionSynthesizer,
    policies: Policy,
    prepared: Prepared,
    most: float,
    times: float,
    count: int = TRAJECTORIES,
) -> tuple[float, dict[str, float]]:
    """The largest coefficient up to `most` whose dynamics error is within `times` that of unguided trajectories.

    `policies` have a leading axis of seeds. Those that are finite are measured together, by at least `count` trajectories, and
    by as many of each as make a population where guidance is weighted. Returns the coefficient, and the two errors for the log,
    which has the coefficient as `synthetic_coefficient`. The noise is the same at every coefficient.
    """
    windows, info = prepared.windows, prepared.dataset.info
    simulator, entries = make_simulator(info), state_entries(info)
    scale = np.asarray(windows.unit.std[windows.unit.obs])
    measure = lambda synthetic: float(dynamics_error(_flat(synthetic), simulator.step, scale, entries)["rms"])
    policies = _finite_policies(policies)
    seeds = jax.tree.leaves(policies)[0].shape[0]
    keys, count = jax.random.split(key, seeds), -(-count // seeds)
    if isinstance(synthesizer.guidance, SMCGuidance):
        count = max(count, synthesizer.guidance.options.particles)
    plain = measure(_samples(keys, synthesizer.unguided(), policies, count))
    errors: dict[float, float] = {0.0: plain}

    def error(coefficient: float) -> float:
        guided = synthesizer.with_coefficient(jnp.asarray(coefficient, jnp.float32))
        errors[coefficient] = measure(_samples(keys, guided, policies, count))
        return errors[coefficient]

    found = largest_within(error, most, times * plain)
    return found, {"unguided_dynamics_error": plain, "guided_dynamics_error": errors[found]}


def _finite_policies(policies: Policy) -> Policy:
    """The policies [S'] whose numbers are finite; all [S] where none is."""
    finite = [np.isfinite(np.asarray(x, np.float64)).reshape(len(x), -1).all(-1) for x in jax.tree.leaves(policies)]
    kept = np.logical_and.reduce(finite)
    return jax.tree.map(lambda x: x[kept], policies) if kept.any() and not kept.all() else policies


@jax.jit(static_argnames="count")
def _samples(keys: Array, synthesizer: DiffusionSynthesizer, policies: Policy, count: int) -> Trajectory:
    """Trajectories [S, N, T] for policies [S]."""
    return jax.vmap(lambda key, policy: synthesize(key, synthesizer, policy, count=count))(keys, policies)


def _flat(synthetic: Trajectory) -> Trajectory:
    return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), synthetic)
