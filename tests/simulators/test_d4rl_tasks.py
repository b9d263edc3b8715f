"""Files of D4RL are evaluated and replayed in D4RL's tasks, and scored by D4RL's references nowhere else."""

import dataclasses
import re
import warnings
from pathlib import Path

import gymnasium
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpgd.dataset import DatasetInfo
from jaxpgd.datasets import load
from jaxpgd.datasets.d4rl import REGISTRATIONS, environment_id, why_not_run
from jaxpgd.datasets.scores import LOCAL, MINARI, OGBENCH, normalized_score, score_column
from jaxpgd.errors import InputError
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.stages.prepare import prepare
from jaxpgd.metrics.dynamics_error import dynamics_error
from jaxpgd.simulators.d4rl_tasks import POINT_GOALS
from jaxpgd.simulators.environments import make_environment, require_environment, with_environment
from jaxpgd.simulators.resimulation import has_simulator, make_simulator
from jaxpgd.simulators.returns import evaluate
from jaxpgd.simulators.rollout import rollout as true_rollout
from jaxpgd.simulators.workers import job_of
from jaxpgd.types import Policy, Trajectory, valid_steps
from jaxpgd.windows import DataConfig
from jaxpgd.world_model.termination import known_rule

pytest.importorskip("gymnasium_robotics")

REAL = Path(__file__).parents[2] / ".." / "shared" / "datasets" / "d4rl"


def spec_of(env_id):
    return gymnasium.spec(env_id)


def write(folder, name, env_id, steps=200, scale=1.0):
    """A file in D4RL's layout, without next observations, of episodes under random actions in `env_id`."""
    info = DatasetInfo(name=name, source="d4rl", action_low=(), action_high=(), env_id=env_id)
    env, rng, rows, seed = make_environment(info), np.random.default_rng(0), [], 0
    obs, _ = env.reset(seed=0)
    for _ in range(steps):
        action = scale * rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        after, reward, terminal, timeout, _ = env.step(action)
        rows.append((obs, action, reward, terminal, timeout, after))
        obs, seed = (env.reset(seed=seed + 1)[0], seed + 1) if terminal or timeout else (after, seed)
    env.close()
    keys = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
    with h5py.File(folder / name, "w") as file:
        for key, column in zip(keys, zip(*rows, strict=True), strict=True):
            file[key] = np.stack(column)
    return load(str(folder / name))


def replayed(dataset, env_id=None):
    """Errors of the next states of all steps [M], of rewards [M], and whether it ended where the row is a terminal [M]."""
    info = dataset.info if env_id is None else dataclasses.replace(dataset.info, env_id=env_id)
    next_obs, reward, ended = make_simulator(info).step(dataset.obs, dataset.action)
    error = np.sqrt(np.square(next_obs - dataset.next_obs).mean(axis=1))
    return error, np.abs(reward - dataset.reward), ended == (dataset.discount == 0)


# --- which environment --------------------------------------------------------------------------------------------------

LENGTHS = {"antmaze": 1000, "pen": 100, "hammer": 200, "door": 200, "relocate": 200}
MAZE2D = {"v0": {"open": 150, "umaze": 150, "medium": 250, "large": 600}, "v1": {"umaze": 300, "medium": 600, "large": 800}}


def length_of(row):
    if row.environment.startswith("maze2d"):
        maze = next(maze for maze in ("open", "umaze", "medium", "large") if f"-{maze}" in row.name)
        return MAZE2D[row.name[-2:]][maze]
    return 700 if "antmaze" in row.name and "umaze" in row.name else LENGTHS.get(row.environment, 1000)


def test_every_dataset_of_the_table_has_its_task_with_d4rls_sizes_and_lengths():
    sizes, none = {}, set()
    for row in REGISTRATIONS:
        env_id = environment_id(row, np.zeros((1, row.obs_dim)))
        if env_id is None:
            none.add(re.sub(r"-(diverse|play|complete|partial|mixed)-v\d$", "", row.name))
            assert why_not_run(row.name) and why_not_run(row.file)
            continue
        assert why_not_run(row.name) is None
        assert spec_of(env_id).max_episode_steps == length_of(row), row.name
        sizes.setdefault(env_id, set()).add((row.obs_dim, row.action_dim))
    assert none == {"kitchen", "antmaze-ultra"}
    newest = {f"d4rl/maze2d-{maze}-v1" for maze in POINT_GOALS if maze != "open"}
    for env_id in {key for key in sizes if not key.startswith("d4rl/maze2d")} | newest:
        env = make_environment(DatasetInfo(name="", source="d4rl", action_low=(), action_high=(), env_id=env_id))
        assert sizes[env_id] == {(env.observation_space.shape[0], env.action_space.shape[0])}, env_id
    assert {"Hopper-v4", "HalfCheetah-v4", "Walker2d-v4", "d4rl/ant-v2", "d4rl/pen-v1"} <= sizes.keys()


def test_an_ant_that_feels_contacts_has_an_environment_that_does(tmp_path):
    assert write(tmp_path, "ant_medium-v2.hdf5", "d4rl/ant-v2", 60).info.env_id == "d4rl/ant-v2"
    assert write(tmp_path, "ant_expert-v2.hdf5", "d4rl/ant-contacts-v2", 60).info.env_id == "d4rl/ant-contacts-v2"


def test_no_warning_of_what_the_package_chose_itself(tmp_path):
    dataset = write(tmp_path, "hopper_medium-v2.hdf5", "Hopper-v4", 60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        require_environment(dataset.info, dataset.obs_dim)
        make_simulator(dataset.info)


@pytest.mark.parametrize(
    ("name", "sizes", "words"),
    [
        ("mini_kitchen_microwave_kettle_light_slider-v0.npz", (60, 9), "D4RL's task is not run here: its successor"),
        ("Ant_maze_ultra_noisy_multistart_True_multigoal_True_sparse.npz", (29, 8), "D4RL's task is not run here: its maze"),
    ],
)
def test_tasks_that_are_not_run_are_refused_with_the_reason(tmp_path, name, sizes, words):
    columns = {"observations": np.zeros((4, sizes[0])), "actions": np.zeros((4, sizes[1]))}
    np.savez(tmp_path / name, **columns, **{key: np.zeros(4) for key in ("rewards", "terminals", "timeouts")})
    with pytest.raises(InputError, match=words):
        prepare(Config(data=DataConfig(name=str(tmp_path / name))))


# --- replay -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "env_id"),
    [
        ("walker2d_medium-v2.hdf5", "Walker2d-v4"),
        ("hopper_medium-v2.hdf5", "Hopper-v4"),
        ("halfcheetah_medium-v2.hdf5", "HalfCheetah-v4"),
        ("ant_medium-v2.hdf5", "d4rl/ant-v2"),
        ("maze2d-umaze-sparse-v1.hdf5", "d4rl/maze2d-umaze-v1"),
        ("maze2d-large-dense-v1.hdf5", "d4rl/maze2d-large-dense-v1"),
        ("maze2d-medium-sparse.hdf5", "d4rl/maze2d-medium-v0"),
    ],
)
def test_rows_of_the_dynamics_of_d4rl_replay_where_the_package_replays_them(tmp_path, name, env_id):
    dataset = write(tmp_path, name, env_id, scale=0.6)
    assert dataset.info.env_id == env_id and score_column(dataset.info) == "score (D4RL)"
    error, rewards, ends = replayed(dataset)
    known = (np.abs(dataset.obs) < 10).all(axis=1)  # velocities of Hopper and Walker2d are clipped at 10
    assert known.sum() > 80 and error[known].max() < 1e-4 and ends[known].all()
    # Ant's forward reward is of positions that no observation tells
    assert rewards[known].max() < (0.1 if env_id.startswith("d4rl/ant") else 1e-4)


def test_walkers_rows_do_not_replay_in_the_newest_environment(tmp_path):
    """Its feet rub otherwise, and a step into a fall has no reward for being healthy."""
    dataset = write(tmp_path, "walker2d_medium-v2.hdf5", "Walker2d-v4", 800, scale=0.5)
    known = (np.abs(dataset.obs) < 10).all(axis=1)
    error, rewards, _ = replayed(dataset, "Walker2d-v5")
    assert (error[known] > 1e-2).mean() > 0.1 and error[known].max() > 0.1
    falls = known & (dataset.discount == 0)
    assert falls.sum() >= 3 and np.median(rewards[falls]) > 0.9


@pytest.mark.skipif(not REAL.exists(), reason="the recorded files in D4RL's layout are not there")
@pytest.mark.parametrize("name", ["hopper_random-local", "hopper_medium_replay-local"])
def test_recorded_hopper_replays_in_the_task_of_its_name(name):
    """The files were recorded in Hopper-v5, whose steps are those of v4 and whose falls are worth 1 less."""
    dataset = load(str(REAL / f"{name}.hdf5"))
    assert dataset.info.env_id == "Hopper-v4" and score_column(dataset.info) == "score (local, D4RL references)"
    rows = np.arange(600)
    part = dataclasses.replace(
        dataset, **{f: np.asarray(getattr(dataset, f))[rows] for f in ("obs", "action", "reward", "discount", "next_obs")}
    )
    error, rewards, ends = replayed(part)
    known = (np.abs(part.obs) < 10).all(axis=1)
    assert error[known].max() < 1e-5 and ends[known].all()
    falls = known & (part.discount == 0)
    assert rewards[known & ~falls].max() < 1e-5
    np.testing.assert_allclose(rewards[falls], 1.0, atol=1e-5)


def test_the_dynamics_error_of_a_maze_is_of_its_own_steps(tmp_path):
    """0 for true rows, and what is added to the states otherwise; its goal is the task's, so that rewards are known."""
    dataset = write(tmp_path, "maze2d-umaze-dense-v1.hdf5", "d4rl/maze2d-umaze-dense-v1", 120)
    windows = lambda x: np.asarray(x)[:120].reshape(6, 20, *np.shape(x)[1:])
    obs, discount = windows(dataset.obs), windows(dataset.discount)
    make = lambda obs: Trajectory(obs, windows(dataset.action), windows(dataset.reward), discount,
                                  np.asarray(valid_steps(jnp.asarray(discount))))  # fmt: skip
    simulator, std = make_simulator(dataset.info), np.asarray(dataset.obs).std(axis=0)
    true = dynamics_error(make(obs), simulator.step, std)
    assert true["rms"] < 1e-4 < true["persistence"] and true["reward_rms"] < 1e-5 and true["terminal_agreement"] == 1
    shifted = obs + np.where(np.arange(20) % 2, 0.1, 0.0)[None, :, None] * std
    assert dynamics_error(make(shifted.astype(np.float32)), simulator.step, std)["rms"] > 0.05
    assert known_rule(dataset.info.env_id) == "never" and known_rule("d4rl/ant-v2") == "ant"
    assert known_rule("d4rl/antmaze-umaze-v2") is None and not has_simulator(dataclasses.replace(
        dataset.info, env_id="d4rl/antmaze-umaze-v2"))  # fmt: skip  # observations do not show the goal


# --- evaluation ---------------------------------------------------------------------------------------------------------


def push(params, obs):
    return params


def lead(params, obs):
    return jnp.clip(2.0 * (jnp.ones(2) - obs[:2]) - 0.5 * obs[2:], -1, 1)


def pushing(way):
    return Policy(params=jnp.asarray([way], jnp.float32), sample_fn=lambda p, k, o: p, mode_fn=push)


@pytest.mark.parametrize(("name", "length"), [("maze2d-umaze-sparse-v1.hdf5", 300), ("maze2d-umaze-sparse.hdf5", 150)])
def test_episodes_of_a_maze_have_d4rls_length_and_scores(tmp_path, name, length):
    version = "v1" if length == 300 else "v0"
    dataset = write(tmp_path, name, f"d4rl/maze2d-umaze-{version}", 40)
    # led straight to the goal, those that start in its row stay there: reward 1 a step. A wall stops the others
    led = Policy(params=jnp.zeros((1, 0)), sample_fn=lambda p, k, o: o[:2], mode_fn=lead)
    result = evaluate(jax.random.key(0), led, dataset.info, episodes=8)
    assert (result.lengths == length).all()
    assert ((result.returns > length - 80) | (result.returns == 0)).all() and 0 < (result.returns > 0).sum() < 8
    score, label = normalized_score(dataset.info, result.returns)
    low, high = {300: (23.85, 161.86), 150: (0.94, 62.6)}[length]
    np.testing.assert_allclose(score, 100 * (result.returns - low) / (high - low))
    assert "D4RL table" in label
    assert job_of(dataset.info) is None  # workers would import JAX


def test_rollouts_of_a_policy_in_a_maze_are_its_steps(tmp_path):
    info = write(tmp_path, "maze2d-umaze-sparse-v1.hdf5", "d4rl/maze2d-umaze-v1", 40).info
    start = np.array([[1, 2.8, 0, 0], [2.8, 1.8, 6, 0]], np.float32)
    policy = Policy(params=jnp.asarray([0.0, -1.0]), sample_fn=lambda p, k, o: p, mode_fn=push)
    made, final = true_rollout(jax.random.key(0), make_simulator(info), policy, start, 60, deterministic=True)
    follow = np.concatenate([made.obs[0, 1:], final[:1]])
    np.testing.assert_array_equal(made.reward[0], np.hypot(*(follow[:, :2] - 1).T) <= 0.5)
    assert (made.discount == 1).all() and 0 < made.reward[0].sum() < 60
    assert abs(final[0, 1] - 0.4) < 0.05  # at the wall beside the goal (1, 1)
    mass = 1000 * 4 / 3 * np.pi * 0.1**3
    speed = 5 - 0.01 * 5 / (mass + 0.01)
    np.testing.assert_allclose(made.obs[1, 1, [0, 2]], [2.8 + 0.01 * speed, speed], rtol=1e-5)


def test_an_ant_in_a_maze_is_evaluated_by_its_success(tmp_path):
    name = "Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5"
    dataset = write(tmp_path, name, "d4rl/antmaze-umaze-v2", 30)
    assert score_column(dataset.info) == "score (D4RL)"
    require_environment(dataset.info, dataset.obs_dim)
    result = evaluate(jax.random.key(0), pushing([0.0] * 8), dataset.info, episodes=1, horizon=20)
    assert result.returns.tolist() == [[0.0]] and result.successes.tolist() == [[False]]
    assert spec_of(dataset.info.env_id).max_episode_steps == 700


# --- labels -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env_id", "column"),
    [("Hopper-v4", "score (D4RL)"), ("Hopper-v5", None), ("Pendulum-v1", None), ("gymnasium:Hopper-v4", "score (D4RL)")],
)
def test_a_run_elsewhere_keeps_no_label_of_d4rl(tmp_path, env_id, column):
    dataset = write(tmp_path, "hopper_medium-v2.hdf5", "Hopper-v4", 60)
    found = with_environment(dataset.info, env_id)
    assert found.env_id == env_id and score_column(found) == (column or f"return of {found.name}")
    assert (normalized_score(found, np.zeros(1))[0] is None) == (column is None)


def test_a_config_that_names_another_environment_has_no_score(tmp_path):
    write(tmp_path, "hopper_medium-v2.hdf5", "Hopper-v4", 100)
    data = DataConfig(name=str(tmp_path / "hopper_medium-v2.hdf5"), window=4, validation_fraction=0.2)
    assert score_column(prepare(Config(data=data)).dataset.info) == "score (D4RL)"
    elsewhere = prepare(Config(data=dataclasses.replace(data, env_id="Hopper-v5"))).dataset.info
    assert (elsewhere.ref_min, elsewhere.ref_max, elsewhere.ref_source) == (None, None, None)


@pytest.mark.parametrize("source", [MINARI, OGBENCH, LOCAL])
def test_references_of_other_families_stay_with_their_environment_too(source):
    given = DatasetInfo(
        name="x", source="minari", action_low=(-1.0,), action_high=(1.0,), env_id="Hopper-v5", ref_source=source, ref_min=0.0,
        ref_max=1.0,
    )  # fmt: skip
    assert score_column(with_environment(given, "Hopper-v5")) == score_column(given)
    assert score_column(with_environment(given, "Hopper-v4")) == "return of x"
    unnamed = dataclasses.replace(given, env_id=None)  # the user says which it was
    assert score_column(with_environment(unnamed, "Hopper-v4")) == score_column(given)
