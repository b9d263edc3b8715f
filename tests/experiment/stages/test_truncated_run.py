"""A run whose rollouts are truncated where the ensemble, with layer normalisation, disagrees."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxpgd.errors import InputError
from jaxpgd.experiment.cli import read_run_arguments
from jaxpgd.experiment.config_files import load_config
from jaxpgd.experiment.report.run_tables import quality_row
from jaxpgd.experiment.run.directory import create_run
from jaxpgd.experiment.stages.prepare import prepare
from jaxpgd.experiment.stages.score_synthesizers import score_synthesizers
from jaxpgd.experiment.stages.train_agents import train_agents
from jaxpgd.experiment.stages.train_models import train_models

WORDS = """--arms world_model --seeds 1 --data.episodes 20 --data.window 8 --evaluation.trajectories 16
--world_model.members 3 --world_model.elites 2 --world_model.hidden 8 --world_model.reward_hidden 8 --world_model.epochs 2
--world_model.steps_per_epoch 2 --world_model.batch_size 16 --world_model.norm layer
--synthesis.regime oneoff --synthesis.trajectories 8 --synthesis.synthetic_ratio 0.5
--synthesis.world_model.elite trajectory --synthesis.world_model.truncate 0.9 --synthesis.world_model.length 12
--agent.kind bc --agent.updates 4 --agent.updates_per_chunk 4 --agent.batch_size 16 --agent.bc.hidden 8""".split()


@pytest.mark.slow
def test_logs_and_tables_say_what_is_left_of_rollouts(tmp_path: Path) -> None:
    config, _ = read_run_arguments([*WORDS, "--out", str(tmp_path / "run")], "run")
    with create_run(config, resume=False) as run:
        prepared = prepare(config)
        models = train_models(run, prepared)
        assert any("LayerNorm" in jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(models.world))
        policies = train_agents(run, prepared, models, "world_model")
        row = score_synthesizers(run, prepared, models, {"world_model": policies})["arms"]["world_model"]
    log = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    logged = next(each for each in log if each["stage"] == "agent-world_model")
    assert logged["synthetic_truncated"][0] > 0 and logged["synthetic_length"][0] < 12
    np.testing.assert_allclose(logged["synthetic_transitions"], 8 * np.asarray(logged["synthetic_length"]), rtol=1e-5)
    assert 0 < row["truncated_rate"] <= 1 and 0 <= row["valid_steps"] < 12
    shown = quality_row("world model", row)
    assert shown["cut where the ensemble disagrees"] == row["truncated_rate"] and shown["valid steps"] == row["valid_steps"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"synthesis": {"after_terminal": True}}, "synthesis.after_terminal = True: expected false where synthesis.world_mo"),
        ({"synthesis": {"filter": {"kind": "hardmax"}}}, "synthesis.filter.kind = 'hardmax': expected 'none' where synthesis"),
        (
            {"world_model": {"elites": 1}},
            "truncate = 0.9: expected its default 0.0, as it counts only where world_model.elites",
        ),
        ({"world_model": {"norm": "batch"}}, "world_model.norm = 'batch': expected one of 'none', 'layer'"),
    ],
)
def test_what_has_no_effect_or_no_meaning_is_refused(changes: dict[str, Any], message: str) -> None:
    synthesis = {"world_model": {"truncate": 0.9}} | changes.get("synthesis", {})
    with pytest.raises(InputError, match=re.escape(message)):
        load_config(None, {"arms": ["world_model"]} | changes | {"synthesis": synthesis})
