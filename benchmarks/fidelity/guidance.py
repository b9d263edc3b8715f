"""`python -m benchmarks guidance`: every guidance method against its target where that is known in closed form.

Linear-Gaussian problems with their exact denoiser: 2-Wasserstein distance between a Gaussian fitted to the samples and the
target, log-likelihood of the actions, one-step dynamics error, estimate of the log normaliser, cost in forward-equivalents. For
one action with a mixture as behaviour: KL divergence from the target.
"""

import dataclasses
import functools
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks.fidelity.methods import COUNT, NUDGES, Method, guided, methods, nudge
from benchmarks.speed.guidance_cost import costs, sampling_costs
from benchmarks.timing import describe_device
from jaxpgd.diffusion.edm import karras_sigmas
from jaxpgd.diffusion.sampling import Solver
from jaxpgd.diffusion.single_step import EDMConfig
from jaxpgd.diffusion.solvers import SamplerConfig, make_solver
from jaxpgd.envs.gaussian_tilt import (
    TiltedProblem,
    expected_log_likelihood,
    fitted,
    gaussian_wasserstein,
    log_normaliser,
    tilted_problem,
)
from jaxpgd.envs.linear_gaussian import linear_policy, make_env, reference_case
from jaxpgd.envs.mixture import CODEC as MIXTURE_CODEC
from jaxpgd.envs.mixture import Mixture, divergence, gaussian_policy, mixture, tilted_masses
from jaxpgd.guidance.base import Guidance
from jaxpgd.guidance.kinds import make_guidance
from jaxpgd.guidance.published import step_share
from jaxpgd.guidance.smc import SMCConfig
from jaxpgd.guidance.strength import FixedStrength
from jaxpgd.synthesis.diffusion import DiffusionSynthesizer, TrajectoryDenoiser
from jaxpgd.synthesis.replay import resample
from jaxpgd.synthesis.sampling import Sampling
from jaxpgd.tokens import TokenCodec
from jaxpgd.types import Denoise, Metrics, Policy

COEFFICIENTS = (0.25, 1.0)
HEADS = ("guidance", "coefficient", "steps", "forward_equivalents", "w2", "log_likelihood", "dynamics_error", "log_normaliser")


def cases() -> dict[str, TiltedProblem]:
    """The reference problem, one with 64 steps, and one with 6 states and 3 actions."""
    env, behaviour, target = reference_case()
    long = dataclasses.replace(env, horizon=64)
    rng = np.random.default_rng(0)
    a = np.eye(6) * 0.95 + 0.1 * np.diag(np.ones(5), 1) + 0.02 * rng.normal(size=(6, 6))
    b = 0.2 * rng.normal(size=(6, 3))
    wide = make_env(a, b, 0.02 * np.eye(6), 0.5 * np.eye(6), horizon=16)
    gains = [-0.3 * np.linalg.pinv(b) @ np.eye(6) * scale for scale in (0.2, 0.6)]
    policies = linear_policy(gains[0], np.zeros(3), 0.5), linear_policy(gains[1], np.full(3, 0.3), 0.3)
    return {
        "16 steps, 2 states, 1 action": tilted_problem(env, behaviour, target),
        "64 steps, 2 states, 1 action": tilted_problem(long, behaviour, target),
        "16 steps, 6 states, 3 actions": tilted_problem(wide, *policies),
    }


def codec_of(problem: TiltedProblem) -> TokenCodec:
    """Codec of tokens (s, a), standardised; actions are not squashed."""
    single = lambda x: jnp.asarray(x, jnp.float32)
    env = problem.env
    return TokenCodec(single(problem.centre), single(problem.scale), env.obs_dim, env.action_dim, squashed=False)


@functools.partial(jax.jit, static_argnames=("count", "length"))
def draw(
    key: Array,
    denoiser: tuple[Denoise, TokenCodec],
    policy: Policy,
    guidance: Guidance | None,
    coefficient: Array,
    sigmas: Array,
    solver: Solver,
    *,
    count: int,
    length: int,
) -> tuple[Array, Array, Metrics]:
    """Tokens [N, T, D], log weights [N], and metrics with their cost."""
    sampling, strength = Sampling(sigmas, solver, count), None if guidance is None else FixedStrength(coefficient)
    synthesizer = DiffusionSynthesizer(TrajectoryDenoiser(*denoiser, length), sampling, guidance, strength, length)
    return synthesizer.sample(key, policy if guidance is not None else None, jnp.zeros((count, 1)))


def sample(
    denoiser: tuple[Denoise, TokenCodec],
    policy: Policy,
    method: Method,
    coefficient: float,
    steps: int,
    length: int,
    count: int,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Unweighted tokens [N, T, D] of a method, and a row with their cost. More particles than `count` are thinned."""
    config = method.guidance
    guidance = None if config is None else make_guidance(config)
    weighted = config is not None and config.kind == "smc"
    size = config.smc.particles if config is not None and weighted else count
    solver = make_solver(SamplerConfig(method.solver, heun=EDMConfig(method.churn, 0.05, 50.0, 1.0)))
    sigmas = karras_sigmas(steps, 0.002, 80.0, 7.0)
    began = time.perf_counter()
    x, log_weight, info = draw(
        jax.random.key(0), denoiser, policy, guidance, jnp.asarray(coefficient), sigmas, solver, count=size, length=length
    )
    if weighted:
        x = resample(jax.random.key(1), x, log_weight)[:: max(size // count, 1)]
    row = {"guidance": method.name, "coefficient": coefficient, "steps": steps}
    row |= {name: float(info[name]) for name in ("log_normaliser", "ess") if name in info}
    row |= {"forward_equivalents": int(info["forward_equivalents"]), "seconds": time.perf_counter() - began}
    return np.asarray(x, np.float64), row


def measure(problem: TiltedProblem, method: Method, coefficient: float, steps: int) -> dict[str, Any]:
    """One row of a method; `published` takes its step size instead of the coefficient."""
    setting = method.step_size or coefficient
    parts = (problem.denoise, codec_of(problem))
    x, row = sample(parts, problem.policy, method, setting, steps, problem.env.horizon, COUNT)
    return row | {"coefficient": coefficient} | score(problem, x, coefficient)


def score(problem: TiltedProblem, x: np.ndarray, coefficient: float) -> dict[str, float]:
    """Distance of tokens to the target of a coefficient, log-likelihood per action, and dynamics error."""
    found = fitted(x)
    per_action = problem.env.horizon
    return {
        "w2": gaussian_wasserstein(found, problem.target(coefficient)),
        "log_likelihood": expected_log_likelihood(found, problem.likelihood) / per_action,
        "dynamics_error": dynamics_error(problem, x),
    }


def dynamics_error(problem: TiltedProblem, x: np.ndarray) -> float:
    """Root mean square of s' - A s - B a over standardised states; exact samples have that of the process noise."""
    env, states = problem.env, problem.env.obs_dim
    raw = x * problem.scale + problem.centre
    s, a = raw[..., :states], raw[..., states:]
    error = s[:, 1:] - s[:, :-1] @ np.asarray(env.A).T - a[:, :-1] @ np.asarray(env.B).T
    return float(np.sqrt(np.mean((error / problem.scale[:states]) ** 2)))


def floor(problem: TiltedProblem, coefficient: float, count: int = COUNT) -> dict[str, Any]:
    """The row of exact samples."""
    exact = problem.target_denoise(coefficient)
    x = jax.vmap(exact.sample)(jax.random.split(jax.random.key(1), count))
    true = log_normaliser(problem.behaviour, problem.likelihood, coefficient) + coefficient * problem.likelihood.constant
    row = {"guidance": "exact samples", "coefficient": coefficient, "steps": 0, "forward_equivalents": 0}
    return row | score(problem, np.asarray(x, np.float64), coefficient) | {"log_normaliser": true}


def published(problem: TiltedProblem, coefficient: float, steps: int) -> dict[str, Any]:
    """The published guidance at the step size whose samples are closest to the target."""
    candidates = (measure(problem, nudge(size), coefficient, steps) for size in NUDGES)
    return min(candidates, key=lambda row: row["w2"])


def rows(problem: TiltedProblem) -> Iterator[dict[str, Any]]:
    """All rows of one problem; those of each coefficient begin with exact samples."""
    for coefficient in COEFFICIENTS:
        yield floor(problem, coefficient)
        yield published(problem, coefficient, 256)
        for method in methods():
            for steps in method.steps:
                yield measure(problem, method, coefficient, steps)


def bias(problem: TiltedProblem, coefficient: float = 1.0, steps: int = 64) -> list[dict[str, Any]]:
    """The error of `smc` as the number of particles grows."""
    found = []
    for particles in (64, 512, 4096, 16384):
        guidance = guided("smc", smc=SMCConfig(particles=particles))
        method = Method(f"smc of reconstruction, {particles} particles", guidance, "heun", (steps,))
        found.append(measure(problem, method, coefficient, steps))
    return found


def mixtures() -> dict[str, Mixture]:
    """Behaviours of one action; the target policy prefers one side."""
    return {
        "two modes": mixture([0.5, 0.5], [-1.0, 1.0], [0.3, 0.3]),
        "three modes": mixture([0.2, 0.5, 0.3], [-1.5, 0.2, 1.6], [0.15, 0.4, 0.25]),
    }


def mixture_rows(behaviour: Mixture, count: int = 16_384) -> Iterator[dict[str, Any]]:
    """KL divergence of every method from the tilted density of one action, policy N(0.5, 0.5^2), 64 noise levels."""
    policy, edges = gaussian_policy(0.5, 0.5), np.linspace(-4.0, 4.0, 161)
    for coefficient in (0.25, 1.0, 4.0):
        masses = tilted_masses(edges, behaviour, policy, coefficient)
        exact = np.random.default_rng(0).choice((edges[:-1] + edges[1:]) / 2, count, p=masses)
        yield {"guidance": "exact samples", "coefficient": coefficient, "kl": divergence(exact, edges, masses)}
        # `published` takes the target's coefficient as the size of each of the 64 steps
        for method in (nudge(coefficient / float(step_share(64, 0.3))), *methods(count)):
            x, row = sample((behaviour, MIXTURE_CODEC), policy, method, coefficient, 64, 1, count)
            yield row | {"kl": divergence(x, edges, masses)}


def table(found: list[dict[str, Any]]) -> str:
    """Rows as a text table."""
    heads = HEADS if "w2" in found[0] else (
        "guidance", "coefficient", "forward_equivalents", "kl", "forward_times", "unguided_times",
    )  # fmt: skip
    heads = tuple(head for head in heads if any(head in row for row in found) or head in HEADS[:2])
    text = lambda v: f"{v:.3f}" if isinstance(v, float) else str(v)
    cells = [heads, *([text(r.get(h, "-")) for h in heads] for r in found)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def run() -> dict[str, Any]:
    """Run the suite; prints each table as it comes."""
    found: dict[str, Any] = {}
    for name, problem in cases().items():
        found[name] = []
        print(f"\n{name}", flush=True)
        for row in rows(problem):
            found[name].append(row)
            print(table([row]).splitlines()[1], flush=True)
    reference = cases()["16 steps, 2 states, 1 action"]
    found["bias"] = bias(reference)
    print(f"\nbias\n{table(found['bias'])}", flush=True)
    for name, behaviour in mixtures().items():
        found[name] = list(mixture_rows(behaviour))
        print(f"\n{name}\n{table(found[name])}", flush=True)
    found["costs"] = costs()
    print(f"\ncosts of an evaluation\n{table(found['costs'])}", flush=True)
    found["sampling_costs"] = sampling_costs()
    print(f"\ncosts of sampling\n{table(found['sampling_costs'])}", flush=True)
    return {"suite": "guidance", **describe_device(), "samples": COUNT, "rows": found}


if __name__ == "__main__":
    import sys

    from benchmarks.__main__ import main

    main(["guidance", *sys.argv[1:]])
