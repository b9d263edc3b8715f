"""Guided denoisers with a memory: which evaluations compute a change, what the others do, and that they cost nothing more."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from guided import ALL_LEVELS, method
from jax import Array

from jaxpgd.diffusion.edm import karras_sigmas
from jaxpgd.diffusion.sampling import sample, with_memory
from jaxpgd.diffusion.solvers import SamplerConfig, make_solver
from jaxpgd.envs.gaussian_tilt import fitted, gaussian_wasserstein, tilted_problem
from jaxpgd.envs.linear_gaussian import linear_policy, reference_case
from jaxpgd.guidance.base import GuidedDenoise
from jaxpgd.guidance.caching import TREND, deviation
from jaxpgd.guidance.kinds import GuidanceConfig, make_guidance
from jaxpgd.guidance.moment import MomentConfig, MomentGuidance
from jaxpgd.guidance.smc import SMCConfig
from jaxpgd.parallel import map_batches
from jaxpgd.synthesis.diffusion import TrajectoryDenoiser, make_synthesizer
from jaxpgd.tokens import TokenCodec
from jaxpgd.types import Memory

KINDS = ("moment", "reconstruction")
EVERYWHERE: dict[str, Any] = {"sigma_min": 0.0, "sigma_max": 1e9, "cache_interval": 1}
CACHED: dict[str, Any] = {"sigma_min": 0.0, "sigma_max": 20.0, "cache_interval": 2}
PROBLEM = tilted_problem(*reference_case())
CODEC = TokenCodec(
    jnp.asarray(PROBLEM.centre, jnp.float32), jnp.asarray(PROBLEM.scale, jnp.float32), obs_dim=2, action_dim=1, squashed=False
)
LEVELS = karras_sigmas(32, 0.002, 80.0, 7.0)
SHAPE = (16, 3)


def guided(kind: str = "moment", coefficient: float = 1.0, denoise: Any = PROBLEM.denoise, **options: Any) -> GuidedDenoise:
    found: GuidedDenoise = method(kind, **options).guide(denoise, PROBLEM.policy, CODEC, jnp.asarray(coefficient))
    return found


def noise(seed: int = 0) -> Array:
    return jax.random.normal(jax.random.key(seed), SHAPE)


def stepwise(denoise: GuidedDenoise) -> GuidedDenoise:
    """The same, to be called operation by operation, but for its method's changes: one compiled program computes them all.

    So those at equal x and sigma have the same bits.
    """
    method: Any = denoise.method
    name = "solve_along" if isinstance(method, MomentGuidance) else "estimate"
    program = jax.jit(functools.partial(getattr(method, name), denoise.denoise, denoise.likelihood))

    def change(self: Any, denoise: Any, likelihood: Any, x: Array, sigma: Array) -> Any:
        with jax.disable_jit(False):
            return program(x, sigma)

    Compiled: Any = type("Compiled", (type(method),), {name: change})
    return GuidedDenoise(Compiled(method.options), denoise.denoise, denoise.likelihood)


def walk(denoise: Any, x: Array, sigmas: Array) -> tuple[list[Array], list[int]]:
    """What evaluations at x of these noise levels give, operation by operation, and the passes of each."""
    memory, found, passes = with_memory(denoise).init_memory(x), [], []
    for sigma in sigmas:
        with jax.disable_jit():
            x0, new = with_memory(denoise).evaluate(x, sigma, memory)
        found.append(x0)
        passes.append(int(new.passes - memory.passes))
        memory = new
    return found, passes


@pytest.mark.parametrize("kind", KINDS)
def test_which_evaluations_compute_a_change(kind: str) -> None:
    """The first within the range and every second one after it; others are forward passes, within it with a cached change."""
    denoise = stepwise(guided(kind, sigma_min=0.1, sigma_max=5.0, cache_interval=2, limit=1e3))
    sigmas, x = jnp.array([9.0, 4.0, 3.0, 2.0, 1.0, 0.05, 4.0, 0.02]), noise()
    found, passes = walk(denoise, x, sigmas)
    cost = int(denoise.method.cost(sigmas[1]))
    assert passes == [1, cost, 1, cost, 1, 1, cost, 1]
    plain = [PROBLEM.denoise(x, sigma) for sigma in sigmas]
    with jax.disable_jit():
        fresh = [denoise.method.estimate(denoise.denoise, denoise.likelihood, x, sigma).x0_guided for sigma in sigmas]
    for i in (0, 5, 7):
        np.testing.assert_array_equal(found[i], plain[i])
    for i in (1, 3, 6):
        np.testing.assert_array_equal(found[i], fresh[i])
    if kind == "moment":
        assert all(np.abs(found[i] - plain[i]).max() > 1e-2 for i in (2, 4))
        return
    first, second = ((fresh[i] - plain[i]) / deviation(sigmas[i]) for i in (1, 3))
    slope = TREND * (second - first) * jnp.log(2.0 / 1.0) / jnp.log(4.0 / 2.0)
    for i, change in ((2, first), (4, second + slope)):
        np.testing.assert_allclose(found[i] - plain[i], change * deviation(sigmas[i]), rtol=1e-3, atol=1e-5)
        assert np.abs(change).max() > 1e-2 and np.abs(slope).max() > 1e-3


@jax.jit
def computed(x: Array, sigma: Array) -> Any:
    """The denoised point at x, the guided one, and what is kept of its change by three directions."""
    exact = guided(iterations=3)
    return exact.denoise(x, sigma), *exact.method.compute(exact.denoise, exact.likelihood, x, sigma, None)


@jax.jit
def reused(x0: Array, sigma: Array, kept: Any) -> Array:
    """The change of a denoised point by what was kept."""
    exact = guided(iterations=3)
    return exact.method.reuse(exact.likelihood, x0, sigma, kept)


@pytest.mark.parametrize("sigma", [0.3, 2.0])
def test_kept_directions_solve_within_their_span(sigma: float) -> None:
    """At another point: the solution in their span that leaves a residual orthogonal to it, by dense matrices."""
    level, coefficient = jnp.asarray(sigma), 1.0
    here, there = (1.0 + sigma) * noise(0), (1.0 + sigma) * noise(1)
    x0, first, kept = computed(here, level)
    np.testing.assert_allclose(x0 + reused(x0, level, kept), first, rtol=1e-4, atol=1e-4)

    M, cov = PROBLEM.likelihood.matrix, PROBLEM.behaviour.cov
    C = cov - cov @ np.linalg.solve(cov + sigma**2 * np.eye(48), cov)
    x0 = PROBLEM.denoise(there, level)
    r = M @ np.asarray(x0, np.float64).ravel() - PROBLEM.likelihood.offset
    p = np.asarray(kept.direction, np.float64).reshape(3, 16)
    z = p.T @ np.linalg.solve(p @ (np.eye(16) + coefficient * M @ C @ M.T) @ p.T, p @ r)
    change = reused(x0, level, kept)
    np.testing.assert_allclose(np.ravel(change), -coefficient * C @ M.T @ z, rtol=1e-2, atol=1e-2 * np.abs(change).max())


@pytest.mark.parametrize("kind", KINDS)
def test_a_cached_change_stays_within_the_limit(kind: str) -> None:
    sigmas, limit = jnp.array([4.0, 0.3]), 0.3
    found, _ = walk(stepwise(guided(kind, limit=limit, **EVERYWHERE | {"cache_interval": 2})), 5.0 * noise(), sigmas)
    change = np.abs(found[1] - PROBLEM.denoise(5.0 * noise(), sigmas[1])) / np.asarray(deviation(sigmas[1]))
    assert 0.29 < change.max() <= limit + 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["heun", "dpmpp_2m_sde"])
@pytest.mark.parametrize("kind", KINDS)
def test_everywhere_and_always_is_guidance_without_a_memory(kind: str, solver: Any) -> None:
    """Bit for bit: the branch that computes is the estimate itself."""

    @struct.dataclass
    class WithoutMemory:
        guided: GuidedDenoise

        def __call__(self, x: Array, sigma: Array) -> Array:
            return self.guided(x, sigma)

    def draw(denoise: Any) -> tuple[Array, Any]:
        return sample(jax.random.key(1), denoise, LEVELS[0] * noise(), LEVELS[::4], make_solver(SamplerConfig(solver)))

    denoise = stepwise(guided(kind, **EVERYWHERE))
    with jax.disable_jit():
        (x, info), (wanted, _) = draw(denoise), draw(WithoutMemory(denoise))
    np.testing.assert_array_equal(x, wanted)
    assert int(info["forward_equivalents"]) == denoise.method.cost(LEVELS[0]) * int(info["nfe"])


CALLS: list[int] = []


@struct.dataclass
class Counted:
    """The exact denoiser, which counts the forward passes and the directions in which it is differentiated."""

    @staticmethod
    def count(kind: int, x: Array) -> Array:
        jax.debug.callback(lambda _: CALLS.append(kind), x.sum())
        return x

    def __call__(self, x: Array, sigma: Array) -> Array:
        return _counted(x, sigma)


@jax.custom_jvp
def _counted(x: Array, sigma: Array) -> Array:
    return Counted.count(0, PROBLEM.denoise(x, sigma))


@_counted.defjvp
def _counted_jvp(primals: Any, tangents: Any) -> Any:
    x0, change = jax.jvp(PROBLEM.denoise, primals, tangents)
    return Counted.count(1, x0), change


@pytest.mark.parametrize("batched", ["one", "vmap", "policies", "batches"])
def test_no_work_is_done_where_no_change_is_due(batched: str) -> None:
    """Calls of the denoiser with and without its derivative, one for each sample of a batch: those that are due and no more."""
    few, count, levels = (lambda key: jax.random.normal(key, SHAPE)), 4, LEVELS[::2]
    policies = jax.vmap(lambda shift: linear_policy([[-0.5, -0.5]], shift[None], 0.4))(jnp.linspace(0.0, 0.3, count))

    def one(key: Array, policy: Any = PROBLEM.policy) -> Array:
        denoise = method("moment", **CACHED).guide(Counted(), policy, CODEC, jnp.asarray(1.0))
        return sample(key, denoise, levels[0] * few(key), levels, make_solver(SamplerConfig()))[0]

    keys = jax.random.split(jax.random.key(0), count)
    run = {
        "one": lambda: one(keys[0]),
        "vmap": lambda: jax.vmap(one)(keys),
        "policies": lambda: jax.vmap(one)(keys, policies),
        "batches": lambda: map_batches(one, keys, 2),
    }[batched]
    CALLS.clear()
    jax.block_until_ready(jax.jit(run)())
    jax.effects_barrier()
    inside = int(((levels > 0.0) & (levels <= 20.0)).sum())
    computed, samples = -(-inside // 2), 1 if batched == "one" else count
    assert computed > 2
    assert CALLS.count(1) == samples * computed
    assert CALLS.count(0) == samples * (len(levels) - 1 - computed)


def test_a_batch_is_its_samples() -> None:
    denoise = guided(**CACHED)
    one = lambda key: sample(key, denoise, LEVELS[0] * jax.random.normal(key, SHAPE), LEVELS, make_solver(SamplerConfig()))
    keys = jax.random.split(jax.random.key(0), 3)
    together, info = jax.jit(jax.vmap(one))(keys)
    alone = jax.jit(one)
    np.testing.assert_allclose(together, jnp.stack([alone(key)[0] for key in keys]), rtol=1e-3, atol=1e-4)
    assert info["forward_equivalents"].tolist() == [int(alone(keys[0])[1]["forward_equivalents"])] * 3


def test_gradients_pass_both_branches() -> None:
    """Of the sample in the policy's mean, against a difference."""

    def mean(shift: Array) -> Array:
        policy = linear_policy([[-0.5, -0.5]], shift[None], 0.4)
        denoise = method("moment", **CACHED).guide(PROBLEM.denoise, policy, CODEC, jnp.asarray(1.0))
        x, _ = sample(jax.random.key(0), denoise, LEVELS[0] * noise(), LEVELS[::3], make_solver(SamplerConfig("dpmpp_2m")))
        return x[:, 2].mean()

    run = jax.jit(jax.value_and_grad(mean))
    at, step = jnp.asarray(0.2), 0.05
    difference = (run(at + step)[0] - run(at - step)[0]) / (2 * step)
    np.testing.assert_allclose(run(at)[1], difference, rtol=1e-2)
    assert abs(float(difference)) > 0.05


def test_no_number_of_the_policy_reaches_unguided_levels() -> None:
    """Of a policy whose score is no number, evaluations outside the range are the denoiser's, finite."""
    broken = linear_policy([[-0.5, -0.5]], jnp.array([jnp.nan]), 0.4)
    denoise = method("moment", sigma_min=0.1, sigma_max=5.0).guide(PROBLEM.denoise, broken, CODEC, jnp.asarray(1.0))
    found, _ = walk(denoise, noise(), jnp.array([9.0, 1.0, 0.01]))
    assert np.isfinite(found[0]).all() and np.isnan(found[1]).any() and np.isfinite(found[2]).all()
    assert np.isfinite(denoise(noise(), jnp.asarray(9.0))).all()


def test_fewer_passes_approach_the_stated_target() -> None:
    """Without derivatives at the ends of the noise levels as closely as with all of them; cached changes nearly so."""
    count, coefficient = 1024, 0.25
    solver, wanted = make_solver(SamplerConfig()), PROBLEM.target(coefficient)

    @functools.partial(jax.jit)
    def draw(denoise: GuidedDenoise) -> tuple[Array, Array]:
        one = lambda key: sample(key, denoise, LEVELS[0] * jax.random.normal(key, SHAPE), LEVELS, solver)
        x, info = jax.vmap(one)(jax.random.split(jax.random.key(0), count))
        return x, info["forward_equivalents"][0]

    distance = lambda x: gaussian_wasserstein(fitted(x), wanted)
    thinned = {name: getattr(MomentConfig(), name) for name in ALL_LEVELS}
    (cached, few), (always, most), (chosen, fewer) = (
        draw(guided(coefficient=coefficient, **options)) for options in (CACHED, EVERYWHERE, thinned)
    )
    assert (int(few), int(most), int(fewer)) == (56, 96, 66)
    print("distances", distance(cached), distance(always), distance(chosen))
    assert distance(chosen) < 1.05 * distance(always) and distance(cached) < 1.25 * distance(always) < 0.55


@pytest.mark.slow
def test_the_cost_that_is_reported() -> None:
    """`cost` foresees what a synthesis counts: of guided, unguided and hooked sampling."""

    @struct.dataclass
    class Gaussian:
        def __call__(self, x: Array, sigma: Array) -> Array:
            return x / (1.0 + sigma**2)

    codec = TokenCodec(mean=jnp.zeros(4), std=jnp.ones(4), obs_dim=1, action_dim=1)
    denoiser = TrajectoryDenoiser(Gaussian(), codec, 2)
    policy = linear_policy([[0.1]], [0.2], 0.5)
    for guidance, sampler, wanted in (
        (None, SamplerConfig("heun", steps=8), 15),
        (GuidanceConfig(), SamplerConfig(), 49),
        (GuidanceConfig(moment=MomentConfig(iterations=2, **ALL_LEVELS)), SamplerConfig(), 96),
        (GuidanceConfig(moment=MomentConfig(iterations=2, **ALL_LEVELS | CACHED)), SamplerConfig(), 56),
        (GuidanceConfig("reconstruction"), SamplerConfig("heun", steps=8), 30),
        (GuidanceConfig("published"), SamplerConfig("heun", steps=8), 23),
        (GuidanceConfig("smc"), SamplerConfig(steps=8), 16),
    ):
        made = make_synthesizer(denoiser, sampler, guidance)
        counted = lambda key, made=made: made(key, policy, jnp.zeros((2, 1))).info["forward_equivalents"]
        assert int(made.cost()) == int(jax.jit(counted)(jax.random.key(0))) == wanted
    assert int(make_synthesizer(denoiser, SamplerConfig(), GuidanceConfig()).cost(guided=False)) == 32


def test_proposals_of_smc_are_computed_at_every_level() -> None:
    made: Any = make_guidance(GuidanceConfig("smc", smc=SMCConfig(proposal="moment"), moment=MomentConfig(**CACHED)))
    options = made.proposal.options
    assert options.cache_interval == 1 and float(options.sigma_min) == 0.0 and float(options.sigma_max) == 1e9


def test_a_denoiser_without_memory_keeps_nothing() -> None:
    memory = with_memory(PROBLEM.denoise).init_memory(noise())
    assert isinstance(memory, Memory) and memory.kept == () and int(memory.passes) == 0
    denoise = guided()
    assert with_memory(denoise) is denoise
