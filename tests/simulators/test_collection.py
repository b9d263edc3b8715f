"""Episodes against a counter whose every observation, reward and end is known."""

import math
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpgd.errors import InputError
from jaxpgd.simulators.collection import Behaviour, blend, collect, measure, run_episode
from jaxpgd.simulators.collection_task import Task, collection_task
from jaxpgd.types import Policy

LIMIT = 6


class Counter(gymnasium.Env):
    """Counts steps up from 0 in one array that it writes into; a terminal at `ends`; the reward is the action.

    A `fragile` one ends at the first action below 1; one with `luck` adds to the reward what NumPy draws.
    """

    def __init__(self, ends: int = 0, nested: bool = False, broken: bool = False, fragile: bool = False, luck: bool = False):
        box = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
        inner = gymnasium.spaces.Dict(z=box)
        self.observation_space = gymnasium.spaces.Dict(minus=box, deep=inner) if nested else box
        self.action_space = gymnasium.spaces.Box(np.float32([0.0]), np.float32([4.0]))
        self.ends, self.nested, self.broken, self.fragile, self.luck = ends, nested, broken, fragile, luck
        self.state = np.zeros(1)

    def observe(self) -> Any:
        return {"minus": -self.state, "deep": {"z": self.state}} if self.nested else self.state

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state[:] = 0.0
        return self.observe(), {}

    def step(self, action):
        reward = float(action[0]) + self.luck * np.random.random()  # noqa: NPY002
        done = self.fragile and action[0] < 1
        action[:] = 99.0  # an environment may do what it likes with the action that it was given
        self.state += 1.0
        bad = self.broken and self.state[0] == 3
        return self.observe(), math.nan if bad else reward, bool(done or self.state[0] == self.ends), False, {}


for _name, _kwargs in {
    "Open": {}, "Ending": {"ends": 4}, "Both": {"ends": LIMIT}, "Nested": {"nested": True}, "Broken": {"broken": True},
    "Fragile": {"fragile": True}, "Lucky": {"luck": True},
}.items():  # fmt: skip
    gymnasium.register(f"jaxpgd/Counter{_name}-v0", Counter, max_episode_steps=LIMIT, kwargs=_kwargs)


def task(name: str) -> Task:
    return collection_task(f"jaxpgd/Counter{name}-v0")


def constant(value: float, spread: float = 0.0) -> Policy:
    def sample(params: Any, key: jax.Array, obs: jax.Array) -> jax.Array:
        return params[0] + params[1] * jax.random.normal(key, (1,))

    return Policy(params=jnp.array([value, spread]), sample_fn=sample, mode_fn=lambda p, o: p[:1])


def same(first: Any, second: Any) -> bool:
    return all(
        np.array_equal(a, b)
        for field in ("observations", "actions", "rewards", "terminations", "truncations", "seed")
        for a, b in zip(jax.tree.leaves(getattr(first, field)), jax.tree.leaves(getattr(second, field)), strict=True)
    )


@pytest.mark.parametrize(
    ("name", "limit", "steps", "terminal", "truncated", "whole"),
    [
        ("Open", None, LIMIT, False, True, True),  # the environment's time limit
        ("Ending", None, 4, True, False, True),
        ("Both", None, LIMIT, True, True, True),  # as the environment says it
        ("Open", 3, 3, False, True, False),  # cut here
        ("Ending", 3, 3, False, True, False),
        ("Ending", 4, 4, True, False, True),  # a terminal at the cut stays a terminal
        ("Open", LIMIT, LIMIT, False, True, True),
    ],
)
def test_ends_and_lengths(name: str, limit: int | None, steps: int, terminal: bool, truncated: bool, whole: bool) -> None:
    episode, ended = run_episode(task(name), Behaviour(constant(0.5)), (0, 0, 0), limit)
    assert ended == whole and len(episode) == steps
    np.testing.assert_array_equal(episode.observations, np.arange(steps + 1.0)[:, None])
    # 0.5 in [-1, 1] is 3 in [0, 4]
    np.testing.assert_array_equal(episode.actions, np.full((steps, 1), 3.0, np.float32))
    np.testing.assert_array_equal(episode.rewards, np.full(steps, 3.0))
    assert episode.actions.dtype == np.float32 and episode.observations.dtype == np.float64
    assert episode.terminations.tolist() == [False] * (steps - 1) + [terminal]
    assert episode.truncations.tolist() == [False] * (steps - 1) + [truncated]


def test_dicts_keep_their_shape_and_reach_the_policy_in_their_order() -> None:
    follow = Policy(params=jnp.zeros(1), sample_fn=lambda p, k, o: o[:1] - 1.0 + p, mode_fn=lambda p, o: p)
    episode, _ = run_episode(task("Nested"), Behaviour(follow), (0, 0, 0), 3)
    np.testing.assert_array_equal(episode.observations["minus"][:, 0], [0, -1, -2, -3])
    np.testing.assert_array_equal(episode.observations["deep"]["z"][:, 0], [0, 1, 2, 3])
    # deep/z comes first: actions -1, 0, 1, of which [0, 4] makes 0, 2, 4
    np.testing.assert_array_equal(episode.actions[:, 0], [0, 2, 4])


def test_the_seed_decides_all() -> None:
    here, behaviour = task("Open"), Behaviour(constant(0.0, 0.3), noise=0.1, epsilon=0.3)
    first, again, other = (list(collect(here, [behaviour], 20, "transitions", seed)) for seed in (3, 3, 4))
    assert [len(e) for e, _ in first] == [6, 6, 6, 2] and [w for _, w in first] == [True] * 3 + [False]
    assert all(same(a, b) for (a, _), (b, _) in zip(first, again, strict=True))
    assert not any(same(a, b) for (a, _), (b, _) in zip(first, other, strict=True))
    assert len({e.seed for e, _ in first}) == 4
    # more data continues what less data began with
    longer = list(collect(here, [behaviour], 30, "transitions", 3))
    assert all(same(a, b) for (a, _), (b, _) in zip(first[:3], longer, strict=False))


def test_environments_that_draw_from_numpy_repeat_as_well_and_leave_it_as_it_was() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (measure(task("Lucky"), Behaviour(constant(0.0)), 3, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.unique([*first, *other]).size == 6
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_random_actions_fill_the_bounds() -> None:
    actions = np.concatenate([e.actions for e, _ in collect(task("Open"), [Behaviour()], 6000, "transitions", 0)])[:, 0]
    assert actions.min() >= 0 and actions.max() <= 4
    # uniform over [0, 4]: each quarter has a quarter, within 4 standard errors
    shares = np.histogram(actions, 4, (0, 4))[0] / 6000
    np.testing.assert_allclose(shares, 0.25, atol=4 * math.sqrt(0.25 * 0.75 / 6000))


def test_epsilon_noise_and_greed() -> None:
    here = task("Open")
    taken = lambda b: np.concatenate([e.actions for e, _ in collect(here, [b], 3000, "transitions", 1)])[:, 0]
    epsilon = np.mean(taken(Behaviour(constant(1.0), epsilon=0.3)) != 4.0)
    assert epsilon == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 3000))
    noisy = taken(Behaviour(constant(0.0, 0.5), greedy=True, noise=0.1))  # its own spread of 0.5 is not used
    assert noisy.mean() == pytest.approx(2.0, abs=4 * 0.2 / math.sqrt(3000))
    assert noisy.std() == pytest.approx(0.2, rel=4 / math.sqrt(6000))
    assert np.unique(taken(Behaviour(constant(0.0, 0.2)))).size > 2900  # drawn anew at every step
    assert taken(Behaviour(constant(0.0, 0.2))).std() == pytest.approx(0.4, rel=4 / math.sqrt(6000))
    assert taken(Behaviour(constant(0.9), noise=5.0)).max() == 4.0  # clipped to the bounds


def test_behaviours_share_what_is_counted() -> None:
    mixed = [Behaviour(constant(-1.0)), Behaviour(constant(0.0)), Behaviour(constant(1.0))]
    steps = np.concatenate([e.actions for e, _ in collect(task("Open"), mixed, 36, "transitions", 0)])[:, 0]
    assert [int((steps == a).sum()) for a in (0.0, 2.0, 4.0)] == [12, 12, 12]
    whole = [e.actions[0, 0] for e, _ in collect(task("Ending"), mixed, 7, "episodes", 0)]
    assert whole == [0, 2, 4, 0, 2, 4, 0]
    # episodes of one step against episodes of six: whoever has given least is next
    uneven = [len(e) for e, _ in collect(task("Fragile"), [mixed[0], mixed[2]], 24, "transitions", 0)]
    assert uneven == [1, 6, *[1] * 6, 6, *[1] * 5]  # the first one where they are level


def test_returns_are_sums_and_compared_behaviours_meet_the_same_luck() -> None:
    here = task("Ending")
    np.testing.assert_array_equal(measure(here, Behaviour(constant(0.5)), 3, 0), [12.0] * 3)
    spread = measure(here, Behaviour(constant(0.0), noise=0.1), 5, 0) - 8.0
    # half the noise from the same draws, up to the rounding of actions
    np.testing.assert_allclose(measure(here, Behaviour(constant(0.0), noise=0.05), 5, 0) - 8.0, spread / 2, atol=1e-5)
    assert np.unique(spread).size == 5


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"reward of jaxpgd/CounterBroken-v0, episode of seed \(0, 0, 0\) = nan at index \(2,\)"
    ):
        run_episode(task("Broken"), Behaviour(), (0, 0, 0))
    with pytest.raises(InputError, match="action of jaxpgd/CounterOpen-v0"):
        run_episode(task("Open"), Behaviour(constant(math.nan)), (0, 0, 0))


@pytest.mark.parametrize(("fraction", "epsilon"), [(0.0, 1.0), (0.25, 0.5), (0.81, 0.1), (1.0, 0.0)])
def test_bisection_finds_where_a_known_curve_has_its_fraction(fraction: float, epsilon: float) -> None:
    probes: list[float] = []

    def curve(at: float) -> float:  # falls from 30 to 10
        probes.append(at)
        return 10 + 20 * (1 - at) ** 2

    found, value = blend(curve, 10.0, 30.0, fraction)
    assert abs(value - (10 + 20 * fraction)) <= 0.02 * 20 and value == pytest.approx(10 + 20 * (1 - found) ** 2)
    assert found == pytest.approx(epsilon, abs=0.03) and len(probes) <= 10
    assert bool(probes) == (fraction not in (0.0, 1.0))


def test_bisection_of_a_jump_ends_and_takes_the_nearest() -> None:
    probes: list[float] = []

    def jump(at: float) -> float:
        probes.append(at)
        return 7.0 if at < 0.3 else 1.0

    found, value = blend(jump, 0.0, 10.0, 0.5)
    assert (len(probes), value) == (10, 7.0) and found < 0.3
