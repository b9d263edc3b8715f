"""Behaviour cloning: a deterministic actor by least squares on the dataset's actions, hence their conditional mean."""

import functools

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.agents import common
from jaxpgd.agents.deterministic import Deterministic
from jaxpgd.errors import check
from jaxpgd.options import nonnegative, option, options, positive
from jaxpgd.types import Agent, Metrics, Policy, PyTree, Transition


@options
class BCConfig:
    """Behaviour cloning with a deterministic actor; settings as those of TD3+BC."""

    lr: float = positive(3e-4, "learning rate of Adam", low=1e-12, high=1.0)
    adam_eps: float = nonnegative(1e-8, "epsilon of Adam (PyTorch's default: 1e-8)", low=1e-12, high=1.0)
    policy_std: float = positive(
        0.5,
        "standard deviation of the Gaussian by which guidance replaces the deterministic actor (PGD: 1)",
        low=1e-3,
        high=1e3,
    )
    hidden: tuple[int, ...] = option((256, 256), "widths of the actor's hidden layers")


@struct.dataclass
class BCHypers:
    """Numeric settings; any of them may be traced. The actor's are those of TD3+BC, whose cloning term this is."""

    lr: Array | float = 3e-4
    adam_eps: Array | float = 1e-8
    policy_std: Array | float = 0.5  # std of the Gaussian that `Policy.log_prob` puts around the action


@struct.dataclass
class BCState:
    """Parameters, optimiser state and hyperparameters."""

    actor: PyTree
    actor_opt: PyTree
    hypers: BCHypers


class _BC(Deterministic):
    """The structure of one agent. One instance per structure (see `_structure`): its methods then compare equal."""

    def init(self, key: Array, hypers: BCHypers, example: Transition) -> BCState:
        common.check_example(example, self.action_dim)
        actor = self.actor.init(key, example.obs)
        return BCState(actor, common.adam_init(actor), common.as_arrays(hypers))

    def update(self, key: Array, state: BCState, batch: Transition) -> tuple[BCState, Metrics]:
        common.check_batch(batch, 1)
        h, batch = state.hypers, jax.tree.map(lambda x: x[0], batch)
        loss, grads = jax.value_and_grad(self.actor_loss)(state.actor, batch)
        actor, actor_opt = common.adam_step(grads, state.actor_opt, state.actor, h.lr, h.adam_eps)
        return BCState(actor, actor_opt, h), {"actor_loss": loss, "actor_gradient_norm": common.norm(grads)}

    def actor_loss(self, params: PyTree, batch: Transition) -> Array:
        """|pi(s) - a|^2, averaged over the batch [B] and the action's entries."""
        return jnp.square(self.actor.apply(params, batch.obs) - batch.action).mean()

    def policy(self, state: BCState) -> Policy:
        return self.make_policy(state.actor, state.hypers.policy_std)


@functools.cache
def _structure(action_dim: int, hidden: tuple[int, ...]) -> _BC:
    return _BC(action_dim, hidden)


def bc(*, action_dim: int, hidden: tuple[int, ...] = (256, 256)) -> Agent[BCState]:
    """Behaviour cloning as an Agent for actions [action_dim]; its `hypers` are BCHypers.

    `update` takes transitions with leading axes [1, B], uses their observations and actions only, needs no key, and returns the
    metrics actor_loss and actor_gradient_norm, both []. The policy is deterministic: `sample` ignores its key; `log_prob`
    is that of a Gaussian of standard deviation `policy_std` (variance policy_std^2 + variance) around its action.
    Raises InputError where sizes are not positive, or where `init` or `update` get other shapes.
    """
    check(action_dim > 0, "action_dim", action_dim, "a number above 0")
    s = _structure(action_dim, tuple(hidden))
    return Agent("bc", s.init, s.update, s.policy, hypers=BCHypers(), batches=1)
