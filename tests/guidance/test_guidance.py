import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from guided import method
from jax import Array

from jaxpgd.envs.linear_gaussian import linear_policy
from jaxpgd.guidance.base import GuidedDenoise, NoGuidance
from jaxpgd.guidance.diagnostics import guidance_profile
from jaxpgd.guidance.likelihood import Likelihood, log_likelihood
from jaxpgd.guidance.moment import MomentGuidance
from jaxpgd.guidance.published import PolicyGradientStep, PublishedConfig
from jaxpgd.guidance.reconstruction import ReconstructionGuidance
from jaxpgd.tokens import TokenCodec
from jaxpgd.types import Policy, Stage

# token = [obs, pre-tanh action, reward, done], one of each
CODEC = TokenCodec(mean=jnp.array([0.5, -0.1, 3.0, 0.0]), std=jnp.array([2.0, 0.7, 5.0, 1.0]), obs_dim=1, action_dim=1)
GAIN, BIAS, STD = 0.3, 0.2, 0.4
POLICY = linear_policy([[GAIN]], [BIAS], STD)
X = jax.random.normal(jax.random.key(5), (3, 4))


@struct.dataclass
class Shrink:
    """The exact denoiser of unit Gaussian tokens."""

    scale: Array | float = 1.0

    def __call__(self, x: Array, sigma: Array) -> Array:
        return x * self.scale / (1.0 + sigma**2)


def stage(index: int, count: int = 8, sigma: float = 2.0) -> Stage:
    return Stage(index=jnp.asarray(index), count=count, sigma=jnp.asarray(sigma), key=jax.random.key(0), denoise=Shrink())


def step(**changes: Any) -> PolicyGradientStep:
    options: dict[str, Any] = {"at": "noised", "normalise": "none", "sine": 0.3, "sigma_min": 0.0, "sigma_max": 1e9}
    options |= {name: changes.pop(name) for name in options if name in changes}
    return dataclasses.replace(PolicyGradientStep(POLICY, CODEC, 1.0, PublishedConfig(**options)), **changes)


def hand_gradient(x: np.ndarray) -> np.ndarray:
    """d log N(tanh u; K s + k, std^2) / dz with u = 0.7 z - 0.1, s = 2 z_s + 0.5."""
    x = np.asarray(x, np.float64)
    action = np.tanh(0.7 * x[:, 1] - 0.1)
    mode = GAIN * (2.0 * x[:, 0] + 0.5) + BIAS
    return (-(action - mode) / STD**2 * (1 - action**2) * 0.7)[:, None]


def test_log_likelihood_sums_over_steps() -> None:
    obs, action = jnp.array([[0.0], [1.0]]), jnp.array([[0.3], [-0.4]])
    expected = sum(jax.scipy.stats.norm.logpdf(a, GAIN * s + BIAS, np.sqrt(STD**2 + 0.5)) for s, a in ((0, 0.3), (1, -0.4)))
    np.testing.assert_allclose(log_likelihood(POLICY, obs, action, 0.5), expected, rtol=1e-5)


def test_gradient_by_hand() -> None:
    np.testing.assert_allclose(step().gradient(X), hand_gradient(X), rtol=1e-4)
    safe = step(normalise="safe").gradient(X)
    np.testing.assert_allclose(safe, hand_gradient(X) / np.linalg.norm(hand_gradient(X)), rtol=1e-4)
    np.testing.assert_allclose(step(normalise="official").gradient(X), safe, atol=1e-6)


def ramp(index: Any, count: int, sine: float = 0.3) -> Any:
    """The published weights: 1 - i/n + sine * sin(pi (i+1)/n), none on the last step."""
    return np.where(index < count - 1, 1.0 - index / count + sine * np.sin(np.pi * (index + 1) / count), 0.0)


@pytest.mark.parametrize("sine", [0.0, 0.3])
@pytest.mark.parametrize("count", [2, 8, 24, 256])
def test_schedule_by_hand(count: int, sine: float) -> None:
    """As published, times what makes them add up to what 256 steps of that coefficient add."""
    at = jax.vmap(lambda i: step(coefficient=2.0, sine=sine).weight(stage(i, count)))
    by_hand = 2.0 * ramp(np.arange(count), count, sine)
    wanted = by_hand * (ramp(np.arange(256), 256, sine).sum() / ramp(np.arange(count), count, sine).sum())
    np.testing.assert_allclose(at(jnp.arange(count)), wanted, rtol=1e-4, atol=1e-5)


def test_at_the_published_number_of_steps_the_weights_are_the_published_ones_bit_for_bit() -> None:
    index, count = jnp.arange(256), 256
    published = 0.7 * (1.0 - index / count + 0.3 * jnp.sin(jnp.pi * (index + 1) / count))
    found = jax.vmap(lambda i: step(coefficient=0.7).weight(stage(i, count)))(index)
    np.testing.assert_array_equal(found, jnp.where(index < count - 1, published, 0.0))


def test_a_single_step_has_no_step() -> None:
    np.testing.assert_array_equal(step(coefficient=0.5)(X, stage(0, 1)), X)


def test_the_step_moves_actions_alone() -> None:
    moved = step(coefficient=0.5)(X, stage(0, 256)) - X
    weight = 0.5 * (1 + 0.3 * np.sin(np.pi / 256))
    np.testing.assert_allclose(moved[:, 1:2], weight * hand_gradient(X), rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(moved[:, [0, 2, 3]], 0)
    np.testing.assert_array_equal(step(coefficient=0.5)(X, stage(7)), X)


def test_the_step_at_the_denoised_trajectory() -> None:
    moved = step(at="denoised")(X, stage(0, 256, sigma=2.0)) - X
    weight = 1 + 0.3 * np.sin(np.pi / 256)
    np.testing.assert_allclose(moved[:, 1:2], weight * hand_gradient(np.asarray(X) / 5.0), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.4, 3.1])
def test_the_step_outside_its_noise_levels(sigma: float) -> None:
    np.testing.assert_array_equal(step(sigma_min=0.5, sigma_max=3.0)(X, stage(0, sigma=sigma)), X)


def test_zero_gradient() -> None:
    """At the policy's mode the published division gives NaN; the safe one stays put."""
    policy = linear_policy([[0.0]], [0.0], 1.0)
    x = jnp.zeros((3, 4)).at[:, 1].set(0.1 / 0.7)  # u = 0
    assert np.isnan(step(policy=policy, normalise="official").gradient(x)).all()
    np.testing.assert_allclose(step(policy=policy, normalise="safe").gradient(x), 0, atol=1e-6)
    x = x.at[:, 1].set(0.0)
    flat = dataclasses.replace(CODEC, mean=jnp.zeros(4))
    np.testing.assert_array_equal(step(policy=policy, codec=flat, normalise="safe").gradient(x), 0)


# Actions so small that tanh is linear: pre-tanh token z stands for the action 0.01 z, of which N(0.01 m, (0.01 s)^2) is likely.
SMALL = TokenCodec(mean=jnp.zeros(4), std=jnp.array([1.0, 0.01, 1.0, 1.0]), obs_dim=1, action_dim=1)
TARGET_MEAN, TARGET_STD = 1.5, 0.6


def small_policy(gain: float = 0.0) -> Any:
    return linear_policy([[0.01 * gain]], [0.01 * TARGET_MEAN], 0.01 * TARGET_STD)


def guided(coefficient: float = 1.0, gain: float = 0.0, **options: Any) -> GuidedDenoise:
    found: GuidedDenoise = method("reconstruction", **options).guide(Shrink(), small_policy(gain), SMALL, coefficient)
    return found


@pytest.mark.parametrize("coefficient", [1.0, 4.0])
@pytest.mark.parametrize("sigma", [0.01, 0.3, 1.0, 5.0, 80.0])
def test_reconstruction_is_exact_for_unit_gaussians(sigma: float, coefficient: float) -> None:
    """For x0 ~ N(0, 1) N(x0; m, s^2)^c the denoiser is the posterior mean of prior, likelihood and noise together."""
    weight = coefficient / TARGET_STD**2
    exact = (np.asarray(X[:, 1]) / sigma**2 + weight * TARGET_MEAN) / (1 + weight + 1 / sigma**2)
    result = guided(coefficient)(X, jnp.asarray(sigma))
    np.testing.assert_allclose(result[:, 1], exact, rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(result[:, [0, 2, 3]], X[:, jnp.array([0, 2, 3])] / (1 + sigma**2), rtol=1e-5)


def test_reconstruction_moves_states_unless_they_are_held() -> None:
    """With pi = N(K s + k, .) the state moves by -K times the action's movement."""
    sigma, plain = jnp.asarray(1.0), X / 2.0
    free = np.asarray(guided(gain=0.8)(X, sigma) - plain)
    held = np.asarray(guided(gain=0.8, hold_states=True)(X, sigma) - plain)
    np.testing.assert_allclose(free[:, 0], -0.8 * free[:, 1], rtol=1e-3)
    np.testing.assert_array_equal(held[:, 0], 0)
    np.testing.assert_allclose(held[:, 1], free[:, 1], rtol=1e-5)
    assert (np.abs(free[:, 1]) > 0.05).all()


def test_no_coefficient_is_no_guidance_and_noise_levels_switch() -> None:
    sigma = jnp.asarray(1.0)
    np.testing.assert_allclose(guided(0.0)(X, sigma), Shrink()(X, sigma), rtol=1e-6)
    for outside in (0.4, 3.1):
        switched = guided(1.0, sigma_min=0.5, sigma_max=3.0)
        np.testing.assert_allclose(switched(X, jnp.asarray(outside)), Shrink()(X, jnp.asarray(outside)), rtol=1e-6)
    np.testing.assert_allclose(guided(1.0, sigma_min=0.5, sigma_max=3.0)(X, sigma), guided(1.0)(X, sigma), rtol=1e-6)


def test_attach_gives_a_hook_or_a_denoiser() -> None:
    denoise, hook = method("published").attach(Shrink(), POLICY, CODEC, 0.7)
    assert isinstance(denoise, Shrink) and isinstance(hook, PolicyGradientStep)
    assert hook.coefficient == 0.7 and hook.options.at == "denoised" and hook.options.normalise == "safe"
    denoise, hook = method(hold_states=True).attach(Shrink(), POLICY, CODEC, 0.7)
    assert isinstance(denoise, GuidedDenoise) and denoise.likelihood.hold_states and hook is None
    assert isinstance(denoise.method, ReconstructionGuidance) and denoise.likelihood.coefficient == 0.7
    assert isinstance(method("moment").attach(Shrink(), POLICY, CODEC, 1.0)[0].method, MomentGuidance)
    proposals = ("none", NoGuidance), ("reconstruction", ReconstructionGuidance), ("moment", MomentGuidance)
    for proposal, kind in proposals:
        assert isinstance(method("smc", proposal=proposal).guide(Shrink(), POLICY, CODEC, 1.0).method, kind)
    assert not hasattr(method("published"), "guide")  # a hook, no denoiser


def test_cost_in_forward_equivalents() -> None:
    """Of a computed evaluation, and of the hook of 32 steps: a gradient at the denoised point takes a forward pass a step."""
    level = jnp.asarray(1.0)
    assert method().cost(level) == 2 and method("moment", iterations=3).cost(level) == 4
    assert method("moment", iterations=3, jacobian="symmetrised").cost(level) == 7
    levels = method("moment", jacobian_sigma_min=0.1)
    assert [int(levels.cost(jnp.asarray(sigma))) for sigma in (0.05, 0.1, 0.2)] == [1, 3, 3]
    assert method("published", at="noised").hook_cost(32) == 0 and method("published").hook_cost(32) == 32
    assert method("smc", proposal="none").cost(level) == 1 and method("smc").cost(level) == 2


def test_new_numbers_do_not_trace_again() -> None:
    traces = 0

    @jax.jit
    def run(guidance: ReconstructionGuidance, coefficient: Array, policy: Any, scale: Array) -> Array:
        nonlocal traces
        traces += 1
        denoise, _ = guidance.attach(Shrink(scale), policy, SMALL, coefficient)
        return denoise(X, jnp.asarray(1.0))

    first = run(method(), jnp.asarray(1.0), small_policy(0.1), jnp.asarray(1.0))
    second = run(method(limit=3.0), jnp.asarray(0.5), small_policy(0.9), jnp.asarray(0.7))
    assert traces == 1 and (first != second).any()


def test_unknown_states_widen_the_policy() -> None:
    """N(K s + k, v) seen with s, a of variance c in normalised units: v + coefficient * c (std_a^2 + K^2 std_s^2)."""
    codec = dataclasses.replace(CODEC, squashed=False)
    sigma, coefficient = 0.8, 0.4
    unknown = sigma**2 / (1 + sigma**2)
    likelihood = Likelihood(POLICY, codec, coefficient, uncertain_states=True)
    np.testing.assert_allclose(likelihood.state_variance(jnp.array([0.7]), jnp.array([0.2])), [(GAIN * 2.0) ** 2], rtol=1e-4)
    total = STD**2 + coefficient * unknown * (0.7**2 + (GAIN * 2.0) ** 2)
    s, a = 2.0 * np.asarray(X[:, 0]) + 0.5, 0.7 * np.asarray(X[:, 1]) - 0.1
    wanted = jax.scipy.stats.norm.logpdf(a, GAIN * s + BIAS, np.sqrt(total)).sum()
    np.testing.assert_allclose(likelihood.blurred(X, jnp.asarray(sigma)), wanted, rtol=1e-4)
    assert method("smc").guide(Shrink(), POLICY, CODEC, 1.0).likelihood.uncertain_states
    assert not method().guide(Shrink(), POLICY, CODEC, 1.0).likelihood.uncertain_states


def test_a_convex_or_flat_policy_says_nothing_of_a_mean() -> None:
    """And what it says of one is bounded where actions are. -a^4 K s: curvature 12 a^2 K s, convex for s < 0."""
    log_prob = lambda p, obs, a, v: -jnp.sum(a**4) * obs[0] * p
    policy = Policy(jnp.ones(()), lambda p, k, o: o, lambda p, o: o, log_prob)
    variance = lambda squashed, obs, a: Likelihood(
        policy, dataclasses.replace(CODEC, squashed=squashed), 1.0, uncertain_states=True
    ).state_variance(jnp.array([obs]), jnp.array([a]))
    for squashed in (False, True):
        np.testing.assert_array_equal(variance(squashed, -0.7, 0.5), 0.0)
        np.testing.assert_array_equal(variance(squashed, 0.7, 0.0), 0.0)
    # slope 4 a^3 over curvature 12 a^2 s = a / (3 s), and states of deviation 2
    np.testing.assert_allclose(variance(True, 0.7, 0.5), (0.5 / 2.1 * 2.0) ** 2, rtol=1e-4)
    np.testing.assert_allclose(variance(False, 0.05, 0.5), (0.5 / 0.15 * 2.0) ** 2, rtol=1e-4)
    np.testing.assert_array_equal(variance(True, 0.05, 0.5), 1.0)


def test_profile_of_unit_gaussians() -> None:
    """Score -x / (1 + sigma^2) of x ~ N(0, 1 + sigma^2): its size is 1 / sqrt(1 + sigma^2)."""
    tokens = jax.random.normal(jax.random.key(0), (4000, 3, 4))
    sigmas = jnp.array([0.5, 2.0, 20.0])
    found = guidance_profile(jax.random.key(1), guided(0.0), tokens, sigmas)
    np.testing.assert_allclose(found["score_norm"], 1 / np.sqrt(1 + np.asarray(sigmas) ** 2), rtol=4 / np.sqrt(2 * tokens.size))
    np.testing.assert_array_equal(found["guidance_norm"], 0.0)
    once = guidance_profile(jax.random.key(1), guided(1.0), tokens, sigmas)["guidance_norm"]
    x = tokens + 2.0 * jax.random.normal(jax.random.split(jax.random.key(1), 3)[1], tokens.shape)
    change = jax.vmap(lambda y: guided(1.0)(y, jnp.asarray(2.0)) - Shrink()(y, jnp.asarray(2.0)))(x)
    np.testing.assert_allclose(once[1], np.sqrt((np.asarray(change, np.float64) ** 2).mean()) / 4.0, rtol=1e-3)


@pytest.mark.parametrize("kind", ["reconstruction", "moment"])
def test_the_change_of_an_entry_is_limited_in_its_deviations(kind: str) -> None:
    sigma = jnp.asarray(0.5)
    free, bound = (
        method(kind, limit=limit).guide(Shrink(), small_policy(0.8), SMALL, jnp.asarray(4.0)).estimate(X, sigma)
        for limit in (jnp.inf, 0.4)
    )
    most = 0.4 * 0.5 / np.sqrt(1.25)
    wanted = np.clip(np.asarray(free.x0_guided - free.x0), -most, most)
    assert (np.abs(free.x0_guided - free.x0) > most).any() and (np.abs(wanted[:, :2]) < most).any()
    np.testing.assert_allclose(bound.x0_guided - bound.x0, wanted, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(bound.log_twist, free.log_twist, rtol=1e-6)
