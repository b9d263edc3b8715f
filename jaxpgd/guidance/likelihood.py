"""log q of tokens: the likelihood of a trajectory's actions under the policy that guidance follows (PGD section 4)."""

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.tokens import TokenCodec
from jaxpgd.types import Policy

LEAST_CURVATURE = 1e-3  # of log pi in the action, below which it counts as flat


def log_likelihood(
    policy: Policy, obs: Array, action: Array, variance: Array | float = 0.0, valid: Array | None = None
) -> Array:
    """log q = sum over t of log pi(a_t | s_t) [] for obs [T, O], action [T, A] and a variance of actions [T, A] or [].

    Only `valid` steps [T] are in the sum (None: all). Of a policy with a score of its own the gradient is that score, in the
    action alone; its value is 0 without a log_prob.
    """
    chex.assert_rank([obs, action], 2)
    chex.assert_equal_shape_prefix([obs, action], 1)
    variance = jnp.broadcast_to(variance, action.shape)
    total = lambda values: values.sum() if valid is None else jnp.where(valid, values, 0.0).sum()
    if policy.score_fn is None:
        return total(jax.vmap(policy.log_prob)(obs, action, variance))
    hold = jax.lax.stop_gradient
    value = (
        total(jax.vmap(policy.log_prob)(obs, action, variance))
        if policy.log_prob_fn is not None
        else jnp.zeros((), jnp.float32)
    )
    score = hold(jax.vmap(policy.score)(obs, action, variance))
    score = score if valid is None else jnp.where(valid[:, None], score, 0.0)
    return hold(value) + (score * (action - hold(action))).sum()


@struct.dataclass
class Likelihood:
    """q^lambda of tokens, for a policy and a coefficient lambda: what guidance tilts the data's distribution by."""

    policy: Policy
    codec: TokenCodec
    coefficient: Array | float  # lambda
    hold_states: bool = struct.field(pytree_node=False, default=False)  # no gradient through the policy's observation
    uncertain_states: bool = struct.field(pytree_node=False, default=False)  # whether unknown states widen q
    valid: Array | None = None  # [T] steps whose actions are in log q; None: all

    def steps(self, x0: Array) -> tuple[Array, Array]:
        """Observations [T, O], without a gradient where states are held, and actions [T, A] of tokens x0 [T, D]."""
        chex.assert_rank(x0, 2)
        obs = self.codec.observation(x0)
        action = self.codec.action_of(self.codec.pre_tanh(x0))
        return jax.lax.stop_gradient(obs) if self.hold_states else obs, action

    def blurred(self, x0: Array, sigma: Array) -> Array:
        """log q [] at the denoised point x0 [T, D], widened by what sigma leaves unknown of x0.

        The variance of an entry of x0 given x is taken as sigma^2 / (1 + sigma^2) in units of the normalised tokens. The slope
        of tanh takes it to the action; with `uncertain_states`, that of the states is added by the slope of the policy's mean.
        q^lambda of a Gaussian policy is a Gaussian of its variance over lambda, hence the factor. Without `uncertain_states`
        it is left out below 1: unknown states widen q as well, and a larger variance of the actions makes up for part of that.
        """
        obs, action = self.steps(x0)
        slope = 1.0 - jnp.square(action) if self.codec.squashed else jnp.ones_like(action)
        unknown = sigma**2 / (1.0 + sigma**2)
        variance = jnp.square(slope * self.codec.std[self.codec.action])
        factor = jnp.maximum(self.coefficient, 1.0)
        if self.uncertain_states:
            variance += jax.vmap(self.state_variance)(obs, action)
            factor = jnp.asarray(self.coefficient, jnp.float32)
        return log_likelihood(self.policy, obs, action, jax.lax.stop_gradient(factor * unknown * variance), self.valid)

    def state_variance(self, obs: Array, action: Array) -> Array:
        """Variance [A] that the policy's mean has where normalised states have unit variance: by its slope in obs [O].

        The slope of a Gaussian's mean is the score's slope in the state over its curvature in the action. Where log pi is flat
        or convex in an action that says nothing of a mean: 0. An action within [-1, 1] has variance 1 at most.
        """
        score = self.policy.score
        curvature = -jnp.diagonal(jax.jacfwd(lambda a: score(obs, a))(action))
        concave = curvature > LEAST_CURVATURE
        slope = jax.jacrev(lambda o: score(o, action))(obs) / jnp.where(concave, curvature, 1.0)[:, None]
        variance = jnp.where(concave, jnp.square(slope * self.codec.std[self.codec.obs]).sum(axis=-1), 0.0)
        return jnp.minimum(variance, 1.0) if self.codec.squashed else variance

    def exact(self, x0: Array) -> Array:
        """lambda * log q [] of clean tokens x0 [T, D]."""
        return self.coefficient * log_likelihood(self.policy, *self.steps(x0), valid=self.valid)
