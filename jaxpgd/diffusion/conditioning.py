"""Sampling with some entries of the sample known: conditions that the network sees clean, and in-painting (hooks)."""

from typing import Literal, Protocol

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd import draws
from jaxpgd.types import Denoise, Hook, Stage

Conditions = Literal["clean", "churned", "noised"]


@struct.dataclass
class Condition:
    """Known entries of a sample: `value` counts where `known` is true."""

    value: Array  # [T, D]
    known: Array  # [T, D] bool

    def impose(self, x: Array) -> Array:
        """x [T, D] with its known entries set."""
        return jnp.where(self.known, self.value, x)


class ConditionalDenoise(Protocol):
    """A Denoise trained with clean conditions: `given(condition)` shows it their values."""

    def __call__(self, x: Array, sigma: Array) -> Array: ...

    def given(self, x: Array, sigma: Array, condition: Condition) -> Array:
        """x [T, D], sigma [] -> [T, D], known entries returned as they are."""
        ...


@struct.dataclass
class CleanConditions:
    """A Denoise whose network sees the known entries without noise, whatever x holds there."""

    denoise: ConditionalDenoise
    condition: Condition

    def __call__(self, x: Array, sigma: Array) -> Array:
        """Estimate of the clean sample; known entries are returned exactly."""
        return self.denoise.given(x, sigma, self.condition)


@struct.dataclass
class ConditionsInSample:
    """A Denoise whose network takes the known entries from x itself, churn noise included, as DyDiff's published sampler."""

    denoise: ConditionalDenoise
    condition: Condition

    def __call__(self, x: Array, sigma: Array) -> Array:
        """Estimate of the clean sample; known entries are returned exactly."""
        seen = self.denoise.given(x, sigma, Condition(x, self.condition.known))
        return self.condition.impose(seen)


@struct.dataclass
class Clamp:
    """A hook that sets the known entries: as they are, or with the noise of the sampler's level (in-painting)."""

    condition: Condition
    noised: bool = struct.field(pytree_node=False, default=False)

    def __call__(self, x: Array, stage: Stage) -> Array:
        """Clamped sample [T, D]."""
        value = self.condition.value
        if self.noised:
            value = value + stage.sigma * draws.normal(stage.key, value.shape, value.dtype)
        return Condition(value, self.condition.known).impose(x)


def attach(kind: Conditions, denoise: Denoise, condition: Condition) -> tuple[Denoise, Hook]:
    """The Denoise to sample with, and the hook for `before_step` and `after_stage`.

    "clean": the network sees exact conditions at every evaluation, as it was trained (its `given`). "churned": the same network
    sees them with the sampler's churn noise. "noised": a network of the joint distribution, in-painted: at each stage the known
    entries get noise of the present level, exact at the end.
    """
    if kind == "clean":
        return CleanConditions(denoise, condition), Clamp(condition)  # type: ignore[arg-type]
    if kind == "churned":
        return ConditionsInSample(denoise, condition), Clamp(condition)  # type: ignore[arg-type]
    return denoise, Clamp(condition, noised=True)


@struct.dataclass
class Chain:
    """Hooks applied one after the other."""

    hooks: tuple[Hook, ...]

    def __call__(self, x: Array, stage: Stage) -> Array:
        """x [T, D] after all hooks; each gets a key of its own."""
        for key, hook in zip(jax.random.split(stage.key, len(self.hooks)), self.hooks, strict=True):
            x = hook(x, stage.replace(key=key))  # type: ignore[attr-defined]
        return x
