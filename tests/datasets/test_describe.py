import dataclasses
import json

import numpy as np
import pytest

from jaxpgd.dataset import Dataset, DatasetInfo
from jaxpgd.datasets import load
from jaxpgd.datasets.assemble import assemble
from jaxpgd.datasets.describe import describe, format_description
from jaxpgd.experiment.cli import main
from jaxpgd.experiment.config_files import load_config
from jaxpgd.experiment.stages.prepare import prepare
from jaxpgd.training.windows import prepare_windows
from jaxpgd.windows import DataConfig


def test_counts_of_point2d() -> None:
    dataset = load("point2d", episodes=7, seed=1)
    d = describe(dataset, window=8, stride=4)
    assert (d["episodes"], d["transitions"]) == (7, 112)
    assert d["ends"] == {"terminals": 0, "timeouts": 0, "horizon": 7}
    assert d["windows"]["count"] == 6 * 3 and d["windows"]["ending_in_terminal"] == 0  # starts at 0, 4 and 8 of 16 steps
    assert d["windows"]["validation"] == 3  # one episode is held out
    assert d["windows"]["covered"] == {"transitions": 1.0, "terminals": None}
    assert d["lengths"] == {"mean": 16.0, "std": 0.0, "min": 16.0, "max": 16.0}
    assert set(d["ranges"]) == {"obs", "action", "reward"}
    json.dumps(d)
    text = format_description(d)
    assert "112 (observation 2, action 2)" in text and "18 of 8 steps" in text and "builtin policies" in text


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


def short_and_long() -> Dataset:
    """400 episodes of 22 steps that end in a terminal, and 5 of 120 that end in a timeout."""
    lengths = np.array([22] * 400 + [120] * 5)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    steps = np.arange(offsets[-1])
    terminal, timeout = np.isin(steps, offsets[1:401] - 1), np.isin(steps, offsets[401:] - 1)
    x = steps[:, None] * 1.0
    info = DatasetInfo(name="short", source="npz", action_low=(-1.0,), action_high=(1.0,))
    return assemble(info, x, x * 0, steps * 1.0, x + 1, terminal, timeout, offsets)


def test_the_share_that_windows_cover_is_told() -> None:
    dataset = short_and_long()
    d = describe(dataset, window=100, validation_fraction=0.0)
    assert d["windows"]["covered"] == {"transitions": 600 / 9400, "terminals": 0.0}
    text = format_description(d)
    assert "cover 6.38 % of transitions and 0 % of terminals" in text and "warning: most transitions or terminals" in text
    d = describe(dataset, window=20, stride=20, add_terminals=False, validation_fraction=0.0)
    # episodes of 22: two steps longer than their first window, which a window at a multiple of 20 covers where it fits
    starts = [s for e in range(400) for s in {22 * e, 22 * e + (-22 * e) % 20} if s + 20 <= 22 * e + 22]
    inside = {s + i for s in starts for i in range(20)} | set(range(8800, 9400))
    assert d["windows"]["covered"]["transitions"] == len(inside) / 9400
    assert d["windows"]["covered"]["terminals"] == sum(22 * e + 21 in inside for e in range(400)) / 400
    assert describe(dataset, window=20, validation_fraction=0.0)["windows"]["covered"] == {"transitions": 1.0, "terminals": 1.0}
    assert "warning" not in format_description(describe(dataset, window=20))
    json.dumps(d)


def test_padding_covers_short_episodes(capsys: pytest.CaptureFixture[str]) -> None:
    dataset = short_and_long()
    plain = format_description(describe(dataset, window=100, validation_fraction=0.0))
    assert "choose a shorter data.window, or set data.pad_short = true" in plain and "padded" not in plain
    d = describe(dataset, window=100, validation_fraction=0.0, pad_short=True)
    assert d["windows"]["covered"] == {"transitions": 1.0, "terminals": 1.0}
    assert (d["windows"]["count"], d["windows"]["padded"]) == (400 + 5 * 21, 400) and d["windows"]["ending_in_terminal"] == 400
    text = format_description(d)
    assert "505 of 100 steps at stride 1, 400 of them ending in a terminal, 400 padded" in text and "warning" not in text
    sparse = format_description(describe(dataset, window=20, stride=100, add_episode_starts=False, add_terminals=False))
    assert "warning: most" in sparse and "pad_short" not in sparse  # it would not help


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"allow_timeout_end": False, "stride": 3},
        {"validation_fraction": 0.3, "window": 20},
        {"window": 100, "pad_short": True},
    ],
)
def test_windows_are_counted_by_the_rules_of_a_run(changes: dict[str, object]) -> None:
    dataset, config = short_and_long(), DataConfig(**changes)  # type: ignore[arg-type]
    windows = prepare_windows(dataset, config)
    counted = describe(dataset, **changes)["windows"]  # type: ignore[arg-type]
    assert (counted["count"], counted["validation"]) == (len(windows.train), len(windows.validation))


def test_data_info_takes_the_settings_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "info", "point2d", "--window", "8", "--data.stride", "4", "--episodes", "7", "--data.validation-fraction=0"])
    assert "21 of 8 steps at stride 4" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["data", "info", "point2d", "--data.strid", "4"])
    assert "Did you mean '--data.stride'" in capsys.readouterr().err


def test_data_info_takes_the_seed_the_environment_and_the_ranges_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*words: str) -> str:
        main(["data", "info", "point2d", "--episodes", "7", "--window", "8", *words])
        return capsys.readouterr().out

    config = load_config(None, {"seed": 5, "data": {"episodes": 7, "window": 8}})
    prepared = prepare(config)
    expected = describe(prepared.dataset, seed=5, **dataclasses.asdict(config.data))
    assert printed("--seed", "5").strip() == format_description(expected) != printed().strip()
    assert expected["windows"]["validation"] == len(prepared.windows.validation)
    assert "environment    Pendulum-v1" in printed("--data.env-id", "Pendulum-v1")
    for words, message in (
        (["--data.window", "1"], "data.window = 1: expected at least 2 steps"),
        (["--data.done-scale=-1"], "data.done_scale = -1.0: expected a number not below 0"),
        (["--seed", "-1"], "--seed = -1: expected a number from 0"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["data", "info", "point2d", *words])
        assert message in capsys.readouterr().err
