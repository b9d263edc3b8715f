import dataclasses
import json

import numpy as np

from jaxpgd.data import load
from jaxpgd.data.describe import describe, format_description


def test_counts_of_point2d() -> None:
    dataset = load("point2d", episodes=7, seed=1)
    d = describe(dataset, window=8, stride=4)
    assert (d["episodes"], d["transitions"]) == (7, 112)
    assert d["ends"] == {"terminals": 0, "timeouts": 0, "horizon": 7}
    assert d["windows"]["count"] == 7 * 3 and d["windows"]["ending_in_terminal"] == 0  # starts at 0, 4 and 8 of 16 steps
    assert d["lengths"] == {"mean": 16.0, "std": 0.0, "min": 16.0, "max": 16.0}
    assert set(d["ranges"]) == {"obs", "action", "reward"}
    json.dumps(d)
    text = format_description(d)
    assert "112 (observation 2, action 2)" in text and "21 of 8 steps" in text and "builtin policies" in text


def test_a_window_that_does_not_fit_is_reported() -> None:
    d = describe(load("point2d", episodes=2), window=17)
    assert d["windows"]["count"] == 0 and "at most 16" in format_description(d)


def test_constant_rewards_are_named() -> None:
    dataset = load("point2d", episodes=2)
    assert describe(dataset)["constant_reward"] is None and "constant" not in format_description(describe(dataset))
    for value in (0.0, -1.0):
        d = describe(dataclasses.replace(dataset, reward=np.full(32, value, np.float32)))
        assert d["constant_reward"] == value
        assert f"rewards are constant: every one is {value:g}," in format_description(d)
        json.dumps(d)
