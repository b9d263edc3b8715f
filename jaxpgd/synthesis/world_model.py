"""Trajectories from a one-step world model: the policy rolled out step by step (PETS- and MOPO-style), one Synthesizer."""

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.dynamics.world_model import Imagination, WorldModel
from jaxpgd.settings import WorldModelConfig
from jaxpgd.types import Metrics, Policy, Synthesis, Trajectory


@struct.dataclass
class WorldModelSynthesizer:
    """Rolls the policy out in `model` from the start observations it is given."""

    model: WorldModel
    imagination: Imagination
    batch_size: int = struct.field(pytree_node=False)

    def __call__(self, key: Array, policy: Policy, start: Array) -> Synthesis:
        """start [N, O] -> N trajectories that begin there, weights zero."""
        count = start.shape[0]
        trajectory = jax.lax.map(
            lambda inputs: self.imagination.rollout(inputs[0], self.model, policy, inputs[1]),
            (jax.random.split(key, count), start),
            batch_size=min(self.batch_size, count),
        )
        return Synthesis(trajectory=trajectory, log_weight=jnp.zeros(count), info=summary(trajectory))


def summary(trajectory: Trajectory) -> Metrics:
    """What every synthesizer reports of its trajectories [N, T]: shares of terminals and of saturated actions."""
    return {
        "terminal_rate": (trajectory.discount == 0).any(-1).mean(),
        "saturated_actions": (jnp.abs(trajectory.action) > 0.999).mean(),
    }


def make_imagination(config: WorldModelConfig, length: int) -> Imagination:
    """Rollouts of `length` steps as a config section says."""
    return Imagination(
        penalty=jnp.asarray(config.penalty), elite=config.elite, sampled=config.sampled, length=config.length or length
    )


def make_world_model_synthesizer(
    model: WorldModel, config: WorldModelConfig | None = None, *, length: int = 32, batch_size: int = 4096
) -> WorldModelSynthesizer:
    """Synthesizer of a trained world model; `length` steps per trajectory unless the section sets its own."""
    return WorldModelSynthesizer(model, make_imagination(config or WorldModelConfig(), length), batch_size)
