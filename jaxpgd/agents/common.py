"""What the agents share: their options, optimiser step, target networks, Gaussian log-density, checks of inputs."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxpgd.errors import check
from jaxpgd.options import Options, check_ranges, numeric, structure
from jaxpgd.types import PyTree, Transition, Value

# help of the settings `critic_norm` and `actor_norm` of several agents
CRITIC_NORM = "layer normalisation after each hidden layer of the critics, behind its activation (ReBRAC: layer)"
ACTOR_NORM = "layer normalisation after each hidden layer of the actor, behind its activation (ReBRAC: none)"


def configure(options: Options, action_dim: int, changes: dict[str, Any]) -> Options:
    """The options of an agent with some of them changed by name; lists become tuples.

    Raises InputError where an option or the size of actions is out of its range, TypeError for an unknown name.
    """
    check(action_dim > 0, "action_dim", action_dim, "a number above 0")
    lists = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)} | changes  # type: ignore[arg-type]
    tuples = {name: tuple(value) for name, value in lists.items() if isinstance(value, list)}
    options = dataclasses.replace(options, **changes | tuples)  # type: ignore[type-var]
    check_ranges(options)
    return options


def numbers(hypers: Options, own: Options) -> Options:
    """`hypers` as float32 copies: a state keeps its types through a scan, and donating it takes nobody else's buffer.

    `own` is the structure of the agent that they are for. Raises InputError where theirs is another.
    """
    remedy = "Use replace_hypers(agent.hypers, name=value)."
    check(
        type(hypers) is type(own), "hypers", type(hypers).__name__, f"{type(own).__name__}, as the agent was made with", remedy
    )
    given = structure(hypers)
    for field in dataclasses.fields(own):  # type: ignore[arg-type]
        value, expected = getattr(given, field.name), getattr(own, field.name)
        check(value == expected, f"hypers.{field.name}", value, f"{expected!r}, as the agent was made with", remedy)
    copied: Options = copies(hypers)
    return copied


def copies(tree: PyTree) -> Any:
    """Float32 copies of the leaves of a tree."""
    return jax.tree.map(lambda x: jnp.array(x, jnp.float32), tree)


def replace_options(options: Options, changes: dict[str, Any]) -> Options:
    """Options with some real numbers replaced by name; they may be traced. Raises InputError for an unknown name.

    Of a dataclass that is not one of options, any field can be replaced.
    """
    names = numeric(type(options)) or [f.name for f in dataclasses.fields(options)]  # type: ignore[arg-type]
    for name in changes:
        check(name in names, "hyperparameter", name, "one of " + ", ".join(names))
    return dataclasses.replace(options, **changes)  # type: ignore[type-var]


def copy(params: PyTree) -> PyTree:
    """A copy in buffers of its own: donating a state fails where two of its leaves share one."""
    return jax.tree.map(jnp.copy, params)


def adam_init(params: PyTree) -> Any:
    """Adam's state for `params`."""
    return optax.scale_by_adam().init(params)


@jax.named_scope("adam")
def adam_step(grads: PyTree, state: Any, params: PyTree, lr: Array | float, eps: Array | float) -> tuple[PyTree, Any]:
    """One Adam step with traced learning rate and epsilon (b1 0.9, b2 0.999). Returns (params, optimiser state).

    Not `optax.inject_hyperparams`: the rate and epsilon are in `hypers` already, once for all networks of a state.
    """
    updates, state = optax.scale_by_adam(eps=eps).update(grads, state)
    return jax.tree.map(lambda p, u: p - lr * u, params, updates), state


def cosine_decay(updates: Array, over: Array | float) -> Array:
    """Factor [] of a learning rate: 0.5 (1 + cos(pi t)) with t the share of `over` updates done, 0 from there; over 0: 1.

    Not `optax.cosine_decay_schedule`, whose number of steps cannot be traced.
    """
    done = jnp.clip(updates / jnp.maximum(over, 1.0), 0.0, 1.0)
    return jnp.where(over > 0, 0.5 * (1.0 + jnp.cos(jnp.pi * done)), 1.0)


@jax.named_scope("gradient_norm")
def norm(grads: PyTree) -> Array:
    """Global norm [] of gradients, which is not finite where one of them is not."""
    found: Array = optax.global_norm(grads)
    return found


def clip_by_norm(grads: PyTree, limit: Array | float) -> PyTree:
    """Gradients scaled down to global norm `limit` where they exceed it; 0: as they are.

    Not `optax.clip_by_global_norm`, for which a limit of 0 is no gradient at all.
    """
    norm = optax.global_norm(grads)
    scale = jnp.where((limit > 0) & (norm > limit), limit / jnp.maximum(norm, 1e-12), 1.0)
    return jax.tree.map(lambda g: scale * g, grads)


@jax.named_scope("target_networks")
def polyak(target: PyTree, online: PyTree, rate: Array | float) -> PyTree:
    """target + rate * (online - target), leaf by leaf.

    `optax.incremental_update` rounds otherwise: a target that equals its network would drift from it.
    """
    return jax.tree.map(lambda t, o: t + rate * (o - t), target, online)


def gaussian_log_prob(x: Array, mean: Array, variance: Array) -> Array:
    """Log-density [...] of x [..., A] under independent normals; mean and variance broadcast to [..., A]."""
    terms = jnp.square(x - mean) / variance + jnp.log(2 * jnp.pi * variance)
    return -0.5 * jnp.sum(jnp.broadcast_to(terms, x.shape), axis=-1)


def squared_error(q: Array, y: Array) -> Array:
    """(Q - y)^2 of Q [..., critics, B] and targets y [..., B]: averaged over the batch, summed over the critics."""
    chex.assert_equal_shape_suffix([q, y], 1)
    chex.assert_rank(q, {y.ndim + 1})
    return jnp.square(q - y).mean(axis=-1).sum()


def check_example(example: Transition, action_dim: int) -> None:
    """Raise InputError unless `example` is one transition (no batch axis) with actions [action_dim]."""
    shape = jnp.shape(example.action)
    check(shape == (action_dim,), "example.action shape", shape, f"({action_dim},)", "Pass one transition without batch axes.")
    shape = jnp.shape(example.obs)
    check(len(shape) == 1, "example.obs shape", shape, "(O,)", "Pass one transition without batch axes.")


def check_batch(batch: Transition, batches: int, action_dim: int) -> None:
    """Raise InputError unless `batch` has leading axes [batches, B], AssertionError where its parts do not fit each other.

    Shapes only, so it costs nothing at run time.
    """
    shape = jnp.shape(batch.reward)
    ok = len(shape) == 2 and shape[0] == batches and batch.obs.ndim == 3 and batch.action.ndim == 3
    check(ok, "batch.reward shape", shape, f"({batches}, B)", "Draw agent.batches * B transitions and reshape them.")
    chex.assert_shape(batch.action, (*shape, action_dim))
    chex.assert_shape(batch.discount, shape)
    chex.assert_equal_shape([batch.obs, batch.next_obs])
    chex.assert_equal_shape_prefix([batch.obs, batch.reward], 2)


class TwinCritics:
    """The value function of agents with two critics in one ensemble, and with target critics in their state."""

    critics: Any

    def value(self, state: Any) -> Value:
        """Q(s, a), the smaller one of the target critics: what the targets of the critics bootstrap from."""
        return Value(state.target_critic, state.hypers.gamma, self.smaller)

    def smaller(self, params: PyTree, obs: Array, action: Array) -> Array:
        """The smaller value [...] of the critics at obs [..., O] and action [..., A]."""
        q: Array = self.critics.apply(params, obs, action).min(axis=0)
        return q
