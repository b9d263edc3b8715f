"""Agents that standardise their observations: raw ones outside, standardised ones inside.

The statistics are data: they pass from `agent.hypers` into the state and the policy, and may be traced or vmapped.
"""

import dataclasses
import functools
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from jaxpgd.agents import common
from jaxpgd.errors import check
from jaxpgd.types import Agent, Metrics, Policy, PyTree, Transition, Value

Inner = TypeVar("Inner")
_STD_FLOOR = 1e-3  # added to the standard deviation, as TD3+BC (section 5); constant entries stay finite


@struct.dataclass
class ObservationStats:
    """Mean and standard deviation of every observation entry."""

    mean: Array  # [O]
    std: Array  # [O]

    def apply(self, obs: Array) -> Array:
        """Raw to standardised observations, [..., O]."""
        return (obs - self.mean) / (self.std + _STD_FLOOR)


@struct.dataclass
class Normalised(Generic[Inner]):
    """Something of the wrapped agent (its options, its state or its policy) with the statistics that belong to it."""

    inner: Inner
    stats: ObservationStats


def _sample(params: Normalised[Policy], key: Array, obs: Array) -> Array:
    return params.inner.sample(key, params.stats.apply(obs))


def _mode(params: Normalised[Policy], obs: Array) -> Array:
    return params.inner.mode(params.stats.apply(obs))


def _log_prob(params: Normalised[Policy], obs: Array, action: Array, variance: Array | float) -> Array:
    return params.inner.log_prob(params.stats.apply(obs), action, variance)


def _score(params: Normalised[Policy], obs: Array, action: Array, variance: Array | float) -> Array:
    return params.inner.score(params.stats.apply(obs), action, variance)


def _value(params: Normalised[Value], obs: Array, action: Array) -> Array:
    return params.inner(params.stats.apply(obs), action)


class _Normalised:
    """The functions of a wrapped agent. One instance per agent structure: its methods then compare equal."""

    def __init__(self, init_fn: Any, update_fn: Any, policy_fn: Any, value_fn: Any) -> None:
        self.inner_init, self.inner_update, self.inner_policy, self.inner_value = init_fn, update_fn, policy_fn, value_fn

    def init(self, key: Array, hypers: Normalised[Any], example: Transition) -> Normalised[Any]:
        check(isinstance(hypers, Normalised), "hypers", type(hypers).__name__, "Normalised",
              "Use replace_hypers(agent.hypers, name=value).")  # fmt: skip
        stats, expected = hypers.stats, jnp.shape(example.obs)
        check(jnp.shape(stats.mean) == expected, "obs_mean shape", jnp.shape(stats.mean), f"{expected}, the observation's")
        stats = common.copies(stats)
        return Normalised(self.inner_init(key, hypers.inner, _standardise(stats, example)), stats)

    def update(self, key: Array, state: Normalised[Any], batch: Transition) -> tuple[Normalised[Any], Metrics]:
        inner, metrics = self.inner_update(key, state.inner, _standardise(state.stats, batch))
        return Normalised(inner, state.stats), metrics

    def policy(self, state: Normalised[Any]) -> Policy:
        inner = self.inner_policy(state.inner)
        log_prob_fn = None if inner.log_prob_fn is None else _log_prob
        score_fn = None if inner.score_fn is None else _score
        return Policy(Normalised(inner, state.stats), _sample, _mode, log_prob_fn, score_fn)

    def value(self, state: Normalised[Any]) -> Value:
        inner = self.inner_value(state.inner)
        return Value(Normalised(inner, state.stats), inner.gamma, _value)


def _standardise(stats: ObservationStats, batch: Transition) -> Transition:
    return dataclasses.replace(batch, obs=stats.apply(batch.obs), next_obs=stats.apply(batch.next_obs))


@functools.cache
def _structure(init_fn: Any, update_fn: Any, policy_fn: Any, value_fn: Any) -> _Normalised:
    return _Normalised(init_fn, update_fn, policy_fn, value_fn)


def normalise_observations(agent: Agent[Any], mean: Array, std: Array) -> Agent[Normalised[Any]]:
    """`agent` with observations standardised inside: its `init`, `update` and policies take raw observations.

    mean [O] and std [O] become leaves of `hypers` and of every state; standardised is (obs - mean) / (std + 1e-3).
    Raises InputError where they differ in shape, are not finite, or std is negative (not checked while traced).
    """
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    check(mean.ndim == 1, "obs_mean shape", mean.shape, "one axis, [O]")
    check(mean.shape == std.shape, "obs_std shape", std.shape, f"{mean.shape}, as obs_mean")
    for name, x in (("obs_mean", mean), ("obs_std", std)):
        if not isinstance(x, jax.core.Tracer):
            check(bool(np.isfinite(x).all()), name, np.asarray(x), "finite numbers", "Check the dataset for NaN.")
    if not isinstance(std, jax.core.Tracer):
        check(bool((np.asarray(std) >= 0).all()), "obs_std", np.asarray(std), "numbers not below 0")
    s = _structure(agent.init_fn, agent.update_fn, agent.policy_fn, agent.value_fn)
    hypers = Normalised(agent.hypers, ObservationStats(mean, std))
    value_fn = None if agent.value_fn is None else s.value
    return Agent(agent.name, s.init, s.update, s.policy, hypers=hypers, batches=agent.batches,
                 next_actions=agent.next_actions, value_fn=value_fn)  # fmt: skip


def replace_hypers(hypers: PyTree, **changes: Any) -> PyTree:
    """An agent's options with some real numbers replaced by name, whether or not the agent is wrapped.

    Values may be traced: `jax.vmap(lambda a: agent.init(key, example, replace_hypers(agent.hypers, alpha=a)))(alphas)`.
    Raises InputError for an unknown name.
    """
    if isinstance(hypers, Normalised):
        return Normalised(replace_hypers(hypers.inner, **changes), hypers.stats)
    return common.replace_options(hypers, changes)
