"""How a policy acts in the rollouts of a model: by draws, or by its mode."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from jax import Array

from jaxpgd.types import Policy

Actions = Literal["sampled", "mode"]


@dataclasses.dataclass(frozen=True)
class ModeOnly:
    """The sampling function of a policy that always takes its mode."""

    mode_fn: Callable[[Any, Array], Array]

    def __call__(self, params: Any, key: Array, obs: Array) -> Array:
        """As `Policy.sample_fn`."""
        return self.mode_fn(params, obs)


def greedy(policy: Policy) -> Policy:
    """The same policy, acting by its mode."""
    return dataclasses.replace(policy, sample_fn=ModeOnly(policy.mode_fn))


def acting(policy: Policy, actions: Actions) -> Policy:
    """The policy as rollouts take it."""
    return greedy(policy) if actions == "mode" else policy
