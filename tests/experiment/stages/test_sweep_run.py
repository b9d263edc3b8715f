"""A run that sweeps over hyperparameters gives the agents that each of its settings gives alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpgd.errors import InputError
from jaxpgd.experiment.commands.run import run_all
from jaxpgd.experiment.config_files import to_dict
from jaxpgd.experiment.run.view import open_run
from jaxpgd.experiment.stages.load import load_policy
from jaxpgd.experiment.sweep import read_sweep, with_setting

ARMS = {"arms": ["guided"]}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, make_config: Any, few_rollouts: None) -> Path:
    """Two weights of Q by two coefficients."""
    words = ["agent.alpha", "0.1,2.5", "guidance.coefficient", "0.5,2"]
    return run_all(make_config(tmp_path_factory.mktemp("sweep") / "run", sweep=words, **ARMS))


def test_every_setting_has_its_row(swept: Path) -> None:
    rows = json.loads((swept / "results.json").read_text())["returns"]
    assert [row["arm"] for row in rows] == [
        f"guided, alpha {alpha}, coefficient {coefficient}" for alpha in (0.1, 2.5) for coefficient in (0.5, 2)
    ]
    assert "guided, alpha 2.5, coefficient 2" in (swept / "report.html").read_text()


@pytest.mark.slow
def test_a_setting_alone_gives_the_same_agents(swept: Path, tmp_path: Path, make_config: Any) -> None:
    config = open_run(swept).config
    alone = with_setting(config, read_sweep(config).settings[3])
    sections = {name: to_dict(alone)[name] for name in ("agent", "guidance")}
    run_all(make_config(tmp_path / "alone", **ARMS, models_from=[str(swept)], **sections))
    rows = [json.loads((path / "returns.json").read_text()) for path in (swept, tmp_path / "alone")]
    np.testing.assert_allclose(rows[0]["guided, alpha 2.5, coefficient 2"]["returns"], rows[1]["guided"]["returns"], rtol=1e-4)
    assert rows[0]["guided, alpha 2.5, coefficient 0.5"]["returns"] != rows[0]["guided, alpha 2.5, coefficient 2"]["returns"]
    assert rows[0]["guided, alpha 0.1, coefficient 2"]["returns"] != rows[0]["guided, alpha 2.5, coefficient 2"]["returns"]


def test_policies_are_counted_through_the_settings(swept: Path) -> None:
    with pytest.raises(InputError, match="a seed below 8"):
        load_policy(open_run(swept), None, None, "guided:8")  # type: ignore[arg-type]
