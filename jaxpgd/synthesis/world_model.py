"""Trajectories from a one-step world model: the policy rolled out step by step (PETS- and MOPO-style), one Synthesizer."""

from typing import Literal

import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.options import nonnegative, option, options
from jaxpgd.synthesis.acting import Actions, acting
from jaxpgd.synthesis.sampling import map_starts, summary
from jaxpgd.types import Policy, Synthesis
from jaxpgd.world_model.model import Imagination, WorldModel


@options
class WorldModelConfig:
    """Rollouts in the world model, as an arm of their own."""

    length: int = nonnegative(0, "steps per trajectory; 0: as other synthesizers")
    sampled: bool = option(True, "draw next states from the ensemble's Gaussian instead of its mean")
    elite: Literal["step", "trajectory"] = option("step", "a member drawn at every step, or once per trajectory")
    actions: Literal["sampled", "mode"] = option("sampled", "of the policy")
    penalty: float = nonnegative(0.0, "MOPO: reward minus this times the largest predicted standard deviation")


@struct.dataclass
class WorldModelSynthesizer:
    """Rolls the policy out in `model` from the start observations it is given."""

    model: WorldModel
    imagination: Imagination
    batch_size: int = struct.field(pytree_node=False)
    actions: Actions = struct.field(pytree_node=False, default="sampled")

    def __call__(self, key: Array, policy: Policy, start: Array) -> Synthesis:
        """start [N, O] -> N trajectories that begin there, weights zero."""
        policy = acting(policy, self.actions)
        trajectory = map_starts(
            lambda key, obs: self.imagination.rollout(key, self.model, policy, obs), key, start, self.batch_size
        )
        return Synthesis(trajectory=trajectory, log_weight=jnp.zeros(start.shape[0], jnp.float32), info=summary(trajectory))


def make_imagination(config: WorldModelConfig, length: int) -> Imagination:
    """Rollouts of `length` steps as a config section says."""
    return Imagination(
        penalty=jnp.asarray(config.penalty, jnp.float32),
        elite=config.elite,
        sampled=config.sampled,
        length=config.length or length,
    )


def make_world_model_synthesizer(
    model: WorldModel, config: WorldModelConfig | None = None, *, length: int = 32, batch_size: int = 4096
) -> WorldModelSynthesizer:
    """Synthesizer of a trained world model; `length` steps per trajectory unless the section sets its own."""
    config = config or WorldModelConfig()
    return WorldModelSynthesizer(model, make_imagination(config, length), batch_size, config.actions)
