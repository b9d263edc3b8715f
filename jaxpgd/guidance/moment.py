"""Moment guidance: the posterior covariance of the clean trajectory that the denoiser itself implies.

Exact where trajectories and policy are Gaussian and tokens hold actions as they are. Of tokens that hold pre-tanh actions tanh
is replaced by its tangent at D(x), which moves them less far than the target asks for: see `guidance.base`.

Given x, the clean trajectory has mean D(x) and covariance C = sigma^2 dD/dx (Miyasawa 1961; Boys et al., arXiv 2310.06721).
With r(x0) the policy's standardised residuals and M their Jacobian, log q(x0) = -|r|^2 / 2 near D(x), so that the target's
posterior mean is  D'(x) = D(x) - lambda C M^T z  with  (I + lambda M C M^T) z = r(D(x)).  C is not formed: the system, of size
T A, is solved by conjugate gradients, each step a VJP of D. They are preconditioned by the solution for C = v I,
v = sigma^2 / (1 + sigma^2): M is block-diagonal in the steps of the trajectory, so that this is a system of size A for each.
Below `jacobian_sigma_min` C is taken as v I, which makes that the solution, at no pass of D.

Where log pi is convex in an action, the row of M changes sign: steps still follow the gradient, and the system stays positive.
Where it is linear in an action (away from the centre of a Laplace density) the curvature is taken as small: actions move by C
times the gradient, which is exact there, and states only as C ties them to actions.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.guidance.base import DenoisedPointGuidance, Estimate, GuidedPointConfig, within_limit
from jaxpgd.guidance.caching import deviation
from jaxpgd.guidance.conjugate_gradients import Directions, LinearSystem, conjugate_directions
from jaxpgd.guidance.likelihood import LEAST_CURVATURE, Likelihood
from jaxpgd.options import nonnegative, option, options, positive
from jaxpgd.types import Denoise, Policy


@options
class MomentConfig(GuidedPointConfig):
    """Moment guidance: the posterior covariance by the denoiser's Jacobian."""

    sigma_max: float = option(20.0, "largest noise level at which samples are guided", low=0.0, high=1e9)
    jacobian: Literal["transposed", "symmetrised"] = option(
        "transposed", "the denoiser's Jacobian: its transpose, or the mean of it and its transpose, at twice the cost"
    )
    jacobian_sigma_min: float = nonnegative(
        0.1, "smallest noise level at which the denoiser's Jacobian is computed; below it entries are taken as independent"
    )
    iterations: int = positive(
        1, "conjugate-gradient steps; each costs as much as a network evaluation, two with the symmetrised Jacobian"
    )
    damping: float = nonnegative(0.0, "number added to the diagonal of the linear system of the conjugate gradients; 0: none")


@struct.dataclass
class MomentGuidance(DenoisedPointGuidance):
    """Guidance by moments of the posterior. A learned Jacobian is neither symmetric nor positive: its transpose is taken, which
    makes a gradient through the denoiser, or it is symmetrised; `damping` is added to the system's diagonal, and the iterations
    stop where the system turns out not to be positive.

    For any policy with a log_prob or a score; with enough iterations at all noise levels exact for Gaussian ones whose mean is
    linear and whose standard deviation is constant, where tokens hold actions as they are.
    """

    options: MomentConfig = MomentConfig()

    def cost(self, sigma: Array) -> Array:
        """As `DenoisedPointGuidance.cost`: a forward pass, then a VJP per iteration, and a JVP to symmetrise it."""
        each = 2 if self.options.jacobian == "symmetrised" else 1
        return 1 + jnp.where(sigma >= self.options.jacobian_sigma_min, each * self.options.iterations, 0)

    def estimate(self, denoise: Denoise, likelihood: Likelihood, x: Array, sigma: Array) -> Estimate:
        """As `DenoisedPointGuidance.estimate`."""
        return self.solve(denoise, likelihood, x, sigma)[0]

    def empty_cache(self, likelihood: Likelihood, x: Array) -> Directions:
        """As `DenoisedPointGuidance.empty_cache`."""
        return Directions.none(jnp.zeros((x.shape[0], likelihood.codec.action_dim), x.dtype), x, self.options.iterations)

    def compute(
        self, denoise: Denoise, likelihood: Likelihood, x: Array, sigma: Array, cache: Directions
    ) -> tuple[Array, Directions]:
        """As `DenoisedPointGuidance.compute`: keeps the directions of the conjugate gradients."""
        estimate, _, directions = self.solve_along(denoise, likelihood, x, sigma)
        return estimate.x0_guided, directions

    def reuse(self, likelihood: Likelihood, x0: Array, sigma: Array, cache: Directions) -> Array:
        """As `DenoisedPointGuidance.reuse`: the kept directions p_i applied to the residuals r at x0.

        A^-1 is taken as sum_i p_i p_i^T / (p_i^T A p_i), exact in their span for a symmetric A. This costs the policy alone.
        """
        z_i = cache.weights(standardised_residuals(likelihood, x0))
        C_M_t_z = jnp.tensordot(z_i, cache.image, axes=1)
        return within_limit(-likelihood.coefficient * C_M_t_z, self.options.limit, sigma)

    def solve(self, denoise: Denoise, likelihood: Likelihood, x: Array, sigma: Array) -> tuple[Estimate, Array]:
        """The estimate and the relative residual [] that conjugate gradients left."""
        return self.solve_along(denoise, likelihood, x, sigma)[:2]

    def solve_along(
        self, denoise: Denoise, likelihood: Likelihood, x: Array, sigma: Array
    ) -> tuple[Estimate, Array, Directions]:
        """As `solve`, and the directions of the conjugate gradients."""
        lam = jnp.asarray(likelihood.coefficient, jnp.float32)
        x0, C = self.posterior(denoise, x, sigma)
        r, M = residual_blocks(likelihood, x0)
        diagonal, v = 1.0 + self.options.damping, jnp.square(deviation(sigma))

        def image(p: Array) -> tuple[Array, Array]:
            M_t_p = jnp.einsum("tad,ta->td", M, p)
            C_M_t_p = C(M_t_p)
            return C_M_t_p, diagonal * jnp.vdot(p, p) + lam * jnp.vdot(M_t_p, C_M_t_p)

        product = lambda p, C_M_t_p: diagonal * p + lam * jnp.einsum("tad,td->ta", M, C_M_t_p)
        P = diagonal * jnp.eye(r.shape[1], dtype=r.dtype) + lam * v * jnp.einsum("tad,tbd->tab", M, M)
        P_inverse = jax.vmap(inverse)(P)
        solve = lambda left: jnp.einsum("tab,tb->ta", P_inverse, left)
        system = LinearSystem(image, product, solve)
        z, C_M_t_z, left, directions = conjugate_directions(system, r, x, self.options.iterations)
        guided = x0 + within_limit(-likelihood.coefficient * C_M_t_z, self.options.limit, sigma)
        log_twist = likelihood.exact(x0) + 0.5 * lam * jnp.vdot(r, r - z)
        return Estimate(x0, guided, log_twist), left, directions

    def posterior(self, denoise: Denoise, x: Array, sigma: Array) -> tuple[Array, Callable[[Array], Array]]:
        """The mean D(x) [T, D] of the clean tokens given x, and products of their covariance C with vectors [T, D]."""
        x0, jacobian = jax.linearize(lambda y: denoise(y, sigma), x)
        jacobian_t = jax.linear_transpose(jacobian, x)

        def of_denoiser(u: Array) -> Array:
            back: Array = jacobian_t(u)[0]
            return sigma**2 * (back if self.options.jacobian == "transposed" else 0.5 * (jacobian(u) + back))

        independent = lambda u: jnp.square(deviation(sigma)) * u
        return x0, lambda u: jax.lax.cond(sigma >= self.options.jacobian_sigma_min, of_denoiser, independent, u)


def inverse(P: Array) -> Array:
    """The inverse of a positive P [A, A] by Gauss-Jordan elimination: without a call of a library for each of many matrices.

    To the diagonal 2e-6 of its mean is added, so that it has an inverse in float32.
    """
    P = P + 2e-6 * jnp.trace(P) / P.shape[0] * jnp.eye(P.shape[0], dtype=P.dtype)

    def eliminate(k: Array, P: Array) -> Array:
        row, column = P[k].at[k].set(1.0) / P[k, k], P[:, k].at[k].set(0.0)
        return P.at[:, k].set(0.0).at[k].set(row) - jnp.outer(column, row)

    found: Array = jax.lax.fori_loop(0, P.shape[0], eliminate, P)
    return found


def residual_blocks(likelihood: Likelihood, x0: Array) -> tuple[Array, Array]:
    """r(x0) [T, A] of tokens x0 [T, D] and its Jacobian's blocks M [T, A, D]: those of a step depend on its own token alone.

    This costs A VJPs of the policy.
    """
    r, jacobian = jax.linearize(lambda y: standardised_residuals(likelihood, y), x0)
    jacobian_t = jax.linear_transpose(jacobian, x0)
    rows = jnp.broadcast_to(jnp.eye(r.shape[1], dtype=r.dtype)[:, None], (r.shape[1], *r.shape))
    return r, jax.vmap(lambda row: jacobian_t(row)[0], out_axes=1)(rows)


def standardised_residuals(likelihood: Likelihood, x0: Array) -> Array:
    """r(x0) [T, A] of the actions of tokens x0 [T, D]: minus the score over the root of the curvature of log pi.

    Their Jacobian has the sign of a concave log pi everywhere, and is not 0 where log pi is linear.
    """
    hold = jax.lax.stop_gradient
    obs, action = likelihood.steps(x0)
    score, second = jax.vmap(lambda o, a: _score(likelihood.policy, o, a))(obs, action)
    second = hold(second)
    plain = -score / jnp.sqrt(jnp.maximum(jnp.abs(second), LEAST_CURVATURE))
    sign = jnp.where(second > 0, -1.0, 1.0)
    slope = jnp.where(jnp.abs(second) < LEAST_CURVATURE, LEAST_CURVATURE**0.5, 0.0)
    residual = sign * plain + hold((1.0 - sign) * plain) + slope * (action - hold(action))
    return residual if likelihood.valid is None else jnp.where(likelihood.valid[:, None], residual, 0.0)


def _score(policy: Policy, obs: Array, action: Array) -> tuple[Array, Array]:
    """Gradient [A] of log pi in the action, and its second derivatives [A]."""
    gradient = lambda a: policy.score(obs, a)
    basis = jnp.eye(action.shape[0], dtype=action.dtype)
    second = jax.vmap(lambda e: jax.jvp(gradient, (action,), (e,))[1] @ e)(basis)
    return gradient(action), second
