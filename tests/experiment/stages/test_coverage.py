"""Every run says what share of the data its training windows hold, and warns where it is small."""

from pathlib import Path
from typing import Any

import pytest

from jaxpgd.experiment.commands.train_denoiser import run_denoiser

# of every four episodes of 16 steps the first 8 steps of one: 1/8
SPARSE = {"episodes": 40, "validation_fraction": 0.0, "window": 8, "stride": 64, "add_episode_starts": False}


@pytest.mark.slow
def test_a_run_says_what_its_windows_cover(tmp_path: Path, make_config: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run_denoiser(make_config(tmp_path / "sparse", arms=["unguided"], data=SPARSE))
    out, err = capsys.readouterr()
    assert "10 training windows of 8 steps, which cover 12.5 % of transitions;" in out
    assert err.count("warning: stage 'denoiser'") == 1
    assert "windows of 8 steps cover 12.5 % of transitions; most transitions or terminals are in no training window" in err
    run_denoiser(make_config(tmp_path / "sparse", arms=["unguided"], data=SPARSE), resume=True)
    assert "warning" not in capsys.readouterr().err  # nothing is trained
    run_denoiser(make_config(tmp_path / "half", arms=["unguided"], data=SPARSE | {"stride": 16}))
    out, err = capsys.readouterr()
    assert "40 training windows of 8 steps, which cover 50 % of transitions;" in out and "warning" not in err


def test_a_run_that_trains_on_no_windows_is_not_warned(
    tmp_path: Path, make_config: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run_denoiser(make_config(tmp_path / "real", arms=["real"], data=SPARSE))
    out, err = capsys.readouterr()
    assert "which cover 12.5 % of transitions" in out and "warning" not in err


@pytest.mark.slow
def test_a_run_on_a_share_says_so_and_warns_where_nothing_is_held_out(
    tmp_path: Path, make_config: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"episodes": 40, "validation_fraction": 0.25, "fraction": 0.1}
    run_denoiser(make_config(tmp_path / "four", arms=["unguided"], data=data))
    out, err = capsys.readouterr()
    assert "point2d: 4 of 40 episodes, 64 of 640 transitions; " in out and "warning" not in err
    run_denoiser(make_config(tmp_path / "one", arms=["unguided"], data=data | {"fraction": 0.01}))
    out, err = capsys.readouterr()
    assert "point2d: 1 of 40 episodes" in out and err.count("warning") == 1
    assert "no episode is held out, or none with a window: the validation loss and distances" in err
