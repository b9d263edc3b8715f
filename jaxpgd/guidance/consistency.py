"""Dynamics-consistent denoising: a one-step world model corrects what a trajectory denoiser gets wrong of the dynamics.

At a noise level sigma the denoised trajectory x0 is replaced by one step of Gauss-Newton towards the minimiser over states of

    |s - s0|^2 / v + sum_t |(s_{t+1} - f(s_t, a_t)) / tau_t|^2,    v = sigma^2 / (1 + sigma^2) + epsilon^2,

in units of normalised tokens: f is the mean prediction of a one-step model, tau_t its standard error, v the variance that the
noise leaves to an entry of unit variance and the square of the denoiser's own error epsilon, which no noise level takes away (0
for an exact denoiser). With r the residuals over tau and J their Jacobian the step u solves (I + v J^T J) u = -v J^T r by
conjugate gradients. J is made of the Jacobians F_t = df/ds [O, O] of the steps, which cost O passes of the model: they are
computed at the first noise level that is corrected and kept for the others, so that every further correction costs one pass of
the model. The denoiser is not differentiated.

Rewards are then moved towards those that the model expects at the new states, in the same way: by v / (v + tau^2) of the
difference, tau the reward model's error. Actions and terminals stay as they are.

What is sampled with epsilon = 0 is a product of experts, p(x) * prod_t N(s_{t+1}; f(s_t, a_t), tau_t^2): exactly where clean
tokens given the noised ones have the covariance v I and f is linear, approximately otherwise. Where the dynamics are linear and
deterministic and f is exact, samples of an exact denoiser stay exact: its estimates obey the dynamics, and all residuals are
zero. Process noise of variance q counts twice: 1 / (1 / q + 1 / tau^2) of it remains. An epsilon above 0 takes more of it: at
the last noise level, too, the residual of a single entry is divided by 1 + epsilon^2 (1 + F^2) / tau^2.
"""

from typing import Literal, Protocol

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.diffusion.sampling import with_memory
from jaxpgd.guidance.base import Estimate, Guided
from jaxpgd.guidance.caching import deviation
from jaxpgd.guidance.conjugate_gradients import LinearSystem, conjugate_gradients
from jaxpgd.options import nonnegative, option, options, positive
from jaxpgd.tokens import TokenCodec
from jaxpgd.types import Denoise, Memory, until_terminal


@options
class ConsistencyConfig:
    """Dynamics-consistent denoising: denoised states and rewards move towards what a one-step world model predicts."""

    kind: Literal["none", "dynamics"] = option(
        "none", "correction of denoised trajectories: none, or dynamics, by the world model of the section world_model"
    )
    floor: float = nonnegative(
        0.02, "least standard error of the world model's predictions, in standard deviations of the data"
    )
    denoiser_error: float = nonnegative(
        0.05, "standard error of the denoiser itself, beside what the noise leaves unknown, in standard deviations of the data"
    )
    sigma_max: float = positive(0.2, "largest noise level at which trajectories are corrected")
    iterations: int = positive(20, "conjugate-gradient steps of a correction; they cost little beside the model's Jacobian")


class OneStepModel(Protocol):
    """Predicts the next observation.

    `next_states(obs [O], action [A]) -> (means [K, O], standard deviations [K, O])`, the best model first, and `error` [O], the
    root mean square error of the mean over K on held-out data, in units of observations. `reward(obs, action) -> []` is the
    expected reward, `reward_error` [] its error in the same sense.
    """

    error: Array
    reward_error: Array

    def next_states(self, obs: Array, action: Array) -> tuple[Array, Array]: ...

    def reward(self, obs: Array, action: Array) -> Array: ...


@struct.dataclass
class Consistency:
    """The correction by a one-step model, for the tokens of a codec.

    tau is the model's held-out error, but at least `floor` normalised units. The K models' disagreement about a step adds to
    it, so that steps that they do not know are corrected less. Above `sigma_max` nothing is corrected or computed.
    """

    model: OneStepModel
    codec: TokenCodec
    floor: Array | float = 0.02
    denoiser_error: Array | float = 0.05
    sigma_max: Array | float = 0.2
    iterations: int = struct.field(pytree_node=False, default=20)

    def predict(self, obs: Array, action: Array) -> Array:
        """The next normalised observation [K, O] after normalised obs [O] and action [A], by each of K models."""
        mean, std = self.codec.mean[self.codec.obs], self.codec.std[self.codec.obs]
        means, _ = self.model.next_states(obs * std + mean, action)
        return (means - mean) / std

    def standard_error(self, predicted: Array) -> Array:
        """tau [..., O] of predictions [..., K, O]."""
        error = jnp.maximum(self.model.error / self.codec.std[self.codec.obs], self.floor)
        return jnp.sqrt(jnp.square(error) + predicted.var(-2))

    def steps(self, x0: Array) -> tuple[Array, Array]:
        """Normalised states [T - 1, O] and actions [T - 1, A] of tokens x0 [T, D], without the last step's."""
        return x0[:-1, self.codec.obs], self.codec.action_of(self.codec.pre_tanh(x0[:-1]))

    def valid(self, x0: Array, valid: Array | None) -> Array:
        """1 for the steps [T - 1] of x0 [T, D] that lead to a step before the first terminal and, with `valid` [T], the end.

        Tokens without a terminal flag have no terminal.
        """
        done, codec = self.codec.done, self.codec
        found = jnp.ones(x0.shape[0] - 1, x0.dtype) if valid is None else valid[1:].astype(x0.dtype)
        if codec.token_dim <= done:
            return found
        return found * jnp.cumprod((x0[:-1, done] * codec.std[done] + codec.mean[done] <= 0.5).astype(x0.dtype))

    def with_rewards(self, x0: Array, v: Array, valid: Array | None) -> Array:
        """x0 [T, D] with rewards moved towards the model's at its states and actions, until the first terminal or the end."""
        codec = self.codec
        entry = codec.reward
        if codec.token_dim <= entry:
            return x0
        raw = x0 * codec.std + codec.mean
        expected = jax.vmap(self.model.reward)(raw[:, codec.obs], codec.action_of(raw[:, codec.action]))
        tau = jnp.maximum(self.model.reward_error / codec.std[entry], self.floor)
        taken = until_terminal(1.0 - (raw[:, codec.done] > 0.5))
        taken = taken if valid is None else taken & valid
        change = v / (v + jnp.square(tau)) * ((expected - codec.mean[entry]) / codec.std[entry] - x0[:, entry])
        return x0.at[:, entry].add(jnp.where(taken, change, 0.0))

    def jacobians(self, x0: Array) -> Array:
        """F_t [T - 1, O, O] of the mean prediction at the states and actions of x0 [T, D]."""
        found: Array = jax.vmap(jax.jacfwd(lambda s, a: self.predict(s, a).mean(0)))(*self.steps(x0))
        return found

    def correct(self, x0: Array, sigma: Array, F: Array, valid: Array | None = None) -> Array:
        """Corrected tokens [T, D] of denoised tokens x0 [T, D] at sigma [], by Jacobians F [T - 1, O, O]."""
        states = x0[:, self.codec.obs]
        v = jnp.square(deviation(sigma)) + jnp.square(self.denoiser_error)
        predicted = jax.vmap(self.predict)(*self.steps(x0))
        weight = self.valid(x0, valid)[:, None] / self.standard_error(predicted)

        def J(u: Array) -> Array:
            return weight * (u[1:] - jnp.einsum("tij,tj->ti", F, u[:-1]))

        def J_T(r: Array) -> Array:
            back = jnp.einsum("tij,ti->tj", F, weight * r)
            return jnp.zeros_like(states).at[1:].set(weight * r).at[:-1].add(-back)

        r = weight * (states[1:] - predicted.mean(1))
        image = lambda p: (p, jnp.vdot(p, p) + v * jnp.square(J(p)).sum())
        system = LinearSystem(image, lambda p, _: p + v * J_T(J(p)))
        u, *_ = conjugate_gradients(system, -v * J_T(r), states, self.iterations)
        return self.with_rewards(x0.at[:, self.codec.obs].add(u), v, valid)

    def __call__(self, x0: Array, sigma: Array, valid: Array | None = None) -> Array:
        """`correct` by Jacobians at x0 where sigma is at most `sigma_max`, x0 itself above."""
        corrected = lambda x0: self.correct(x0, sigma, self.jacobians(x0), valid)
        found: Array = jax.lax.cond(sigma <= self.sigma_max, corrected, lambda x0: x0, x0)
        return found


@struct.dataclass
class Kept:
    """What a `ConsistentDenoise` keeps from one evaluation to the next."""

    inner: Memory  # of the denoiser inside
    F: Array  # [T - 1, O, O]
    known: Array  # [] bool: whether F has been computed


@struct.dataclass
class ConsistentDenoise:
    """A Denoise whose estimates obey the dynamics better: of any denoiser, guided or not. A `DenoiseWithMemory`.

    `valid` [T]: steps before the end of a padded trajectory. Raises ValueError for trajectories of one step.
    """

    denoise: Denoise
    consistency: Consistency
    valid: Array | None = None

    def __call__(self, x: Array, sigma: Array) -> Array:
        """Estimate of the clean sample: x [T, D], sigma [] -> [T, D]."""
        return self.consistency(self.denoise(x, sigma), sigma, self.valid)

    def init_memory(self, x: Array) -> Memory:
        """As `DenoiseWithMemory.init_memory`."""
        if x.shape[0] < 2:
            raise ValueError(f"trajectories of {x.shape[0]} step: the dynamics need 2 at least")
        inner, dim = with_memory(self.denoise).init_memory(x), self.consistency.codec.obs_dim
        return Memory(Kept(inner, jnp.zeros((x.shape[0] - 1, dim, dim), x.dtype), jnp.asarray(False)), inner.passes)

    def evaluate(self, x: Array, sigma: Array, memory: Memory) -> tuple[Array, Memory]:
        """As `DenoiseWithMemory.evaluate`. Passes of the world model are not counted."""
        kept: Kept = memory.kept
        x0, inner = with_memory(self.denoise).evaluate(x, sigma, kept.inner)
        within, own = sigma <= self.consistency.sigma_max, self.consistency

        def corrected(x0: Array, F: Array) -> tuple[Array, Array]:
            F = jax.lax.cond(kept.known, lambda x, F: F, lambda x, F: own.jacobians(x), x0, F)
            return own.correct(x0, sigma, F, self.valid), F

        x0, F = jax.lax.cond(within, corrected, lambda x0, F: (x0, F), x0, kept.F)
        return x0, Memory(Kept(inner, F, kept.known | within), inner.passes)


@struct.dataclass
class ConsistentGuided:
    """The same of a guided denoiser that `smc` proposes with."""

    guided: Guided
    consistency: Consistency

    def estimate(self, x: Array, sigma: Array) -> Estimate:
        """As `Guided.estimate`, both points corrected by the Jacobians at the guided one; the twist is that of before."""
        estimate, own = self.guided.estimate(x, sigma), self.consistency

        def corrected(points: tuple[Array, Array]) -> tuple[Array, Array]:
            F = own.jacobians(points[1])
            return own.correct(points[0], sigma, F), own.correct(points[1], sigma, F)

        points = (estimate.x0, estimate.x0_guided)
        x0, x0_guided = jax.lax.cond(sigma <= own.sigma_max, corrected, lambda points: points, points)
        return Estimate(x0, x0_guided, estimate.log_twist)

    def __call__(self, x: Array, sigma: Array) -> Array:
        """Corrected guided estimate: x [T, D], sigma [] -> [T, D]."""
        return self.consistency(self.guided(x, sigma), sigma)

    def log_target(self, x0: Array) -> Array:
        """As `Guided.log_target`."""
        return self.guided.log_target(x0)
