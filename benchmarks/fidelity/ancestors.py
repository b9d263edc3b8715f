"""`python -m benchmarks ancestors`: first particles that an `smc` population descends from, by the number of actions.

Linear-Gaussian problems with their exact denoiser, populations of 256 at coefficient 1, by the share of first particles that is
kept at least (0: full resampling and all of the weights; 1: samples of the proposal).
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks.fidelity.guidance import cases, codec_of
from benchmarks.fidelity.methods import guided
from benchmarks.timing import describe_device
from jaxpgd.diffusion.edm import karras_sigmas
from jaxpgd.envs.gaussian_tilt import TiltedProblem, expected_log_likelihood, fitted, gaussian_wasserstein, tilted_problem
from jaxpgd.envs.linear_gaussian import reference_case
from jaxpgd.guidance.kinds import make_guidance
from jaxpgd.guidance.smc import SMCConfig, SMCGuidance, on_one_scale, smc
from jaxpgd.types import Metrics

PARTICLES, SEEDS, COEFFICIENT = 256, 4, 1.0
LEAST = (0.0, 0.25, 0.5, 1.0)
LEVELS = (32, 64, 128)  # of the longest problem; of the others the first
SHOWN = ("log_likelihood", "exact", "w2", "exponent", "ancestors", "ess", "least_ess", "resampled", "log_normaliser")


def problems() -> dict[str, TiltedProblem]:
    """Problems of 1 to 64 actions, with their number."""
    env, behaviour, target = reference_case()
    long = {f"{T} x 1": tilted_problem(dataclasses.replace(env, horizon=T), behaviour, target) for T in (1, 4, 16, 32, 64)}
    return long | {"16 x 3": cases()["16 steps, 6 states, 3 actions"]}


def rows(name: str, problem: TiltedProblem, levels: int = 32, seeds: int = SEEDS) -> Iterator[dict[str, Any]]:
    """Means over seeds, for each share of `LEAST`, and log-likelihoods per step."""
    guidance = make_guidance(guided("smc", smc=SMCConfig()))
    assert isinstance(guidance, SMCGuidance)
    codec, steps = codec_of(problem), problem.env.horizon
    one = guidance.guide(problem.denoise, problem.policy, codec, jnp.asarray(COEFFICIENT))
    sigmas = karras_sigmas(levels, 0.002, 80.0, 7.0)

    @jax.jit
    def draw(keys: Array, least: Array) -> tuple[Array, Array, Metrics]:
        def population(key: Array) -> tuple[Array, Array, Metrics]:
            x, log_weight, info = smc(key, one, (steps, codec.token_dim), sigmas, particles=PARTICLES, least_share=least)
            log_weight, means = on_one_scale(log_weight[None], jax.tree.map(lambda v: v[None], info), least)
            return x, log_weight[0], means

        return jax.lax.map(population, keys)

    target = problem.target(COEFFICIENT)
    for least in LEAST:
        x, log_weight, info = draw(jax.random.split(jax.random.key(0), seeds), jnp.asarray(least))
        weight = np.exp(np.asarray(log_weight, np.float64) - np.asarray(log_weight.max(axis=1, keepdims=True)))
        found = [fitted(np.asarray(points, np.float64), w) for points, w in zip(x, weight, strict=True)]
        row: dict[str, Any] = {"guidance": f"{name}, least {least:g}", "coefficient": COEFFICIENT, "levels": levels}
        row["log_likelihood"] = float(np.mean([expected_log_likelihood(f, problem.likelihood) for f in found])) / steps
        row["exact"] = expected_log_likelihood(target, problem.likelihood) / steps
        row["w2"] = float(np.mean([gaussian_wasserstein(f, target) for f in found]))
        yield row | {name: float(np.mean(info[name])) for name in SHOWN if name in info}


def run() -> dict[str, Any]:
    """Run the suite; prints each row as it comes."""
    found: list[dict[str, Any]] = []
    for name, problem in problems().items():
        for levels in LEVELS if name == "64 x 1" else LEVELS[:1]:
            for row in rows(name, problem, levels):
                found.append(row)
                values = ", ".join(f"{key} {row[key]:.3g}" for key in SHOWN)
                print(f"{row['guidance']}, {levels} levels: {values}", flush=True)
    return {"suite": "ancestors", **describe_device(), "particles": PARTICLES, "seeds": SEEDS, "rows": found}
