"""EDM preconditioning (Karras et al. 2022, table 1): a network becomes a Denoise."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.diffusion.constraints import Condition


@struct.dataclass
class Coefficients:
    """Scalings of input, output and skip path at one noise level."""

    skip: Array
    out: Array
    into: Array
    noise: Array


def coefficients(sigma: Array, sigma_data: Array | float) -> Coefficients:
    """Table 1 of EDM at noise level sigma []."""
    total = jnp.square(sigma) + jnp.square(sigma_data)
    return Coefficients(
        skip=jnp.square(sigma_data) / total,
        out=sigma * sigma_data / jnp.sqrt(total),
        into=1.0 / jnp.sqrt(total),
        noise=jnp.log(sigma) / 4.0,
    )


@struct.dataclass
class EDMDenoise:
    """The Denoise of a network and its parameters: x [T, D], sigma [] > 0 -> E[x0 | x] [T, D]."""

    params: Any
    sigma_data: Array | float
    network: nn.Module = struct.field(pytree_node=False)
    scaled: bool = struct.field(pytree_node=False, default=False)  # whether known entries are scaled as the input is

    def __call__(self, x: Array, sigma: Array) -> Array:
        """Estimate of the clean sample."""
        c = coefficients(sigma, self.sigma_data)
        output: Array = self.network.apply(self.params, c.into * x, c.noise)  # type: ignore[assignment]
        return c.skip * x + c.out * output

    def given(self, x: Array, sigma: Array, condition: Condition) -> Array:
        """The same with known entries.

        The network sees them unscaled, legible at every noise level, or `scaled` with the rest of its input (DyDiff's code).
        """
        c = coefficients(sigma, self.sigma_data)
        shown = c.into * condition.impose(x) if self.scaled else condition.impose(c.into * x)
        output: Array = self.network.apply(self.params, shown, c.noise)  # type: ignore[assignment]
        return condition.impose(c.skip * x + c.out * output)
