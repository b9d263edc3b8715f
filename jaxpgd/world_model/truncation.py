"""Rollouts cut where the members of the ensemble disagree more than they do on the data (NEUBAY, arXiv 2512.04341)."""

import chex
import jax.numpy as jnp
from jax import Array

from jaxpgd.types import Metrics, Trajectory


def disagreement(mean: Array, std: Array) -> Array:
    """Root mean square over the entries of the members' standard deviation around their mean: [...], of means [K, ..., O].

    `std` [O], of the data's observations, are its units. That is the uncertainty which NEUBAY's code truncates by (there of
    next observation and reward together). 0 for one member.
    """
    chex.assert_equal(mean.shape[-1:], std.shape)
    found: Array = jnp.sqrt(jnp.square(mean.std(0) / std).mean(-1))
    return found


def threshold(disagreements: Array, quantile: Array | float) -> Array:
    """The disagreement [] above which a rollout is cut: a `quantile` [] of those on data, [H] ascending; 0: none, infinity.

    Quantiles lie on straight lines between neighbours, as NumPy's do.
    """
    chex.assert_rank(disagreements, 1)
    last = disagreements.shape[0] - 1
    at = jnp.interp(jnp.asarray(quantile) * last, jnp.arange(last + 1), disagreements)
    return jnp.where(jnp.asarray(quantile) > 0, at, jnp.inf)


def cut(trajectory: Trajectory, disagreements: Array, limit: Array) -> Trajectory:
    """A rollout [T] that ends before its first step whose disagreement, of [T], is above `limit` [].

    That step and those after it are not valid, have no reward, and end no episode: the rollout is truncated, not terminal, and
    values are bootstrapped from the observation that its last valid step leads to. NEUBAY's code keeps the transition whose
    uncertainty is too large and cuts after it.
    """
    chex.assert_equal_shape([trajectory.reward, disagreements])
    kept = jnp.cumprod(disagreements <= limit, axis=-1, dtype=jnp.int32) > 0
    return trajectory.replace(  # type: ignore[attr-defined, no-any-return]
        reward=jnp.where(kept, trajectory.reward, 0.0),
        discount=jnp.where(kept, trajectory.discount, 1.0),
        mask=trajectory.mask & kept,
    )


def truncation(trajectory: Trajectory) -> Metrics:
    """The share [] of rollouts [N, T] that were cut (`truncated`), and their mean number of valid steps [] (`length`)."""
    ended = (trajectory.discount == 0).any(-1)
    return {
        "truncated": (~trajectory.mask.all(-1) & ~ended).mean(dtype=jnp.float32),
        "length": trajectory.mask.sum(-1, dtype=jnp.int32).mean(dtype=jnp.float32),
    }
