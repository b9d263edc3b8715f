"""Simulator replay of rollouts whose true next states are known, and of recorded data."""

import json
from pathlib import Path

import chex
import gymnasium
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpgd.dataset import DatasetInfo, obs_slices, to_env_action
from jaxpgd.envs import linear_gaussian, point2d
from jaxpgd.errors import EnvironmentFailure, InputError
from jaxpgd.metrics.dynamics_error import dynamics_error
from jaxpgd.metrics.rollout_comparison import root_mean, state_squares
from jaxpgd.simulators.environments import flatten_obs, make_environment
from jaxpgd.simulators.resimulation import BuiltinSimulator, has_simulator, make_simulator
from jaxpgd.simulators.rollout import replay_actions
from jaxpgd.simulators.rollout import rollout as true_rollout
from jaxpgd.types import Policy, Trajectory, valid_steps

HOPPER = Path(__file__).parents[2] / ".." / "shared" / "datasets" / "minari" / "mujoco" / "hopper" / "medium-local-v0" / "data"
MAZE = {"obs_keys": ("achieved_goal", "desired_goal", "observation"), "obs_sizes": (2, 2, 4)}


def info(env_id, actions=1, bound=1.0, **options):
    return DatasetInfo(
        name=env_id, source="npz", action_low=(-bound,) * actions, action_high=(bound,) * actions, env_id=env_id, **options
    )


def rollout(about, steps=40):
    """True transitions of one episode under random actions."""
    env = make_environment(about)
    rng = np.random.default_rng(0)
    obs, _ = env.reset(seed=0)
    rows = []
    for _ in range(steps):
        action = rng.uniform(-0.8, 0.8, len(about.action_low))
        next_obs, reward, terminated, truncated, _ = env.step(to_env_action(about, action).astype(np.float32))
        as_array = lambda o: np.concatenate([o[k] for k in about.obs_keys]) if isinstance(o, dict) else o
        rows.append((as_array(obs), action, as_array(next_obs), reward, terminated))
        obs = next_obs
        if terminated or truncated:
            break
    env.close()
    return [np.stack(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize(
    "about",
    [
        info("Hopper-v5", 3),
        info("Walker2d-v5", 6),
        info("HalfCheetah-v5", 6),
        info("Ant-v5", 8),
        info("InvertedPendulum-v5", 1, bound=3.0),
        info("PointMaze_UMaze-v3", 2, **MAZE),
    ],
    ids=lambda a: a.env_id,
)
def test_replay_gives_the_true_next_state_reward_and_end(about):
    pytest.importorskip("mujoco")
    pytest.importorskip("gymnasium_robotics")
    obs, action, next_obs, reward, terminated = rollout(about)
    simulated, rewards, ends = make_simulator(about).step(obs, action)
    # velocities of Hopper and Walker2d are clipped at 10 in observations: steps that start there cannot be replayed
    known = (np.abs(obs) < 10).all(axis=1)
    assert known.sum() >= 5
    # controls pass through float32 in one of the two, and velocities reach 10: far below any error of interest
    state = slice(0, 27) if about.env_id.startswith("Ant") else slice(None)  # the rest are contact forces
    np.testing.assert_allclose(simulated[known][:, state], next_obs[known][:, state], atol=1e-3)
    # Ant measures its forward reward from body positions left over from the solver's last stage, not from the state
    np.testing.assert_allclose(rewards[known], reward[known], atol=0.1 if about.env_id.startswith("Ant") else 1e-3)
    np.testing.assert_array_equal(ends[known], terminated[known])


def test_a_step_does_not_depend_on_those_before_it():
    pytest.importorskip("mujoco")
    about = info("Hopper-v5", 3)
    obs, action, *_ = rollout(about, 10)
    simulator = make_simulator(about)
    together = simulator.step(obs, action)[0]
    np.testing.assert_array_equal(simulator.step(obs[::-1], action[::-1])[0][::-1], together)


def test_no_log_file_is_left_by_impossible_states(tmp_path, monkeypatch):
    pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)
    simulator = make_simulator(info("HalfCheetah-v5", 6))
    simulator.step(np.full((2, 17), 1e12), np.zeros((2, 6)))
    assert list(tmp_path.iterdir()) == []


def test_point2d_is_its_noise_free_step():
    env = point2d.Point2D(noise_std=0.0)
    obs, action = np.random.default_rng(0).uniform(-1, 1, (2, 5, 2)).astype(np.float32)
    next_obs, reward, ends = make_simulator(info("point2d", 2)).step(obs, action)
    want = jax.vmap(env.step, in_axes=(None, 0, 0))(jax.random.key(0), obs, action)
    np.testing.assert_allclose(next_obs, want[0], rtol=1e-5)
    np.testing.assert_allclose(reward, want[1], rtol=1e-5)
    assert not ends.any()


def test_known_and_unknown_environments():
    assert has_simulator(info("point2d")) and has_simulator(info("Hopper-v4"))
    assert has_simulator(info("PointMaze_Large-v3", **MAZE))
    for name in ("Hopper-v2", "CartPole-v1", "AntMaze_UMaze-v5", None):
        assert not has_simulator(info(name))
        with pytest.raises(InputError, match="no simulator replay"):
            make_simulator(info(name))


def test_pointmaze_without_its_goal_is_refused():
    with pytest.raises(InputError, match="obs_keys"):
        make_simulator(info("PointMaze_UMaze-v3", 2, obs_keys=("observation",), obs_sizes=(4,)))


def test_obs_slices_and_flattening_agree():
    about = info("PointMaze_UMaze-v3", 2, **MAZE)
    parts = {"observation": np.arange(4.0), "achieved_goal": np.full(2, 7.0), "desired_goal": np.full(2, 8.0)}
    flat = flatten_obs(about, parts)
    for name, where in obs_slices(about).items():
        np.testing.assert_array_equal(flat[where], parts[name])


@pytest.mark.skipif(not HOPPER.exists(), reason="the recorded Hopper dataset is not there")
def test_recorded_hopper_steps_replay_far_better_than_persistence():
    pytest.importorskip("mujoco")
    meta = json.loads((HOPPER / "metadata.json").read_text())
    length, rows, everything = 32, [], []
    with h5py.File(HOPPER / "main_data.hdf5") as file:
        for episode in (file[f"episode_{e}"] for e in range(20)):
            obs, start = episode["observations"][:], len(episode["actions"]) - length
            part = slice(start, start + length)
            everything.append(obs)
            rows.append([obs[part], episode["actions"][part], episode["rewards"][part], 1.0 - episode["terminations"][part]])
    obs, action, reward, discount = map(np.stack, zip(*rows, strict=True))
    trajectory = Trajectory(obs, action, reward, discount, np.asarray(valid_steps(discount)))
    about = info("Hopper-v5", 3, env_spec=meta["env_spec"])
    result = dynamics_error(trajectory, make_simulator(about).step, np.concatenate(everything).std(axis=0))
    assert result["rms"] < 0.05 and result["persistence"] > 0.2
    assert result["terminal_agreement"] == 1.0 and result["steps"] == 20 * (length - 1)


# --- rollouts -----------------------------------------------------------------------------------------------------------


def linear_mode(params, obs):
    return jnp.tanh(params @ obs)


def noisy_sample(params, key, obs):
    mode = linear_mode(params, obs)
    return mode + jax.random.normal(key, mode.shape)


def random_policy(about, obs_dim, scale=1.0):
    params = np.random.default_rng(1).normal(size=(len(about.action_low), obs_dim)) * scale
    return Policy(params=jnp.asarray(params, jnp.float32), sample_fn=noisy_sample, mode_fn=linear_mode)


def stepped_by_hand(about, qpos, qvel, actions):
    """Observations, rewards and ends of Gymnasium's environment, going on from one state under given actions."""
    env = make_environment(about).unwrapped
    env.reset(seed=3)
    env.data.qacc_warmstart[:] = 0.0
    env.set_state(qpos, qvel)
    rows = [env.step(to_env_action(about, action))[:3] for action in actions]
    env.close()
    return [np.stack(column) for column in zip(*rows, strict=True)]


def clear_of_terminals(trajectory, i):
    ended = trajectory.discount[i] == 0
    return int(np.argmax(ended)) + 1 if ended.any() else len(ended)


@pytest.mark.parametrize(
    ("about", "size", "omitted", "starts"),
    [
        (info("InvertedPendulum-v5", bound=3.0), 4, 0, [[0, 0.05, 0, 0], [0.1, -0.15, 0, -1.5], [0, 0, 0, 0.1]]),
        (info("Hopper-v5", 3), 11, 1, [[1.25, 0, 0, 0, 0, *[0.1] * 6], [1.2, 0.15, 0, 0, 0, 0, 0, 1.0, 9, 9, 9]]),
    ],
    ids=lambda a: getattr(a, "env_id", ""),
)
def test_rollouts_are_gymnasiums_own_steps_from_the_same_state(about, size, omitted, starts):
    pytest.importorskip("mujoco")
    start, length = np.array(starts, np.float32), 40
    policy = random_policy(about, size, 0.3)
    made, final = true_rollout(jax.random.key(0), make_simulator(about), policy, start, length, deterministic=True)
    positions, follow, clipped = (size + omitted) // 2, np.concatenate([made.obs[:, 1:], final[:, None]], axis=1), False
    for i in range(len(start)):
        qpos = np.concatenate([np.zeros(omitted), start[i, : positions - omitted]])
        steps = clear_of_terminals(made, i)
        obs, reward, ends = stepped_by_hand(about, qpos, start[i, positions - omitted :], made.action[i, :steps])
        np.testing.assert_allclose(follow[i, :steps], obs, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(made.reward[i, :steps], reward, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(made.discount[i, :steps] == 0, ends)
        clipped |= bool((np.abs(obs) == 10).any())
    # where the observation clips velocities, stepping from it would go elsewhere
    assert clipped == about.env_id.startswith("Hopper")
    np.testing.assert_allclose(made.action, jax.vmap(jax.vmap(policy.mode))(made.obs), rtol=1e-5, atol=1e-6)
    assert (made.discount == 0).any() and made.obs.shape == (len(start), length, size)


def test_after_a_terminal_the_state_stays_and_steps_are_masked():
    pytest.importorskip("mujoco")
    about = info("InvertedPendulum-v5", bound=3.0)
    start = np.array([[0, 0.19, 0, 2.0], [0, 0.0, 0, 0.0]], np.float32)
    still = Policy(params=jnp.zeros((1, 4)), sample_fn=noisy_sample, mode_fn=linear_mode)
    made, final = true_rollout(jax.random.key(0), make_simulator(about), still, start, 5, deterministic=True)
    assert made.discount.tolist() == [[0, 1, 1, 1, 1], [1] * 5]
    assert made.mask.tolist() == [[True] + [False] * 4, [True] * 5]
    np.testing.assert_array_equal(made.last_obs, final)
    assert made.reward.tolist() == [[0] * 5, [1] * 5]
    assert abs(final[0, 1]) > 0.2 and (made.obs[0, 1:] == final[0]).all() and not (made.obs[0, 0] == final[0]).any()


def test_sampled_rollouts_depend_on_the_key_alone():
    pytest.importorskip("mujoco")
    about = info("InvertedPendulum-v5", bound=3.0)
    simulator, start = make_simulator(about), np.zeros((3, 4), np.float32)
    policy = random_policy(about, 4)
    first, _ = true_rollout(jax.random.key(0), simulator, policy, start, 6)
    simulator.step(start + 0.1, np.ones((3, 1)))
    again, _ = true_rollout(jax.random.key(0), simulator, policy, start, 6)
    other, _ = true_rollout(jax.random.key(1), simulator, policy, start, 6)
    chex.assert_trees_all_equal(first, again, strict=True)
    assert (first.action != other.action).mean() > 0.5 and np.abs(first.action).max() <= 1
    assert not (first.action[0] == first.action[1]).all(), "each trajectory draws its own actions"


def test_point2d_rollouts_are_those_of_the_environment():
    env, policy = point2d.Point2D(), point2d.target_policy(point2d.Point2D())
    want, next_obs = point2d.collect(jax.random.key(2), env, policy, 7)
    made, final = true_rollout(jax.random.key(2), make_simulator(info("point2d", 2)), policy, want.obs[:, 0], env.horizon)
    chex.assert_trees_all_close(made, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(final, next_obs[:, -1], rtol=1e-5, atol=1e-6)
    assert isinstance(made.obs, np.ndarray) and made.mask.all()


def test_rollouts_without_noise_are_exact_steps_of_the_mode():
    env, policy = point2d.Point2D(), point2d.target_policy(point2d.Point2D())
    start = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    made, final = true_rollout(jax.random.key(0), BuiltinSimulator(env), policy, start, 5, deterministic=True, noise=False)
    at = jnp.asarray(start)
    for t in range(5):
        np.testing.assert_allclose(made.obs[:, t], at, rtol=1e-5, atol=1e-6)
        at = jax.vmap(lambda o: env.mean_step(o, policy.mode(o)))(at)
    np.testing.assert_allclose(final, at, rtol=1e-5, atol=1e-6)


def test_linear_gaussian_rollouts_have_their_noise_or_none():
    env, _, policy = linear_gaussian.reference_case()
    start = np.tile(np.array([[0.5, -0.2]], np.float32), (4000, 1))
    A, B, K, k = (np.asarray(x, np.float64) for x in (env.A, env.B, policy.params.K, policy.params.k))
    mean = A @ start[0] + B @ (K @ start[0] + k)
    _, exact = true_rollout(jax.random.key(0), BuiltinSimulator(env), policy, start[:1], 1, deterministic=True, noise=False)
    np.testing.assert_allclose(exact[0], mean, rtol=1e-5)
    _, noisy = true_rollout(jax.random.key(0), BuiltinSimulator(env), policy, start, 1, deterministic=True)
    # covariance 0.02 I: standard errors 0.0022 of the means, 0.0005 of the variances
    np.testing.assert_allclose(noisy.mean(axis=0), mean, atol=0.01)
    np.testing.assert_allclose(np.cov(noisy.T), 0.02 * np.eye(2), atol=0.002)


def test_a_maze_draws_a_new_goal_after_a_success_only_with_noise():
    pytest.importorskip("gymnasium_robotics")
    import dataclasses

    import gymnasium

    plain = info("PointMaze_UMaze-v3", 2, **MAZE)
    make_environment(plain).close()  # registers the mazes
    spec = gymnasium.make(plain.env_id, continuing_task=True, reset_target=True).spec
    simulator = make_simulator(dataclasses.replace(plain, env_spec=spec.to_json()))
    near, far = [-1, -1, -1, -0.8, -1, -1, 0, 0], [-1, -1, 1, -1, -1, -1, 0, 0]  # achieved, desired, position, velocity
    start, still = np.array([near, far], np.float32), random_policy(plain, 8, 0.0)
    roll = lambda **o: true_rollout(jax.random.key(0), simulator, still, start, 4, deterministic=True, **o)[0]
    kept, drawn = roll(noise=False), roll()
    assert (kept.obs[:, :, 2:4] == start[:, None, 2:4]).all() and kept.reward.tolist() == [[1] * 4, [0] * 4]
    assert (drawn.obs[0, :2, 2:4] == start[0, 2:4]).all(), "the goal of the step itself, and of what it led to, is the old one"
    assert not (drawn.obs[0, 2, 2:4] == start[0, 2:4]).any() and (drawn.obs[1] == kept.obs[1]).all()
    assert drawn.reward.tolist() == [[1, 0, 0, 0], [0] * 4]


def test_replayed_actions_lead_where_the_rollout_went():
    pytest.importorskip("mujoco")
    about = info("InvertedPendulum-v5", bound=3.0)
    simulator, start = make_simulator(about), np.array([[0, 0.05, 0, 0], [0.1, -0.15, 0, -1.5]], np.float32)
    want, _ = true_rollout(jax.random.key(0), simulator, random_policy(about, 4, 0.3), start, 20)
    chex.assert_trees_all_equal(replay_actions(simulator, start, want.action), want, strict=True)
    assert (want.discount == 0).any()


def test_open_loop_errors_of_constant_errors_by_step_are_geometric_sums():
    """Of steps that miss by e each, the error after k steps is the sum of A^i e over i < k, and 0 where e is."""
    env, _, policy = linear_gaussian.reference_case()
    simulator, steps, A = BuiltinSimulator(env), 12, np.asarray(env.A, np.float64)
    start = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    exact, _ = true_rollout(jax.random.key(0), simulator, policy, start, steps, noise=False)
    truth = replay_actions(simulator, start, exact.action)
    np.testing.assert_allclose(state_squares(truth, exact, np.ones(2)), 0.0, atol=1e-10)
    e, missed = np.array([0.1, -0.05]), [np.zeros(2)]
    while len(missed) < steps:
        missed.append(A @ missed[-1] + e)
    made, std = exact.replace(obs=exact.obs + np.array(missed), last_obs=None), np.array([0.5, 2.0])
    one_step = dynamics_error(made, simulator.step, std)
    np.testing.assert_allclose(one_step["by_step"], np.sqrt(np.mean((e / std) ** 2)), rtol=1e-4)
    error, error_se = root_mean(state_squares(truth, made, std))
    np.testing.assert_allclose(error, np.sqrt(np.mean((np.array(missed) / std) ** 2, axis=1)), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(error_se, 0.0, atol=1e-5)  # all trajectories miss by the same


def test_open_loop_errors_of_point2d_add_up():
    simulator, start = make_simulator(info("point2d", 2)), np.zeros((3, 2), np.float32)
    action = np.random.default_rng(0).uniform(-1, 1, (3, 9, 2))
    truth = replay_actions(simulator, start, action)
    made = truth.replace(obs=truth.obs + 0.1 * np.arange(9)[:, None])
    np.testing.assert_allclose(root_mean(state_squares(truth, made, np.ones(2)))[0], 0.1 * np.arange(9), rtol=1e-5)
    np.testing.assert_allclose(truth.last_obs, 0.15 * action.sum(axis=1), rtol=1e-4, atol=1e-6)


def test_actions_that_cannot_be_replayed_are_refused():
    simulator = make_simulator(info("point2d", 2))
    for start, action in (((3, 2), (2, 4, 2)), ((3, 2), (3, 2)), ((3, 2), (3, 0, 2)), ((0, 2), (0, 4, 2))):
        with pytest.raises(InputError, match="start, action"):
            replay_actions(simulator, np.zeros(start), np.zeros(action))


def test_starts_and_lengths_that_make_no_rollout_are_refused():
    simulator, policy = make_simulator(info("point2d", 2)), point2d.target_policy(point2d.Point2D())
    with pytest.raises(InputError, match="start"):
        true_rollout(jax.random.key(0), simulator, policy, np.zeros(2), 3)
    with pytest.raises(InputError, match="length"):
        true_rollout(jax.random.key(0), simulator, policy, np.zeros((1, 2)), 0)


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (KeyError("joint\nof two lines"), "KeyError: 'joint"),
        (SystemExit("licence"), "SystemExit: licence"),
        (None, "TypeError: cannot unpack"),
        ((None, 0.0, False, False, {}), r"ValueError: its observation has shape \(\) of \w+, not \(11,\) of numbers"),
        ((np.zeros(3), 0.0, False, False, {}), r"ValueError: its observation has shape \(3,\) of \w+, not \(11,\)"),
        ((np.full(11, np.nan), 0.0, False, False, {}), "ValueError: its observation is not finite"),
        ((np.zeros(11), None, False, False, {}), "ValueError: its reward is None, not a finite number"),
        ((np.zeros(11), np.nan, False, False, {}), "ValueError: its reward is nan, not a finite number"),
    ],
)
def test_whatever_a_replayed_environment_does_is_one_line(outcome, words, monkeypatch):
    pytest.importorskip("mujoco")
    simulator = make_simulator(info("Hopper-v5", 3))

    def step(control):
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(simulator._env, "step", step)
    start, policy = np.zeros((2, 11), np.float32), random_policy(simulator.info, 11, 0.0)
    for use in (
        lambda: simulator.step(start, np.zeros((2, 3))),
        lambda: true_rollout(jax.random.key(0), simulator, policy, start, 2, deterministic=True),
    ):
        with pytest.raises(EnvironmentFailure, match=f"^An environment Hopper-v5 failed: {words}") as raised:
            use()
        assert len(str(raised.value).splitlines()) == 1


def test_states_beyond_what_a_simulator_takes_may_lead_anywhere(monkeypatch):
    pytest.importorskip("mujoco")
    simulator = make_simulator(info("Hopper-v5", 3))
    monkeypatch.setattr(simulator._env, "step", lambda control: (np.full(11, np.nan), np.nan, False, False, {}))
    assert np.isnan(simulator.step(np.full((1, 11), 1e12), np.zeros((1, 3)))[0]).all()


def test_environments_of_the_same_name_and_data_without_the_goal_have_no_simulator():
    gymnasium.register("mine/Hopper-v5", lambda: None)
    assert not has_simulator(info("mine/Hopper-v5", 3))
    with pytest.raises(InputError, match="no simulator replay"):
        make_simulator(info("mine/Hopper-v5", 3))
    del gymnasium.registry["mine/Hopper-v5"]
    pytest.importorskip("gymnasium_robotics")
    assert not has_simulator(info("PointMaze_UMaze-v3", 2, obs_keys=("observation",), obs_sizes=(4,)))
    assert has_simulator(info("PointMaze_UMaze-v3", 2, **MAZE))
