"""One action of a known mixture, guided towards a Gaussian policy: samples against the exact density (PGD figure 3)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpgd.envs.mixture import CODEC, divergence, gaussian_policy, mixture, tilted_masses
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.stages.prepare import stage_key
from jaxpgd.experiment.studies.cell import MeasureConfig
from jaxpgd.guidance.likelihood import log_likelihood
from jaxpgd.synthesis.diffusion import DiffusionSynthesizer, TrajectoryDenoiser, make_synthesizer
from jaxpgd.synthesis.replay import resample
from jaxpgd.types import Policy

EDGES = np.linspace(-4.0, 4.0, 161)
_STRIDE = 2  # bins of the curves that are drawn, each of two of those that are compared


@functools.partial(jax.jit, static_argnames="count")
def _draw(key: Array, synthesizer: DiffusionSynthesizer, policy: Policy | None, count: int) -> Array:
    x, log_weight, _ = synthesizer.sample(key, policy, jnp.zeros((count, 1)))  # type: ignore[arg-type]
    if not synthesizer.weighted:
        return x
    return resample(jax.random.fold_in(key, 1), x, log_weight)  # type: ignore[arg-type, return-value]


def measure_tilt(config: Config, problem: MeasureConfig) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One row, and the densities of behaviour, policy, target and samples by grid point.

    The row: divergence of the samples from the exact target (KL, nats) and the policy's mean log-density. The denoiser is
    exact, so that all error is the sampler's and the guidance's. Source "dataset" draws from the exact target itself. Raises
    InputError for weights and deviations that make no mixture.
    """
    behaviour = mixture(list(problem.weights), list(problem.means), list(problem.stds))
    policy = gaussian_policy(problem.policy_mean, problem.policy_std)
    guided = problem.source == "guided"
    coefficient = config.guidance.coefficient if problem.source in ("guided", "dataset") else 0.0
    denoiser, guidance = TrajectoryDenoiser(behaviour, CODEC, 1), config.guidance if guided else None
    synthesizer = make_synthesizer(denoiser, config.sampler, guidance, unused="kept")
    key, count = stage_key(config, "tilt"), problem.trajectories
    masses = tilted_masses(EDGES, behaviour, policy, coefficient)
    if problem.source == "dataset":  # exact samples, of bins: what no guidance can be expected to fall below
        rng = np.random.default_rng(config.seed)
        samples = rng.choice((EDGES[:-1] + EDGES[1:]) / 2, count, p=masses)
    else:
        samples = np.asarray(_draw(key, synthesizer, policy if guided else None, count), np.float64).ravel()
    actions = jnp.asarray(samples, jnp.float32)[:, None, None]
    row = {
        "seed": config.seed, "episode": 0, "coefficient": coefficient, "divergence": divergence(samples, EDGES, masses),
        "log_likelihood": float(jax.vmap(lambda a: log_likelihood(policy, jnp.zeros((1, 0)), a))(actions).mean()),
    }  # fmt: skip
    return [row], _curves(config, samples, masses, tilted_masses(EDGES, behaviour, policy, 0.0), policy)


def _curves(
    config: Config, samples: np.ndarray, masses: np.ndarray, behaviour: np.ndarray, policy: Policy
) -> list[dict[str, Any]]:
    edges = EDGES[::_STRIDE]
    pooled = lambda x: x.reshape(-1, _STRIDE).sum(1) / np.diff(edges)
    share = np.histogram(np.clip(samples, edges[0], edges[-1] - 1e-9), edges)[0] / len(samples) / np.diff(edges)
    mean, std = float(policy.params.k[0]), float(policy.params.std)
    centres = (edges[:-1] + edges[1:]) / 2
    density = np.exp(-0.5 * ((centres - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
    columns = {"samples": share, "target": pooled(masses), "behaviour": pooled(behaviour), "policy": density}
    return [
        {"seed": config.seed, "step": float(x)} | {name: float(values[i]) for name, values in columns.items()}
        for i, x in enumerate(centres)
    ]
