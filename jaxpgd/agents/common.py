"""What the agents share: optimiser step, target networks, Gaussian log-density, checks of inputs."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxpgd.errors import check
from jaxpgd.types import PyTree, Transition


def as_arrays(hypers: PyTree) -> PyTree:
    """Float32 copies: a state then keeps its types through a scan, and donating it takes nobody else's buffer."""
    return jax.tree.map(lambda x: jnp.array(x, jnp.float32), hypers)


def copy(params: PyTree) -> PyTree:
    """A copy in buffers of its own: donating a state fails where two of its leaves share one."""
    return jax.tree.map(jnp.copy, params)


def adam_init(params: PyTree) -> Any:
    """Adam's state for `params`."""
    return optax.scale_by_adam().init(params)


def adam_step(grads: PyTree, state: Any, params: PyTree, lr: Array | float, eps: Array | float) -> tuple[PyTree, Any]:
    """One Adam step with traced learning rate and epsilon (b1 0.9, b2 0.999). Returns (params, optimiser state)."""
    updates, state = optax.scale_by_adam(eps=eps).update(grads, state)  # type: ignore[arg-type]
    return jax.tree.map(lambda p, u: p - lr * u, params, updates), state


def cosine_decay(updates: Array, over: Array | float) -> Array:
    """Factor [] of a learning rate: 0.5 (1 + cos(pi t)) with t the share of `over` updates done, 0 from there; over 0: 1."""
    done = jnp.clip(updates / jnp.maximum(over, 1.0), 0.0, 1.0)
    return jnp.where(over > 0, 0.5 * (1.0 + jnp.cos(jnp.pi * done)), 1.0)


def norm(grads: PyTree) -> Array:
    """Global norm [] of gradients, which is not finite where one of them is not."""
    return optax.global_norm(grads)


def clip_by_norm(grads: PyTree, limit: Array | float) -> PyTree:
    """Gradients scaled down to global norm `limit` where they exceed it; 0: as they are."""
    norm = optax.global_norm(grads)
    scale = jnp.where((limit > 0) & (norm > limit), limit / jnp.maximum(norm, 1e-12), 1.0)
    return jax.tree.map(lambda g: scale * g, grads)


def polyak(target: PyTree, online: PyTree, rate: Array | float) -> PyTree:
    """target + rate * (online - target), leaf by leaf."""
    return jax.tree.map(lambda t, o: t + rate * (o - t), target, online)


def gaussian_log_prob(x: Array, mean: Array, variance: Array) -> Array:
    """Log-density [...] of x [..., A] under independent normals; variance broadcasts to [..., A]."""
    terms = jnp.square(x - mean) / variance + jnp.log(2 * jnp.pi * variance)
    return -0.5 * jnp.sum(jnp.broadcast_to(terms, x.shape), axis=-1)


def check_example(example: Transition, action_dim: int) -> None:
    """Raise InputError unless `example` is one transition (no batch axis) with actions [action_dim]."""
    shape = jnp.shape(example.action)
    check(shape == (action_dim,), "example.action shape", shape, f"({action_dim},)", "Pass one transition without batch axes.")
    shape = jnp.shape(example.obs)
    check(len(shape) == 1, "example.obs shape", shape, "(O,)", "Pass one transition without batch axes.")


def check_batch(batch: Transition, batches: int) -> None:
    """Raise InputError unless `batch` has leading axes [batches, B]. Shapes only, so it costs nothing at run time."""
    shape = jnp.shape(batch.reward)
    ok = len(shape) == 2 and shape[0] == batches and batch.obs.ndim == 3 and batch.action.ndim == 3
    check(ok, "batch.reward shape", shape, f"({batches}, B)", "Draw agent.batches * B transitions and reshape them.")
