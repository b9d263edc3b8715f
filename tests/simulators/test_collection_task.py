"""Which environments data can be collected in, and what is said of others."""

import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Dict, Discrete

from jaxpgd.errors import InputError
from jaxpgd.simulators.collection_task import collection_task

MODULE = """
import gymnasium, numpy
class Still(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Box(numpy.float32([-1, 0]), numpy.float32([1, 5]))
    def __init__(self, size=1): self.size = size
    def reset(self, *, seed=None, options=None): return numpy.zeros(2, "float32"), {}
    def step(self, action): return numpy.zeros(2, "float32"), 0.0, False, False, {}
gymnasium.register("Still-v0", Still, max_episode_steps=4)
"""
FLAT, UNIT = Box(-1.0, 1.0, (2,)), Box(-1.0, 1.0, (1,))


class Shaped(gymnasium.Env):
    """An environment of any spaces, that is never stepped."""

    def __init__(self, seen=FLAT, acted=UNIT):
        self.observation_space, self.action_space = seen, acted

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}


for _name, _kwargs in {
    "Flat": {},
    "Goal": {"seen": Dict(desired_goal=UNIT, observation=FLAT, achieved_goal=UNIT, a=Dict(y=UNIT, x=FLAT))},
    "Image": {"seen": Box(0, 255, (4, 4, 3), np.uint8)},
    "Count": {"seen": Discrete(3)},
    "Text": {"seen": Dict(a=FLAT, b=Discrete(3))},
    "Deep": {"seen": Dict(a=FLAT, b=Box(-1, 1, (2, 2)))},
    "Buttons": {"acted": Discrete(3)},
    "Matrix": {"acted": Box(-1.0, 1.0, (2, 2))},
    "Steps": {"acted": Box(0, 4, (2,), np.int64)},
    "Unbounded": {"acted": Box(-np.inf, np.inf, (1,))},
    "Empty": {"acted": Box(np.float32([1.0]), np.float32([1.0]))},
}.items():
    gymnasium.register(f"jaxpgd/Shaped{_name}-v0", Shaped, max_episode_steps=5, kwargs=_kwargs)
gymnasium.register("jaxpgd/ShapedEndless-v0", Shaped)


def test_spaces_become_sizes_in_the_order_that_loading_gives() -> None:
    task = collection_task("jaxpgd/ShapedGoal-v0")
    assert task.info.obs_keys == ("observation", "achieved_goal", "desired_goal", "a/x", "a/y")
    assert (task.info.obs_sizes, task.obs_dim) == ((2, 1, 1, 2, 1), 7)
    flat = collection_task("jaxpgd/ShapedFlat-v0")
    assert (flat.info.obs_keys, flat.info.obs_sizes, flat.obs_dim) == ((), (2,), 2)


def test_a_module_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "still_for_tests.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    task = collection_task("still_for_tests:Still-v0", {"max_episode_steps": 3, "size": 2})
    assert (task.info.env_id, task.info.action_low, task.info.action_high) == ("Still-v0", (-1.0, 0.0), (1.0, 5.0))
    # the class that was registered is named, so that the environment can be made from the stored text alone
    assert task.spec is not None and task.spec.entry_point == "still_for_tests:Still"
    gymnasium.registry.pop("Still-v0")
    again = gymnasium.make(EnvSpec.from_json(task.spec.to_json()))
    assert (again.spec.max_episode_steps, again.unwrapped.size) == (3, 2)
    del sys.modules["still_for_tests"]


def test_what_json_cannot_hold_is_not_stored() -> None:
    assert collection_task("jaxpgd/ShapedGoal-v0").spec is None  # a space among its arguments
    assert collection_task("Pendulum-v1").spec is not None


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("point2d", "env_id = 'point2d': expected a Gymnasium id. point2d is no Gymnasium environment"),
        ("point2d-100", "expected a Gymnasium id"),
        ("NoSuch-v0", "env_id = 'NoSuch-v0': expected an environment known to Gymnasium"),
        ("no_such_module:X-v0", "expected a module that can be imported"),
        ("jaxpgd/ShapedEndless-v0", "max_episode_steps of jaxpgd/ShapedEndless-v0 = None: expected a number of steps above 0"),
        ("jaxpgd/ShapedImage-v0", "observation space of jaxpgd/ShapedImage-v0 = .*: expected a Box with one axis"),
        ("jaxpgd/ShapedCount-v0", "observation space = .*: expected a Box or a Dict of Box"),
        ("jaxpgd/ShapedText-v0", "observation space, key 'b' = .*: expected a Box"),
        ("jaxpgd/ShapedDeep-v0", "observation space of jaxpgd/ShapedDeep-v0, key 'b' = .*: expected a Box with one axis"),
        ("jaxpgd/ShapedButtons-v0", "action space of jaxpgd/ShapedButtons-v0 = .*: expected a Box"),
        ("jaxpgd/ShapedMatrix-v0", "expected a Box of floating-point numbers with one axis"),
        ("jaxpgd/ShapedSteps-v0", "expected a Box of floating-point numbers with one axis"),
        ("jaxpgd/ShapedUnbounded-v0", "action bounds of jaxpgd/ShapedUnbounded-v0 = .*: expected finite, low < high"),
        ("jaxpgd/ShapedEmpty-v0", "expected finite, low < high"),
    ],
)
def test_refusals(env_id: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        collection_task(env_id)


def test_wrong_keywords_are_the_users_error() -> None:
    with pytest.raises(InputError, match="expected an environment that can be made"):
        collection_task("Pendulum-v1", {"gravitation": 3})
