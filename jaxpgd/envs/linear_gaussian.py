"""Linear dynamics with linear-Gaussian policies: trajectory distributions and their denoiser in closed form.

    s_0 ~ N(0, P0),   a_t ~ N(K s_t + k, std^2 I),   s_{t+1} = A s_t + B a_t + w_t,   w_t ~ N(0, Q)

Trajectories are Gaussian, so that samplers can be compared with the exact answer. Actions are unbounded. Closed forms are
computed once, on the host, in float64; compiled code gets float32.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from numpy.typing import ArrayLike

from jaxpgd import draws
from jaxpgd.envs.rollout import collect as collect
from jaxpgd.envs.rollout import rollout as rollout
from jaxpgd.errors import check
from jaxpgd.types import Policy


@struct.dataclass
class LinearGaussian:
    """The environment, a `types.Environment`. The reward is -(|s|^2 + 0.1 |a|^2), and there are no terminals."""

    A: Array  # [O, O]
    B: Array  # [O, A]
    Q: Array  # [O, O], covariance of the process noise
    P0: Array  # [O, O], covariance of the first state
    horizon: int = struct.field(pytree_node=False, default=16)

    @property
    def obs_dim(self) -> int:
        """O."""
        return self.B.shape[0]

    @property
    def action_dim(self) -> int:
        """A."""
        return self.B.shape[1]

    def reset(self, key: Array) -> Array:
        """First state [O]."""
        return _gaussian(key, self.P0)

    def step(self, key: Array, obs: Array, action: Array) -> tuple[Array, Array, Array]:
        """obs [O], action [A] -> next_obs [O], reward [], discount [] (always 1)."""
        reward = -(jnp.sum(obs**2) + 0.1 * jnp.sum(action**2))
        return self.A @ obs + self.B @ action + _gaussian(key, self.Q), reward, jnp.ones((), jnp.float32)

    def without_noise(self) -> "LinearGaussian":
        """The same dynamics with exact steps."""
        return dataclasses.replace(self, Q=jnp.zeros_like(self.Q))


@struct.dataclass
class LinearParams:
    """a ~ N(K s + k, std^2 I)."""

    K: Array  # [A, O]
    k: Array  # [A]
    std: Array  # []


def make_env(A: ArrayLike, B: ArrayLike, Q: ArrayLike, P0: ArrayLike, horizon: int = 16) -> LinearGaussian:
    """The environment with A [O, O], B [O, A], Q and P0 [O, O].

    Raises InputError if shapes disagree, or if Q or P0 is not a covariance.
    """
    a, b, q, p = (np.asarray(x, np.float64) for x in (A, B, Q, P0))
    size = b.shape[0]
    check(horizon > 0, "horizon", horizon, "a number above 0")
    for name, matrix in (("A", a), ("Q", q), ("P0", p)):
        check(matrix.shape == (size, size), name, matrix.shape, f"({size}, {size}), as B has {size} rows")
    for name, matrix in (("Q", q), ("P0", p)):
        covariance = np.allclose(matrix, matrix.T) and np.linalg.eigvalsh(matrix).min() >= -1e-9
        check(bool(covariance), name, matrix.tolist(), "a symmetric matrix without negative eigenvalues")
    single = lambda x: jnp.asarray(x, jnp.float32)
    return LinearGaussian(A=single(a), B=single(b), Q=single(q), P0=single(p), horizon=horizon)


def linear_policy(K: ArrayLike, k: ArrayLike, std: float) -> Policy:
    """The policy a ~ N(K s + k, std^2 I) with K [A, O] and k [A]. Its parameters are `LinearParams`."""
    params = LinearParams(*(jnp.asarray(x, jnp.float32) for x in (K, k, std)))
    return Policy(params=params, sample_fn=_sample, mode_fn=_mode, log_prob_fn=_log_prob)


def _mode(params: LinearParams, obs: Array) -> Array:
    return params.K @ obs + params.k


def _sample(params: LinearParams, key: Array, obs: Array) -> Array:
    mode = _mode(params, obs)
    return mode + params.std * draws.normal(key, mode.shape, mode.dtype)


def _log_prob(params: LinearParams, obs: Array, action: Array, variance: Array | float = 0.0) -> Array:
    total = params.std**2 + variance
    return -0.5 * jnp.sum((action - _mode(params, obs)) ** 2 / total + jnp.log(2.0 * jnp.pi * total))


def _gaussian(key: Array, cov: Array) -> Array:
    # A square root by eigenvectors also works for singular covariances, for which Cholesky gives NaN.
    values, vectors = jnp.linalg.eigh(cov)
    sample: Array = vectors @ (jnp.sqrt(jnp.maximum(values, 0.0)) * jax.random.normal(key, values.shape, values.dtype))
    return sample


def trajectory_moments(env: LinearGaussian, policy: Policy) -> tuple[np.ndarray, np.ndarray]:
    """Mean [T D] and covariance [T D, T D] of (s_0, a_0, s_1, a_1, ...), D = O + A, in float64, for a `linear_policy`.

    Every entry is a constant plus a linear map of independent standard normals (first state, action and process noise). The
    covariance is that map times its transpose.
    """
    A, B, K, k, std = (np.asarray(x, np.float64) for x in (env.A, env.B, policy.params.K, policy.params.k, policy.params.std))
    obs_dim, action_dim, steps = env.obs_dim, env.action_dim, env.horizon
    noises = obs_dim + steps * (action_dim + obs_dim)
    state, mean = np.zeros((obs_dim, noises)), np.zeros(obs_dim)
    state[:, :obs_dim] = _root(env.P0)
    rows, means = [], []
    for t in range(steps):
        at = obs_dim + t * (action_dim + obs_dim)
        action, action_mean = K @ state, K @ mean + k
        action[:, at : at + action_dim] += std * np.eye(action_dim)
        rows += [state, action]
        means += [mean, action_mean]
        state, mean = A @ state + B @ action, A @ mean + B @ action_mean
        state[:, at + action_dim : at + action_dim + obs_dim] += _root(env.Q)
    linear = np.concatenate(rows)
    return np.concatenate(means), linear @ linear.T


def _root(cov: Array) -> np.ndarray:
    values, vectors = np.linalg.eigh(np.asarray(cov, np.float64))
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))


def feature_statistics(mean: np.ndarray, cov: np.ndarray, features: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and standard deviation [D] of every feature over all steps, as `tokens.fit_codec` computes them."""
    means = mean.reshape(-1, features)
    centre = means.mean(0)
    variance = np.diag(cov).reshape(-1, features).mean(0) + ((means - centre) ** 2).mean(0)
    return centre, np.sqrt(variance)


def standardise_moments(
    mean: np.ndarray, cov: np.ndarray, centre: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Moments of the tokens (x - centre) / scale, with centre and scale [D] at every step."""
    steps = len(mean) // len(centre)
    scales = np.tile(scale, steps)
    return (mean - np.tile(centre, steps)) / scales, cov / np.outer(scales, scales)


@struct.dataclass
class GaussianDenoise:
    """E[x0 | x] for tokens x0 ~ N(mean, cov) and x = x0 + sigma * noise, a `types.Denoise`. Also draws exact samples."""

    mean: Array  # [T, D]
    vectors: Array  # [T D, T D], eigenvectors of cov
    values: Array  # [T D], eigenvalues of cov

    def __call__(self, x: Array, sigma: Array) -> Array:
        """x [T, D], sigma [] -> [T, D]: each principal component shrinks by value / (value + sigma^2)."""
        coordinates = self.vectors.T @ (x - self.mean).ravel()
        # at sigma = 0 a direction without variance would be 0 / 0; the mean is exact there
        shrunk = coordinates * self.values / jnp.maximum(self.values + sigma**2, 1e-20)
        return self.mean + (self.vectors @ shrunk).reshape(self.mean.shape)

    def sample(self, key: Array) -> Array:
        """An exact sample x0 [T, D]."""
        noise = jnp.sqrt(self.values) * jax.random.normal(key, self.values.shape, self.values.dtype)
        return self.mean + (self.vectors @ noise).reshape(self.mean.shape)


def gaussian_denoise(mean: np.ndarray, cov: np.ndarray, features: int) -> GaussianDenoise:
    """The denoiser of tokens ~ N(mean [T D], cov [T D, T D]), D = `features`. Raises InputError if shapes disagree."""
    check(cov.shape == (len(mean), len(mean)), "cov", cov.shape, f"({len(mean)}, {len(mean)})")
    check(len(mean) % features == 0, "features", features, f"a divisor of the {len(mean)} entries of the mean")
    values, vectors = np.linalg.eigh(np.asarray(cov, np.float64))
    single = lambda x: jnp.asarray(x, jnp.float32)
    return GaussianDenoise(
        mean=single(mean.reshape(-1, features)), vectors=single(vectors), values=single(np.maximum(values, 0.0))
    )


def reference_case() -> tuple[LinearGaussian, Policy, Policy]:
    """(environment, behaviour policy, target policy) for comparisons of guidance methods: 16 steps, 2 states, 1 action."""
    env = make_env([[1.0, 0.2], [0.0, 0.95]], [[0.02], [0.2]], 0.02 * np.eye(2), 0.5 * np.eye(2), horizon=16)
    return env, linear_policy([[-0.5, -0.6]], [0.0], 0.5), linear_policy([[-1.2, -1.0]], [0.4], 0.3)
