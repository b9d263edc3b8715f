"""`python -m benchmarks guidance`: every guidance against its stated target where that is known in closed form.

Linear-Gaussian problems with their exact denoiser: 2-Wasserstein distance between the Gaussian fitted to samples and the
target, log-likelihood of the actions, one-step dynamics error, estimate of the log normaliser, cost in forward-equivalents.
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

from benchmarks.timing import describe_device
from jaxpgd.diffusion.ladder import Guidance
from jaxpgd.diffusion.samplers import Churn, make_sampler
from jaxpgd.diffusion.schedules import karras_sigmas
from jaxpgd.diffusion.smc import smc
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
from jaxpgd.packing import TokenCodec
from jaxpgd.synthesis.replay import resample
from jaxpgd.synthesis.sampling import Sampling

COUNT, COEFFICIENTS = 4096, (0.25, 1.0)
HEADS = ("guidance", "coefficient", "steps", "forward_equivalents", "w2", "log_likelihood", "dynamics_error", "log_normaliser")


@dataclasses.dataclass(frozen=True)
class Method:
    """A guidance with a sampler, and the numbers of steps it is measured at."""

    name: str
    guidance: Guidance | None
    sampler: str
    steps: tuple[int, ...]
    churn: float = 0.0


def methods(particles: int = COUNT) -> tuple[Method, ...]:
    """The ladder. Coefficients are set later; `published` is a step size: see `nudges`."""
    smc_with = lambda proposal: Guidance(0.0, kind="smc", proposal=proposal, particles=particles)
    return (
        Method("none", None, "heun", (32,)),
        Method("reconstruction", Guidance(0.0), "heun", (16, 32, 64)),
        Method("reconstruction, churn 20", Guidance(0.0), "heun", (32, 64, 128), 20.0),
        Method("moment, 2 iterations", Guidance(0.0, kind="moment", iterations=2), "heun", (8, 16, 32)),
        Method("moment, 4 iterations", Guidance(0.0, kind="moment", iterations=4), "heun", (8, 16, 32)),
        Method("moment, 16 iterations", Guidance(0.0, kind="moment", iterations=16), "heun", (32,)),
        Method("smc of none", smc_with("none"), "smc", (32, 128)),
        Method("smc of reconstruction", smc_with("reconstruction"), "smc", (32, 64, 128, 256, 512)),
        Method("smc of moment", smc_with("moment"), "smc", (32, 64)),
    )


NUDGES = (0.01, 0.03, 0.1, 0.3, 1.0)  # step sizes of the published guidance, normalised; the best is reported


def cases() -> dict[str, TiltedProblem]:
    """The reference case, one of 64 steps, and one with 6 states and 3 actions."""
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
    """Tokens (s, a), standardised, actions as they are."""
    single = lambda x: jnp.asarray(x, jnp.float32)
    env = problem.env
    return TokenCodec(single(problem.centre), single(problem.scale), env.obs_dim, env.action_dim, squashed=False)


@functools.partial(jax.jit, static_argnames=("count", "weighted", "sampler"))
def draw(
    key: Array,
    problem: tuple[Any, ...],
    guidance: Guidance | None,
    sigmas: Array,
    churn: Array,
    count: int,
    weighted: bool,
    sampler: str,
) -> tuple[Array, Array, Array]:
    """Tokens [N, T, D], log weights [N], estimate of the log normaliser [] (0 where there is none)."""
    denoise, policy, codec = problem
    shape = (1, 1) if isinstance(denoise, Mixture) else denoise.mean.shape
    if guidance is not None and weighted:
        guided = guidance.guided(denoise, policy, codec)
        x, log_weight, info = smc(key, guided, shape, sigmas, particles=count, threshold=guidance.threshold)
        return x, log_weight, info["log_normaliser"]
    hook = None
    if guidance is not None:
        denoise, hook = guidance.attach(denoise, policy, codec)
    sampling = Sampling(sigmas, Churn(churn, 0.05, 50.0, 1.0), make_sampler(sampler), count)
    x = jax.vmap(lambda k: sampling.draw(k, denoise, shape, before_step=hook)[0])(jax.random.split(key, count))
    return x, jnp.zeros(count), jnp.zeros(())


def measure(problem: TiltedProblem, method: Method, coefficient: float, steps: int, count: int = COUNT, seed: int = 0) -> dict:
    """One row."""
    guidance = None if method.guidance is None else dataclasses.replace(method.guidance, coefficient=jnp.asarray(coefficient))
    sigmas = karras_sigmas(steps, 0.002, 80.0, 7.0)
    weighted = guidance is not None and guidance.weighted
    parts = (problem.denoise, problem.policy, codec_of(problem))
    key, key_resample = jax.random.split(jax.random.key(seed))
    began = time.perf_counter()
    size = guidance.particles if weighted and guidance is not None else count
    sampler = "heun" if weighted else method.sampler
    x, log_weight, log_z = draw(key, parts, guidance, sigmas, jnp.asarray(method.churn), size, weighted, sampler)
    if weighted:  # a larger population is thinned to as many samples as are scored of the others
        x = resample(key_resample, x, log_weight)[:: max(size // count, 1)]
    evaluations = steps if weighted else {"heun": 2 * steps - 1, "euler": steps, "ancestral": steps}[method.sampler]
    cost = evaluations if guidance is None else int(guidance.forward_equivalents(np.asarray(evaluations), steps))
    row = {"guidance": method.name, "coefficient": coefficient, "steps": steps, "forward_equivalents": cost}
    row |= score(problem, np.asarray(x, np.float64), coefficient)
    if weighted:
        row["log_normaliser"] = float(log_z)
        row["ess"] = float(1.0 / jnp.square(jax.nn.softmax(log_weight)).sum()) / size
    return row | {"seconds": time.perf_counter() - began}


def score(problem: TiltedProblem, x: np.ndarray, coefficient: float) -> dict[str, float]:
    """Distance to the target (only where a coefficient says which), log-likelihood per action and dynamics error of tokens."""
    found = fitted(x)
    per_action = problem.env.horizon
    return {
        "w2": gaussian_wasserstein(found, problem.target(coefficient)),
        "log_likelihood": expected_log_likelihood(found, problem.likelihood) / per_action,
        "dynamics_error": dynamics_error(problem, x),
    }


def dynamics_error(problem: TiltedProblem, x: np.ndarray) -> float:
    """Root mean square of s' - A s - B a over standardised states; the process noise is its floor on real data."""
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
    """The published guidance at the step size that comes closest to the target of a coefficient."""
    rows = []
    for size in NUDGES:
        method = Method(f"published, step size {size:g}", Guidance(0.0, kind="published", at="noised"), "heun", (steps,), 80.0)
        guided = dataclasses.replace(method.guidance, coefficient=jnp.asarray(size))  # type: ignore[type-var]
        row = measure_at(problem, dataclasses.replace(method, guidance=guided), coefficient, steps)
        rows.append(row)
    return min(rows, key=lambda r: r["w2"])


def measure_at(problem: TiltedProblem, method: Method, coefficient: float, steps: int) -> dict[str, Any]:
    """A row of a guidance whose own coefficient is set already, held against the target of `coefficient`."""
    parts = (problem.denoise, problem.policy, codec_of(problem))
    sigmas = karras_sigmas(steps, 0.002, 80.0, 7.0)
    x, _, _ = draw(jax.random.key(0), parts, method.guidance, sigmas, jnp.asarray(method.churn), COUNT, False, method.sampler)
    assert method.guidance is not None
    cost = int(method.guidance.forward_equivalents(np.asarray(2 * steps - 1), steps))
    row = {"guidance": method.name, "coefficient": coefficient, "steps": steps, "forward_equivalents": cost}
    return row | score(problem, np.asarray(x, np.float64), coefficient)


def rows(problem: TiltedProblem) -> Iterator[dict[str, Any]]:
    """All rows of one problem, exact samples first."""
    for coefficient in COEFFICIENTS:
        yield floor(problem, coefficient)
        yield published(problem, coefficient, 256)
        for method in methods():
            for steps in method.steps:
                yield measure(problem, method, coefficient, steps)


def bias(problem: TiltedProblem, coefficient: float = 1.0, steps: int = 64) -> list[dict[str, Any]]:
    """The error of `smc` as particles grow."""
    found = []
    for particles in (64, 512, 4096, 16384):
        method = Method(f"smc of reconstruction, {particles} particles", None, "smc", (steps,))
        guidance = Guidance(0.0, kind="smc", particles=particles)
        found.append(measure(problem, dataclasses.replace(method, guidance=guidance), coefficient, steps))
    return found


def mixtures() -> dict[str, Mixture]:
    """Behaviours of one action, of which the policy prefers a side."""
    return {
        "two modes": mixture([0.5, 0.5], [-1.0, 1.0], [0.3, 0.3]),
        "three modes": mixture([0.2, 0.5, 0.3], [-1.5, 0.2, 1.6], [0.15, 0.4, 0.25]),
    }


def mixture_rows(behaviour: Mixture, count: int = 16_384) -> Iterator[dict[str, Any]]:
    """KL of every guidance from the tilted density of one action, policy N(0.5, 0.5^2), 64 noise levels."""
    policy, edges = gaussian_policy(0.5, 0.5), np.linspace(-4.0, 4.0, 161)
    sigmas = karras_sigmas(64, 0.002, 80.0, 7.0)
    nudge = Method("published", Guidance(0.0, kind="published", at="noised"), "heun", (64,), 80.0)
    for coefficient in (0.25, 1.0, 4.0):
        masses = tilted_masses(edges, behaviour, policy, coefficient)
        exact = np.random.default_rng(0).choice((edges[:-1] + edges[1:]) / 2, count, p=masses)
        yield {"guidance": "exact samples", "coefficient": coefficient, "kl": divergence(exact, edges, masses)}
        for method in (nudge, *methods(count)):
            guidance, weighted = method.guidance, method.sampler == "smc"
            if guidance is not None:
                guidance = dataclasses.replace(guidance, coefficient=jnp.asarray(coefficient))
            parts, churn = (behaviour, policy, MIXTURE_CODEC), jnp.asarray(method.churn)
            sampler = "heun" if weighted else method.sampler
            x, log_weight, _ = draw(jax.random.key(0), parts, guidance, sigmas, churn, count, weighted, sampler)
            x = resample(jax.random.key(1), x, log_weight) if weighted else x
            yield {"guidance": method.name, "coefficient": coefficient, "kl": divergence(np.asarray(x), edges, masses)}


def table(found: list[dict[str, Any]]) -> str:
    """Rows as text."""
    heads = HEADS if "w2" in found[0] else ("guidance", "coefficient", "kl")
    text = lambda v: f"{v:.3f}" if isinstance(v, float) else str(v)
    cells = [heads, *([text(r.get(h, "-")) for h in heads] for r in found)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def run() -> dict[str, Any]:
    """The whole suite."""
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
    return {"suite": "guidance", **describe_device(), "samples": COUNT, "rows": found}
