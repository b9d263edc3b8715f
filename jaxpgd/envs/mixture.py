"""One-dimensional mixtures of behaviour, tilted by a Gaussian policy: PGD's target on a grid (arXiv 2404.06356, figure 3).

A trajectory is a single action, so that tokens are [1, 1] and not normalised. The mixtures show how guidance methods that are
exact for Gaussians behave elsewhere.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from scipy.special import rel_entr

from jaxpgd.envs.linear_gaussian import linear_policy
from jaxpgd.errors import check
from jaxpgd.tokens import TokenCodec
from jaxpgd.types import Policy

# Tokens have a single entry, the action itself.
CODEC = TokenCodec(jnp.zeros(1, jnp.float32), jnp.ones(1, jnp.float32), obs_dim=0, action_dim=1, squashed=False)


@struct.dataclass
class Mixture:
    """The mixture sum_k weight_k N(mean_k, std_k^2) and its exact denoiser, a `types.Denoise` of x [1, 1]."""

    weight: Array  # [K], sums to 1
    mean: Array  # [K]
    std: Array  # [K]

    def __call__(self, x: Array, sigma: Array) -> Array:
        """E[x0 | x], x [1, 1]: the posterior means of the components, weighted by their posterior probabilities."""
        total = self.std**2 + sigma**2
        away = x[..., None] - self.mean
        share = jax.nn.softmax(jnp.log(self.weight) - 0.5 * away**2 / total - 0.5 * jnp.log(total), axis=-1)
        return (share * (self.mean + self.std**2 / total * away)).sum(-1)

    def sample(self, key: Array) -> Array:
        """An exact sample [1, 1]."""
        key_which, key_noise = jax.random.split(key)
        k = jax.random.categorical(key_which, jnp.log(self.weight))
        return (self.mean[k] + self.std[k] * jax.random.normal(key_noise, (), self.std.dtype)).reshape(1, 1)

    def density(self, grid: np.ndarray) -> np.ndarray:
        """Density [G] at grid points [G]."""
        weight, mean, std = (np.asarray(v, np.float64) for v in (self.weight, self.mean, self.std))
        z = (np.asarray(grid, np.float64)[:, None] - mean) / std
        return np.asarray((weight / (std * np.sqrt(2 * np.pi)) * np.exp(-0.5 * z**2)).sum(1))


def mixture(weight: list[float], mean: list[float], std: list[float]) -> Mixture:
    """The mixture of K Gaussians. Raises InputError if lengths differ, or if a weight or deviation is not above 0."""
    check(len(weight) == len(mean) == len(std) > 0, "weight, mean, std", (weight, mean, std), "as many of each")
    check(min(weight) > 0 and min(std) > 0, "weight, std", (weight, std), "numbers above 0")
    weight_, mean_, std_ = (jnp.asarray(x, jnp.float32) for x in (weight, mean, std))
    return Mixture(weight_ / sum(weight), mean_, std_)


def gaussian_policy(mean: float, std: float) -> Policy:
    """N(mean, std^2) for the one action."""
    return linear_policy(np.zeros((1, 0)), [mean], std)


def tilted_masses(edges: np.ndarray, behaviour: Mixture, policy: Policy, coefficient: float, *, inner: int = 64) -> np.ndarray:
    """Probabilities [G] of PGD's target behaviour * pi^coefficient in bins with `edges` [G + 1], ignoring what lies outside.

    Integrated by the midpoint rule with `inner` parts per bin, which is exact to rounding for bins no wider than the standard
    deviations.
    """
    edges = np.asarray(edges, np.float64)
    width = np.diff(edges) / inner
    points = (edges[:-1, None] + width[:, None] * (np.arange(inner) + 0.5)).ravel()
    mean, std = float(policy.params.k[0]), float(policy.params.std)
    log_q = -0.5 * ((points - mean) / std) ** 2
    density = behaviour.density(points) * np.exp(coefficient * log_q)
    mass = density.reshape(len(width), inner).sum(1) * width
    return np.asarray(mass / mass.sum())


def divergence(samples: np.ndarray, edges: np.ndarray, masses: np.ndarray) -> float:
    """KL divergence, in nats, of the binned samples from bins with known probabilities `masses` [G].

    Samples outside count in the end bins. N exact samples give about (G - 1) / (2 N), not 0. Bins of probability 0 are given
    1e-300. Infinite if a sample is not finite.
    """
    samples = np.asarray(samples, np.float64).ravel()
    if not np.isfinite(samples).all():
        return float("inf")
    inside = np.clip(samples, edges[0], edges[-1] - 1e-9)
    share = np.histogram(inside, edges)[0] / inside.size
    return float(rel_entr(share, np.maximum(masses, 1e-300)).sum())
