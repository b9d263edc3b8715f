"""Guidance with the posterior covariance that the denoiser itself implies.

Exact where trajectories and policy are Gaussian and tokens hold actions as they are. Of tokens that hold pre-tanh actions tanh
is replaced by its tangent at D(x), which moves them less far than the target asks for: see `guidance`.

Given x, the clean trajectory has mean D(x) and covariance C = sigma^2 dD/dx (Miyasawa 1961; Boys et al., arXiv 2310.06721).
With r(x0) the policy's standardised residuals and M their Jacobian, log q(x0) = -|r|^2 / 2 near D(x), so that the target's
posterior mean is  D'(x) = D(x) - coefficient * C M^T z  with  (I + coefficient * M C M^T) z = r(D(x)).  Nothing is formed as a
matrix: the system, of size T A, is solved by conjugate gradients, each step a product with dD/dx and one with its transpose.
Where log pi is convex in an action, the row of M changes sign: steps still follow the gradient, and the system stays positive.
Where it is linear in an action (away from the centre of a Laplace density) the curvature is taken as small: actions move by C
times the gradient, which is exact there, and states only as C ties them to actions.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.guidance.base import LEAST_CURVATURE, Likelihood, Look
from jaxpgd.types import Denoise, Policy


@struct.dataclass
class MomentGuidance:
    """Guided Denoise by moments of the posterior. A learned Jacobian is neither symmetric nor positive: it is symmetrised,
    `damping` is added to the system's diagonal, and the iterations stop where the system turns out not to be positive.

    Cost: 1 + 2 * `iterations` forward-equivalents. Any policy with a log_prob or a score; exact for Gaussian ones whose mean is
    linear and whose standard deviation is constant, where tokens hold actions as they are.
    """

    denoise: Denoise
    likelihood: Likelihood
    damping: Array | float = 0.0
    iterations: int = struct.field(pytree_node=False, default=2)

    def look(self, x: Array, sigma: Array) -> Look:
        """As `Guided.look`."""
        return self.solve(x, sigma)[0]

    def solve(self, x: Array, sigma: Array) -> tuple[Look, Array]:
        """The look and the relative residual [] that conjugate gradients left."""
        coefficient = jnp.asarray(self.likelihood.coefficient, jnp.float32)
        x0, times = jax.linearize(lambda y: self.denoise(y, sigma), x)
        transposed = jax.linear_transpose(times, x)
        residual, forward = jax.linearize(self.residual, x0)
        backward = jax.linear_transpose(forward, x0)

        def product(z: Array) -> tuple[Array, Array]:
            v = backward(z)[0]
            moved = 0.5 * sigma**2 * (times(v) + transposed(v)[0])  # C M^T z
            return (1.0 + self.damping) * z + coefficient * forward(moved), moved

        z, moved, left = conjugate_gradients(product, residual, x, self.iterations)
        guided = self.likelihood.moved(x0, -self.likelihood.weight(sigma) * moved, sigma)
        log_twist = self.likelihood.exact(x0) + 0.5 * coefficient * jnp.vdot(residual, residual - z)
        return Look(x0, guided, log_twist), left

    def residual(self, x0: Array) -> Array:
        """Standardised residuals [T, A] of the actions of tokens x0 [T, D]: minus the score over the root of the curvature.

        Their Jacobian has the sign of a concave log pi everywhere, and is not 0 where log pi is linear.
        """
        hold = jax.lax.stop_gradient
        obs, action = self.likelihood.parts(x0)
        score, second = jax.vmap(lambda o, a: _score(self.likelihood.policy, o, a))(obs, action)
        second = hold(second)
        plain = -score / jnp.sqrt(jnp.maximum(jnp.abs(second), LEAST_CURVATURE))
        sign = jnp.where(second > 0, -1.0, 1.0)
        slope = jnp.where(jnp.abs(second) < LEAST_CURVATURE, LEAST_CURVATURE**0.5, 0.0)
        residual = sign * plain + hold((1.0 - sign) * plain) + slope * (action - hold(action))
        counted = self.likelihood.counted
        return residual if counted is None else jnp.where(counted[:, None], residual, 0.0)

    def __call__(self, x: Array, sigma: Array) -> Array:
        """Guided estimate of the clean sample: x [T, D], sigma [] -> [T, D]."""
        return self.look(x, sigma).guided

    def log_target(self, x0: Array) -> Array:
        """As `Guided.log_target`."""
        return self.likelihood.exact(x0)


def _score(policy: Policy, obs: Array, action: Array) -> tuple[Array, Array]:
    """Gradient [A] of log pi in the action, and its second derivatives [A]."""
    gradient = lambda a: policy.score(obs, a)
    basis = jnp.eye(action.shape[0], dtype=action.dtype)
    second = jax.vmap(lambda e: jax.jvp(gradient, (action,), (e,))[1] @ e)(basis)
    return gradient(action), second


def conjugate_gradients(
    product: Callable[[Array], tuple[Array, Array]], b: Array, like: Array, iterations: int
) -> tuple[Array, Array, Array]:
    """`iterations` steps for A z = b from z = 0, with A positive; `product(p)` gives A p and another linear image of p, shaped
    as `like`.

    Returns z, that image of z, and |b - A z| / |b|. Stops where p^T A p is not above 0 or b is solved, so that it is finite
    and its gain bounded for any A.
    """

    def step(carry: Any, _: None) -> tuple[Any, None]:
        z, image, left, p, size, going = carry
        ap, moved = product(p)
        curvature = jnp.vdot(p, ap)
        going = going & (curvature > 0) & (size > floor)
        alpha = jnp.where(going, size / jnp.where(going, curvature, 1.0), 0.0)
        z, image, left = z + alpha * p, image + alpha * moved, left - alpha * ap
        new = jnp.vdot(left, left)
        p = left + jnp.where(going, new / jnp.where(going, size, 1.0), 0.0) * p
        return (z, image, left, p, new, going), None

    size = jnp.vdot(b, b)
    floor = 1e-12 * size
    start = (jnp.zeros_like(b), jnp.zeros_like(like), b, b, size, jnp.asarray(True))
    z, image, left, *_ = jax.lax.scan(step, start, None, length=iterations)[0]
    return z, image, jnp.sqrt(jnp.vdot(left, left) / jnp.maximum(size, 1e-30))
