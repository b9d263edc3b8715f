"""The policy of agents with a deterministic actor: behaviour cloning and TD3+BC."""

from typing import Any

import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.agents import common
from jaxpgd.networks.actor_critic import TanhActor
from jaxpgd.networks.mlp import Init, Norm
from jaxpgd.types import Policy, PyTree


@struct.dataclass
class DeterministicParams:
    """Leaves of a deterministic policy."""

    actor: PyTree
    std: Array | float  # [] of the Gaussian that stands for the deterministic actor


class Deterministic:
    """An actor and its policy. Instances are cached per structure, so that the policy's methods compare equal."""

    def __init__(self, action_dim: int, hidden: tuple[int, ...], init: Init = "uniform", norm: Norm = "none") -> None:
        self.action_dim = action_dim
        self.actor: Any = TanhActor(action_dim, hidden, init, norm)  # Any: flax types `apply` as more than the modules return

    def make_policy(self, actor: PyTree, std: Array | float) -> Policy:
        """The policy of actor parameters; `log_prob` is that of a Gaussian of standard deviation `std` around its action."""
        return Policy(DeterministicParams(actor, std), self.sample, self.mode, self.log_prob)

    def act(self, key: Array, actor: PyTree, obs: Array) -> Array:
        """Actions [..., A] at obs [..., O]; the key is not used."""
        return self.mode(DeterministicParams(actor, 0.0), obs)

    def sample(self, params: DeterministicParams, key: Array, obs: Array) -> Array:
        """As `Policy.sample_fn`: the same action [A] as `mode`, whatever the key."""
        return self.mode(params, obs)

    def mode(self, params: DeterministicParams, obs: Array) -> Array:
        """As `Policy.mode_fn`: the actor's action [A] at obs [O]."""
        action: Array = self.actor.apply(params.actor, obs)
        return action

    def log_prob(self, params: DeterministicParams, obs: Array, action: Array, variance: Array | float) -> Array:
        """As `Policy.log_prob_fn`: log-density [] of action [A], Gaussian of variance std^2 + `variance` around `mode`."""
        return common.gaussian_log_prob(action, self.mode(params, obs), jnp.square(params.std) + variance)
