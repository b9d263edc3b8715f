"""Termination rules: at their bounds by hand, and against the simulators that they speak for."""

import dataclasses

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpgd.dataset import DatasetInfo, obs_slices
from jaxpgd.errors import InputError
from jaxpgd.simulators.environments import environment_kwargs, flatten_obs, make_environment, quiet_mujoco
from jaxpgd.simulators.resimulation import make_simulator
from jaxpgd.world_model.termination import RULES, Hopper, MazeGoal, known_rule, make_rule, termination

MAZE = {"achieved_goal": slice(0, 2), "desired_goal": slice(2, 4), "observation": slice(4, 8)}
NAN, INF = float("nan"), float("inf")


def ends(rule, *entries):
    return bool(rule(jnp.asarray(entries, jnp.float32)))


def above(x):
    return float(np.nextafter(np.float32(x), np.float32(np.inf)))


def below(x):
    return float(np.nextafter(np.float32(x), np.float32(-np.inf)))


def test_hopper_bounds_are_strict():
    rule = make_rule("hopper")
    for z, angle, leg, want in [
        (0.7, 0, 0, True), (above(0.7), 0, 0, False), (INF, 0, 0, True), (NAN, 0, 0, True),
        (1, 0.2, 0, True), (1, below(0.2), 0, False), (1, -0.2, 0, True), (1, above(-0.2), 0, False),
        (1, 0, 100, True), (1, 0, below(100), False), (1, 0, -100, True), (1, 0, NAN, True), (150, 0, 0, False),
    ]:  # fmt: skip
        assert ends(rule, z, angle, 0, leg) is want, (z, angle, leg)


def test_walker_bounds_are_strict_and_nothing_else_counts():
    rule = make_rule("walker2d")
    for z, angle, want in [
        (0.8, 0, True), (above(0.8), 0, False), (2, 0, True), (below(2), 0, False), (NAN, 0, True),
        (1, 1, True), (1, below(1), False), (1, -1, True), (1, above(-1), False), (1, NAN, True),
    ]:  # fmt: skip
        assert ends(rule, z, angle, 0) is want, (z, angle)
    assert not ends(rule, 1, 0, NAN) and not ends(rule, 1, 0, 1e6)


def test_ant_bounds_are_included_and_all_must_be_finite():
    rule = make_rule("ant")
    for z, leg, want in [
        (0.2, 0, False), (below(0.2), 0, True), (1, 0, False), (above(1), 0, True), (NAN, 0, True),
        (0.5, INF, True), (0.5, NAN, True), (0.5, 1e6, False),
    ]:  # fmt: skip
        assert ends(rule, z, 1, leg) is want, (z, leg)


def test_inverted_pendulum_may_lean_by_its_bound():
    rule = make_rule("inverted_pendulum")
    for angle, want in [(0.2, False), (above(0.2), True), (-0.2, False), (below(-0.2), True), (NAN, True)]:
        assert ends(rule, 5, angle, 0, 0) is want, angle
    assert ends(rule, INF, 0, 0, 0) and ends(rule, 0, 0, 0, NAN) and not ends(rule, 0, 0, 1e6, 0)


def test_inverted_double_pendulum_ends_at_height_one():
    rule, tilt = make_rule("inverted_double_pendulum"), np.arccos(1 / 1.2)
    # both poles in line and tilted: the tip is at 1.2 cos(tilt); the first upright, the second bent: 0.6 + 0.6 cos(bend)
    for first, second, want in [
        (0, 0, False), (tilt - 1e-3, 0, False), (tilt + 1e-3, 0, True), (-tilt - 1e-3, 0, True),
        (0, np.arccos(2 / 3) - 1e-3, False), (0, np.arccos(2 / 3) + 1e-3, True),
        (0.5, -0.5, False), (0.5, 0.5, True),  # heights 0.6 cos(0.5) + 0.6 = 1.13 and 0.6 cos(0.5) + 0.6 cos(1) = 0.85
    ]:  # fmt: skip
        assert ends(rule, 9, np.sin(first), np.sin(second), np.cos(first), np.cos(second), 0, 0, 0, 0) is want, (first, second)
    assert not ends(rule, 0, NAN, NAN, NAN, NAN, 0, 0, 0, 0)


def test_maze_goal_compares_the_two_goals_where_they_lie():
    rule = make_rule("maze_goal", {}, MAZE)
    for x, y, want in [(0.45, 0, True), (above(0.45), 0, False), (0.27, 0.35, True), (0.3, 0.36, False), (NAN, 0, False)]:
        assert ends(rule, x, y, 0, 0, 7, 7, 7, 7) is want, (x, y)
    moved = make_rule("maze_goal", {}, {"observation": slice(0, 4), "desired_goal": slice(4, 6), "achieved_goal": slice(6, 8)})
    assert ends(moved, 0, 0, 0, 0, 3, 4, 3.2, 4.3) and not ends(moved, 3, 4, 3, 4, 3, 4, 4, 4)
    with pytest.raises(InputError, match="obs_keys"):
        make_rule("maze_goal", {}, {"observation": slice(0, 4)})


def test_ranges_and_places_come_from_the_environments_settings():
    kwargs = {"healthy_z_range": [0.9, 1.5], "healthy_angle_range": [-0.1, 0.3], "healthy_state_range": [-5, 5]}
    rule = make_rule("hopper", {**kwargs, "exclude_current_positions_from_observation": False})
    assert rule == Hopper(z=(0.9, 1.5), angle=(-0.1, 0.3), state=(-5.0, 5.0), first=1)
    assert not ends(rule, 99, 1, 0.25, 4) and ends(rule, 99, 1, 0.25, 5) and ends(rule, 99, 1.5, 0.25, 4)
    assert make_rule("ant", {"exclude_current_positions_from_observation": False}).first == 2
    with pytest.raises(InputError, match="healthy_z_range"):
        make_rule("ant", {"healthy_z_range": [1.0]})


def test_known_rules():
    for name, want in {
        "point2d": "never", "linear_gaussian": "never", "Pendulum-v1": "never", "HalfCheetah-v4": "never",
        "Hopper-v5": "hopper", "Hopper-v4": "hopper", "Walker2d-v5": "walker2d", "Ant-v4": "ant",
        "InvertedPendulum-v5": "inverted_pendulum", "InvertedDoublePendulum-v4": "inverted_double_pendulum",
        "Reacher-v5": "never", "Swimmer-v4": "never", "Pusher-v5": "never", "HumanoidStandup-v5": "never",
        "PointMaze_UMaze-v3": "never", "AntMaze_Large_Diverse_GR-v4": "never",
        "Hopper-v2": None, "my/Hopper-v5": None, "CartPole-v1": None, "Humanoid-v5": None, "FetchReach-v4": None, None: None,
    }.items():  # fmt: skip
        assert known_rule(name, {}, {}) == want, name


def test_settings_of_the_environment_decide_where_they_matter():
    assert known_rule("Hopper-v5", {"terminate_when_unhealthy": False}) == "never"
    assert known_rule("CartPole-v1", {"terminate_when_unhealthy": False}) is None
    for maze in ("PointMaze_UMaze-v3", "AntMaze_UMaze-v5"):
        assert known_rule(maze, {"continuing_task": True}, MAZE) == "never"
        assert known_rule(maze, {"continuing_task": False}, MAZE) == "maze_goal"
        assert known_rule(maze, {"continuing_task": False}, {}) is None


def test_termination_follows_the_choice_and_has_no_silent_default():
    assert termination("auto", "Hopper-v5", {"healthy_z_range": (0.5, 2)}) == Hopper(z=(0.5, 2.0))
    assert termination("auto", "PointMaze_UMaze-v3", {"continuing_task": False}, MAZE) == MazeGoal((0, 2), (2, 4))
    assert termination("never", "CartPole-v1") == make_rule("never")
    assert termination("learned", "Hopper-v5") is None
    with pytest.raises(InputError, match=r"world_model\.termination.*CartPole-v1.*learned.*inverted_pendulum"):
        termination("auto", "CartPole-v1")
    with pytest.raises(InputError, match=r"world_model\.termination = 'hoper'.*auto.*learned.*hopper"):
        termination("hoper", "Hopper-v5")
    with pytest.raises(InputError, match=r"world_model\.termination"):
        make_rule("auto")


@pytest.mark.parametrize("name", RULES)
def test_a_rebuilt_rule_causes_no_new_trace(name):
    traces = []

    def apply(rule, obs):
        traces.append(1)
        return jax.vmap(rule)(obs)

    obs = jnp.ones((3, 8))
    as_argument, as_static = jax.jit(apply), jax.jit(apply, static_argnums=0)
    for _ in range(2):
        rule = make_rule(name, {}, MAZE)
        got = as_argument(rule, obs)
        np.testing.assert_array_equal(got, as_static(rule, obs))
        assert got.shape == (3,) and got.dtype == bool and jax.tree.leaves(rule) == []
    assert len(traces) == 2
    assert make_rule(name, {}, MAZE) == make_rule(name, {}, MAZE)


# --- against the simulators ---------------------------------------------------------------------------------------------


def info(env_id, actions, bound=1.0, **options):
    return DatasetInfo(
        name=env_id, source="npz", action_low=(-bound,) * actions, action_high=(bound,) * actions, env_id=env_id, **options
    )


def with_settings(about, **kwargs):
    """The same environment with keyword arguments, as a dataset stores it."""
    return dataclasses.replace(about, env_spec=gymnasium.make(about.env_id, **kwargs).spec.to_json())


def around(obs, entries, rng, count):
    """`count` copies of obs [O] with small noise, and some `entries` drawn from near their bounds."""
    noisy = obs + 0.02 * rng.standard_normal((count, len(obs)))
    for entry, bounds in entries.items():
        chosen = rng.random(count) < 0.5
        noisy[chosen, entry] = rng.choice(bounds, chosen.sum()) + 0.02 * rng.standard_normal(chosen.sum())
    return noisy


RANGES = {"healthy_z_range": (0.9, 1.6), "healthy_angle_range": (-0.1, 0.3), "healthy_state_range": (-8.0, 6.0)}
CASES = {
    "Hopper-v5": (info("Hopper-v5", 3), {}, {0: [0.7], 1: [-0.2, 0.2]}),
    "Hopper-v4": (info("Hopper-v4", 3), {}, {0: [0.7], 1: [-0.2, 0.2]}),
    "Hopper-ranges": (info("Hopper-v5", 3), RANGES, {0: [0.9, 1.6], 1: [-0.1, 0.3], 8: [-8, 6]}),
    "Walker2d-v5": (info("Walker2d-v5", 6), {}, {0: [0.8, 2.0], 1: [-1.0, 1.0]}),
    "Ant-v5": (info("Ant-v5", 8), {}, {0: [0.2, 1.0]}),
    "Ant-v4": (info("Ant-v4", 8), {"healthy_z_range": (0.4, 0.8)}, {0: [0.4, 0.8]}),
    "InvertedPendulum-v5": (info("InvertedPendulum-v5", 1, 3.0), {}, {1: [-0.2, 0.2]}),
}


@pytest.mark.parametrize("case", CASES)
def test_rules_agree_with_mujoco_near_their_bounds(case):
    pytest.importorskip("mujoco")
    about, kwargs, entries = CASES[case]
    about = with_settings(about, **kwargs) if kwargs else about
    env, rng = make_environment(about), np.random.default_rng(0)
    obs = around(env.reset(seed=0)[0], entries, rng, 200)
    action = rng.uniform(-1, 1, (200, len(about.action_low)))
    next_obs, _, terminated = make_simulator(about).step(obs, action)
    rule = termination("auto", about.env_id, environment_kwargs(about))
    assert 20 <= terminated.sum() <= 180
    np.testing.assert_array_equal(jax.vmap(rule)(jnp.asarray(next_obs, jnp.float32)), terminated)


def test_a_simulator_told_not_to_terminate_agrees():
    pytest.importorskip("mujoco")
    about = with_settings(info("Hopper-v5", 3), terminate_when_unhealthy=False)
    obs = np.zeros((3, 11))
    next_obs, _, terminated = make_simulator(about).step(obs, np.zeros((3, 3)))
    rule = termination("auto", about.env_id, environment_kwargs(about))
    np.testing.assert_array_equal(jax.vmap(rule)(jnp.asarray(next_obs)), terminated)
    assert not terminated.any() and ends(make_rule("hopper"), *next_obs[0])


@pytest.mark.parametrize("version", [4, 5])
def test_the_double_pendulum_agrees_up_to_the_solvers_last_stage(version):
    pytest.importorskip("mujoco")
    about, rng = info(f"InvertedDoublePendulum-v{version}", 1), np.random.default_rng(0)
    env, rule = make_environment(about).unwrapped, termination("auto", about.env_id)
    env.reset(seed=0)
    tilt, rows = np.arccos(1 / 1.2), []
    for _ in range(200):
        angles = rng.choice([-1, 1]) * tilt * np.array([1, 0]) + 0.1 * rng.standard_normal(2)
        env.set_state(np.array([0.0, *angles]), rng.standard_normal(3))
        obs, _, terminated, _, _ = env.step(rng.uniform(-1, 1, 1))
        rows.append((ends(rule, *obs), terminated, env.data.qpos[1], env.data.qpos[2], env.data.site_xpos[0][2]))
    ruled, terminated, first, second, tip = map(np.array, zip(*rows, strict=True))
    observed = 0.6 * np.cos(first) + 0.6 * np.cos(first + second)
    assert np.abs(observed - tip).max() < 1e-3
    clear = np.abs(observed - 1) > 1e-3
    assert clear.sum() > 180 and 20 <= terminated.sum() <= 180
    np.testing.assert_array_equal(ruled[clear], terminated[clear])


@pytest.mark.parametrize(("env_id", "actions", "size"), [("PointMaze_UMaze-v3", 2, 4), ("AntMaze_UMaze-v5", 8, 105)])
def test_mazes_end_at_their_goal_alone(env_id, actions, size):
    pytest.importorskip("gymnasium_robotics")
    keys = {"obs_keys": ("achieved_goal", "desired_goal", "observation"), "obs_sizes": (2, 2, size)}
    plain = info(env_id, actions, **keys)
    make_environment(plain).close()  # registers the mazes
    about, rng = with_settings(plain, continuing_task=False), np.random.default_rng(0)
    env = make_environment(about).unwrapped
    rule = termination("auto", env_id, environment_kwargs(about), obs_slices(about))
    position, rows = env.reset(seed=0)[0]["achieved_goal"], []
    for _ in range(60):
        angle, away = rng.uniform(0, 2 * np.pi), 0.45 + 0.1 * rng.standard_normal()
        env.goal = position + away * np.array([np.cos(angle), np.sin(angle)])
        with quiet_mujoco():
            obs, _, terminated, _, _ = env.step(rng.uniform(-1, 1, actions).astype(np.float32))
        rows.append((ends(rule, *flatten_obs(about, obs)), terminated))
        position = obs["achieved_goal"]
    ruled, terminated = map(np.array, zip(*rows, strict=True))
    assert 5 <= terminated.sum() <= 55
    np.testing.assert_array_equal(ruled, terminated)
    assert known_rule(env_id, environment_kwargs(plain), obs_slices(plain)) == "never"


def test_settings_of_an_environment_are_the_stored_ones_else_the_registered():
    assert environment_kwargs(info("point2d", 2)) == {} == environment_kwargs(info("Nowhere-v0", 2))
    stored = with_settings(info("Pendulum-v1", 1), g=5.0)
    assert environment_kwargs(stored)["g"] == 5.0
    pytest.importorskip("gymnasium_robotics")
    assert environment_kwargs(info("PointMaze_UMazeDense-v3", 2))["reward_type"] == "dense"
