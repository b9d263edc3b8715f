"""Gymnasium evaluation: seeds, episode ends, the autoreset step, action scaling and refusals."""

import dataclasses
import importlib.util

import chex
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from jaxpgd.dataset import DatasetInfo
from jaxpgd.datasets.nested import obs_order
from jaxpgd.errors import InputError
from jaxpgd.simulators import environments, returns
from jaxpgd.simulators.environments import flatten_obs, make_environment
from jaxpgd.simulators.returns import evaluate, require_environment
from jaxpgd.simulators.vector import EnvironmentFailure
from jaxpgd.types import Policy


class Countdown(gymnasium.Env):
    """Starts at 2 to 5 by the seed, counts down to a terminal at 0; the reward is the action; a second reset starts at 9."""

    def __init__(self, nested: bool = False):
        box = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
        self.observation_space = gymnasium.spaces.Dict({"a": box, "b": box}) if nested else box
        self.action_space = gymnasium.spaces.Box(np.float32([0.0]), np.float32([4.0]))
        self.nested, self.resets = nested, 0

    def observe(self):
        obs = np.array([self.left], np.float64)
        return {"a": -obs, "b": obs} if self.nested else obs

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(2, 6)) if self.resets == 0 else 9
        self.resets += 1
        return self.observe(), {}

    def step(self, action):
        self.left -= 1
        return self.observe(), float(action[0]), self.left == 0, False, {}


for _name, _nested, _limit in (
    ("Countdown-v0", False, 20),
    ("NestedCountdown-v0", True, 20),
    ("Short-v0", False, 3),
    ("Endless-v0", False, None),
):
    gymnasium.register(f"jaxpgd/{_name}", Countdown, max_episode_steps=_limit, kwargs={"nested": _nested})


def info(env_id="jaxpgd/Countdown-v0", **changes):
    return DatasetInfo(name="toy", source="npz", action_low=(0.0,), action_high=(4.0,), env_id=env_id, **changes)


def constant(values):
    return Policy(params=jnp.asarray(values)[:, None], sample_fn=lambda p, k, o: p, mode_fn=lambda p, o: p)


def first_entry(seeds):
    return Policy(params=jnp.zeros((seeds, 1)), sample_fn=lambda p, k, o: p, mode_fn=lambda p, o: o[:1] / 2 - 1 + p)


def test_return_is_reward_times_length_and_ends_at_the_first_terminal():
    result = evaluate(jax.random.key(0), constant([-1.0, 0.0, 1.0]), info(), episodes=8)
    assert result.returns.shape == result.lengths.shape == (3, 8)
    assert set(np.unique(result.lengths)) <= {2, 3, 4, 5} and len(np.unique(result.lengths)) > 1
    # actions -1, 0, 1 are 0, 2, 4 in the environment's units; after a reset the counter would run on from 9
    np.testing.assert_allclose(result.returns, np.array([[0.0], [2.0], [4.0]]) * result.lengths)


@pytest.mark.parametrize("processes", [1, 2])
def test_discounted_returns_start_and_cut_come_besides_the_same_returns(processes):
    run = lambda **changes: evaluate(jax.random.key(0), constant([0.0, 1.0]), info(), episodes=8, horizon=4, **changes)
    plain, found = run(), run(gamma=np.array([0.5, 1.0]), processes=processes)
    chex.assert_trees_all_equal(plain, found.replace(discounted=None))
    assert plain.discounted is None and found.start.shape == (2, 8, 1)
    length = np.minimum(found.start[..., 0], 4)  # the counter starts at 2 to 5
    np.testing.assert_array_equal(found.lengths, length)
    np.testing.assert_array_equal(found.cut, found.start[..., 0] > 4)
    np.testing.assert_allclose(found.discounted, [2.0 * (1 - 0.5 ** length[0]) / 0.5, 4.0 * length[1]])


def test_an_environment_that_truncates_itself_has_cut_the_episode():
    result = evaluate(jax.random.key(0), constant([0.0]), info("jaxpgd/Short-v0"), episodes=16)
    np.testing.assert_array_equal(result.cut, result.start[..., 0] > 3)
    assert 0 < result.cut.sum() < 16


@pytest.mark.parametrize("processes", [1, 2])
def test_an_evaluation_can_be_watched(processes):
    seen = []
    result = evaluate(
        jax.random.key(0), constant([-1.0, 1.0]), info(), episodes=4, processes=processes, watch=lambda *told: seen.append(told)
    )
    longest = result.lengths.max()
    assert [(step, most, count) for step, most, _, count in seen] == [(i + 1, 20, 8) for i in range(longest)]
    assert [ended for _, _, ended, _ in seen] == [(result.lengths <= i + 1).sum() for i in range(longest)]


def test_same_key_same_episodes_other_key_others():
    first, again, other = (evaluate(jax.random.key(k), constant([0.0]), info(), episodes=16).lengths for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_environment_step_limit_and_a_shorter_horizon_cut_episodes():
    assert evaluate(jax.random.key(0), constant([0.0]), info(), episodes=6, horizon=2).lengths.max() == 2
    assert evaluate(jax.random.key(0), constant([0.0]), info("jaxpgd/Short-v0"), episodes=8, horizon=9).lengths.max() == 3


def test_a_stored_spec_wins_over_the_id():
    spec = gymnasium.spec("CartPole-v1")
    stored = EnvSpec(**{**{k: getattr(spec, k) for k in ("id", "entry_point")}, "max_episode_steps": 3, "kwargs": {}}).to_json()
    both = info("jaxpgd/Unknown-v0", env_spec=stored)
    assert make_environment(both).spec.max_episode_steps == 3


@pytest.mark.parametrize(("keys", "sign"), [(("b", "a"), 1), (("a", "b"), -1)])
def test_dict_observations_are_concatenated_in_the_dataset_order(keys, sign):
    result = evaluate(jax.random.key(0), first_entry(1), info("jaxpgd/NestedCountdown-v0", obs_keys=keys), episodes=4)
    # the action at a first entry x <= 4 is x in the environment's units, clipped to [0, 4]; the countdown is 5, 4, 3 ...
    want = [sum(min(k, 4) for k in range(1, n + 1)) if sign > 0 else 0 for n in result.lengths[0]]
    np.testing.assert_allclose(result.returns[0], want, atol=1e-6)


def deep(space):
    return {"own": space["a"], "goal": {"b c": space["b"]}}


class DeepCountdown(Countdown):
    """A countdown whose observation is a dict in a dict."""

    def __init__(self):
        super().__init__(nested=True)
        parts = deep(self.observation_space)
        self.observation_space = gymnasium.spaces.Dict({**parts, "goal": gymnasium.spaces.Dict(parts["goal"])})

    def observe(self):
        return deep(super().observe())


gymnasium.register("jaxpgd/DeepCountdown-v0", DeepCountdown, max_episode_steps=20)


@pytest.mark.parametrize(("keys", "sign"), [(("goal/b c", "own"), 1), (("own", "goal/b c"), -1)])
def test_nested_dict_observations_are_found_by_their_paths(keys, sign):
    given = info("jaxpgd/DeepCountdown-v0", obs_keys=keys)
    require_environment(given, 2)
    result = evaluate(jax.random.key(0), first_entry(1), given, episodes=4)
    want = [sum(min(k, 4) for k in range(1, n + 1)) if sign > 0 else 0 for n in result.lengths[0]]
    np.testing.assert_allclose(result.returns[0], want, atol=1e-6)
    with pytest.raises(InputError, match=r"names among \['goal/b c', 'own'\]"):
        require_environment(info("jaxpgd/DeepCountdown-v0", obs_keys=("goal",)), 2)


class Goal(Countdown):
    """A countdown that is a success at 1, where the action is large, and then goes on; NumPy's generator draws its start."""

    def reset(self, *, seed=None, options=None):
        found = super().reset(seed=seed)
        self.left = int(np.random.randint(2, 6))  # noqa: NPY002
        return self.observe(), found[1]

    def step(self, action):
        obs, reward, terminated, truncated, _ = super().step(action)
        return obs, reward, terminated, truncated, {"success": np.bool_(self.left == 1 and action[0] > 2)}


gymnasium.register("jaxpgd/Goal-v0", Goal, max_episode_steps=20)


def test_an_episode_is_a_success_where_any_step_was():
    result = evaluate(jax.random.key(0), constant([-1.0, 1.0]), info("jaxpgd/Goal-v0"), episodes=4)
    assert result.successes.tolist() == [[False] * 4, [True] * 4]
    assert evaluate(jax.random.key(0), constant([1.0]), info(), episodes=2).successes is None
    short = evaluate(jax.random.key(0), constant([1.0]), info("jaxpgd/Goal-v0"), episodes=8, horizon=1)
    assert 0 < short.successes.sum() < 8  # starts at 2 are there after one step, others later


class Arrival(Goal):
    """The same, said as Gymnasium-Robotics says it."""

    def step(self, action):
        *found, said = super().step(action)
        return *found, {"is_success": float(said["success"])}


gymnasium.register("jaxpgd/Arrival-v0", Arrival, max_episode_steps=20)


def test_is_success_counts_as_success():
    result = evaluate(jax.random.key(0), constant([-1.0, 1.0]), info("jaxpgd/Arrival-v0"), episodes=4)
    assert result.successes is not None and result.successes.tolist() == [[False] * 4, [True] * 4]


class Wrong(Countdown):
    """A countdown whose second step does what `how` says."""

    def __init__(self, how):
        super().__init__()
        self.how, self.steps = how, 0

    def step(self, action):
        obs, reward, *others = super().step(action)
        self.steps += 1
        if self.steps == 2 and isinstance(self.how, Exception | SystemExit):
            raise self.how
        return obs, self.how if self.steps == 2 else reward, *others

    def close(self):
        raise RuntimeError("cannot be closed either")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (None, "ValueError: its reward is None, not a finite number"),
        (np.nan, "ValueError: its reward is nan, not a finite number"),
        (-np.inf, "ValueError: its reward is -inf, not a finite number"),
        ("much", "ValueError: its reward is 'much', not a finite number"),
        (KeyError("joint\nof two lines"), "KeyError: 'joint"),
        (SystemExit("licence"), "SystemExit: licence"),
        (gymnasium.error.Error("a\nb"), "Error: a b"),
    ],
)
def test_whatever_an_environment_does_is_one_line(how, words):
    gymnasium.register("jaxpgd/Wrong-v0", lambda **given: Wrong(how), max_episode_steps=20)
    try:
        with pytest.raises(EnvironmentFailure) as raised:
            evaluate(jax.random.key(0), constant([1.0]), info("jaxpgd/Wrong-v0"), episodes=2, processes=1)
    finally:
        del gymnasium.registry["jaxpgd/Wrong-v0"]
    assert str(raised.value).startswith(f"An environment jaxpgd/Wrong-v0 failed: {words}")
    assert len(str(raised.value).splitlines()) == 1


def test_an_environment_that_cannot_be_made_is_one_line():
    class Refuses(Countdown):
        def __init__(self):
            raise KeyError("assets")

    gymnasium.register("jaxpgd/Refuses-v0", Refuses)
    with pytest.raises(InputError, match=r"env_id = 'jaxpgd/Refuses-v0': expected .* can be made.*KeyError: 'assets'"):
        require_environment(info("jaxpgd/Refuses-v0"))
    del gymnasium.registry["jaxpgd/Refuses-v0"]


def test_environments_that_draw_from_numpy_are_repeatable():
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again = (evaluate(jax.random.key(1), constant([0.0]), info("jaxpgd/Goal-v0"), episodes=16).lengths for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(first)) > 1
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_evaluation_takes_the_environment_of_the_references():
    spec = gymnasium.spec("jaxpgd/Countdown-v0")
    entry = f"{__name__}:Countdown"
    stored = EnvSpec("jaxpgd/Shorter-v0", entry, max_episode_steps=2).to_json()
    given = info(env_spec=EnvSpec(spec.id, entry, max_episode_steps=20).to_json(), eval_env_spec=stored)
    assert make_environment(given).spec.max_episode_steps == 20
    assert evaluate(jax.random.key(0), constant([0.0]), given, episodes=6).lengths.max() == 2


REAL = {  # environment, keyword arguments, sizes of the observation's entries
    "AntMaze_UMaze-v4": ({}, {"observation": 27, "achieved_goal": 2, "desired_goal": 2}),
    "AdroitHandPen-v1": ({}, {}),
    "FrankaKitchen-v1": (
        {"tasks_to_complete": ["microwave", "kettle"]},
        {"observation": 59, "achieved_goal/kettle": 7, "achieved_goal/microwave": 1, "desired_goal/kettle": 7,
         "desired_goal/microwave": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("env_id", REAL)
def test_real_observations_are_flattened_as_the_datasets(env_id):
    robotics = pytest.importorskip("gymnasium_robotics", reason="the extra `mujoco` is not installed")
    gymnasium.register_envs(robotics)
    kwargs, sizes = REAL[env_id]
    spec = dataclasses.replace(gymnasium.spec(env_id), kwargs={**gymnasium.spec(env_id).kwargs, **kwargs}).to_json()
    given = dataclasses.replace(info(env_id), env_spec=spec, obs_keys=tuple(sizes), obs_sizes=tuple(sizes.values()))
    try:
        env = make_environment(given)
    except InputError as error:  # Gymnasium-Robotics 1.4.2 cannot make its kitchen with MuJoCo 4
        assert env_id == "FrankaKitchen-v1"
        pytest.skip(str(error))
    assert obs_order(env.observation_space) == tuple(sizes)
    obs, _ = env.reset(seed=0)
    env.close()
    flat = flatten_obs(given, obs)
    want = [obs] if not sizes else [obs[k] if len(p) == 0 else obs[k][p[0]] for k, *p in (path.split("/") for path in sizes)]
    np.testing.assert_array_equal(flat, np.concatenate(want).astype(np.float32))
    low, high = (tuple(np.asarray(b, float).tolist()) for b in (env.action_space.low, env.action_space.high))
    require_environment(dataclasses.replace(given, action_low=low, action_high=high), len(flat))


def test_new_parameters_do_not_retrace_the_policy(monkeypatch):
    chex.clear_trace_counter()
    monkeypatch.setattr(returns, "act", jax.jit(chex.assert_max_traces(returns.act.__wrapped__, n=1)))
    policy = constant([0.3])
    evaluate(jax.random.key(0), policy, info(), episodes=2)
    evaluate(jax.random.key(0), policy.replace(params=policy.params + 1), info(), episodes=2)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (info(None), "name a Gymnasium id with data.env_id"),
        (info("jaxpgd/Unknown-v0"), "known to Gymnasium"),
        (info(env_spec="{not json"), "expected JSON"),
        (dataclasses.replace(info(), action_low=(0.0, 0.0), action_high=(1.0, 1.0)), "2 action entries"),
    ],
)
def test_environments_that_cannot_be_used_are_refused(bad, words):
    with pytest.raises(InputError, match=words):
        require_environment(bad)


def test_other_action_bounds_than_the_environments_are_refused():
    with pytest.raises(
        InputError, match=r"action_low of .* = \[-1.0\]: expected that of jaxpgd/Countdown-v0, \[0.0\].*action_high"
    ):
        require_environment(dataclasses.replace(info(), action_low=(-1.0,)))


@pytest.mark.parametrize(
    ("given", "obs_dim", "words"),
    [
        (info(), 2, "an environment with 2 observation entries as in the dataset, not 1"),
        (info("jaxpgd/NestedCountdown-v0", obs_keys=("a", "b")), 3, "3 observation entries as in the dataset, not 2"),
        (info("jaxpgd/NestedCountdown-v0"), 2, "obs_keys = .*names among"),
        (info("jaxpgd/NestedCountdown-v0", obs_keys=("a", "c")), 2, "obs_keys = .*names among"),
    ],
)
def test_other_observations_than_the_environments_are_refused(given, obs_dim, words):
    with pytest.raises(InputError, match=words):
        require_environment(given, obs_dim)


def test_the_datasets_observations_are_accepted():
    require_environment(info(), 1)
    require_environment(info("jaxpgd/NestedCountdown-v0", obs_keys=("a", "b")), 2)
    require_environment(info("jaxpgd/NestedCountdown-v0", obs_keys=("b",)), 1)


def test_a_missing_extra_names_the_command_that_installs_it(monkeypatch):
    find = importlib.util.find_spec
    absent = ("mujoco", "gymnasium_robotics")
    monkeypatch.setattr(environments.importlib.util, "find_spec", lambda n: None if n in absent else find(n))
    for name in ("Hopper-v5", "PointMaze_UMaze-v3"):
        with pytest.raises(InputError, match=r'pip install "jaxpgd\[mujoco\]"'):
            require_environment(info(name))


def test_an_endless_environment_needs_a_horizon():
    with pytest.raises(InputError, match="no step limit"):
        evaluate(jax.random.key(0), constant([0.0]), info("jaxpgd/Endless-v0"), episodes=1)


def test_nested_observations_without_keys_are_refused():
    with pytest.raises(InputError, match="obs_keys"):
        evaluate(jax.random.key(0), constant([0.0]), info("jaxpgd/NestedCountdown-v0"), episodes=1)
