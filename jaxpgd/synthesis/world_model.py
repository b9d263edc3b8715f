"""Trajectories from a one-step world model: the policy rolled out step by step (PETS- and MOPO-style), one Synthesizer."""

import dataclasses

import chex
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.options import as_arrays
from jaxpgd.synthesis.sampling import map_starts, summary
from jaxpgd.types import Policy, Synthesis, Synthesizer
from jaxpgd.world_model.acting import acting
from jaxpgd.world_model.model import WorldModel
from jaxpgd.world_model.rollouts import RolloutConfig, rollout


@struct.dataclass
class WorldModelSynthesizer(Synthesizer):
    """Rolls the policy out in `model` from the start observations it is given."""

    model: WorldModel
    config: RolloutConfig
    batch_size: int = struct.field(pytree_node=False)

    def __call__(self, key: Array, policy: Policy, start: Array) -> Synthesis:
        """start [N, O] -> N trajectories that begin there, weights zero."""
        chex.assert_rank(start, 2)
        policy = acting(policy, self.config.actions)
        one = lambda key, obs: rollout(key, self.model, policy, obs, self.config)
        trajectory = map_starts(one, key, start, self.batch_size)
        return Synthesis(trajectory=trajectory, log_weight=jnp.zeros(start.shape[0], jnp.float32), info=summary(trajectory))


def make_world_model_synthesizer(
    model: WorldModel, config: RolloutConfig | None = None, *, length: int = 32, batch_size: int = 4096
) -> WorldModelSynthesizer:
    """Synthesizer of a trained world model; `length` steps per trajectory unless the config sets its own."""
    config = config or RolloutConfig()
    config = dataclasses.replace(config, length=config.length or length)
    return WorldModelSynthesizer(model, as_arrays(config), batch_size)
