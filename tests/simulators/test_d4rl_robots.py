"""D4RL's ant and hands against the environments that they are made from."""

import numpy as np
import pytest

from jaxpgd.dataset import DatasetInfo
from jaxpgd.simulators.environments import make_environment

pytest.importorskip("gymnasium_robotics")


def made(env_id):
    return make_environment(DatasetInfo(name="", source="d4rl", action_low=(), action_high=(), env_id=env_id))


def both_stepped(ours, theirs, steps, scale=1.0):
    """Pairs of results of the same actions from the same start."""
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(ours.reset(seed=1)[0][: theirs.observation_space.shape[0]], theirs.reset(seed=1)[0])
    for _ in range(steps):
        action = scale * rng.uniform(-1, 1, ours.action_space.shape)
        yield ours.step(action), theirs.step(action)


def test_ants_contacts_are_zeros_that_cost_nothing():
    ours, theirs = made("d4rl/ant-v2"), made("Ant-v4")
    for (obs, reward, ended, *_), (seen, given, over, *_) in both_stepped(ours, theirs, 60):
        np.testing.assert_array_equal(obs, [*seen, *np.zeros(84)])
        assert (reward, ended) == (given, over)
    seen, contacts = both_stepped(made("d4rl/ant-contacts-v2"), theirs, 60), []
    for (obs, reward, *_), (_, given, *_) in seen:
        contacts.append(np.square(obs[27:]).sum())
        np.testing.assert_allclose(reward, given - 0.5e-3 * contacts[-1], atol=1e-12)
    assert obs.shape == (111,) and max(contacts) > 0


WAYS = {
    "Door": lambda obs: obs[35:38],
    "Hammer": lambda obs: obs[33:36] - obs[36:39],
    "Relocate": lambda obs: obs[30:33],
}


def paid_for(task, pairs):
    """Deviations [steps, 2] from Gymnasium-Robotics' reward, which adds or subtracts the way to the object by its version."""
    for (obs, reward, ended, *_), (seen, given, *_) in pairs:
        np.testing.assert_array_equal(obs, seen)
        assert not ended
        yield [given - reward - factor * np.linalg.norm(WAYS[task](obs)) for factor in (0.2, 0.0)]


@pytest.mark.parametrize("task", WAYS)
def test_hands_pay_for_the_way_to_the_object_and_all_else_is_gymnasium_robotics(task):
    ours, theirs = made(f"d4rl/{task.lower()}-v1"), made(f"AdroitHand{task}-v1").unwrapped
    assert ours.spec.max_episode_steps == 200
    deviations = list(paid_for(task, both_stepped(ours.unwrapped, theirs, 60)))
    deviations += paid_for(task, near_success(task, ours.unwrapped, theirs))
    assert np.abs(deviations).max(axis=0).min() < 1e-9


@pytest.mark.parametrize(
    ("task", "measured", "within"), [("hammer", -274.856578, 4), ("door", -56.512833, 1), ("relocate", -6.425911, 4)]
)
def test_a_random_policy_returns_what_d4rl_measured(task, measured, within):
    env, rng, returns = made(f"d4rl/{task}-v1"), np.random.default_rng(0), np.zeros(5)
    for i in range(len(returns)):
        env.reset(seed=i)
        over = False
        while not over:
            _, reward, _, over, _ = env.step(rng.uniform(-1, 1, env.action_space.shape))
            returns[i] += reward
    assert abs(returns.mean() - measured) < within


def near_success(task, *envs):
    """Pairs of steps from states that random actions do not reach: a door open, a nail driven in, a ball held up."""
    bonuses = set()
    for part in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0):
        for env in envs:
            env.reset(seed=2)
            qpos = env.init_qpos.copy()
            if task == "Door":
                qpos[env.door_hinge_addrs] = 1.5 * part
            elif task == "Hammer":
                env.model.site_pos[env.goal_site_id] = env.model.site_pos[env.target_obj_site_id] + [0, 0, 0.05 * (1 - part)]
                env.model.site_bodyid[env.goal_site_id] = env.model.site_bodyid[env.target_obj_site_id]
            else:
                target = env.data.xpos[env.obj_body_id] + [0, 0, 0.1 + 0.15 * (1 - part)]
                env.model.site_pos[env.target_obj_site_id] = target
                qpos[32] = 0.1  # the ball's height
            env.set_state(qpos, np.zeros_like(env.init_qvel))
        steps = [env.step(np.zeros(env.action_space.shape)) for env in envs]
        bonuses.add(round(steps[0][1], -1))
        yield steps
    assert len(bonuses) >= 3, bonuses


def test_a_pen_that_falls_ends_an_episode_of_at_most_a_hundred_steps():
    ours, theirs = made("d4rl/pen-v1"), made("AdroitHandPen-v1").unwrapped
    assert ours.spec.max_episode_steps == 100
    ends = []
    for (obs, reward, ended, *_), (seen, given, *_) in both_stepped(ours.unwrapped, theirs, 60):
        np.testing.assert_array_equal(obs, seen)
        assert reward == given and ended == (theirs.data.xpos[theirs.obj_body_id][2] < 0.075)
        ends.append(ended)
    assert any(ends) and not ends[0]
