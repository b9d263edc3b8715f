"""How a policy acts in the rollouts of a model: by sampling its actions, or by its mode."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from jax import Array

from jaxpgd.types import Policy

Actions = Literal["sampled", "mode"]


@dataclasses.dataclass(frozen=True)
class ModeOnly:
    """The sampling function of a policy that always takes its mode; equal, and without a new trace, for equal `mode_fn`."""

    mode_fn: Callable[[Any, Array], Array]

    def __call__(self, params: Any, key: Array, obs: Array) -> Array:
        """As `Policy.sample_fn`."""
        return self.mode_fn(params, obs)


def greedy(policy: Policy) -> Policy:
    """The same policy, whose samples are its mode."""
    return dataclasses.replace(policy, sample_fn=ModeOnly(policy.mode_fn))


def acting(policy: Policy, actions: Actions) -> Policy:
    """The policy that rollouts use: itself, or `greedy` for actions "mode"."""
    return greedy(policy) if actions == "mode" else policy
