import itertools
from typing import Any, get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from jax import Array

from jaxpgd.diffusion.edm import karras_sigmas, vp_sigmas
from jaxpgd.diffusion.multistep import DPMpp2M, DPMpp3M
from jaxpgd.diffusion.sampling import Solver, sample
from jaxpgd.diffusion.single_step import NO_CHURN, Ancestral, ChurnConfig, EDMConfig, Euler, Heun
from jaxpgd.diffusion.solvers import SOLVERS, SamplerConfig, make_solver
from jaxpgd.envs.linear_gaussian import gaussian_denoise
from jaxpgd.options import as_arrays
from jaxpgd.types import Stage

PGD_CHURN = ChurnConfig(80.0, 0.05, 50.0, 1.003)
EVERY: list[Solver] = [Euler(), Heun(), Ancestral(), DPMpp2M(), DPMpp2M(1.0), DPMpp3M(), DPMpp3M(1.0)]


def name_of(value: Any) -> str | None:
    return f"{type(value).__name__}{getattr(value, 'noise', '')}" if isinstance(value, tuple(type(s) for s in EVERY)) else None


@struct.dataclass
class Gaussian:
    """The exact denoiser of tokens ~ N(0, std^2)."""

    std: Array | float

    def __call__(self, x: Array, sigma: Array) -> Array:
        return x * self.std**2 / (self.std**2 + sigma**2)


def draw(solver: Solver, denoise: Any, sigmas: Array, shape: tuple[int, int], count: int) -> np.ndarray:
    def one(key: Array) -> Array:
        key_noise, key = jax.random.split(key)
        return sample(key, denoise, sigmas[0] * jax.random.normal(key_noise, shape), sigmas, solver)[0]

    samples = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(3), count))
    return np.asarray(samples, np.float64).reshape(count, -1)


def linear_std(kind: str, predictor: str, std: float, sigmas: np.ndarray, churn: ChurnConfig) -> float:
    """Standard deviation of a sampler's output for N(0, std^2): every step is linear in x and the fresh noise."""
    sigmas = np.asarray(sigmas, np.float64)
    variance, steps = sigmas[0] ** 2, len(sigmas) - 1
    slope = lambda sigma: sigma / (std**2 + sigma**2)  # (x - D(x)) / sigma = slope * x
    for sigma, after in itertools.pairwise(sigmas):
        gamma = min(churn.churn / steps, np.sqrt(2) - 1) if churn.churn_min <= sigma <= churn.churn_max else 0.0
        hat = sigma * (1 + gamma)
        step = (after - hat) * slope(hat)
        old, new = 1 + step, (1 + step if predictor == "churned" else step)  # factors of x and of the added noise
        if kind == "heun" and after > 0:
            old, new = (1 + step / 2 + (after - hat) * slope(after) * f / 2 for f in (old, new))
        variance = old**2 * variance + new**2 * churn.churn_noise**2 * (hat**2 - sigma**2)
    return float(np.sqrt(variance))


@pytest.mark.parametrize(
    ("solver", "order", "steps"),
    [
        (Euler(), 1, (32, 64, 128, 256)),
        (Heun(), 2, (12, 24, 48, 96)),
        (DPMpp2M(), 2, (24, 48, 96, 192)),
        (DPMpp3M(), 3, (24, 32, 48, 64, 96)),
    ],
    ids=name_of,
)
def test_order_of_convergence(solver: Solver, order: int, steps: tuple[int, ...]) -> None:
    """The probability-flow ODE of N(0, s^2) scales x by sqrt(s^2 + sigma^2); the last step to 0 is the denoiser itself."""
    std, low, high = 0.5, 0.05, 10.0
    exact = np.sqrt((std**2 + low**2) / (std**2 + high**2)) * std**2 / (std**2 + low**2)
    errors = []
    for n in steps:
        sigmas = karras_sigmas(n, low, high, 7.0)
        x, _ = jax.jit(sample)(jax.random.key(0), Gaussian(std), jnp.ones((1, 1)), sigmas, solver)
        errors.append(abs(float(x[0, 0]) / exact - 1))
    slope = np.polyfit(np.log(np.array(steps) - 1), np.log(errors), 1)[0]
    assert abs(slope + order) < (0.15 if order < 3 else 0.3), (slope, errors)  # of third order the first two steps are not


# (kind, predictor, steps, standard deviation that comes out where 0.5 is right)
DEFECT = [
    ("euler", "churned", 256, 0.464),
    ("euler", "unchurned", 256, 0.033),
    ("heun", "churned", 32, 0.525),
    ("heun", "unchurned", 32, 0.695),
]


@pytest.mark.parametrize(("kind", "predictor", "steps", "measured"), DEFECT)
def test_the_published_predictor_shrinks_samples(kind: str, predictor: Any, steps: int, measured: float) -> None:
    sigmas = karras_sigmas(steps, 0.002, 80.0, 7.0)
    expected = linear_std(kind, predictor, 0.5, np.asarray(sigmas), PGD_CHURN)
    assert abs(expected - measured) < 0.006
    solver = {"euler": Euler, "heun": Heun}[kind](EDMConfig(80.0, 0.05, 50.0, 1.003, predictor))
    samples = draw(solver, Gaussian(0.5), sigmas, (1, 1), 10_000)
    assert abs(samples.std() / expected - 1) < 4 / np.sqrt(2 * 10_000)
    assert abs(samples.mean()) < 4 * expected / np.sqrt(10_000)


def test_correlated_gaussian_with_churn() -> None:
    mean = np.array([1.0, -2.0, 0.5, 0.0])
    root = np.array([[1.0, 0, 0, 0], [0.8, 0.3, 0, 0], [-0.5, 0.2, 0.6, 0], [0.1, 0.1, 0.1, 0.2]])
    cov, count = root @ root.T, 10_000
    sigmas = karras_sigmas(64, 0.002, 80.0, 7.0)
    solver = Heun(EDMConfig(20.0, 0.05, 50.0, 1.0))
    samples = draw(solver, gaussian_denoise(mean, cov, 2), sigmas, (2, 2), count)
    diagonal = np.diag(cov)
    assert (np.abs(samples.mean(0) - mean) <= 5 * np.sqrt(diagonal / count)).all()
    allowed = 5 * np.sqrt((np.outer(diagonal, diagonal) + cov**2) / count) + 0.01 * np.sqrt(np.outer(diagonal, diagonal))
    assert (np.abs(np.cov(samples.T) - cov) <= allowed).all()


def test_churn_amount() -> None:
    churn = ChurnConfig(80.0, 0.05, 50.0)
    np.testing.assert_allclose(churn.gamma(jnp.asarray(1.0), 256), 80 / 256)
    np.testing.assert_allclose(churn.gamma(jnp.asarray(1.0), 32), np.sqrt(2) - 1, rtol=1e-6)  # the cap of EDM
    np.testing.assert_allclose([churn.gamma(jnp.asarray(s), 256) for s in (0.049, 50.1)], 0)
    assert (np.asarray([churn.gamma(jnp.asarray(s), 256) for s in (0.05, 50.0)]) > 0).all()


@struct.dataclass
class Recorder:
    """A Gaussian denoiser and a hook that note when they are called."""

    seen: Any = struct.field(pytree_node=False)
    offset: Array | float = 0.0

    def __call__(self, x: Array, at: Array | Stage) -> Array:
        if isinstance(at, Stage):
            assert at.count == 5
            jax.debug.callback(lambda *a: self.seen.append(a), at.index, at.sigma, jax.random.key_data(at.key), ordered=True)
            return x
        jax.debug.callback(lambda s: self.seen.append(float(s)), at, ordered=True)
        return x / (1 + at**2)


CHURNED = EDMConfig(1.0, 0.0, 5.0, 1.0)


@pytest.mark.parametrize(
    ("solver", "nfe"),
    [(Euler(CHURNED), 5), (Heun(CHURNED), 9), (Ancestral(CHURNED), 5), (DPMpp2M(), 5), (DPMpp3M(), 5)],
    ids=name_of,
)
def test_nfe_and_stages(solver: Any, nfe: int) -> None:
    sigmas = karras_sigmas(5, 0.1, 10.0, 7.0)
    levels: list[float] = []
    before: list[Any] = []
    after: list[Any] = []
    run = jax.jit(
        lambda key, x: sample(
            key, Recorder(levels), x, sigmas, solver, before_step=Recorder(before), after_stage=Recorder(after)
        )
    )
    _, info = run(jax.random.key(0), jnp.ones((2, 3)))
    jax.effects_barrier()
    assert int(info["nfe"]) == len(levels) == nfe
    assert min(levels) > 0.0  # a network is never evaluated at sigma 0
    amount = 1.2 if hasattr(solver, "options") else 1.0  # a multistep solver takes no churn
    hat = [float(s) * (amount if s <= 5.0 else 1.0) for s in sigmas[:-1]]
    expected = (
        hat if not isinstance(solver, Heun) else [v for h, s in zip(hat, sigmas[1:], strict=True) for v in (h, float(s))][:-1]
    )
    np.testing.assert_allclose(levels, expected, rtol=1e-5)
    assert [int(i) for i, _, _ in before] == [0, 1, 2, 3, 4]
    np.testing.assert_allclose([s for _, s, _ in before], sigmas[:-1], rtol=1e-6)
    repeats = 2 if isinstance(solver, Heun) else 1
    stages = [i for i in range(4) for _ in range(repeats)] + [4]
    assert [int(i) for i, _, _ in after] == stages
    np.testing.assert_allclose([s for _, s, _ in after], [sigmas[i + 1] for i in stages], rtol=1e-6)
    keys = {tuple(np.asarray(k).tolist()) for _, _, k in before + after}
    assert len(keys) == len(before) + len(after)


@struct.dataclass
class Clamp:
    """In-painting: the first row is known."""

    value: Array

    def __call__(self, x: Array, stage: Stage) -> Array:
        return x.at[0].set(self.value)


@pytest.mark.parametrize("kind", SOLVERS)
def test_clamped_entries_stay_exact(kind: Any) -> None:
    value = jnp.array([0.123456, -7.0])
    sigmas = karras_sigmas(8, 0.002, 80.0, 7.0)
    solver = make_solver(SamplerConfig(kind))
    run = jax.jit(lambda key, x: sample(key, Gaussian(1.0), x, sigmas, solver, after_stage=Clamp(value))[0])
    x = run(jax.random.key(0), jnp.full((3, 2), 80.0))
    np.testing.assert_array_equal(x[0], value)
    assert np.isfinite(x).all() and (x[1:] != value).all()


def ancestral_moments(mean: float, std: float, sigmas: np.ndarray, churn: ChurnConfig) -> tuple[float, float]:
    """Mean and standard deviation of the ancestral sampler's output for N(mean, std^2), started at N(0, sigmas[0]^2)."""
    sigmas = np.asarray(sigmas, np.float64)
    offset, variance, steps = -mean, sigmas[0] ** 2, len(sigmas) - 1
    for sigma, after in itertools.pairwise(sigmas):
        gamma = min(churn.churn / steps, np.sqrt(2) - 1) if churn.churn_min <= sigma <= churn.churn_max else 0.0
        hat = sigma * (1 + gamma)
        shrink, ratio = std**2 / (std**2 + hat**2), (after / hat) ** 2  # D(x) - mean = shrink (x - mean)
        keep = shrink + ratio * (1 - shrink)
        variance = keep**2 * (variance + churn.churn_noise**2 * (hat**2 - sigma**2)) + after**2 * (1 - ratio)
        offset *= keep
    return float(mean + offset), float(np.sqrt(variance))


ANCESTRAL = {
    "five VP steps": (vp_sigmas(5, 0.1, 10.0), NO_CHURN),
    "Karras": (karras_sigmas(24, 0.01, 20.0, 7.0), NO_CHURN),
    "churn": (karras_sigmas(6, 0.1, 10.0, 7.0), ChurnConfig(2.0, 0.5, 5.0, 1.1)),
}


@pytest.mark.parametrize("case", ANCESTRAL)
def test_ancestral_samples_have_the_closed_form_mean_and_spread(case: str) -> None:
    (sigmas, churn), count = ANCESTRAL[case], 20_000
    mean, std = ancestral_moments(0.7, 0.5, np.asarray(sigmas), churn)
    denoise = gaussian_denoise(np.array([0.7]), np.array([[0.25]]), 1)
    samples = draw(Ancestral(churn), denoise, sigmas, (1, 1), count)
    assert abs(samples.mean() - mean) < 4 * std / np.sqrt(count)
    assert abs(samples.std() / std - 1) < 4 / np.sqrt(2 * count)


def multistep_std(std: float, sigmas: np.ndarray, noise: float) -> float:
    """Standard deviation of DPM-Solver++(2M) for N(0, std^2): its states are linear in the start and in every fresh noise."""
    sigmas = np.asarray(sigmas, np.float64)
    shrink = lambda sigma: std**2 / (std**2 + sigma**2)
    x, before = np.zeros(len(sigmas)), np.zeros(len(sigmas))  # coefficients of start and noises
    x[0] = sigmas[0]
    for i in range(len(sigmas) - 1):
        now, after, x0 = sigmas[i], sigmas[i + 1], shrink(sigmas[i]) * x
        point = x0
        if i > 0 and after > 0:
            point = x0 + 0.5 * np.log(now / after) / np.log(sigmas[i - 1] / now) * (x0 - before)
        ratio = after / now
        x = point + ratio ** (1 + noise) * (x - point)
        x[i + 1] += after * np.sqrt(1 - ratio ** (2 * noise))
        before = x0
    return float(np.sqrt((x**2).sum()))


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_second_order_samples_have_the_closed_form_spread(noise: float) -> None:
    sigmas = karras_sigmas(12, 0.01, 20.0, 7.0)
    expected = multistep_std(0.5, np.asarray(sigmas), noise)
    samples = draw(DPMpp2M(noise), Gaussian(0.5), sigmas, (1, 1), 20_000)
    assert abs(samples.std() / expected - 1) < 4 / np.sqrt(2 * 20_000)
    assert abs(samples.mean()) < 4 * expected / np.sqrt(20_000)


def third_order_std(std: float, sigmas: np.ndarray, noise: float) -> float:
    """As `multistep_std` for parabolas through three denoised points, integrated by quadrature."""
    sigmas, rate = np.asarray(sigmas, np.float64), 1 + noise
    x, points, times = np.zeros(len(sigmas)), [], []
    x[0] = sigmas[0]
    for now, after in itertools.pairwise(sigmas):
        points, times = [*points, std**2 / (std**2 + now**2) * x][-3:], [*times, -np.log(now)][-3:]
        if after == 0:
            return float(np.sqrt((points[-1] ** 2).sum()))
        h = np.log(now / after)
        s = (np.arange(4000) + 0.5) / 4000 * h
        curve = np.zeros((len(s), len(x)))
        for i, point in enumerate(points):  # Lagrange's polynomial
            others = [t for j, t in enumerate(times) if j != i]
            curve += np.prod([(times[-1] + s - t) / (times[i] - t) for t in others], axis=0)[..., None] * point
        weight = rate * np.exp(-rate * (h - s)) * h / 4000
        x = np.exp(-rate * h) * x + weight @ curve
        x[list(sigmas).index(now) + 1] += after * np.sqrt(1 - (after / now) ** (2 * noise))
    raise AssertionError("the last level is 0")


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_third_order_samples_have_the_closed_form_spread(noise: float) -> None:
    sigmas = karras_sigmas(12, 0.01, 20.0, 7.0)
    expected = third_order_std(0.5, np.asarray(sigmas), noise)
    samples = draw(DPMpp3M(noise), Gaussian(0.5), sigmas, (1, 1), 20_000)
    assert abs(samples.std() / expected - 1) < 4 / np.sqrt(2 * 20_000)
    if noise == 0:
        assert abs(expected / 0.5 - 1) < abs(multistep_std(0.5, np.asarray(sigmas), noise) / 0.5 - 1)


def test_with_noise_the_second_order_is_closer_than_ancestral_steps() -> None:
    for steps in (32, 128):
        sigmas = np.asarray(karras_sigmas(steps, 0.002, 80.0, 7.0))
        _, first = ancestral_moments(0.0, 0.5, sigmas, NO_CHURN)
        assert abs(multistep_std(0.5, sigmas, 1.0) - 0.5) < abs(first - 0.5) / 3


def test_ancestral_steps_approach_the_data_as_they_shrink() -> None:
    """The posterior is exact given the clean sample; with its mean instead, the spread is short by an error of order one."""
    errors = []
    for steps in (32, 64, 128, 256):
        _, std = ancestral_moments(0.0, 0.5, np.asarray(karras_sigmas(steps, 0.002, 80.0, 7.0)), NO_CHURN)
        errors.append(1 - std / 0.5)
    slope = np.polyfit(np.log([32, 64, 128, 256]), np.log(errors), 1)[0]
    assert abs(slope + 1) < 0.15 and errors[-1] < 0.03, (slope, errors)


@struct.dataclass
class Known:
    """A denoiser that knows the clean sample."""

    value: Array | float

    def __call__(self, x: Array, sigma: Array) -> Array:
        return jnp.full_like(x, self.value)


def test_an_ancestral_step_is_the_posterior_of_ddpm() -> None:
    """In DDPM's coordinates x = sqrt(abar) (x0 + sigma n), with its own expressions for mean and variance (equation 7)."""
    x0, now, count = 0.4, 1.3, 20_000
    beta, abar_before = 0.3, 0.8
    abar = abar_before * (1 - beta)
    sigmas = jnp.sqrt(jnp.array([1 / abar - 1, 1 / abar_before - 1]))
    start = jnp.full((count, 1), now / np.sqrt(abar))
    x, _ = jax.jit(lambda k: sample(k, Known(x0), start, sigmas, Ancestral()))(jax.random.key(0))
    samples = np.sqrt(abar_before) * np.asarray(x, np.float64)
    mean = (np.sqrt(abar_before) * beta * x0 + np.sqrt(1 - beta) * (1 - abar_before) * now) / (1 - abar)
    std = np.sqrt((1 - abar_before) / (1 - abar) * beta)
    assert abs(samples.mean() - mean) < 4 * std / np.sqrt(count)
    assert abs(samples.std() / std - 1) < 4 / np.sqrt(2 * count)


def test_ancestral_chain_without_noise_is_deterministic() -> None:
    sigmas = vp_sigmas(5, 0.1, 10.0)
    run = jax.jit(lambda key, noise: sample(key, Gaussian(0.5), jnp.ones((1, 1)), sigmas, Ancestral(noise=noise))[0])
    keys = jax.random.split(jax.random.key(0))
    expected = 1.0
    for sigma, after in itertools.pairwise(np.asarray(sigmas, np.float64)):
        shrink = 0.25 / (0.25 + sigma**2)
        expected *= shrink + (after / sigma) ** 2 * (1 - shrink)
    np.testing.assert_allclose([run(k, 0.0)[0, 0] for k in keys], expected, rtol=1e-4)
    assert run(keys[0], 1.0) != run(keys[1], 1.0)
    end, _ = sample(keys[0], Known(0.3), jnp.ones((1, 1)), sigmas, Ancestral())
    np.testing.assert_allclose(end, 0.3, rtol=1e-6)  # ends at D


def test_every_solver_can_be_chosen() -> None:
    """Equal options give equal structure, so that a jitted synthesizer is not traced again."""
    assert set(get_args(get_type_hints(SamplerConfig)["kind"])) == {*SOLVERS}
    shape = lambda kind: jax.tree.structure(make_solver(SamplerConfig(kind)))
    assert all(shape(kind) == shape(kind) for kind in SOLVERS)
    assert len({shape(kind) for kind in SOLVERS}) == len(SOLVERS)


@struct.dataclass
class Shift:
    amount: Array | float

    def __call__(self, x: Array, stage: Stage) -> Array:
        return x + self.amount * (stage.index == 1)


def test_before_step_changes_the_sample_it_is_given() -> None:
    """One step to 0 is the denoiser: x -> D(x + shift at step 1)."""
    sigmas = jnp.array([2.0, 1.0, 0.0])
    run = jax.jit(
        lambda shift: sample(jax.random.key(0), Gaussian(1.0), jnp.ones((1, 1)), sigmas, Euler(), before_step=Shift(shift))[0]
    )
    plain, moved = run(0.0), run(3.0)
    np.testing.assert_allclose(plain, [[0.5 * (1 - 0.4)]], rtol=1e-6)  # slope at 2: (1 - 1/5) / 2 = 0.4
    np.testing.assert_allclose(moved - plain, [[0.5 * 3.0]], rtol=1e-6)


def test_new_parameters_do_not_trace_again_and_the_key_decides() -> None:
    traces = 0
    sigmas = karras_sigmas(4, 0.1, 10.0, 7.0)

    @jax.jit
    def run(key: Array, denoise: Gaussian, solver: Heun) -> Array:
        nonlocal traces
        traces += 1
        return sample(key, denoise, jnp.ones((2, 2)), sigmas, solver)[0]

    churned = lambda total: Heun(as_arrays(EDMConfig(total, 0.0, 1e6, 1.0)))

    first = run(jax.random.key(0), Gaussian(jnp.asarray(0.5)), churned(1.0))
    again = run(jax.random.key(0), Gaussian(jnp.asarray(0.5)), churned(1.0))
    other = run(jax.random.key(1), Gaussian(jnp.asarray(0.5)), churned(1.0))
    wider = run(jax.random.key(0), Gaussian(jnp.asarray(0.9)), churned(2.0))
    assert traces == 1
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and (first != wider).any()


def test_settings_vmap() -> None:
    """Also: without churn not even rounding may add noise, however the compiler fuses."""
    sigmas = karras_sigmas(4, 0.1, 10.0, 7.0)
    churned = lambda total: Heun(EDMConfig(total, 0.0, jnp.inf, 1.0))
    run = jax.jit(lambda std, total: sample(jax.random.key(0), Gaussian(std), jnp.ones((1, 1)), sigmas, churned(total))[0])
    stds, totals = jnp.array([0.5, 1.0]), jnp.array([0.0, 2.0])
    np.testing.assert_allclose(jax.vmap(run)(stds, totals), jnp.stack([run(0.5, 0.0), run(1.0, 2.0)]), rtol=1e-5)
