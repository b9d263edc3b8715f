"""Preconditioned conjugate gradients for a few steps, matrix-free, and the directions that they took."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array


@dataclasses.dataclass(frozen=True)
class LinearSystem:
    """A symmetric A of which only products are known. p is shaped like the right-hand side.

    What follows from A z is often another linear image of z, from which the product is made. The last step needs its image and
    curvature only.
    """

    image: Callable[[Array], tuple[Array, Array]]  # p -> another linear image of p, and p^T A p []
    product: Callable[[Array, Array], Array]  # p, its image -> A p
    precondition: Callable[[Array], Array] = lambda r: r  # an approximate A^-1, symmetric and positive


@struct.dataclass
class Directions:
    """Conjugate directions p_i of a linear system A, other linear images of them, and p_i^T A p_i, 0 where it is not used."""

    direction: Array  # [n, ...]
    image: Array  # [n, ...]
    curvature: Array  # [n]

    @classmethod
    def none(cls, b: Array, image: Array, n: int) -> "Directions":
        """n unused directions for a right-hand side like b and images like `image`."""
        empty = lambda x: jnp.zeros((n, *x.shape), x.dtype)
        return cls(empty(b), empty(image), jnp.zeros(n, b.dtype))

    def put(self, i: Array | int, p: Array, image: Array, curvature: Array) -> "Directions":
        """With direction i replaced."""
        return Directions(
            self.direction.at[i].set(p), self.image.at[i].set(image), self.curvature.at[i].set(curvature)
        )  # fmt: skip

    def weights(self, b: Array) -> Array:
        """p_i^T b / p_i^T A p_i [n]: how far along each the solution of A z = b is."""
        along = jnp.tensordot(self.direction, b, axes=b.ndim)
        return jnp.where(self.curvature > 0, along / jnp.where(self.curvature > 0, self.curvature, 1.0), 0.0)


@struct.dataclass
class _State:
    z: Array
    image: Array  # of z
    left: Array  # b - A z
    p: Array  # the next direction
    size: Array  # [] left^T P^-1 left
    going: Array  # [] whether A has been positive so far, and b is not solved
    directions: Directions


def conjugate_gradients(system: LinearSystem, b: Array, like: Array, steps: int) -> tuple[Array, Array, Array]:
    """`steps` steps for A z = b from z = 0, with A positive; images are shaped like `like`.

    Returns z, its image, and |b - A z| / |b|. Stops where p^T A p is not above 0 or b is solved: z is finite for any A.
    """
    return conjugate_directions(system, b, like, steps)[:3]


def conjugate_directions(system: LinearSystem, b: Array, like: Array, steps: int) -> tuple[Array, Array, Array, Directions]:
    """As `conjugate_gradients`, and the directions that were taken."""
    y = system.precondition(b)
    size = jnp.vdot(b, y)
    floor = 1e-12 * size

    def search(i: Array | int, at: _State) -> _State:
        """Along the direction p as far as to the minimum."""
        image, curvature = system.image(at.p)
        going = at.going & (curvature > 0) & (at.size > floor)
        alpha = jnp.where(going, at.size / jnp.where(going, curvature, 1.0), 0.0)
        taken = at.directions.put(i, at.p, image, jnp.where(going, curvature, 0.0))
        left = at.left - alpha * system.product(at.p, image)
        return _State(at.z + alpha * at.p, at.image + alpha * image, left, at.p, at.size, going, taken)

    def step(at: _State, i: Array) -> _State:
        at = search(i, at)
        y = system.precondition(at.left)
        size = jnp.vdot(at.left, y)
        beta = jnp.where(at.going, size / jnp.where(at.going, at.size, 1.0), 0.0)
        return _State(at.z, at.image, at.left, y + beta * at.p, size, at.going, at.directions)

    start = _State(
        jnp.zeros_like(b), jnp.zeros_like(like), b, y, size, jnp.asarray(True), Directions.none(b, like, steps)
    )  # fmt: skip
    before, _ = jax.lax.scan(lambda at, i: (step(at, i), None), start, jnp.arange(steps - 1))
    # The last step is outside the loop: nothing of A p is computed there unless the caller uses the residual.
    found = search(steps - 1, before)
    return found.z, found.image, jnp.linalg.norm(found.left) / jnp.maximum(jnp.linalg.norm(b), 1e-30), found.directions
