import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from jax import Array

from jaxpgd.diffusion.edm import karras_sigmas
from jaxpgd.diffusion.single_step import EDMConfig, Euler
from jaxpgd.diffusion.solvers import SamplerConfig
from jaxpgd.envs.linear_gaussian import linear_policy
from jaxpgd.errors import InputError
from jaxpgd.guidance.kinds import GuidanceConfig, make_guidance
from jaxpgd.guidance.moment import MomentConfig, MomentGuidance
from jaxpgd.guidance.published import PublishedConfig, PublishedGuidance
from jaxpgd.guidance.reconstruction import ReconstructionGuidance
from jaxpgd.guidance.smc import SMCConfig
from jaxpgd.guidance.strength import FixedStrength
from jaxpgd.networks.temporal_unet import TemporalUNet
from jaxpgd.synthesis.diffusion import TrajectoryDenoiser, make_synthesizer, synthesize
from jaxpgd.tokens import TokenCodec
from jaxpgd.types import Policy

# pre-tanh actions are so small that tanh is linear; the done entry is 1 with a probability of one half: 0.5 + 0.001 z > 0.5
CODEC = TokenCodec(
    mean=jnp.array([5.0, 0.0, -1.0, 0.5]), std=jnp.array([2.0, 0.01, 3.0, 0.001]), obs_dim=1, action_dim=1
)  # fmt: skip
TARGET_MEAN, TARGET_STD, COUNT = 1.5, 0.6, 4096
POLICY = linear_policy([[0.0]], [0.01 * TARGET_MEAN], 0.01 * TARGET_STD)
START = jnp.zeros((COUNT, 1))


@struct.dataclass
class UnitGaussian:
    scale: Array | float = 1.0

    def __call__(self, x: Array, sigma: Array) -> Array:
        return x * self.scale / (1.0 + sigma**2)


DENOISER = TrajectoryDenoiser(UnitGaussian(), CODEC, 2)
CHURN = EDMConfig(churn=10.0, churn_noise=1.0)
SAMPLER = SamplerConfig("heun", steps=48, heun=CHURN, euler=CHURN)
GUIDANCE = GuidanceConfig(kind="reconstruction", coefficient=1.0)
call = jax.jit(lambda key, synthesizer, policy: synthesizer(key, policy, START))


def test_unguided_samples_have_the_model_distribution() -> None:
    made = call(jax.random.key(0), make_synthesizer(DENOISER, SAMPLER), None)
    obs = np.asarray(made.trajectory.obs, np.float64)
    assert obs.shape == (COUNT, 2, 1)
    size = obs.size
    assert abs(obs.mean() - 5.0) < 5 * 2 / np.sqrt(size)
    assert abs(obs.std() / 2.0 - 1) < 5 / np.sqrt(2 * size) + 0.01
    rate = float(made.info["terminal_rate"])  # either of two steps
    assert abs(rate - 0.75) < 5 * np.sqrt(0.75 * 0.25 / COUNT)
    assert float(made.info["saturated_actions"]) == 0.0
    assert int(made.info["nfe"]) == 2 * 48 - 1
    np.testing.assert_array_equal(made.log_weight, np.zeros(COUNT))
    first, second = np.asarray(made.trajectory.discount).T
    np.testing.assert_array_equal(
        made.trajectory.mask, np.stack([np.ones(COUNT), (first == 1) & (second == 0)], 1).astype(bool)
    )


def test_guided_samples_have_the_tilted_distribution() -> None:
    """N(0, 1) N(z; m, s^2) is N(m / (1 + s^2), s^2 / (1 + s^2)); everything but the action stays."""
    made = call(jax.random.key(0), make_synthesizer(DENOISER, SAMPLER, GUIDANCE), POLICY)
    z = np.asarray(made.trajectory.action, np.float64) / 0.01
    mean, variance = TARGET_MEAN / (1 + TARGET_STD**2), TARGET_STD**2 / (1 + TARGET_STD**2)
    assert abs(z.mean() - mean) < 5 * np.sqrt(variance / z.size) + 0.01
    assert abs(z.std() / np.sqrt(variance) - 1) < 5 / np.sqrt(2 * z.size) + 0.01
    assert abs(np.asarray(made.trajectory.obs).mean() - 5.0) < 5 * 2 / np.sqrt(z.size)


def test_published_guidance_raises_the_likelihood() -> None:
    config = GuidanceConfig(kind="published", coefficient=0.3)
    plain = call(jax.random.key(0), make_synthesizer(DENOISER, SAMPLER), None).trajectory
    moved = call(jax.random.key(0), make_synthesizer(DENOISER, SAMPLER, config), POLICY).trajectory
    score = lambda t: float(jax.vmap(jax.vmap(POLICY.log_prob))(t.obs, t.action).mean())
    assert score(moved) > score(plain) + 0.5
    np.testing.assert_allclose(moved.obs, plain.obs, atol=1e-3)  # states of an independent model do not follow


def test_a_synthesizer_without_a_policy_is_unguided() -> None:
    config = dataclasses.replace(SAMPLER, kind="euler", steps=8)
    guided, plain = make_synthesizer(DENOISER, config, GUIDANCE), make_synthesizer(DENOISER, config)
    expected = synthesize(jax.random.key(0), plain, count=8)
    for same in (guided.unguided(), guided.with_coefficient(jnp.asarray(0.0))):
        made = synthesize(jax.random.key(0), same, POLICY, count=8)
        for name in ("obs", "action", "reward", "discount"):
            np.testing.assert_allclose(getattr(made, name), getattr(expected, name), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="no guidance"):
        plain.with_coefficient(1.0)


def test_count_length_and_batches() -> None:
    config = dataclasses.replace(SAMPLER, kind="euler", steps=4, batch_size=3)
    made = synthesize(jax.random.key(0), make_synthesizer(DENOISER, config, length=6), count=7)  # batches of 3, 3 and 1
    assert made.obs.shape == (7, 6, 1) and made.reward.shape == (7, 6)
    assert len(np.unique(np.asarray(made.obs))) == 42
    whole = synthesize(
        jax.random.key(0), make_synthesizer(DENOISER, dataclasses.replace(config, batch_size=7), length=6), count=7
    )
    np.testing.assert_allclose(made.obs, whole.obs, rtol=1e-4)  # the batch size changes nothing but speed


@pytest.mark.slow
@pytest.mark.parametrize("block", ["plain", "residual"])
def test_a_network_samples_lengths_that_it_was_not_trained_on(block: Any) -> None:
    """129 steps from windows of 32, as PGD's released code: by shape alone, which compiles nothing."""
    network = TemporalUNet(8, 3, 2, norm="step", block=block)
    tokens = jnp.zeros((32, CODEC.token_dim))
    params = jax.eval_shape(network.init, jax.random.key(0), tokens, jnp.zeros(()))
    params = jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype), params)
    denoise = jax.tree_util.Partial(network.apply, params)
    synthesizer = make_synthesizer(TrajectoryDenoiser(denoise, CODEC, 32), SAMPLER, GUIDANCE, length=129)
    start = jax.ShapeDtypeStruct((3, 1), jnp.float32)
    made = jax.eval_shape(lambda s: synthesizer(jax.random.key(0), POLICY, s), start).trajectory
    assert made.obs.shape == (3, 129, 1) and made.mask.shape == (3, 129)


@pytest.mark.parametrize("particles", [COUNT, pytest.param(600, marks=pytest.mark.slow)])
def test_weighted_populations_have_the_tilted_distribution(particles: int) -> None:
    """N(0, 1) tilted by N(1.5, 0.6^2): mean 1.5 / 1.36, variance 0.36 / 1.36; normaliser N(1.5; 0, 1.36) in units of 0.01.

    Populations of 600 make 4200, of which 4096 are kept; their weights are on one scale.
    """
    guidance = GuidanceConfig(kind="smc", smc=SMCConfig(particles=particles))
    sampler = SamplerConfig(steps=128)
    made = call(jax.random.key(0), make_synthesizer(DENOISER, sampler, guidance), POLICY)
    z = np.arctanh(np.asarray(made.trajectory.action, np.float64))[:, :, 0] / 0.01
    weight = np.exp(np.asarray(made.log_weight, np.float64) - float(made.log_weight.max()))
    weight, ess = weight / weight.sum(), weight.sum() ** 2 / (weight**2).sum()
    assert ess > 0.5 * COUNT and float(made.info["ess"]) > 0.5
    mean = weight @ z
    sd = 0.6 / np.sqrt(1.36)
    np.testing.assert_array_less(np.abs(mean - 1.5 / 1.36), 4 * sd / np.sqrt(ess) + 0.02)
    np.testing.assert_allclose(np.sqrt(weight @ (z - mean) ** 2), sd, rtol=4 / np.sqrt(2 * ess) + 0.03)
    exact = 2 * (-0.5 * np.log(2 * np.pi * 1.36) - 1.5**2 / (2 * 1.36) - np.log(0.01))
    assert float(made.info["log_normaliser"]) == pytest.approx(exact, abs=0.1)
    assert int(made.info["nfe"]) == 128 and int(made.info["forward_equivalents"]) == 256
    # what enters compiled consumers has no weights left
    drawn = synthesize(jax.random.key(0), make_synthesizer(DENOISER, sampler, guidance), POLICY, count=COUNT)
    assert abs(np.arctanh(np.asarray(drawn.action)).mean() / 0.01 - 1.5 / 1.36) < 0.1


@struct.dataclass
class HalfBroken:
    """Loses every trajectory whose first entry starts below 0."""

    def __call__(self, x: Array, sigma: Array) -> Array:
        return jnp.where((x[0, 0] < 0) & (sigma > 50.0), jnp.nan, x / (1.0 + sigma**2))


def test_a_population_without_a_living_particle_weighs_nothing() -> None:
    """Of 64 populations of two about 16 are lost whole."""
    sampler, guidance = SamplerConfig(steps=4), GuidanceConfig(kind="smc", smc=SMCConfig(particles=2))
    synthesizer = make_synthesizer(TrajectoryDenoiser(HalfBroken(), CODEC, 2), sampler, guidance)
    made = jax.jit(lambda key: synthesizer(key, POLICY, START[:128]))(jax.random.key(0))
    lost = np.isneginf(np.asarray(made.log_weight)).reshape(64, 2)
    assert not np.isnan(made.log_weight).any() and np.isfinite(made.info["log_normaliser"])
    assert 5 < lost.all(1).sum() < 30
    counts = {name: value for name, value in made.info.items() if "norm" not in name}  # this denoiser has no finite profile
    assert all(np.isfinite(value).all() for value in counts.values()) and float(made.info["ess"]) <= 1 - lost.all(1).mean()
    drawn = synthesize(jax.random.key(0), synthesizer, POLICY, count=128)
    assert np.isfinite(drawn.obs).all()


def test_a_refresh_tells_the_strength_of_its_guidance() -> None:
    """At a chosen coefficient, too; unguided ones and `published`, which moves samples, have none."""
    strength = {}
    for name, config in {"one": GUIDANCE, "chosen": GuidanceConfig(target_ess=0.5)}.items():
        made = call(jax.random.key(0), make_synthesizer(DENOISER, SAMPLER, config), POLICY)
        assert made.info["profile_sigma"].shape == made.info["guidance_norm"].shape == made.info["score_norm"].shape == (8,)
        strength[name] = np.asarray(made.info["guidance_norm"], np.float64)
    # (D' - D) / sigma^2 falls as 1 / sigma^2 where noise is all there is
    assert (np.diff(strength["one"][:6]) > 0).all() and (strength["chosen"] < strength["one"]).all()
    for policy, config in ((None, GUIDANCE), (POLICY, GuidanceConfig(kind="published"))):
        assert "guidance_norm" not in call(jax.random.key(0), make_synthesizer(DENOISER, SAMPLER, config), policy).info


def test_particles_cannot_start_where_they_are_told() -> None:
    made = make_synthesizer(DENOISER, SAMPLER, GuidanceConfig(kind="smc"))
    with pytest.raises(ValueError, match="cannot be made to begin"):
        dataclasses.replace(made, from_start=True)(jax.random.key(0), POLICY, START[:4])
    started = made.starting()
    assert isinstance(started.guidance, ReconstructionGuidance) and not started.weighted
    alone = GuidanceConfig(kind="smc", smc=SMCConfig(proposal="none"))
    assert make_synthesizer(DENOISER, SAMPLER, alone).starting().guidance is None


def test_the_coefficient_that_keeps_an_effective_size() -> None:
    """Likelihoods N(z; 1.5, 0.6^2) of two steps of N(0, 1): a share of one half is kept to a coefficient below one."""
    made = call(jax.random.key(0), make_synthesizer(DENOISER, SAMPLER, GuidanceConfig(target_ess=0.5)), POLICY)
    chosen = float(made.info["coefficient"])
    z = np.random.default_rng(0).normal(size=(400_000, 2))
    log_q = (-0.5 * ((z - 1.5) / 0.6) ** 2).sum(1)
    weight = np.exp(chosen * log_q)
    assert weight.sum() ** 2 / (weight**2).sum() / len(z) == pytest.approx(0.5, abs=0.04)
    mild = call(
        jax.random.key(0), make_synthesizer(DENOISER, SAMPLER, GuidanceConfig(target_ess=0.5, coefficient=0.01)), POLICY
    )
    assert float(mild.info["coefficient"]) == pytest.approx(0.01)


def test_settings_reach_the_sampler() -> None:
    churn = EDMConfig(churn=7.0, churn_noise=1.1)
    config = SamplerConfig(kind="euler", steps=5, sigma_min=0.1, sigma_max=20.0, rho=3.0, euler=churn)
    made = make_synthesizer(
        DENOISER, config, GuidanceConfig(coefficient=0.7, moment=MomentConfig(hold_states=True, sigma_max=9.0))
    )
    np.testing.assert_allclose(made.sampling.sigmas, karras_sigmas(5, 0.1, 20.0, 3.0), rtol=1e-6)
    assert isinstance(made.sampling.solver, Euler)
    own = made.sampling.solver.options
    assert (float(own.churn), float(own.churn_min), float(own.churn_max)) == pytest.approx((7.0, 0.05, 50.0))
    assert float(own.churn_noise) == pytest.approx(1.1) and made.length == 2
    assert isinstance(made.guidance, MomentGuidance) and made.guidance.options.hold_states
    assert isinstance(made.strength, FixedStrength) and float(made.strength.coefficient) == pytest.approx(0.7)
    assert float(made.guidance.options.sigma_max) == pytest.approx(9.0)
    published = make_guidance(GuidanceConfig(kind="published", published=PublishedConfig(at="noised", normalise="official")))
    assert isinstance(published, PublishedGuidance) and published.options.at == "noised"
    assert int(call(jax.random.key(0), made, POLICY).info["nfe"]) == 5


def test_one_trace_for_new_weights_policies_and_coefficients() -> None:
    traces = 0

    def log_prob(params: Any, obs: Array, action: Array, variance: Array | float = 0.0) -> Array:
        nonlocal traces
        traces += 1
        return -jnp.square(action - params).sum()

    policy = lambda mode: Policy(jnp.asarray(mode), lambda p, k, o: p[None], lambda p, o: p[None], log_prob)
    one = policy(0.1)
    synthesizer = make_synthesizer(DENOISER.replace(denoise=UnitGaussian(jnp.asarray(1.0))), SAMPLER, GUIDANCE)
    made = synthesize(jax.random.key(0), synthesizer, one, count=2)
    once = traces
    other = synthesizer.replace(denoiser=synthesizer.denoiser.replace(denoise=UnitGaussian(jnp.asarray(0.9))))
    again = synthesize(
        jax.random.key(1), other.with_coefficient(jnp.asarray(2.0)), one.replace(params=jnp.asarray(0.2)), count=2
    )
    assert once > 0 and traces == once
    assert (made.obs != again.obs).all()
    repeat = synthesize(jax.random.key(0), synthesizer, one, count=2)
    np.testing.assert_array_equal(made.obs, repeat.obs)  # same key, same bits


def test_trajectories_that_start_where_they_are_told() -> None:
    """Entries of the model are independent, so that what is not in-painted keeps its distribution."""
    synthesizer, start = make_synthesizer(DENOISER, SAMPLER).starting(), jnp.linspace(-3.0, 9.0, COUNT)[:, None]
    made = jax.jit(lambda s: s(jax.random.key(3), None, start))(synthesizer).trajectory
    np.testing.assert_allclose(made.obs[:, 0], start, atol=1e-4)
    later = np.asarray(made.obs[:, 1, 0], np.float64)
    assert abs(later.mean() - 5.0) < 5 * 2 / np.sqrt(COUNT)
    assert abs(later.std() / 2.0 - 1) < 5 / np.sqrt(2 * COUNT) + 0.01


@pytest.mark.parametrize(
    ("denoiser", "sampler", "guidance", "message"),
    [
        (UnitGaussian(), {}, {}, r"expected a TrajectoryDenoiser: TrajectoryDenoiser\(denoise, windows"),
        (DENOISER, {"kind": "huen"}, {}, "sampler.kind = 'huen': expected one of 'heun'"),
        (DENOISER, {"steps": 0}, {}, "sampler.steps = 0: expected a number above 0"),
        (DENOISER, {}, {"kind": "momment"}, "guidance.kind = 'momment': expected one of"),
        (
            TrajectoryDenoiser(jax.tree_util.Partial(lambda x, sigma: x[:-1]), CODEC, 2), {}, {},
            r"denoiser = \(1, 4\): expected tokens \[2, 4\] of tokens \[2, 4\] and a sigma",
        ),
    ],
)  # fmt: skip
def test_what_cannot_sample_is_refused(denoiser: Any, sampler: dict, guidance: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_synthesizer(denoiser, SamplerConfig(**sampler), GuidanceConfig(**guidance))


def test_coefficients_may_be_traced() -> None:
    many = jax.vmap(lambda x: make_synthesizer(DENOISER, SAMPLER, dataclasses.replace(GUIDANCE, coefficient=x)).strength)
    assert jax.tree.leaves(many(jnp.arange(1.0, 4.0)))
