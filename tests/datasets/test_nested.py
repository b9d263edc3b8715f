import gymnasium
import numpy as np
import pytest

from jaxpgd.datasets.nested import leaves, nest, obs_order
from jaxpgd.errors import InputError

Box, Dict = gymnasium.spaces.Box, gymnasium.spaces.Dict


def box(size: int = 1) -> Box:
    return Box(-np.inf, np.inf, (size,), np.float64)


def test_entries_are_named_by_their_path_and_put_back() -> None:
    tree = {"b": {"light switch": 1, "kettle": {"x": 2}}, "a": 3}
    found = leaves(tree)
    assert found == {"b/light switch": 1, "b/kettle/x": 2, "a": 3}
    assert nest(list(found), list(found.values())) == tree


def test_goals_lead_and_inner_keys_are_alphabetical() -> None:
    goals = {"microwave": box(), "kettle": box(7)}
    space = Dict(
        {"zeta": box(), "desired_goal": Dict(goals), "achieved_goal": Dict(goals), "observation": box(), "alpha": box()}
    )
    inner = [f"{goal}/{task}" for goal in ("achieved_goal", "desired_goal") for task in ("kettle", "microwave")]
    assert obs_order(space) == ("observation", *inner, "alpha", "zeta")
    assert obs_order(Dict({"observation": box(), "desired_goal": Dict(goals)}))[0] == "desired_goal/kettle"
    assert obs_order(box()) == ()


def test_other_spaces_are_refused_by_their_path() -> None:
    with pytest.raises(InputError, match="key 'goal/which' = Discrete"):
        obs_order(Dict({"goal": Dict({"which": gymnasium.spaces.Discrete(3)})}))
    with pytest.raises(InputError, match="a Box or a Dict of Box"):
        obs_order(gymnasium.spaces.Discrete(3))
