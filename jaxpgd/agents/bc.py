"""Behaviour cloning: a deterministic actor by least squares on the dataset's actions, hence their conditional mean."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.agents import common
from jaxpgd.agents.deterministic import Deterministic
from jaxpgd.options import nonnegative, option, options, positive, structure
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
class BCState:
    """Parameters, optimiser state and hyperparameters."""

    actor: PyTree
    actor_opt: PyTree
    hypers: BCConfig  # real numbers as arrays []


class _BC(Deterministic):
    """The structure of one agent. One instance per structure (see `_structure`): its methods then compare equal."""

    def __init__(self, action_dim: int, options: BCConfig) -> None:
        super().__init__(action_dim, options.hidden)
        self.options = options

    def init(self, key: Array, hypers: BCConfig, example: Transition) -> BCState:
        common.check_example(example, self.action_dim)
        actor = self.actor.init(key, example.obs)
        return BCState(actor, common.adam_init(actor), common.numbers(hypers, self.options))

    def update(self, key: Array, state: BCState, batch: Transition) -> tuple[BCState, Metrics]:
        common.check_batch(batch, 1, self.action_dim)
        h, batch = state.hypers, jax.tree.map(lambda x: x[0], batch)
        loss, grads = jax.value_and_grad(self.actor_loss)(state.actor, batch)
        actor, actor_opt = common.adam_step(grads, state.actor_opt, state.actor, h.lr, h.adam_eps)
        return BCState(actor, actor_opt, h), {"actor_loss": loss, "actor_gradient_norm": common.norm(grads)}

    def actor_loss(self, params: PyTree, batch: Transition) -> Array:
        """(pi(s) - a)^2, averaged over the batch [B] and the action's entries: the last term of equation 4 of TD3+BC."""
        pi = self.actor.apply(params, batch.obs)
        chex.assert_equal_shape([pi, batch.action])
        return jnp.square(pi - batch.action).mean()

    def policy(self, state: BCState) -> Policy:
        return self.make_policy(state.actor, state.hypers.policy_std)


@functools.cache
def _structure(action_dim: int, options: BCConfig) -> _BC:
    return _BC(action_dim, options)


def bc(options: BCConfig = BCConfig(), *, action_dim: int, **changes: Any) -> Agent[BCState]:
    """Behaviour cloning as an Agent for actions [action_dim], with some options changed by name.

    Its `hypers` are the options, of which real numbers may be traced or vmapped. `update` takes transitions with leading axes
    [1, B], uses their observations and actions only, needs no key, and returns the metrics actor_loss and actor_gradient_norm,
    both []. The policy is deterministic: `sample` ignores its key; `log_prob` is that of a Gaussian of standard deviation
    `policy_std` (variance policy_std^2 + variance) around its action.
    Raises InputError where an option is out of its range, or where `init` or `update` get other shapes.
    """
    options = common.configure(options, action_dim, changes)
    s = _structure(action_dim, structure(options))
    return Agent("bc", s.init, s.update, s.policy, hypers=options, batches=1)
