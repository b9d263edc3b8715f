"""Trajectories from a one-step world model: the policy rolled out step by step (PETS- and MOPO-style), one Synthesizer."""

import dataclasses

import chex
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.errors import check
from jaxpgd.options import as_arrays
from jaxpgd.synthesis.sampling import map_starts, summary
from jaxpgd.types import Policy, Synthesis, Synthesizer
from jaxpgd.world_model.acting import acting
from jaxpgd.world_model.model import WorldModel
from jaxpgd.world_model.rollouts import RolloutConfig, rollout
from jaxpgd.world_model.truncation import threshold, truncation


@struct.dataclass
class WorldModelSynthesizer(Synthesizer):
    """Rolls the policy out in `model` from the start observations it is given.

    Where rollouts are cut (`limit`), info also has what is left of them: `truncated` and `length` (`truncation`).
    """

    model: WorldModel
    config: RolloutConfig
    batch_size: int = struct.field(pytree_node=False)
    limit: Array | None = None  # [] disagreement above which a rollout is cut; None: never

    @property
    def may_be_empty(self) -> bool:
        """A rollout may be cut before its first step."""
        return self.limit is not None

    def __call__(self, key: Array, policy: Policy, start: Array) -> Synthesis:
        """start [N, O] -> N trajectories that begin there, weights zero."""
        chex.assert_rank(start, 2)
        policy = acting(policy, self.config.actions)
        one = lambda key, obs: rollout(key, self.model, policy, obs, self.config, limit=self.limit)
        trajectory = map_starts(one, key, start, self.batch_size)
        info = summary(trajectory) | ({} if self.limit is None else truncation(trajectory))
        return Synthesis(trajectory=trajectory, log_weight=jnp.zeros(start.shape[0], jnp.float32), info=info)


def make_world_model_synthesizer(
    model: WorldModel, config: RolloutConfig | None = None, *, length: int = 32, batch_size: int = 4096
) -> WorldModelSynthesizer:
    """Synthesizer of a trained world model; `length` steps per trajectory unless the config sets its own.

    `config.truncate` may be traced; as the number 0 it adds nothing to the program. Raises InputError where rollouts are to be
    cut and the model does not tell how its members disagree on data.
    """
    config = config or RolloutConfig()
    config = dataclasses.replace(config, length=config.length or length)
    limit = None
    if not isinstance(config.truncate, int | float) or config.truncate > 0:
        known = model.disagreements
        check(known is not None, "synthesis.world_model.truncate", config.truncate,
              "0 with a world model that has no `disagreements`", "One of `train_world_model` has them.")  # fmt: skip
        assert known is not None
        limit = threshold(known, config.truncate)
    return WorldModelSynthesizer(model, as_arrays(config), batch_size, limit)
