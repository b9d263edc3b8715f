"""Denoised trajectories moved towards the dynamics: a one-step model corrects what a trajectory denoiser gets wrong.

At a noise level sigma the denoised trajectory x0 is replaced by one step of Gauss-Newton towards the minimiser over states of

    |s - s0|^2 / v + sum_t |(s_{t+1} - f(s_t, a_t)) / tau_t|^2,    v = sigma^2 / (1 + sigma^2),

in units of normalised tokens: f is the mean prediction of a one-step model, tau_t its standard error, v the variance that the
noise leaves to an entry of unit variance. Actions, rewards and terminals stay as they are. With r the residuals over tau and J
their Jacobian at s0 the step u solves (I + v J^T J) u = -v J^T r, by conjugate gradients without forming a matrix. The denoiser
is not differentiated.

What is sampled is a product of experts, p(x) * prod_t N(s_{t+1}; f(s_t, a_t), tau_t^2): exactly where clean tokens given the
noised ones have the covariance v I and f is linear, approximately otherwise. Where the dynamics are linear and deterministic
and f is exact, samples of an exact denoiser stay exact: its estimates obey the dynamics, and all residuals are zero. Process
noise of variance q counts twice: 1 / (1 / q + 1 / tau^2) of it remains.
"""

from typing import Protocol

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.guidance.base import Estimate, Guided
from jaxpgd.guidance.moment import conjugate_gradients
from jaxpgd.tokens import TokenCodec
from jaxpgd.types import Denoise


class OneStepModel(Protocol):
    """Predicts the next observation: `next_states(obs [O], action [A]) -> (means [K, O], standard deviations [K, O])`."""

    def next_states(self, obs: Array, action: Array) -> tuple[Array, Array]: ...


@struct.dataclass
class Consistency:
    """The correction by a one-step model, for the tokens of a codec.

    `error` [O]: root mean square error of the model's mean prediction on held-out data, in units of normalised tokens; `floor`:
    the least that tau is. The models' disagreement about a step adds to it, so that steps that they do not know are corrected
    less. Above `sigma_max` nothing is corrected or computed. `iterations` of conjugate gradients.
    """

    model: OneStepModel
    codec: TokenCodec
    error: Array  # [O]
    floor: Array | float = 0.02
    sigma_max: Array | float = 1.0
    iterations: int = struct.field(pytree_node=False, default=8)

    def predict(self, obs: Array, action: Array) -> tuple[Array, Array]:
        """The next normalised observation [O] after normalised obs [O] and action [A], and the K models' disagreement [O]."""
        mean, std = self.codec.mean[self.codec.obs], self.codec.std[self.codec.obs]
        means, _ = self.model.next_states(obs * std + mean, action)
        means = (means - mean) / std
        return means.mean(0), means.std(0)

    def standard_error(self, disagreement: Array) -> Array:
        """tau [..., O] of steps about which the models disagree by [..., O]."""
        return jnp.sqrt(jnp.square(jnp.maximum(self.error, self.floor)) + jnp.square(disagreement))

    def valid(self, x0: Array) -> Array:
        """1 for steps [T] of x0 [T, D] before the first terminal, else 0. Tokens without a terminal flag have none."""
        done = self.codec.done
        if self.codec.token_dim <= done:
            return jnp.ones(x0.shape[0], x0.dtype)
        return jnp.cumprod((x0[:, done] * self.codec.std[done] + self.codec.mean[done] <= 0.5).astype(x0.dtype))

    def correct(self, x0: Array, sigma: Array) -> Array:
        """Corrected tokens [T, D] of denoised tokens x0 [T, D] at noise level sigma []. Raises ValueError for T below 2."""
        if x0.shape[0] < 2:
            raise ValueError(f"trajectories of {x0.shape[0]} step: the dynamics need 2 at least")
        codec = self.codec
        states, action = x0[:, codec.obs], codec.action_of(codec.pre_tanh(x0))
        v = jnp.square(sigma) / (1.0 + jnp.square(sigma))
        _, disagreement = jax.vmap(self.predict)(states[:-1], action[:-1])
        weight = self.valid(x0)[:-1, None] / self.standard_error(disagreement)

        def residuals(states: Array) -> Array:
            predicted, _ = jax.vmap(self.predict)(states[:-1], action[:-1])
            return weight * (states[1:] - predicted)

        r, forward = jax.linearize(residuals, states)
        backward = jax.linear_transpose(forward, states)
        normal = lambda u: u + v * backward(forward(u))[0]
        b = -v * backward(r)[0]
        u, *_ = conjugate_gradients(lambda p: (normal(p), p), b, b, self.iterations)
        return x0.at[:, codec.obs].add(u)

    def __call__(self, x0: Array, sigma: Array) -> Array:
        """`correct` where sigma is at most `sigma_max`, x0 itself above; no gradient passes the correction."""
        hold = jax.lax.stop_gradient
        change: Array = jax.lax.cond(
            sigma <= self.sigma_max,
            lambda x: self.correct(x, sigma) - x,
            jnp.zeros_like,
            hold(x0),
        )
        return x0 + jax.lax.stop_gradient(change)


@struct.dataclass
class ConsistentDenoise:
    """A Denoise whose estimates obey the dynamics better: of any denoiser, guided or not."""

    denoise: Denoise
    consistency: Consistency

    def __call__(self, x: Array, sigma: Array) -> Array:
        """Estimate of the clean sample: x [T, D], sigma [] -> [T, D]."""
        return self.consistency(self.denoise(x, sigma), sigma)


@struct.dataclass
class ConsistentGuided:
    """The same of a guided denoiser that `smc` proposes with."""

    guided: Guided
    consistency: Consistency

    def estimate(self, x: Array, sigma: Array) -> Estimate:
        """As `Guided.estimate`, both points corrected; the twist is that of the point before."""
        estimate = self.guided.estimate(x, sigma)
        x0, x0_guided = self.consistency(estimate.x0, sigma), self.consistency(estimate.x0_guided, sigma)
        return Estimate(x0, x0_guided, estimate.log_twist)

    def __call__(self, x: Array, sigma: Array) -> Array:
        """Corrected guided estimate: x [T, D], sigma [] -> [T, D]."""
        return self.consistency(self.guided(x, sigma), sigma)

    def log_target(self, x0: Array) -> Array:
        """As `Guided.log_target`."""
        return self.guided.log_target(x0)
