"""Rewards are learned from scaled and shifted, and reported in the dataset's own units."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpgd.dataset import in_learned_units, in_own_units, to_device
from jaxpgd.datasets import load
from jaxpgd.datasets.describe import describe, format_description
from jaxpgd.datasets.export import export_minari, export_npz
from jaxpgd.datasets.rewards import RETURN_RANGE
from jaxpgd.errors import InputError
from jaxpgd.experiment.cli import main
from jaxpgd.experiment.config_files import load_config
from jaxpgd.experiment.stages.model_source import DECIDED_BY
from jaxpgd.experiment.stages.prepare import prepare
from jaxpgd.experiment.stages.score_trajectories import real_windows
from jaxpgd.experiment.studies.identity import settings_of
from jaxpgd.training.windows import prepare_windows

PLAIN = load("point2d", episodes=6)
CHOSEN = {"reward_scale": 4.0, "reward_shift": -0.5}  # CQL's on antmaze


def test_learned_rewards_are_scaled_and_shifted_and_nothing_else() -> None:
    dataset = load("point2d", episodes=6, **CHOSEN)
    np.testing.assert_array_equal(dataset.reward, PLAIN.reward)
    np.testing.assert_array_equal(dataset.returns(), PLAIN.returns())
    learned = dataset.transitions().reward
    assert learned.dtype == np.float32
    np.testing.assert_array_equal(learned, (PLAIN.reward - np.float32(0.5)) * np.float32(4))
    np.testing.assert_array_equal(to_device(dataset).transitions().reward, learned)  # the same bits on the device
    assert PLAIN.transitions().reward is PLAIN.reward
    for field in ("obs", "action", "discount", "next_obs"):
        np.testing.assert_array_equal(getattr(dataset.transitions(), field), getattr(PLAIN, field))


def test_standard_rewards_have_mean_0_and_variance_1_before_shift_and_scale() -> None:
    learned = load("point2d", episodes=6, reward_normalisation="standard", reward_shift=0.5, reward_scale=2.0)
    plain = np.asarray(PLAIN.transitions().reward, np.float64)
    stored = np.asarray(PLAIN.reward, np.float64)
    expected = 2.0 * ((plain - stored.mean()) / stored.std() + 0.5)
    np.testing.assert_allclose(learned.transitions().reward, expected, atol=1e-5)
    np.testing.assert_array_equal(learned.returns(), PLAIN.returns())  # reports stay as they are


def test_returns_span_a_thousand() -> None:
    dataset = load("point2d", episodes=6, reward_normalisation="return_range")
    returns = np.add.reduceat(np.asarray(dataset.transitions().reward, np.float64), dataset.offsets[:-1])
    assert returns.max() - returns.min() == pytest.approx(RETURN_RANGE, rel=1e-5)
    assert dataset.info.reward_scale == 1000 / (PLAIN.returns().max() - PLAIN.returns().min())
    half = load("point2d", episodes=6, reward_normalisation="return_range", reward_scale=0.5).info.reward_scale
    assert half == 0.5 * dataset.info.reward_scale


def test_trajectories_go_to_own_units_and_back() -> None:
    dataset = load("point2d", episodes=6, **CHOSEN)
    windows = prepare_windows(dataset, load_config(None, {"data": {"window": 8}}).data)
    learned = real_windows(windows, windows.train[:5])
    own = in_own_units(dataset.info, learned)
    np.testing.assert_allclose(own.reward[0], PLAIN.reward[windows.train[0] :][:8], rtol=1e-6)
    np.testing.assert_allclose(in_learned_units(dataset.info, own).reward, learned.reward, rtol=1e-6)
    assert in_own_units(PLAIN.info, learned).reward is learned.reward


@pytest.mark.parametrize("changes", [CHOSEN, {"reward_normalisation": "return_range"}, {}])
def test_exports_are_in_own_units(changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load("point2d", episodes=6, **changes)
    windows = prepare_windows(dataset, load_config(None, {"data": {"window": 16}}).data)
    made = real_windows(windows, windows.train)
    expected = np.concatenate([PLAIN.reward[s : s + 15] for s in np.asarray(windows.train)])
    export_minari(made, dataset.info, "pgd/own-v0", tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    for name in ("pgd/own-v0", str(export_npz(made, dataset.info, tmp_path / "own.npz"))):
        np.testing.assert_allclose(load(name).reward, expected, rtol=2e-6)
        if changes is not CHOSEN and not changes:
            np.testing.assert_array_equal(load(name).reward, expected)


def test_data_info_tells_both(capsys: pytest.CaptureFixture[str]) -> None:
    plain, chosen = describe(PLAIN), describe(load("point2d", episodes=6, **CHOSEN))
    learned = chosen.pop("learned_reward")
    assert plain.pop("learned_reward") is None and plain == chosen  # all else in the dataset's own units
    assert (learned["scale"], learned["shift"]) == (4, -0.5)
    assert learned["min"] == pytest.approx(4 * (plain["ranges"]["reward"]["min"] - 0.5), rel=1e-6)
    assert "learned from as" not in format_description(describe(PLAIN))
    main(["data", "info", "point2d", "--episodes", "6", "--data.reward-scale", "4", "--data.reward-shift", "-0.5"])
    assert "learned from as 4 * (reward - 0.5): mean" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward_scale": 0.0}, "data.reward_scale = 0"),
        ({"reward_scale": -1.0}, "data.reward_scale = -1"),
        ({"reward_scale": float("inf")}, "data.reward_scale = inf"),
        ({"reward_shift": float("nan")}, "data.reward_shift = nan"),
        ({"reward_normalisation": "std"}, "data.reward_normalisation = 'std'"),
        ({"reward_scale": 1e38, "reward_shift": 1e3}, "is finite in float32"),
        ({"reward_scale": 1e-60}, "stay different"),
        ({"reward_shift": 1e12}, "stay different"),
        ({"reward_normalisation": "return_range", "episodes": 1}, "'none' where all episodes have the same return"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        load("point2d", **({"episodes": 6} | changes))


def test_runs_learn_from_them_and_models_depend_on_them() -> None:
    config = load_config(None, {"data": {"episodes": 6, **CHOSEN}})
    prepared = prepare(config)
    np.testing.assert_array_equal(prepared.windows.transitions.reward, (PLAIN.reward - np.float32(0.5)) * np.float32(4))
    assert {"data.reward_scale", "data.reward_shift", "data.reward_normalisation"} <= set(DECIDED_BY["world-model"])
    assert not [name for name in settings_of(load_config(None))["data"] if name.startswith("reward")]
    assert settings_of(config)["data"]["reward_scale"] == 4
