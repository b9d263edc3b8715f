"""Moment guidance: the posterior covariance of the clean trajectory that the denoiser itself implies.

Exact where trajectories and policy are Gaussian and tokens hold actions as they are. Of tokens that hold pre-tanh actions tanh
is replaced by its tangent at D(x), which moves them less far than the target asks for: see `guidance.base`.

Given x, the clean trajectory has mean D(x) and covariance C = sigma^2 dD/dx (Miyasawa 1961; Boys et al., arXiv 2310.06721).
With r(x0) the policy's standardised residuals and M their Jacobian, log q(x0) = -|r|^2 / 2 near D(x), so that the target's
posterior mean is  D'(x) = D(x) - lambda C M^T z  with  (I + lambda M C M^T) z = r(D(x)).  No matrix is formed: the system, of
size T A, is solved by conjugate gradients, each step a JVP and a VJP of D. Where log pi is convex in
an action, the row of M changes sign: steps still follow the gradient, and the system stays positive. Where it is linear in an
action (away from the centre of a Laplace density) the curvature is taken as small: actions move by C times the gradient, which
is exact there, and states only as C ties them to actions.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.guidance.base import DenoisedPointGuidance, Estimate, GuidedPointConfig, within_limit
from jaxpgd.guidance.likelihood import LEAST_CURVATURE, Likelihood
from jaxpgd.options import nonnegative, option, options, positive
from jaxpgd.types import Denoise, Policy


@options
class MomentConfig(GuidedPointConfig):
    """Moment guidance: the posterior covariance by the denoiser's Jacobian."""

    jacobian: Literal["symmetrised", "transposed"] = option(
        "symmetrised", "the denoiser's Jacobian: the mean of it and its transpose, or the transpose alone, at half the cost"
    )
    iterations: int = positive(
        2, "conjugate-gradient steps; each costs as much as two network evaluations, one with the transposed Jacobian"
    )
    damping: float = nonnegative(0.0, "number added to the diagonal of the linear system of the conjugate gradients; 0: none")


@struct.dataclass
class MomentGuidance(DenoisedPointGuidance):
    """Guidance by moments of the posterior. A learned Jacobian is neither symmetric nor positive: it is symmetrised, or its
    transpose is taken, which makes a gradient through the denoiser; `damping` is added to the system's diagonal, and the
    iterations stop where the system turns out not to be positive.

    For any policy with a log_prob or a score; exact for Gaussian ones whose mean is linear and whose standard deviation is
    constant, where tokens hold actions as they are.
    """

    options: MomentConfig = MomentConfig()

    @property
    def cost(self) -> int:
        """As `DenoisedPointGuidance.cost`: a forward pass, then a VJP per iteration, and a JVP to symmetrise it."""
        return 1 + (2 if self.options.jacobian == "symmetrised" else 1) * self.options.iterations

    def estimate(self, denoise: Denoise, likelihood: Likelihood, x: Array, sigma: Array) -> Estimate:
        """As `DenoisedPointGuidance.estimate`."""
        return self.solve(denoise, likelihood, x, sigma)[0]

    def empty_cache(self, likelihood: Likelihood, x: Array) -> "Directions":
        """As `DenoisedPointGuidance.empty_cache`."""
        n, (T, A) = self.options.iterations, (x.shape[0], likelihood.codec.action_dim)
        return Directions(jnp.zeros((n, T, A), x.dtype), jnp.zeros((n, *x.shape), x.dtype), jnp.zeros(n, x.dtype))

    def compute(
        self, denoise: Denoise, likelihood: Likelihood, x: Array, sigma: Array, cache: "Directions"
    ) -> tuple[Array, "Directions"]:
        """As `DenoisedPointGuidance.compute`: keeps the directions of the conjugate gradients."""
        estimate, _, directions = self.solve_along(denoise, likelihood, x, sigma)
        return estimate.x0_guided, directions

    def reuse(self, likelihood: Likelihood, x0: Array, sigma: Array, cache: "Directions") -> Array:
        """As `DenoisedPointGuidance.reuse`: the kept directions p_i applied to the residuals r at x0.

        A^-1 is taken as sum_i p_i p_i^T / (p_i^T A p_i), which it is within their span. This costs the policy alone.
        """
        z_i = cache.weights(standardised_residuals(likelihood, x0))
        C_M_t_z = jnp.tensordot(z_i, cache.image, axes=1)
        return within_limit(-likelihood.coefficient * C_M_t_z, self.options.limit, sigma)

    def solve(self, denoise: Denoise, likelihood: Likelihood, x: Array, sigma: Array) -> tuple[Estimate, Array]:
        """The estimate and the relative residual [] that conjugate gradients left."""
        return self.solve_along(denoise, likelihood, x, sigma)[:2]

    def solve_along(
        self, denoise: Denoise, likelihood: Likelihood, x: Array, sigma: Array
    ) -> tuple[Estimate, Array, "Directions"]:
        """As `solve`, and the directions of the conjugate gradients."""
        lam = jnp.asarray(likelihood.coefficient, jnp.float32)
        x0, jacobian = jax.linearize(lambda y: denoise(y, sigma), x)
        jacobian_t = jax.linear_transpose(jacobian, x)
        r, M = jax.linearize(lambda y: standardised_residuals(likelihood, y), x0)
        M_t = jax.linear_transpose(M, x0)

        def system(z: Array) -> tuple[Array, Array]:
            v = M_t(z)[0]
            if self.options.jacobian == "transposed":
                C_M_t_z = sigma**2 * jacobian_t(v)[0]
            else:
                C_M_t_z = 0.5 * sigma**2 * (jacobian(v) + jacobian_t(v)[0])
            return (1.0 + self.options.damping) * z + lam * M(C_M_t_z), C_M_t_z

        z, C_M_t_z, left, directions = conjugate_directions(system, r, x, self.options.iterations)
        guided = x0 + within_limit(-likelihood.coefficient * C_M_t_z, self.options.limit, sigma)
        log_twist = likelihood.exact(x0) + 0.5 * lam * jnp.vdot(r, r - z)
        return Estimate(x0, guided, log_twist), left, directions


@struct.dataclass
class Directions:
    """Conjugate directions p_i of a linear system A, other linear images of them, and p_i^T A p_i, 0 where it is not used."""

    direction: Array  # [n, ...]
    image: Array  # [n, ...]
    curvature: Array  # [n]

    def weights(self, b: Array) -> Array:
        """p_i^T b / p_i^T A p_i [n]: how far along each the solution of A z = b is."""
        along = jnp.tensordot(self.direction, b, axes=b.ndim)
        return jnp.where(self.curvature > 0, along / jnp.where(self.curvature > 0, self.curvature, 1.0), 0.0)


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


def conjugate_gradients(
    product: Callable[[Array], tuple[Array, Array]], b: Array, like: Array, iterations: int
) -> tuple[Array, Array, Array]:
    """`iterations` steps for A z = b from z = 0, with A positive; `product(p)` gives A p and another linear image of p, of
    the shape of `like`.

    Returns z, that image of z, and |b - A z| / |b|. Stops where p^T A p is not above 0 or b is solved, so that it is finite
    and its gain bounded for any A.
    """
    return conjugate_directions(product, b, like, iterations)[:3]


def conjugate_directions(
    product: Callable[[Array], tuple[Array, Array]], b: Array, like: Array, iterations: int
) -> tuple[Array, Array, Array, Directions]:
    """As `conjugate_gradients`, and the directions that it took."""

    def step(carry: Any, _: None) -> tuple[Any, Directions]:
        z, image, left, p, size, going = carry
        ap, moved = product(p)
        curvature = jnp.vdot(p, ap)
        going = going & (curvature > 0) & (size > floor)
        taken = Directions(p, moved, jnp.where(going, curvature, 0.0))
        alpha = jnp.where(going, size / jnp.where(going, curvature, 1.0), 0.0)
        z, image, left = z + alpha * p, image + alpha * moved, left - alpha * ap
        new = jnp.vdot(left, left)
        p = left + jnp.where(going, new / jnp.where(going, size, 1.0), 0.0) * p
        return (z, image, left, p, new, going), taken

    size = jnp.vdot(b, b)
    floor = 1e-12 * size
    start = (jnp.zeros_like(b), jnp.zeros_like(like), b, b, size, jnp.asarray(True))
    (z, image, left, *_), directions = jax.lax.scan(step, start, None, length=iterations)
    return z, image, jnp.sqrt(jnp.vdot(left, left) / jnp.maximum(size, 1e-30)), directions
