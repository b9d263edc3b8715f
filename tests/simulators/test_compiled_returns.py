"""Compiled rollouts against sums done by hand."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from jaxpgd.dataset import DatasetInfo
from jaxpgd.errors import InputError
from jaxpgd.simulators.compiled_returns import rollout_returns
from jaxpgd.simulators.returns import evaluate
from jaxpgd.types import Policy


@struct.dataclass
class Line:
    """Moves by the action from 0, noise-free; reward: the new position; ends beyond `end`, infinite reward afterwards."""

    end: float = 2.5
    horizon: int = struct.field(pytree_node=False, default=6)
    obs_dim: int = struct.field(pytree_node=False, default=1)
    action_dim: int = struct.field(pytree_node=False, default=1)

    def reset(self, key):
        return jnp.zeros(1)

    def step(self, key, obs, action):
        moved = obs + action
        reward = jnp.where(obs[0] > self.end, jnp.inf, moved[0])
        return moved, reward, jnp.where(moved[0] > self.end, 0.0, 1.0)


def always(params, obs):
    return params


def constant(values):
    return Policy(params=jnp.asarray(values)[:, None], sample_fn=always, mode_fn=always)


def test_returns_stop_at_the_terminal_and_at_the_horizon():
    result = rollout_returns(jax.random.key(0), Line(), constant([1.0, 0.25, 3.0]), 2)
    # 1+2+3 ends at 3 > 2.5; 0.25 (1+2+...+6) runs to the horizon; 3 ends at once
    np.testing.assert_allclose(result.returns, [[6.0] * 2, [5.25] * 2, [3.0] * 2])
    np.testing.assert_array_equal(result.lengths, [[3, 3], [6, 6], [1, 1]])
    np.testing.assert_allclose(rollout_returns(jax.random.key(0), Line(), constant([0.25]), 1, 2).returns, [[0.75]])


def test_discounted_returns_start_and_cut_come_besides_the_same_returns():
    policy, key = constant([1.0, 0.25]), jax.random.key(0)
    plain = rollout_returns(key, Line(), policy, 2)
    found = rollout_returns(key, Line(), policy, 2, gamma=jnp.array([0.5, 1.0]))
    chex.assert_trees_all_equal(plain, found.replace(discounted=None))
    np.testing.assert_allclose(found.discounted, [[1 + 2 / 2 + 3 / 4] * 2, [5.25] * 2])
    np.testing.assert_array_equal(found.start, np.zeros((2, 2, 1)))
    np.testing.assert_array_equal(found.cut, [[False] * 2, [True] * 2])


def test_new_parameters_and_settings_reuse_the_program():
    chex.clear_trace_counter()
    once = chex.assert_max_traces(rollout_returns.__wrapped__, n=1)
    compiled = jax.jit(once, static_argnames=("episodes", "horizon"))
    compiled(jax.random.key(0), Line(end=2.0), constant([1.0, 2.0]), episodes=3)
    compiled(jax.random.key(1), Line(end=4.0), constant([0.5, -2.0]), episodes=3)


def test_point2d_target_policy_beats_the_behaviour_policy():
    from jaxpgd.envs.point2d import Point2D, behaviour_policy, target_policy

    env = Point2D()
    info = DatasetInfo(name="point2d", source="builtin", action_low=(-1.0,) * 2, action_high=(1.0,) * 2, env_id="point2d")
    policies = jax.tree.map(lambda *x: jnp.stack(x), behaviour_policy(env), target_policy(env))
    result = evaluate(jax.random.key(0), policies, info, episodes=32)
    assert result.returns.shape == (2, 32) and (result.lengths == env.horizon).all()
    # the start is about 1 from the rewarded goal and the other goal is sqrt(2) from it: returns within 16 such steps
    assert -16 * 2.0 < result.returns[0].mean() < -16 * 1.0 < result.returns[1].mean() < 0


@pytest.mark.parametrize(
    ("params", "mode", "message"),
    [
        ({"w": jnp.ones((2, 3)), "b": jnp.ones(2)}, lambda p, obs: p["b"], r"modes \[seeds, action_dim\] = \[2, 1\]"),
        ({"w": jnp.ones((2, 3)), "b": jnp.ones(3)}, always, "parameters that all have a leading axis, of the seeds"),
        ((), always, "parameters that all have a leading axis"),
        (jnp.float32(1.0), always, "parameters that all have a leading axis"),
        (
            jnp.eye(2),
            lambda p, obs: p @ jnp.ones(2),
            r"expected modes \[seeds, action_dim\] = \[2, 1\]",
        ),
        (jnp.ones((2, 3)), lambda p, obs: p @ obs, r"\[2, 1\] of observations of 1 numbers"),
    ],
)
def test_policies_that_are_no_batch_are_refused(params, mode, message):
    policy = Policy(params=params, sample_fn=lambda p, key, obs: mode(p, obs), mode_fn=mode)
    with pytest.raises(InputError, match=message):
        rollout_returns(jax.random.key(0), Line(), policy, 2)


def test_one_policy_is_a_batch_of_one():
    one = jax.tree.map(lambda x: x[0], constant([0.25]))
    with pytest.raises(InputError, match=r"Of a single policy make one by jax.tree.map\(lambda x: x\[None\], policy\)"):
        rollout_returns(jax.random.key(0), Line(), dataclasses.replace(one, params=jnp.float32(0.25)), 1)
    np.testing.assert_allclose(
        rollout_returns(jax.random.key(0), Line(), jax.tree.map(lambda x: x[None], one), 1).returns, 5.25
    )
