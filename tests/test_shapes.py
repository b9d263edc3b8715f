"""Shapes that would broadcast silently are refused at trace time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpgd.envs.point2d import Point2D, target_policy
from jaxpgd.metrics.dynamics_error import action_log_likelihood, dynamics_error, ratio_standard_error
from jaxpgd.metrics.rollout_comparison import paired_crossing
from jaxpgd.resampling import effective_sample_size, systematic
from jaxpgd.tokens import Ends, TokenCodec, ended, pack
from jaxpgd.types import Trajectory, Transition
from jaxpgd.windows import gather_padded, gather_window

T = 4
CODEC = TokenCodec(jnp.zeros(6), jnp.ones(6), obs_dim=2, action_dim=2)
POLICY = target_policy(Point2D())


def trajectory(*batch: int, reward: tuple[int, ...] | None = None) -> Trajectory:
    """A trajectory [*batch, T] of zeros, with another shape of its rewards where given."""
    steps = (*batch, T)
    zeros = jnp.zeros(steps)
    shape = steps if reward is None else reward
    return Trajectory(jnp.zeros((*steps, 2)), jnp.zeros((*steps, 2)), jnp.zeros(shape), zeros + 1, zeros == 0)


def transitions(reward: tuple[int, ...]) -> Transition:
    return Transition(jnp.zeros((9, 2)), jnp.zeros((9, 2)), jnp.zeros(reward), jnp.ones(9), jnp.zeros((9, 2)))


def still(obs: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return obs, np.zeros(len(obs)), np.zeros(len(obs), bool)


def test_right_shapes_pass() -> None:
    tokens = CODEC.encode(trajectory())
    assert CODEC.decode(tokens).reward.shape == (T,)
    assert gather_window(transitions((9,)), jnp.int32(2), T).obs.shape == (T, 2)
    assert dynamics_error(trajectory(3), still, np.ones(2))["steps"] == 3 * (T - 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: CODEC.encode(trajectory(reward=(T, 1))),
        lambda: CODEC.encode_steps(jnp.zeros((T, 3)), jnp.zeros((T, 2))),
        lambda: CODEC.decode(jnp.zeros((T, 1))),
        lambda: CODEC.observation(jnp.zeros((T, 1))),
        lambda: pack(jnp.zeros((T, 2)), jnp.zeros((T, 2)), jnp.zeros((T, 1)), jnp.zeros(T)),
        lambda: ended(trajectory(3), Ends(jnp.ones(3, jnp.int32), jnp.ones(3, bool))),
        lambda: gather_window(transitions((9, 1)), jnp.int32(2), T),
        lambda: gather_padded(transitions((9,)), jnp.arange(2), T, Ends(jnp.int32(2), jnp.array(False))),
        lambda: effective_sample_size(jnp.zeros((5, 1))),
        lambda: systematic(jax.random.key(0), jnp.zeros((5, 1))),
        lambda: POLICY.log_prob(jnp.zeros((T, 2)), jnp.zeros((T, 2))),
        lambda: POLICY.score(jnp.zeros((T, 2)), jnp.zeros(2)),
        lambda: dynamics_error(trajectory(), still, np.ones(2)),
        lambda: dynamics_error(trajectory(3, reward=(3, 1)), still, np.ones(2)),
        lambda: action_log_likelihood(POLICY, trajectory()),
        lambda: ratio_standard_error(np.ones(3), np.ones((3, 1))),
        lambda: paired_crossing(np.ones((3, T)), np.ones((1, T))),
    ],
)
def test_wrong_shapes_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises(AssertionError, match=r"\[Chex\]"):
        call()
