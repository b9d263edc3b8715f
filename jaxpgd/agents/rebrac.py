"""ReBRAC (Tarasov et al., arXiv 2305.09836): TD3+BC with a penalty of its own in the critics' targets, and other networks.

Beside TD3+BC: the targets subtract a cloning penalty as well (beta2, on the dataset's next action), the two penalties have
different weights, critics have layer normalisation, networks are deeper, and the actor climbs the smaller of two critics. The
paper has batches of 1024 (`agent.batch_size`) and observations as they are (`agent.normalise_obs`) on MuJoCo.

The authors' code differs in details: it starts biases at 0.1 and the last layers close to 0, moves the target actor towards
the parameters from before the actor's step, and leaves out an episode's last step where that is a timeout.
"""

import functools
from typing import Any

import chex
import jax.numpy as jnp
from jax import Array

from jaxpgd.agents import common
from jaxpgd.agents.td3_bc import TD3BC, TD3BCState
from jaxpgd.errors import check
from jaxpgd.networks.mlp import Init, Norm
from jaxpgd.options import nonnegative, option, options, positive, share, structure
from jaxpgd.types import Agent, Metrics, PyTree, Transition


@options
class ReBRACConfig:
    """ReBRAC (arXiv 2305.09836) with its settings for MuJoCo, the two penalties those of hopper-medium in CORL."""

    actor_lr: float = positive(1e-3, "learning rate of the actor (ReBRAC on antmaze: 3e-4)", low=1e-12, high=1.0)
    critic_lr: float = positive(1e-3, "learning rate of the critics (ReBRAC on antmaze: 5e-5)", low=1e-12, high=1.0)
    gamma: float = share(0.99, "discount factor (ReBRAC on antmaze: 0.999)")
    polyak: float = share(0.005, "step of the target networks: target <- target + polyak * (online - target)")
    actor_penalty: float = nonnegative(
        0.01, "beta1: weight of the squared distance to the data's action in the actor's loss (published by task: 0.001 to 0.1)"
    )
    critic_penalty: float = nonnegative(
        0.01, "beta2: weight of that to the data's next action in the critics' targets (published by task: 0 to 0.5); 0: none"
    )
    policy_noise: float = nonnegative(
        0.2, "standard deviation of the noise on target actions (target policy smoothing); 0: none", high=1e3
    )
    noise_clip: float = nonnegative(0.5, "largest absolute value of the noise on target actions", high=1e3)
    adam_eps: float = nonnegative(1e-8, "epsilon of Adam (Optax's default: 1e-8)", low=1e-12, high=1.0)
    policy_delay: int = positive(2, "updates from one step of actor and targets to the next; 1: a step in every update")
    critic_norm: Norm = option("layer", common.CRITIC_NORM)
    actor_norm: Norm = option("none", common.ACTOR_NORM)
    init: Init = option("uniform", "initialiser of the weights; lecun_normal is Flax's default")
    policy_std: float = positive(
        0.5,
        "standard deviation of the Gaussian by which guidance replaces the deterministic actor (PGD: 1)",
        low=1e-3,
        high=1e3,
    )
    hidden: tuple[int, ...] = option((256, 256, 256), "widths of the hidden layers of actor and critics")


class _ReBRAC(TD3BC):
    """The structure of one agent. One instance per structure (see `_structure`): its methods then compare equal."""

    def update(self, key: Array, state: TD3BCState, batch: Transition) -> tuple[TD3BCState, Metrics]:
        remedy = "Draw them from dataset.transitions(next_actions=True)."
        known = batch.next_action is not None and batch.has_next_action is not None
        check(known, "batch.next_action", None, "the actions that follow, with has_next_action", remedy)
        chex.assert_equal_shape([batch.action, batch.next_action])
        chex.assert_equal_shape([batch.reward, batch.has_next_action])
        return super().update(key, state, batch)

    def rates(self, h: ReBRACConfig) -> tuple[Array, Array]:
        return h.actor_lr, h.critic_lr  # type: ignore[return-value]

    def weights(self, h: ReBRACConfig) -> tuple[Array | float, Array]:
        """beta1 weighs a sum over the action's entries, the actor's loss their mean."""
        return 1.0, h.actor_penalty * self.action_dim  # type: ignore[return-value]

    def climbed(self, critic: PyTree, obs: Array, action: Array) -> Array:
        """The smaller value [B] of the two critics, as in the authors' code."""
        q: Array = self.critics.apply(critic, obs, action).min(axis=0)
        return q

    def next_value(self, h: ReBRACConfig, q: Array, action: Array, batch: Transition) -> Array:
        """min_i Q'_i(s', a') - beta2 * |a' - a'_data|^2, without the penalty where the data have no next action."""
        assert batch.next_action is not None and batch.has_next_action is not None
        distance = jnp.square(action - batch.next_action).sum(axis=-1)
        return q - h.critic_penalty * jnp.where(batch.has_next_action, distance, 0.0)


@functools.cache
def _structure(action_dim: int, options: ReBRACConfig) -> _ReBRAC:
    return _ReBRAC(action_dim, options)


def rebrac(options: ReBRACConfig = ReBRACConfig(), *, action_dim: int, **changes: Any) -> Agent[TD3BCState]:
    """ReBRAC as an Agent for actions [action_dim], with some options changed by name.

    Its losses, means over the batch [B], those of the critics i summed:
      actor: beta1 * |pi(s) - a|^2 - lambda * min_i Q_i(s, pi(s)) with lambda = 1 / mean |min_i Q_i(s, pi(s))|,
      critics: (Q_i(s, a) - y)^2 with y = r + gamma * discount * (min_i Q'_i(s', a') - beta2 * |a' - a'_data|^2),
    with a' of the target actor and noise as in TD3, and a'_data the next action of the same episode or synthetic trajectory.
    Its last step has none: without a terminal its target bootstraps from Q' without the penalty.

    Its `hypers` are the options, of which real numbers may be traced or vmapped. `update` takes transitions with leading axes
    [1, B] and with `next_action` (`Dataset.transitions(next_actions=True)`), and returns the metrics of TD3+BC: bc_loss is the
    mean over the action's entries, q_mean that of the smaller critic. In every `policy_delay`-th update actor and target
    networks move. The policy is that of TD3+BC's deterministic actor.
    Raises InputError where an option is out of its range, or where `init` or `update` get other shapes.
    """
    options = common.configure(options, action_dim, changes)
    s = _structure(action_dim, structure(options))
    return Agent("rebrac", s.init, s.update, s.policy, hypers=options, batches=s.batches, next_actions=True, value_fn=s.value)
