"""PGD's target p_off(x) * q(x)^lambda in closed form on linear-Gaussian problems (arXiv 2404.06356, section 4).

q(x) is the product over t of pi(a_t | s_t). For a linear-Gaussian pi, log q is quadratic in the flat trajectory x = (s_0, a_0,
s_1, ...), so that the target is Gaussian for every lambda. Everything is computed on the host in float64. Trajectories may be
standardised.
"""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from jaxpgd.envs.linear_gaussian import (
    GaussianDenoise,
    LinearGaussian,
    feature_statistics,
    gaussian_denoise,
    standardise_moments,
    trajectory_moments,
)
from jaxpgd.errors import check
from jaxpgd.types import Policy


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """N(mean [K], cov [K, K])."""

    mean: np.ndarray
    cov: np.ndarray


@dataclasses.dataclass(frozen=True)
class QuadraticLikelihood:
    """log q(x) = -|matrix x - offset|^2 / 2 + constant."""

    matrix: np.ndarray  # [T A, T D]
    offset: np.ndarray  # [T A]
    constant: float  # of the normalised density of the actions

    def residual(self, p: Gaussian) -> Gaussian:
        """The distribution of matrix x - offset for x ~ p."""
        return Gaussian(self.matrix @ p.mean - self.offset, self.matrix @ p.cov @ self.matrix.T)

    def standardised(self, centre: np.ndarray, scale: np.ndarray) -> "QuadraticLikelihood":
        """The same function of tokens (x - centre) / scale, with centre and scale [D] at every step."""
        steps = self.matrix.shape[1] // len(centre)
        centres, scales = np.tile(centre, steps), np.tile(scale, steps)
        return QuadraticLikelihood(self.matrix * scales, self.offset - self.matrix @ centres, self.constant)


def policy_likelihood(env: LinearGaussian, policy: Policy) -> QuadraticLikelihood:
    """log q(x), the log of the product over t of pi(a_t | s_t), for a `linear_policy`."""
    gain, bias, std = (np.asarray(x, np.float64) for x in (policy.params.K, policy.params.k, policy.params.std))
    steps, actions = env.horizon, env.action_dim
    row = np.concatenate([-gain, np.eye(actions)], axis=1) / std  # (a - K s) / std of one step
    constant = -0.5 * steps * actions * np.log(2 * np.pi * std**2)
    return QuadraticLikelihood(np.kron(np.eye(steps), row), np.tile(bias / std, steps), float(constant))


def tilt(p: Gaussian, likelihood: QuadraticLikelihood, coefficient: float) -> Gaussian:
    """p(x) q(x)^lambda, normalised, with lambda = `coefficient`: p conditioned on residuals 0 of variance 1 / lambda.

    p may be singular (no process noise). Raises InputError for a coefficient below 0.
    """
    check(coefficient >= 0, "coefficient", coefficient, "a number not below 0")
    r = likelihood.residual(p)
    cross = p.cov @ likelihood.matrix.T
    inner = np.eye(len(r.mean)) + coefficient * r.cov
    gain = coefficient * np.linalg.solve(inner, cross.T).T  # both factors are symmetric or transposed back
    return Gaussian(p.mean - gain @ r.mean, p.cov - gain @ cross.T)


def log_normaliser(p: Gaussian, likelihood: QuadraticLikelihood, coefficient: float) -> float:
    """log of the integral of p q^coefficient, without the constant of q: add coefficient * likelihood.constant."""
    r = likelihood.residual(p)
    inner = np.eye(len(r.mean)) + coefficient * r.cov
    quadratic = r.mean @ np.linalg.solve(inner, r.mean)
    return float(-0.5 * np.linalg.slogdet(inner)[1] - 0.5 * coefficient * quadratic)


def expected_log_likelihood(p: Gaussian, likelihood: QuadraticLikelihood) -> float:
    """E[log q(x)] for x ~ p, including the constant."""
    r = likelihood.residual(p)
    return float(-0.5 * (r.mean @ r.mean + np.trace(r.cov)) + likelihood.constant)


def gaussian_wasserstein(a: Gaussian, b: Gaussian) -> float:
    """2-Wasserstein distance between two Gaussians (Dowson and Landau 1982)."""
    half = _root(a.cov)
    squared = ((a.mean - b.mean) ** 2).sum() + np.trace(a.cov + b.cov - 2 * _root(half @ b.cov @ half))
    return float(np.sqrt(max(squared, 0.0)))


def _root(cov: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(cov)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T)


def fitted(samples: ArrayLike, weights: ArrayLike | None = None) -> Gaussian:
    """The Gaussian with the moments of samples [N, ...], flattened. `weights` [N] need not be normalised."""
    x = np.asarray(samples, np.float64)
    x = x.reshape(len(x), -1)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    w = w / w.sum()
    mean = w @ x
    return Gaussian(mean, (x - mean).T * w @ (x - mean))


@dataclasses.dataclass(frozen=True)
class TiltedProblem:
    """A linear-Gaussian problem in tokens standardised per feature, as the denoiser of a dataset uses them."""

    env: LinearGaussian
    policy: Policy  # the target's
    centre: np.ndarray  # [D]
    scale: np.ndarray  # [D]
    behaviour: Gaussian  # of the flat tokens
    likelihood: QuadraticLikelihood  # of the flat tokens

    @property
    def denoise(self) -> GaussianDenoise:
        """The exact denoiser of behaviour tokens [T, D]. Also draws exact samples."""
        return gaussian_denoise(self.behaviour.mean, self.behaviour.cov, len(self.centre))

    def target(self, coefficient: float) -> Gaussian:
        """PGD's target at lambda = `coefficient`."""
        return tilt(self.behaviour, self.likelihood, coefficient)

    def target_denoise(self, coefficient: float) -> GaussianDenoise:
        """The exact denoiser of the target. Also draws exact samples."""
        target = self.target(coefficient)
        return gaussian_denoise(target.mean, target.cov, len(self.centre))


def tilted_problem(env: LinearGaussian, behaviour: Policy, target: Policy) -> TiltedProblem:
    """The problem of a behaviour and a target policy, in tokens standardised by the behaviour's statistics."""
    mean, cov = trajectory_moments(env, behaviour)
    centre, scale = feature_statistics(mean, cov, env.obs_dim + env.action_dim)
    return TiltedProblem(
        env=env,
        policy=target,
        centre=centre,
        scale=scale,
        behaviour=Gaussian(*standardise_moments(mean, cov, centre, scale)),
        likelihood=policy_likelihood(env, target).standardised(centre, scale),
    )
