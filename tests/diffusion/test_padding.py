"""Padding of windows: seen as it is, never denoised, never counted, by the loss and by guidance alike."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from jax import Array

from jaxpgd.diffusion.conditioning import Condition
from jaxpgd.diffusion.edm import edm_loss
from jaxpgd.diffusion.padding import WindowEnds, padding, window_ends
from jaxpgd.envs.linear_gaussian import linear_policy
from jaxpgd.guidance.likelihood import Likelihood
from jaxpgd.guidance.moment import standardised_residuals
from jaxpgd.guidance.published import PolicyGradientStep
from jaxpgd.tokens import Ends, TokenCodec, ended
from jaxpgd.types import Trajectory

CODEC = TokenCodec(mean=jnp.array([5.0, 0.1, -1.0, 0.25]), std=jnp.array([2.0, 0.5, 3.0, 0.25]), obs_dim=1, action_dim=1)
T, STEPS = 6, 4
X0 = jax.random.normal(jax.random.key(0), (T, 4))
OWN = jnp.arange(T) < STEPS
POLICY = linear_policy([[0.3]], [0.2], 0.5)


def at(steps: int, *, terminal: bool) -> Ends:
    return Ends(steps=jnp.asarray(steps), terminal=jnp.asarray(terminal))


@struct.dataclass
class Mixing:
    """A denoiser whose every entry depends on every entry that it sees; `extra` is added after the window's end."""

    weight: Array
    extra: Array | float = 0.0
    sigma_data: float = 1.0

    def given(self, x: Array, sigma: Array, condition: Condition) -> Array:
        seen = condition.impose(x)
        out = jnp.tanh(seen @ self.weight + seen.sum() + sigma) + jnp.where(OWN, 0.0, self.extra)[:, None]
        return condition.impose(out)


def test_padding_tells_where_and_how_an_episode_ended() -> None:
    for terminal, flag in ((True, (1 - 0.25) / 0.25), (False, (-1 - 0.25) / 0.25)):
        found = padding(CODEC, at(STEPS, terminal=terminal), T)
        np.testing.assert_array_equal(found.known, np.broadcast_to(~np.asarray(OWN)[:, None], (T, 4)))
        np.testing.assert_array_equal(found.value[STEPS], [0, 0, 0, flag])
        np.testing.assert_array_equal(padding(CODEC, at(STEPS, terminal=terminal), T, 2).value, np.zeros((T, 2)))
    assert not padding(CODEC, at(T, terminal=True), T).known.any()


@pytest.mark.parametrize("known", [None, jnp.zeros((T, 4), bool).at[:, 1].set(True).at[0].set(True)])
def test_padding_weighs_nothing(known: Array | None) -> None:
    pad = padding(CODEC, at(STEPS, terminal=True), T)
    weight = jax.random.normal(jax.random.key(1), (4, 4))

    @jax.jit
    def loss(x0: Array, weight: Array, extra: Array) -> Any:
        def own(x0: Array, weight: Array, extra: Array) -> Array:
            denoise: Any = Mixing(weight, extra)
            return edm_loss(jax.random.key(2), denoise, x0, 0.0, 1.0, known=known, padding=pad)

        return jax.value_and_grad(own, argnums=(0, 1, 2))(x0, weight, extra)

    value, (by_x0, by_weight, by_extra) = loss(X0, weight, jnp.asarray(0.0))
    assert value > 0 and jnp.abs(by_weight[:, 0]).min() > 0
    np.testing.assert_array_equal(by_x0[STEPS:], 0)
    assert by_extra == 0
    changed = jnp.where(OWN[:, None], X0, 1e3)
    other, (_, other_by_weight, _) = loss(changed, weight, jnp.asarray(7.0))
    assert other == value  # bit for bit
    np.testing.assert_array_equal(other_by_weight, by_weight)
    assert loss(X0.at[1, 2].add(0.1), weight, jnp.asarray(0.0))[0] != value


def test_a_step_weighs_as_much_as_in_a_whole_window() -> None:
    """A denoiser that says 0 for pure zeros errs by its tokens alone."""

    @struct.dataclass
    class Nothing:
        sigma_data: float = 1.0

        def __call__(self, x: Array, sigma: Array) -> Array:
            return 0.0 * x

        def given(self, x: Array, sigma: Array, condition: Condition) -> Array:
            return condition.impose(0.0 * x)

    ones, denoise = jnp.ones((T, 4)), Nothing()
    loss = lambda pad: edm_loss(jax.random.key(0), denoise, ones, 0.0, 0.0, padding=pad)  # type: ignore[arg-type]
    assert loss(None) == 2.0  # sigma 1: weight 2
    assert loss(padding(CODEC, at(3, terminal=False), T)) == 1.0
    assert loss(padding(CODEC, at(T, terminal=False), T)) == 2.0


def test_ends_are_drawn_as_windows_have_them() -> None:
    steps, terminal = np.array([2, 2, 2, 3, 6, 6, 6, 6]), np.array([1, 1, 1, 0, 0, 0, 1, 0], bool)
    ends = window_ends(Ends(steps=jnp.asarray(steps), terminal=jnp.asarray(terminal)), T)
    assert isinstance(ends, WindowEnds) and ends.share.sum() == 1
    draw = jax.jit(ends.draw, static_argnums=(1, 2))
    found = draw(jax.random.key(0), 20_000, T)
    for length, ended_so, share in ((2, True, 3 / 8), (3, False, 1 / 8), (6, True, 1 / 8), (6, False, 3 / 8)):
        got = float(((found.steps == length) & (found.terminal == ended_so)).mean())
        assert abs(got - share) < 5 * np.sqrt(share * (1 - share) / 20_000)
    assert set(np.asarray(draw(jax.random.key(1), 500, 10).steps)) == {2, 3, 10}  # whole windows end with the trajectory
    assert set(np.asarray(draw(jax.random.key(1), 500, 2).steps)) == {2}


@pytest.mark.parametrize("terminal", [True, False])
def test_what_follows_an_end_is_no_transition(terminal: bool) -> None:
    rng = np.random.default_rng(0)
    whole = Trajectory(
        obs=jnp.asarray(rng.normal(size=(T, 1))), action=jnp.asarray(rng.normal(size=(T, 1))), mask=jnp.ones(T, bool),
        reward=jnp.asarray(rng.normal(size=T)), discount=jnp.ones(T),
    )  # fmt: skip
    found = ended(whole, at(STEPS, terminal=terminal))
    np.testing.assert_array_equal(found.obs[:STEPS], whole.obs[:STEPS])
    np.testing.assert_array_equal(found.obs[STEPS:], np.broadcast_to(whole.obs[STEPS - 1], (T - STEPS, 1)))
    assert not found.action[STEPS:].any() and not found.reward[STEPS:].any()
    assert found.discount.tolist() == [1, 1, 1, 0 if terminal else 1, 1, 1]
    assert found.mask.tolist() == [True, True, True, terminal, False, False]
    died = ended(whole.replace(discount=whole.discount.at[1].set(0)), at(STEPS, terminal=terminal))  # type: ignore[attr-defined]
    assert died.mask.tolist() == [True, True] + [False] * 4
    same = ended(whole, at(T, terminal=terminal))
    assert same.discount.tolist() == [1] * T and same.mask.tolist() == [True] * (T - 1) + [False]


def test_guidance_counts_no_padding() -> None:
    """It is that of the steps before the end, and leaves what follows alone."""
    part, cut = X0[:STEPS], jnp.asarray(0.7)
    full, own = Likelihood(POLICY, CODEC, 0.5, valid=OWN), Likelihood(POLICY, CODEC, 0.5)
    np.testing.assert_allclose(full.exact(X0), own.exact(part), rtol=1e-6)
    np.testing.assert_allclose(full.blurred(X0, cut), own.blurred(part, cut), rtol=1e-6)
    residual = standardised_residuals(full, X0)
    np.testing.assert_allclose(residual[:STEPS], standardised_residuals(own, part), rtol=1e-6)
    assert not residual[STEPS:].any()
    nudge = PolicyGradientStep(POLICY, CODEC, 1.0)
    counted = nudge.replace(valid=OWN).gradient(X0)  # type: ignore[attr-defined]
    np.testing.assert_allclose(counted[:STEPS], nudge.gradient(part), rtol=1e-5)  # normalised over own steps
    assert not counted[STEPS:].any()
