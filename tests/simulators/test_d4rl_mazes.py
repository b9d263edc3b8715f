"""maze2d and antmaze against closed forms, D4RL's geometry and Gymnasium-Robotics' mazes."""

import warnings

import gymnasium
import numpy as np
import pytest

from jaxpgd.dataset import DatasetInfo
from jaxpgd.simulators.d4rl_tasks import ANT_CELLS, POINT_GOALS, WALLS
from jaxpgd.simulators.environments import make_environment

pytest.importorskip("gymnasium_robotics")

MASS = 1000 * 4 / 3 * np.pi * 0.1**3  # of a ball of radius 0.1 at density 1000


def made(env_id, actions=2):
    info = DatasetInfo(name="", source="d4rl", action_low=(-1.0,) * actions, action_high=(1.0,) * actions, env_id=env_id)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = make_environment(info).unwrapped
    env.reset(seed=0)
    return env


def stepped(env, state, action):
    env.data.qacc_warmstart[:] = 0
    env.set_state(np.array(state[:2], float), np.array(state[2:], float))
    return env.step(np.array(action, float))[:3]


@pytest.fixture(scope="module")
def umaze():
    return made("d4rl/maze2d-umaze-v1")


def test_a_free_step_is_the_closed_form_with_velocities_clipped_first(umaze):
    """Semi-implicit Euler over 0.01 s under the force 100 a and the damping v, which is taken implicitly."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        place, velocity, action = np.array([2.8, 1.8]), rng.normal(size=2) * 4, rng.uniform(-1.5, 1.5, 2)
        clipped = np.clip(velocity, -5, 5)
        after = clipped + 0.01 * (100 * np.clip(action, -1, 1) - clipped) / (MASS + 0.01)
        obs = stepped(umaze, [*place, *velocity], action)[0]
        np.testing.assert_allclose(obs, [*(place + 0.01 * after), *after], rtol=1e-9)


@pytest.mark.parametrize("maze", WALLS)
def test_walls_are_where_d4rl_has_them(maze):
    """A ball of radius 0.1 pushed from the centre of a cell, (r - 0.2, c - 0.2), stops 0.4 off if the next cell is a wall."""
    env = made(f"d4rl/maze2d-{maze}-{'v0' if maze == 'open' else 'v1'}")
    rows, free = WALLS[maze], 0
    for r, c in [(r, c) for r, row in enumerate(rows) for c, cell in enumerate(row) if cell == " "]:
        free += 1
        for way in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            stepped(env, [r - 0.2, c - 0.2, 0, 0], way)
            for _ in range(23):
                obs = env.step(np.array(way, float))[0]
            moved = np.dot(obs[:2] - [r - 0.2, c - 0.2], way)
            if rows[r + way[0]][c + way[1]] == "#":
                assert abs(moved - 0.4) < 0.03, (r, c, way, moved)
            else:
                assert moved > 0.6, (r, c, way, moved)
    assert free == {"open": 15, "umaze": 7, "medium": 26, "large": 46, "eval-umaze": 7, "eval-medium": 26,
                    "eval-large": 47}[maze]  # fmt: skip


@pytest.mark.parametrize("maze", ["umaze", "medium", "large"])
def test_steps_are_those_of_gymnasium_robotics_maze_turned_and_moved(maze):
    """There rows run along -y and columns along x, and the origin is the centre of the maze."""
    ours, name = made(f"d4rl/maze2d-{maze}-v1"), {"umaze": "UMaze", "medium": "Medium", "large": "Large"}[maze]
    theirs = made(f"PointMaze_{name}-v3").point_env
    height, width = len(WALLS[maze]), len(WALLS[maze][0])
    turn, move = np.array([[0.0, -1.0], [1.0, 0.0]]), np.array([height / 2 - 0.7, width / 2 - 0.7])
    rng, start = np.random.default_rng(0), np.array(POINT_GOALS[maze], float)
    ours.set_state(start, np.zeros(2))
    theirs.set_state(turn.T @ (start - move), np.zeros(2))
    hits, push = 0, np.zeros(2)
    for t in range(300):
        if t % 15 == 0:
            push = rng.uniform(-1, 1, 2)
        obs, there = ours.step(push)[0], theirs.step(turn.T @ push)[0]
        np.testing.assert_allclose(obs, [*(turn @ there[:2] + move), *(turn @ there[2:])], atol=1e-6)
        hits += ours.data.ncon > 1  # the floor is the other one
    assert hits > 20


@pytest.mark.parametrize("maze", POINT_GOALS)
def test_rewards_are_closed_forms_of_where_a_step_leads(maze):
    version, goal = "v0" if maze == "open" else "v1", np.array(POINT_GOALS[maze])
    sparse, dense = made(f"d4rl/maze2d-{maze}-{version}"), made(f"d4rl/maze2d-{maze}-dense-{version}")
    assert WALLS[maze][goal[0]][goal[1]] == " "
    np.testing.assert_array_equal(sparse.goal, goal)
    for away in ([0, 0], [0.1, -0.3], [0.0, -0.45], [-0.42, -0.3], [-0.55, 0.1], [0.2, -0.58]):
        obs, reward, ended = stepped(sparse, [*(goal + away), 0.3, -0.2], [0.1, 0.2])
        distance = np.hypot(*(obs[:2] - goal))
        assert reward == (1.0 if distance <= 0.5 else 0.0) and not ended
        reward = stepped(dense, [*(goal + away), 0.3, -0.2], [0.1, 0.2])[1]
        np.testing.assert_allclose(reward, np.exp(-distance), rtol=1e-12)


def test_starts_are_free_cells_within_a_tenth_at_small_velocities(umaze):
    starts = np.array([umaze.reset(seed=seed)[0] for seed in range(400)])
    cells = np.round(starts[:, :2]).astype(int)
    assert (np.abs(starts[:, :2] - cells) <= 0.1).all() and np.abs(starts[:, :2] - cells).max() > 0.09
    assert {tuple(cell) for cell in cells} == {(r, c) for r in range(5) for c in range(5) if WALLS["umaze"][r][c] == " "}
    assert abs(starts[:, 2:].std() - 0.1) < 0.01
    np.testing.assert_array_equal(umaze.reset(seed=5)[0], starts[5])


# --- antmaze ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ant():
    return made("d4rl/antmaze-umaze-v2", 8)


def test_the_ant_falls_as_gravity_says_over_a_tenth_of_a_second(ant):
    qpos, qvel = ant.init_qpos.copy(), np.zeros(14)
    qpos[:3], qpos[7:], qvel[:3] = [0, 0, 5], np.deg2rad([0, 50, 0, -50, 0, -50, 0, 50]), [1.0, -2.0, 0.5]
    ant.set_state(qpos, qvel)
    before = ant.data.subtree_com[1].copy()
    ant.step(np.zeros(8))
    ant.set_state(ant.data.qpos.copy(), ant.data.qvel.copy())
    want = before + np.array([0.1, -0.2, 0.05 - 9.81 * 0.1**2 / 2])
    np.testing.assert_allclose(ant.data.subtree_com[1], want, atol=1e-4)


def test_the_ants_motors_turn_with_thirty_newton_metres(ant):
    action = np.linspace(-1, 1, 8)
    ant.reset(seed=0)
    ant.step(action)
    # legs 1 to 4, of which the first two actions turn the last
    np.testing.assert_allclose(ant.data.qfrc_actuator[6:], 30 * np.roll(action, -2), rtol=1e-12)


@pytest.mark.parametrize("maze", ANT_CELLS)
def test_the_ants_walls_are_cells_of_four_around_its_start(maze):
    env = made(f"d4rl/antmaze-{maze}-v2", 8)
    (start, goal), boxes = ANT_CELLS[maze], env.model.geom_type == 6
    found = {tuple(place) for place in env.model.geom_pos[boxes]}
    walls = [(r, c) for r, row in enumerate(WALLS[maze]) for c, cell in enumerate(row) if cell == "#"]
    assert found == {(4.0 * (c - start[1]), 4.0 * (r - start[0]), 1.0) for r, c in walls}
    assert (env.model.geom_size[boxes] == [2, 2, 1]).all()
    obs = env.reset(seed=3)[0]
    assert obs.shape == (29,) and (np.abs(obs[:2]) <= 0.1).all()
    goals = np.array([(env.reset(seed=seed), env.goal)[1] for seed in range(60)])
    past = goals - [4.0 * (goal[1] - start[1]), 4.0 * (goal[0] - start[0])]
    assert (past >= 0).all() and (past <= 1.5).all() and past.std(axis=0).min() > 0.2


def test_the_ant_is_stopped_by_a_wall_and_an_episode_ends_at_the_goal(ant):
    ant.reset(seed=1)
    qpos = ant.init_qpos.copy()
    qpos[:2], ant.goal = [0, 1.5], np.array([0.0, 5.0])  # the legs reach into the wall that begins at y = 2
    ant.set_state(qpos, np.zeros(14))
    assert ant.data.ncon > 0
    for _ in range(10):
        obs, reward, ended = ant.step(np.zeros(8))[:3]
    assert obs[1] < 1.5 and reward == 0 and not ended
    ant.goal = obs[:2] + np.array([0.3, 0.45])  # 0.54 away
    assert ant.step(np.zeros(8))[1:3] == (0.0, False)
    ant.goal = obs[:2] + np.array([0.3, 0.3])
    assert ant.step(np.zeros(8))[1:3] == (1.0, True)


def test_every_id_is_registered_once_with_its_length():
    from jaxpgd.simulators.d4rl_tasks import register

    before = {key: spec.max_episode_steps for key, spec in gymnasium.registry.items() if key.startswith("d4rl/")}
    register()
    assert before == {key: spec.max_episode_steps for key, spec in gymnasium.registry.items() if key.startswith("d4rl/")}
    assert len(before) == 2 * 4 + 2 * 6 + 6 + 4 + 2
