import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpgd.datasets import load
from jaxpgd.datasets.point2d import REF_MAX, REF_MIN
from jaxpgd.envs.builtin import builtin_environment, is_builtin
from jaxpgd.envs.point2d import (
    TARGET_STD,
    Point2D,
    behaviour_policy,
    collect,
    importance_truth,
    target_policy,
)
from jaxpgd.errors import InputError
from jaxpgd.resampling import effective_sample_size
from jaxpgd.world_model.termination import known_rule

ENV = Point2D()


def test_steps_follow_the_documented_dynamics() -> None:
    trajectory, next_obs = collect(jax.random.key(0), ENV, behaviour_policy(ENV), 500)
    assert trajectory.obs.shape == (500, 16, 2) and trajectory.mask.all()
    np.testing.assert_array_equal(next_obs[:, -1], trajectory.last_obs)
    np.testing.assert_array_equal(next_obs[:, :-1], trajectory.obs[:, 1:])
    residual = next_obs - ENV.mean_step(trajectory.obs, trajectory.action)
    # 16,000 draws of std 0.01: standard errors 8e-5 (mean) and 6e-5 (std)
    assert abs(float(residual.mean())) < 4e-4 and abs(float(residual.std()) - 0.01) < 3e-4
    np.testing.assert_allclose(trajectory.reward, -jnp.linalg.norm(next_obs - jnp.array([0.0, 1.0]), axis=-1), rtol=1e-5)
    assert float(jnp.abs(trajectory.action).max()) <= 1.0


def test_policies_head_for_their_goals() -> None:
    behaviour = collect(jax.random.key(1), ENV, behaviour_policy(ENV), 500)[1][:, -1].mean(0)
    target = collect(jax.random.key(1), ENV, target_policy(ENV), 500)[1][:, -1].mean(0)
    assert behaviour[0] > 0.75 and abs(behaviour[1]) < 0.05
    assert target[1] > 0.75 and abs(target[0]) < 0.05


def test_reference_returns() -> None:
    for policy, expected in ((behaviour_policy(ENV), REF_MIN), (target_policy(ENV), REF_MAX)):
        returns = collect(jax.random.key(2), ENV, policy, 4000)[0].reward.sum(-1)
        assert abs(float(returns.mean()) - expected) < 4 * float(returns.std()) / 4000**0.5 + 0.02


def test_log_prob_is_the_blurred_gaussian() -> None:
    policy, obs, action = target_policy(ENV), jnp.array([0.2, -0.1]), jnp.array([0.3, 0.5])
    for variance in (0.0, 0.3):
        std = (TARGET_STD**2 + variance) ** 0.5
        expected = jax.scipy.stats.norm.logpdf(action, policy.mode(obs), std).sum()
        np.testing.assert_allclose(policy.log_prob(obs, action, variance), expected, rtol=1e-5)


def test_importance_weights_keep_enough_samples_and_turn_towards_the_target() -> None:
    trajectory, log_weight = importance_truth(jax.random.key(3), ENV, target_policy(ENV), 0.3, 20_000)
    t = jax.tree.map(lambda x: x[5], trajectory)
    expected = 0.3 * sum(target_policy(ENV).log_prob(t.obs[i], t.action[i]) for i in range(16))
    np.testing.assert_allclose(log_weight[5], expected, rtol=1e-4)
    assert effective_sample_size(log_weight) > 800
    shift = jax.nn.softmax(log_weight) @ trajectory.obs[:, -1] - trajectory.obs[:, -1].mean(0)
    assert shift[0] < -0.1 and shift[1] > 0.03
    assert effective_sample_size(jnp.zeros(10)) == 10


def test_episodes_of_another_length_have_their_own_name_and_no_scores() -> None:
    d = load("point2d-40", episodes=3)
    assert d.offsets.tolist() == [0, 40, 80, 120] and d.info.env_id == d.info.name == "point2d-40"
    assert d.info.ref_min is None and load("point2d-16", episodes=3).info == load("point2d", episodes=3).info
    assert builtin_environment("point2d-40") == Point2D(horizon=40)
    assert is_builtin("point2d-40") and not any(map(is_builtin, ("point2d-0", "point2d-", "point2d-v0", "xpoint2d", None)))
    assert known_rule("point2d-40") == "never"
    with pytest.raises(InputError, match=r"env_id = 'point2d-v0'.*point2d-N"):
        builtin_environment("point2d-v0")


def test_dataset_is_reproducible_and_whole_episodes_are_windows() -> None:
    a, b, c = load("point2d", episodes=3, seed=0), load("point2d", episodes=3, seed=0), load("point2d", episodes=3, seed=1)
    np.testing.assert_array_equal(a.obs, b.obs)
    assert not np.array_equal(a.obs, c.obs)
    assert a.offsets.tolist() == [0, 16, 32, 48] and a.info.source == "builtin"
