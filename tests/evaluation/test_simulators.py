"""Simulator replay of rollouts whose true next states are known, and of recorded data."""

import json
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest

from jaxpgd.data.dataset import DatasetInfo, to_env_action
from jaxpgd.errors import InputError
from jaxpgd.evaluation.environments import flatten_obs, make_environment
from jaxpgd.evaluation.simulators import has_simulator, make_simulator, obs_slices
from jaxpgd.evaluation.trajectory_metrics import dynamics_error
from jaxpgd.packing import usable_steps
from jaxpgd.types import Trajectory

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
    from jaxpgd.envs.point2d import Point2D

    env = Point2D(noise_std=0.0)
    obs, action = np.random.default_rng(0).uniform(-1, 1, (2, 5, 2)).astype(np.float32)
    next_obs, reward, ends = make_simulator(info("point2d", 2)).step(obs, action)
    want = jax.vmap(env.step, in_axes=(None, 0, 0))(jax.random.key(0), obs, action)
    np.testing.assert_allclose(next_obs, want[0], rtol=1e-5)
    np.testing.assert_allclose(reward, want[1], rtol=1e-5)
    assert not ends.any()


def test_known_and_unknown_environments():
    assert has_simulator(info("point2d")) and has_simulator(info("Hopper-v4")) and has_simulator(info("PointMaze_Large-v3"))
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
    trajectory = Trajectory(obs, action, reward, discount, np.asarray(usable_steps(discount)))
    about = info("Hopper-v5", 3, env_spec=meta["env_spec"])
    result = dynamics_error(trajectory, make_simulator(about), np.concatenate(everything).std(axis=0))
    assert result["rms"] < 0.05 and result["persistence"] > 0.2
    assert result["terminal_agreement"] == 1.0 and result["steps"] == 20 * (length - 1)
