"""Dynamics-consistent denoising: the linear algebra, closed forms, what it leaves alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from jax import Array

from jaxpgd.diffusion.edm import karras_sigmas
from jaxpgd.diffusion.multistep import DPMpp2M
from jaxpgd.diffusion.sampling import Solver
from jaxpgd.diffusion.sampling import sample as sampled
from jaxpgd.diffusion.single_step import Heun
from jaxpgd.envs.linear_gaussian import (
    feature_statistics,
    gaussian_denoise,
    reference_case,
    standardise_moments,
    trajectory_moments,
)
from jaxpgd.guidance.base import Estimate
from jaxpgd.guidance.conjugate_gradients import LinearSystem, conjugate_gradients
from jaxpgd.guidance.consistency import Consistency, ConsistentDenoise, ConsistentGuided
from jaxpgd.tokens import TokenCodec

ENV, BEHAVIOUR, _ = reference_case()
STEPS, OBS, ACTION = ENV.horizon, ENV.obs_dim, ENV.action_dim
FEATURES = OBS + ACTION


@struct.dataclass
class Linear:
    """K exact linear models, apart by `apart` [K]."""

    A: Array
    B: Array
    apart: Array
    error: Array
    reward_error: Array = struct.field(default_factory=lambda: jnp.asarray(0.1))

    def reward(self, obs: Array, action: Array) -> Array:
        return obs.sum() + 2.0 * action.sum()

    def next_states(self, obs: Array, action: Array) -> tuple[Array, Array]:
        mean = self.A @ obs + self.B @ action + self.apart[:, None]
        return mean, jnp.ones_like(mean)


def make(codec: TokenCodec, *, tau: float = 0.1, apart: tuple[float, ...] = (0.0,), **fields: object) -> Consistency:
    model = Linear(ENV.A, ENV.B, jnp.asarray(apart), tau * codec.std[codec.obs])
    return Consistency(model, codec, floor=1e-6, **{"sigma_max": jnp.inf, "denoiser_error": 0.0, **fields})  # type: ignore[arg-type]


UNIT = TokenCodec(jnp.zeros(FEATURES), jnp.ones(FEATURES), obs_dim=OBS, action_dim=ACTION, squashed=False)
FLAGGED = TokenCodec(jnp.zeros(FEATURES + 2), jnp.ones(FEATURES + 2), obs_dim=OBS, action_dim=ACTION, squashed=False)


def residual_matrix(tau: float, steps: int = STEPS) -> np.ndarray:
    """J [(T - 1) O, T D] of the residuals of unit tokens in all entries."""
    J = np.zeros(((steps - 1) * OBS, steps * FEATURES))
    for t in range(steps - 1):
        rows, here, there = slice(t * OBS, (t + 1) * OBS), t * FEATURES, (t + 1) * FEATURES
        J[rows, here : here + OBS] = -np.asarray(ENV.A)
        J[rows, here + OBS : here + FEATURES] = -np.asarray(ENV.B)
        J[rows, there : there + OBS] = np.eye(OBS)
    return J / tau


def state_entries(steps: int = STEPS) -> np.ndarray:
    return np.concatenate([t * FEATURES + np.arange(OBS) for t in range(steps)])


def test_conjugate_gradients_solve_as_many_unknowns_as_steps_and_stop_there() -> None:
    root = np.random.default_rng(0).normal(size=(6, 6))
    matrix, b = root @ root.T + np.eye(6), np.arange(6.0) - 2
    system = lambda product: LinearSystem(lambda p: (p, p @ product(p)), lambda p, _: product(p))
    solve = lambda product, b, n: conjugate_gradients(system(product), b, b, n)[0]
    u = solve(lambda x: jnp.asarray(matrix, jnp.float32) @ x, jnp.asarray(b, jnp.float32), 6)
    np.testing.assert_allclose(u, np.linalg.solve(matrix, b), rtol=1e-3, atol=1e-4)
    assert not solve(lambda x: 2 * x, jnp.zeros(3), 20).any()
    np.testing.assert_allclose(solve(lambda x: 2 * x, jnp.ones(3), 20), 0.5)


@pytest.mark.parametrize(("sigma", "epsilon"), [(0.03, 0.0), (0.5, 0.0), (0.03, 0.2)])
def test_the_step_is_that_of_the_normal_equations(sigma: float, epsilon: float) -> None:
    tau, x0 = 0.1, jax.random.normal(jax.random.key(0), (STEPS, FEATURES))
    J = residual_matrix(tau)
    r = J @ np.asarray(x0, np.float64).ravel()
    Js, v = J[:, state_entries()], sigma**2 / (1 + sigma**2) + epsilon**2
    u = -np.linalg.solve(np.eye(Js.shape[1]) + v * Js.T @ Js, v * Js.T @ r).reshape(STEPS, OBS)
    found = make(UNIT, tau=tau, iterations=100, denoiser_error=epsilon)(x0, jnp.asarray(sigma))
    np.testing.assert_allclose(found[:, :OBS] - x0[:, :OBS], u, atol=2e-4 * np.abs(u).max())
    np.testing.assert_array_equal(found[:, OBS:], x0[:, OBS:])
    eight = make(UNIT, tau=tau, iterations=8, denoiser_error=epsilon)
    few = eight(x0, jnp.asarray(sigma))  # gets most of the residual away
    size = lambda x: np.linalg.norm(J @ np.asarray(x, np.float64).ravel())
    assert size(few) - size(found) < 0.1 * (size(x0) - size(found))


def test_statistics_of_tokens_are_taken_into_account() -> None:
    mean, std = jnp.asarray([1.0, -2.0, 0.3]), jnp.asarray([2.0, 0.5, 3.0])
    codec = dataclasses.replace(UNIT, mean=mean, std=std)
    states = [jnp.asarray([0.5, -0.2])]
    actions = jax.random.normal(jax.random.key(1), (STEPS, ACTION))
    for t in range(STEPS - 1):
        states.append(ENV.A @ states[-1] + ENV.B @ actions[t])
    x0 = (jnp.concatenate([jnp.stack(states), actions], -1) - mean) / std
    np.testing.assert_allclose(make(codec)(x0, jnp.asarray(0.5)), x0, atol=1e-5)
    assert np.abs(make(UNIT)(x0, jnp.asarray(0.5)) - x0).max() > 0.1


@pytest.mark.parametrize("solver", [DPMpp2M(), Heun()])
def test_exact_samples_of_deterministic_dynamics_stay_exact(solver: Solver) -> None:
    mean, cov = trajectory_moments(ENV.without_noise(), BEHAVIOUR)
    centre, scale = feature_statistics(mean, cov, FEATURES)
    denoise = gaussian_denoise(*standardise_moments(mean, cov, centre, scale), FEATURES)
    codec = dataclasses.replace(UNIT, mean=jnp.asarray(centre, jnp.float32), std=jnp.asarray(scale, jnp.float32))
    sigmas, key = karras_sigmas(24, 0.01, 20.0, 7.0), jax.random.key(2)
    x = sigmas[0] * jax.random.normal(key, (32, STEPS, FEATURES))
    sample = jax.jit(lambda d, x: jax.vmap(lambda x: sampled(key, d, x, sigmas, solver)[0])(x))
    plain = sample(denoise, x)
    found = sample(ConsistentDenoise(denoise, make(codec, tau=0.02)), x)
    np.testing.assert_allclose(found, plain, atol=2e-3)


def test_white_tokens_give_the_stated_product_of_experts() -> None:
    """The sampler is linear in its noise: its covariance is exact without drawing. Actions are fixed at zero."""
    tau, steps = 0.5, 6
    codec = dataclasses.replace(UNIT)
    known = np.zeros((steps, FEATURES), bool)
    known[:, OBS:] = True
    white = lambda x, sigma: jnp.where(known, 0.0, x / (1 + sigma**2))
    sigmas = karras_sigmas(160, 0.002, 80.0, 7.0)
    consistent = make(codec, tau=tau, iterations=24)
    denoise = lambda x, s: consistent(white(x, s), s)
    run = lambda x: sampled(jax.random.key(0), denoise, x, sigmas, DPMpp2M())[0]
    entries = state_entries(steps)
    basis = jnp.eye(steps * FEATURES)[entries].reshape(-1, steps, FEATURES)
    columns = jax.jit(jax.vmap(run))(sigmas[0] * basis).reshape(len(entries), -1)[:, entries]
    J = residual_matrix(tau, steps)[:, entries]
    expected = np.linalg.inv(np.eye(len(entries)) + J.T @ J)
    np.testing.assert_allclose(columns.T @ columns, expected, atol=0.02)
    assert np.abs(expected - np.eye(len(entries))).max() > 0.5


def test_nothing_happens_above_its_level() -> None:
    x0 = jax.random.normal(jax.random.key(3), (STEPS, FEATURES))
    corrected = make(UNIT, sigma_max=0.7)
    np.testing.assert_array_equal(corrected(x0, jnp.asarray(0.71)), x0)
    assert (corrected(x0, jnp.asarray(0.69)) != x0).any()
    text = jax.jit(jax.vmap(corrected, (0, None))).lower(x0[None], jnp.asarray(0.5)).as_text()
    assert "stablehlo.case" in text or "stablehlo.if" in text  # a branch, not a select, where all share a noise level


def test_samples_keep_the_first_jacobians_and_compute_nothing_above_the_level() -> None:
    """A model that counts its calls, each of all trajectories and steps at once."""
    calls: list[tuple[int, ...]] = []

    @struct.dataclass
    class Counting(Linear):
        def next_states(self, obs: Array, action: Array) -> tuple[Array, Array]:
            jax.debug.callback(lambda: calls.append(()))
            return super().next_states(obs, action)

    model = Counting(ENV.A, ENV.B, jnp.zeros(1), jnp.full(OBS, 0.1))
    sigmas = jnp.asarray([10.0, 2.0, 1.0, 0.5, 0.2, 0.0])
    denoise = ConsistentDenoise(lambda x, sigma: x / (1 + sigma**2), Consistency(model, UNIT, sigma_max=1.5))
    x = sigmas[0] * jax.random.normal(jax.random.key(8), (4, STEPS, FEATURES))
    jax.block_until_ready(jax.jit(jax.vmap(lambda x: sampled(jax.random.key(0), denoise, x, sigmas, DPMpp2M())[0]))(x))
    jax.effects_barrier()
    assert len(calls) == 3 + 1  # three levels, and the Jacobians of the first


def test_jacobians_of_linear_models_serve_every_level() -> None:
    consistency, x = make(UNIT, sigma_max=1.0), jax.random.normal(jax.random.key(9), (STEPS, FEATURES))
    denoise = ConsistentDenoise(lambda x, sigma: 0.9 * x, consistency)
    memory = denoise.init_memory(x)
    for sigma in (2.0, 0.9, 0.3):
        found, memory = denoise.evaluate(x, jnp.asarray(sigma), memory)
        np.testing.assert_allclose(found, denoise(x, jnp.asarray(sigma)), atol=1e-6)
    np.testing.assert_allclose(memory.kept.F, jnp.broadcast_to(ENV.A, memory.kept.F.shape), atol=1e-6)
    assert memory.passes == 3


def test_steps_after_the_end_of_a_padded_trajectory_are_left_alone() -> None:
    x0, sigma = jax.random.normal(jax.random.key(10), (STEPS, FEATURES)), jnp.asarray(0.5)
    found = make(UNIT, iterations=60)(x0, sigma, jnp.arange(STEPS) < 5)
    np.testing.assert_array_equal(found[5:], x0[5:])
    np.testing.assert_allclose(found[:5], make(UNIT, iterations=60)(x0[:5], sigma), atol=1e-4)


def test_steps_from_a_terminal_on_are_left_alone() -> None:
    x0 = jax.random.normal(jax.random.key(4), (STEPS, FEATURES + 2)).at[:, FLAGGED.done].set(0.0)
    ended = x0.at[5, FLAGGED.done].set(1.0)
    found = make(FLAGGED)(ended, jnp.asarray(0.5))
    np.testing.assert_array_equal(found[6:], ended[6:])
    short = make(FLAGGED, iterations=60)(ended[:6].at[5, FLAGGED.done].set(0.0), jnp.asarray(0.5))
    np.testing.assert_allclose(make(FLAGGED, iterations=60)(ended, jnp.asarray(0.5))[:6, :OBS], short[:, :OBS], atol=1e-4)
    assert (make(FLAGGED)(x0, jnp.asarray(0.5))[6:, :OBS] != x0[6:, :OBS]).any()


def test_rewards_move_towards_the_expected_ones_until_the_terminal() -> None:
    """By v / (v + tau^2) of the way, in the units of the tokens; those after the terminal stay."""
    mean, std = jnp.arange(FEATURES + 2.0), jnp.linspace(0.5, 2.0, FEATURES + 2)
    codec = dataclasses.replace(FLAGGED, mean=mean, std=std)
    raw = jax.random.normal(jax.random.key(11), (STEPS, FEATURES + 2)).at[:, codec.done].set(0.0).at[5, codec.done].set(1.0)
    x0, sigma = (raw - mean) / std, jnp.asarray(0.2)
    found = make(codec, tau=0.3)(x0, sigma)
    states, actions = (found * std + mean)[:, codec.obs], raw[:, codec.action]
    expected = ((states.sum(1) + 2.0 * actions.sum(1)) - mean[codec.reward]) / std[codec.reward]
    v, tau = 0.2**2 / (1 + 0.2**2), 0.1 / std[codec.reward]
    moved = x0[:, codec.reward] + v / (v + tau**2) * (expected - x0[:, codec.reward])
    np.testing.assert_allclose(found[:6, codec.reward], moved[:6], atol=1e-5)
    np.testing.assert_array_equal(found[6:], x0[6:])
    np.testing.assert_array_equal(found[:, codec.action], x0[:, codec.action])
    np.testing.assert_array_equal(found[:, codec.done], x0[:, codec.done])


def test_models_that_disagree_correct_less_and_the_floor_bounds_tau() -> None:
    consistency = make(UNIT, tau=0.1, apart=(-0.2, 0.2))
    predicted = consistency.predict(jnp.zeros(OBS), jnp.zeros(ACTION))
    np.testing.assert_allclose(predicted.std(0), 0.2, rtol=1e-5)
    np.testing.assert_allclose(consistency.standard_error(predicted), np.hypot(0.1, 0.2), rtol=1e-5)
    np.testing.assert_allclose(consistency.replace(floor=0.4).standard_error(jnp.zeros((1, OBS))), 0.4)  # type: ignore[attr-defined]
    x0, sigma = jax.random.normal(jax.random.key(5), (STEPS, FEATURES)), jnp.asarray(0.3)
    change = lambda c: np.linalg.norm(c(x0, sigma) - x0)
    assert change(consistency) < change(make(UNIT, tau=0.1))


def test_both_points_of_a_proposal_are_corrected() -> None:
    class Fixed:
        def estimate(self, x: Array, sigma: Array) -> Estimate:
            return Estimate(x, 2 * x, x.sum())

        def __call__(self, x: Array, sigma: Array) -> Array:
            return 2 * x

        def log_target(self, x0: Array) -> Array:
            return x0.sum()

    consistency, x, sigma = make(UNIT), jax.random.normal(jax.random.key(7), (STEPS, FEATURES)), jnp.asarray(0.4)
    guided = ConsistentGuided(Fixed(), consistency)
    estimate = guided.estimate(x, sigma)
    np.testing.assert_array_equal(estimate.x0, consistency(x, sigma))
    np.testing.assert_array_equal(estimate.x0_guided, consistency(2 * x, sigma))
    np.testing.assert_array_equal(guided(x, sigma), estimate.x0_guided)
    assert estimate.log_twist == x.sum() == guided.log_target(x)


def test_a_single_step_has_no_dynamics() -> None:
    with pytest.raises(ValueError, match="the dynamics need 2"):
        ConsistentDenoise(lambda x, sigma: x, make(UNIT)).init_memory(jnp.zeros((1, FEATURES)))
