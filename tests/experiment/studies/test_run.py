"""Whole studies of cells that take a moment: sharing, resuming, failing, and what is written."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from jaxpgd.errors import InputError, check
from jaxpgd.experiment.run import lock
from jaxpgd.experiment.studies import run as study_run
from jaxpgd.experiment.studies.cell import COLUMNS, STEP_COLUMNS, TOTAL_TIMES
from jaxpgd.experiment.studies.measures import Found, _returns
from jaxpgd.experiment.studies.plan import Study, load_study
from jaxpgd.experiment.studies.run import run_study
from jaxpgd.experiment.studies.store import Store
from jaxpgd.experiment.studies.trajectories import stages_of, training_seconds

SIZES = """
[base]
seeds = 2
checkpoint_seconds = 0.0
data = { episodes = 40, validation_fraction = 0.25 }
denoiser = { features = 8, groups = 4, blocks = 1, block = "plain", steps = 4, validate_every = 2, batch_size = 8 }
sampler = { kind = "euler", steps = 2, batch_size = 8 }
guidance = { kind = "reconstruction" }
world_model = { members = 2, elites = 1, hidden = [8], reward_hidden = [8], epochs = 1, steps_per_epoch = 2 }
synthesis = { trajectories = 8, interval = 4 }
agent = { updates = 8, updates_per_chunk = 4, batch_size = 16, td3_bc.hidden = [8] }
evaluation = { episodes = 3, every = 4, intermediate_episodes = 1 }
"""
TILT = """
title = "Tilt"
text = "Of one action."
[measure]
kind = "tilt"
trajectories = 64
[base.sampler]
kind = "euler"
steps = 4
[axes.guidance]
exact = { measure = { source = "dataset" } }
reconstruction = { guidance.kind = "reconstruction" }
[[figures]]
kind = "densities"
name = "densities"
panels = ["guidance"]
[[tables]]
value = "divergence"
rows = ["guidance"]
"""


def write(folder: Path, text: str) -> str:
    (folder / "study.toml").write_text(text)
    return str(folder / "study.toml")


def assert_columns(kind: str, cells: list[dict[str, Any]], absent: tuple[str, ...] = ()) -> None:
    """Rows have the columns that figures and tables may ask for, and no others."""
    head = {"seed", "episode", "step", "method", "scale"}
    for rows, columns in (("rows", COLUMNS[kind]), ("steps", STEP_COLUMNS[kind])):
        found = {name for cell in cells for row in cell[rows] for name in row}
        assert set(columns) - {"score", *absent} <= found - head <= set(columns) - set(absent)


def test_a_tilt_study_writes_its_files_and_is_read_again(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    study = load_study(write(tmp_path, TILT))
    results = run_study(study, tmp_path / "out")
    folder = tmp_path / "out" / "study"
    assert {p.name for p in folder.iterdir()} == {
        "results.csv", "by_step.csv", "densities.png", "report.html", "run.lock", "study.toml", "tables.txt", "versions.json",
    }  # fmt: skip
    exact, guided = (results.units("divergence", {"guidance": name})[0] for name in ("exact", "reconstruction"))
    assert 0 < exact < 2 and guided > 0
    assert "2 cells, 0 of them there already" in capsys.readouterr().out
    assert_columns("tilt", [json.loads(p.read_text()) for p in (tmp_path / "out" / "cells").glob("*/cell.json")])
    before = (folder / "results.csv").read_text()
    run_study(study, tmp_path / "out")
    assert "2 cells, 2 of them there already" in capsys.readouterr().out
    assert (folder / "results.csv").read_text() == before


def test_a_cell_that_fails_is_told_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    broken = TILT.replace("[[figures]]", "broken = { measure = { stds = [0.1] } }\n[[figures]]", 1)
    results = run_study(load_study(write(tmp_path, broken)), tmp_path / "out")
    assert results.labels("guidance") == ["exact", "reconstruction"]
    said = capsys.readouterr()
    assert "broken: failed: weight, mean, std" in said.err and list(results.failed) == ["broken"]
    told = "1 cell failed and is not shown: broken."
    assert told in said.out and told in (tmp_path / "out" / "study" / "tables.txt").read_text()
    report = (tmp_path / "out" / "study" / "report.html").read_text()
    assert "Cells that failed" in report and "as many of each" in report
    errors = list((tmp_path / "out" / "cells").glob("*/error.txt"))
    assert len(errors) == 1 and "InputError" in errors[0].read_text()


def test_where_all_cells_fail_the_study_does(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"at least one cell that can be measured. All failed, the first: weight, mean, std"):
        run_study(load_study(write(tmp_path, TILT.replace("trajectories = 64", "stds = [0.1]"))), tmp_path / "out")


def test_a_dataset_that_does_not_exist_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Cells of kind tilt do without one."""
    lines = [f"{name} = {{ measure = {{ kind = 'trajectories', source = '{name}' }} }}" for name in ("rollouts", "dataset")]
    text = TILT.replace("[[figures]]", "\n".join([*lines, "[[figures]]"]), 1)
    text = text.replace("[base.sampler]", f"[base.data]\nname = '{tmp_path}/nowhere.npz'\n[base.sampler]")
    results = run_study(load_study(write(tmp_path, text)), tmp_path / "out")
    said = capsys.readouterr()
    assert said.err.count("nowhere.npz") == 1 and "2 cells failed: data.name = " in said.err
    assert list(results.failed) == ["rollouts", "dataset"] and results.labels("guidance") == ["exact", "reconstruction"]
    with pytest.raises(InputError, match=r"^data.name = '.*nowhere.npz': expected an existing file"):
        run_study(load_study(write(tmp_path, text), only={"guidance": ("rollouts", "dataset")}), tmp_path / "other")
    assert "failed" not in capsys.readouterr().err


def test_a_dataset_that_settings_mend_is_no_missing_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its download it is refused where it is loaded without them."""
    here = iter(["", "1234"])
    monkeypatch.setattr(study_run, "data_hash", lambda name: next(here, "1234"))
    monkeypatch.setattr(study_run, "load", lambda name: check(False, "action", 4.5, "[-1, 1]"))
    study = load_study(write(tmp_path, RETURNS))
    replace = dataclasses.replace
    far = lambda config: replace(config, data=replace(config.data, name="far/one-v0"))
    cells = [replace(cell, config=far(cell.config)) for cell in study.cells]
    assert study_run._download(cells) == {}


def test_data_that_changed_is_refused(tmp_path: Path) -> None:
    arrays = {"observations": np.zeros((40, 3)), "actions": np.zeros((40, 1)), "rewards": np.zeros(40),
              "terminals": np.zeros(40), "timeouts": np.arange(40) % 20 == 19}  # fmt: skip
    file = tmp_path / "mine.npz"
    np.savez(file, **arrays)
    study = load_study(write(tmp_path, TILT.replace("[base.sampler]", f"[base.data]\nname = '{file}'\n[base.sampler]")))
    run_study(study, tmp_path / "out")
    run_study(study, tmp_path / "out")
    np.savez(file, **{**arrays, "rewards": np.ones(40)})
    with pytest.raises(InputError, match=r"results of the .*mine.npz that is here now: it has changed"):
        run_study(study, tmp_path / "out")


def test_data_that_came_during_a_study_is_known_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = iter(["", "1234", "1235"])  # not here at first; then downloaded; later another one
    monkeypatch.setattr(study_run, "data_hash", lambda name: next(asked))
    study = load_study(write(tmp_path, TILT))
    run_study(study, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "data.json").read_text()) == {"point2d": "1234"}
    with pytest.raises(InputError, match="results of the point2d that is here now: it has changed"):
        run_study(study, tmp_path / "out")


def test_cells_that_fail_together_are_tried_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def measure(cells, store, folder):
        tried.append(len(cells))
        if len(cells) > 1 or cells[0].config.agent.td3_bc.alpha == 4.0:
            raise RuntimeError("out of memory")
        return [Found([{"seed": 0, "episode": 0, "return": 1.0}]) for _ in cells]

    monkeypatch.setattr(study_run, "measure", measure)
    results = run_study(load_study(write(tmp_path, RETURNS), only={"source": ("real",)}), tmp_path / "out")
    assert tried == [2, 1, 1] and results.labels("alpha") == ["1"]


def test_a_setting_that_diverges_takes_no_others_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def measure(cells, store, folder):
        tried.append(len(cells))
        value = {1.0: 1.0, 4.0: float("nan")}
        return [Found([{"seed": 0, "episode": 0, "return": value[cell.config.agent.td3_bc.alpha]}]) for cell in cells]

    monkeypatch.setattr(study_run, "measure", measure)
    study = load_study(write(tmp_path, RETURNS), only={"source": ("real",)})
    results = run_study(study, tmp_path / "out")
    assert tried == [2] and results.labels("alpha") == ["1"]
    assert results.failed == {"real, 4": results.failed["real, 4"]} and "all seeds diverged" in results.failed["real, 4"]


def test_an_actor_that_is_not_there_is_named_before_anything_is_computed(tmp_path: Path) -> None:
    text = TILT.replace("[base.sampler]", "[target]\nactor = 'none.npz'\n[base.sampler]")
    with pytest.raises(InputError, match=r"study: exact: target.actor = 'none.npz': expected a file"):
        run_study(load_study(write(tmp_path, text)), tmp_path / "out")


def test_two_axes_with_a_cell_that_failed_give_a_report(tmp_path: Path) -> None:
    text = TILT.replace("[[figures]]", "[axes.lambda]\n1 = { guidance.coefficient = 1.0 }\n3 = {}\n[[figures]]", 1)
    text = text.replace('panels = ["guidance"]', 'panels = ["guidance", "lambda"]')
    study = load_study(write(tmp_path, text))
    spoiled = dataclasses.replace(study.cells[0], measure=dataclasses.replace(study.cells[0].measure, stds=(0.1,)))
    results = run_study(dataclasses.replace(study, cells=(spoiled, *study.cells[1:])), tmp_path / "out")
    assert list(results.failed) == ["exact, 1"] and len(results.cells) == 3
    folder = tmp_path / "out" / "study"
    assert (folder / "densities.png").exists() and "1 cell failed" in (folder / "report.html").read_text()


def test_figures_of_an_earlier_file_do_not_stay(tmp_path: Path) -> None:
    run_study(load_study(write(tmp_path, TILT)), tmp_path / "out")
    run_study(load_study(write(tmp_path, TILT.replace('name = "densities"', 'name = "curves"'))), tmp_path / "out")
    assert [p.name for p in (tmp_path / "out" / "study").glob("*.png")] == ["curves.png"]


def test_a_cell_whose_seeds_all_diverged_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = [{"seed": 0, "episode": 0, "return": float("nan")}]
    monkeypatch.setattr(study_run, "measure", lambda cells, store, folder: [Found(lost) for _ in cells])
    with pytest.raises(InputError, match="DivergenceError: all seeds diverged"):
        run_study(load_study(write(tmp_path, RETURNS)), tmp_path / "out")


def _at_first_wait(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], None]) -> list[float]:
    """What happens while a study waits for the first time; the seconds of all waits."""
    waits = list[float]()

    def sleep(seconds: float) -> None:
        if seconds != 7.0:  # of a lock that looks again
            return
        waits.append(seconds)
        assert len(waits) < 10, "it waits for what is free"
        if len(waits) == 1:
            happens()

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(lock, "SECONDS", 7.0)
    return waits


def _cell_folder(out: Path, study: Study, index: int) -> Path:
    folder = out / "cells" / study.cells[index].name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_a_cell_that_another_process_measures_comes_last_and_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    study = load_study(write(tmp_path, TILT))
    alone = run_study(study, tmp_path / "alone")
    theirs = _cell_folder(tmp_path / "out", study, 0)
    other = lock.RunLock(theirs)
    other.take()

    def measured() -> None:
        shutil.copytree(_cell_folder(tmp_path / "alone", study, 0), theirs, dirs_exist_ok=True)
        other.release()

    waits = _at_first_wait(monkeypatch, measured)
    monkeypatch.setattr(study_run, "measure", Mock(side_effect=study_run.measure))
    results = run_study(study, tmp_path / "out")
    assert study_run.measure.call_count == len(study.cells) - 1 and waits
    told = capsys.readouterr()
    assert f"{study.cells[0].label}: is being measured by process {os.getpid()} on" in told.err
    assert told.out.index("took") < told.out.index("measured by another process")
    assert list(results.cells) == list(alone.cells)


def test_a_cell_that_another_process_left_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = load_study(write(tmp_path, TILT))
    other = lock.RunLock(_cell_folder(tmp_path / "out", study, 0))
    other.take()
    waits = _at_first_wait(monkeypatch, other.release)
    assert len(run_study(study, tmp_path / "out").cells) == len(study.cells) and waits


def test_at_the_deadline_other_processes_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = load_study(write(tmp_path, TILT))
    other = lock.RunLock(_cell_folder(tmp_path / "out", study, 0))
    other.take()
    passed = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: passed[0])
    _at_first_wait(monkeypatch, lambda: passed.__setitem__(0, 100.0))
    results = run_study(study, tmp_path / "out", deadline=50.0)
    assert list(results.failed) == [study.cells[0].label] and len(results.cells) == len(study.cells) - 1
    other.release()


def test_what_needs_a_model_that_another_process_trains_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    sources = 'first = { arms = ["unguided"] }\nlater = { arms = ["real"] }\n'
    text = RETURNS[: RETURNS.index("real = {")] + sources + RETURNS[RETURNS.index("[axes.alpha]") :]
    study = load_study(write(tmp_path, text))

    def measure(cells: Any, store: Store, folder: Path) -> list[Found]:
        store.models(cells[0].config)
        return [Found([{"seed": 0, "episode": 0, "return": 1.0}]) for _ in cells]

    monkeypatch.setattr(study_run, "measure", measure)
    model = Path(Store(tmp_path / "out" / "models").run_of_model(study.cells[0].config, "denoiser").out)
    model.mkdir(parents=True)
    other = lock.RunLock(model)
    other.take()
    waits = _at_first_wait(monkeypatch, other.release)
    results = run_study(study, tmp_path / "out")
    told = capsys.readouterr()
    assert waits and len(results.cells) == len(study.cells) and not results.failed
    assert f"waits for process {os.getpid()} on" in told.err and str(model) in told.err
    assert told.out.index("[2/2] later") < told.out.index("[1/2] first, 1; first, 4: took")
    assert told.out.count("[1/2] first") == 2  # once when it is begun, once when it is done


def test_a_cell_that_failed_here_and_was_measured_elsewhere_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load_study(write(tmp_path, TILT))
    run_study(study, tmp_path / "alone")
    names, measured = [cell.name for cell in study.cells], study_run.measure

    def measure(cells: Any, store: Any, folder: Path) -> Any:
        if folder.name == names[0]:
            raise RuntimeError("out of memory")
        shutil.copytree(tmp_path / "alone" / "cells" / names[0], tmp_path / "out" / "cells" / names[0], dirs_exist_ok=True)
        return measured(cells, store, folder)

    monkeypatch.setattr(study_run, "measure", measure)
    results = run_study(study, tmp_path / "out")
    assert not results.failed and len(results.cells) == 2


@pytest.mark.slow
def test_two_processes_measure_each_cell_once(tmp_path: Path) -> None:
    study = load_study(write(tmp_path, TILT))
    held = [lock.RunLock(_cell_folder(tmp_path / "out", study, index)) for index in range(len(study.cells))]
    for each in held:
        each.take()
    command = [sys.executable, "-m", "jaxpgd", "study", write(tmp_path, TILT), "--out", str(tmp_path / "out")]
    files = [(tmp_path / f"{index}.txt").open("w+") for index in range(2)]
    both = [subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) for file in files]
    told = lambda: [Path(file.name).read_text() for file in files]
    until = time.monotonic() + 120
    while not all("is being measured by process" in text for text in told()) and time.monotonic() < until:
        time.sleep(0.1)
    for each in held:  # both are there, and wait for both cells
        each.release()
    assert [process.wait(timeout=120) for process in both] == [0, 0], told()
    assert sum(text.count(": took ") for text in told()) == len(study.cells), told()
    assert all(f"{len(study.cells)} of {len(study.cells)} cells" in text for text in told())


def test_several_processes_may_write_one_file(tmp_path: Path) -> None:
    code = "import sys; from jaxpgd.files import write_text\nfor i in range(300): write_text(sys.argv[1], sys.argv[2] * 5000)"
    each = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "file.txt"), text]) for text in "ab"]
    assert [process.wait(timeout=120) for process in each] == [0, 0]
    assert (tmp_path / "file.txt").read_text() in ("a" * 5000, "b" * 5000)
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


NO_WORLD_MODEL = "\n".join(
    line for line in SIZES.splitlines() if not line.startswith("world_model")
)  # of arms without a world model
RETURNS = f"""
title = "Returns"
text = "Of agents."
{NO_WORLD_MODEL.replace("td3_bc.hidden = [8]", "td3_bc.hidden = [8], td3_bc.gamma = 0.5")}
[axes.source]
real = {{ arms = ["real"] }}
unguided = {{ arms = ["unguided"] }}
[axes.alpha]
"1" = {{ agent.td3_bc.alpha = 1.0 }}
"4" = {{ agent.td3_bc.alpha = 4.0 }}
[[tables]]
value = "return"
rows = ["source", "alpha"]
"""


@pytest.fixture(scope="module")
def returns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("returns")
    run_study(load_study(write(folder, RETURNS)), folder / "out")
    return folder


def test_agents_share_a_denoiser_and_alphas_a_program(returns: Path) -> None:
    models = [p.name for p in (returns / "out" / "models").iterdir()]
    assert len(models) == 1 and models[0].startswith("denoiser-point2d-")
    runs = sorted(p.parent.name for p in (returns / "out" / "cells").glob("*/run"))
    assert len(runs) == 2 and all(name.startswith("together-") for name in runs)
    cells = [json.loads(p.read_text()) for p in (returns / "out" / "cells").glob("*/cell.json")]
    assert all({"cell", "run"} <= set(cell["versions"]) for cell in cells)
    assert sum(models[0] in cell["versions"] for cell in cells) == 2  # those of unguided data
    assert len(cells) == 4 and all(cell["together"] == 2 and len(cell["rows"]) == 2 * 3 for cell in cells)
    steps = [row for cell in cells for row in cell["steps"]]
    assert all({row["step"] for row in cell["steps"]} == {4, 8} for cell in cells)
    assert all(row["value_error"] > 0 and 0 <= row["ood_actions"] <= 1 for row in steps)
    assert_columns("returns", cells, absent=TOTAL_TIMES)  # one program; with what explains returns: 0.5^16 leaves no tail
    explained = [row for cell in cells for row in cell["rows"] if "value_error" in row]
    assert len(explained) == 4 * 2 and all(row["episode"] == 0 and 0 <= row["ood_actions"] <= 1 for row in explained)
    assert all(row["value_error"] > 0 for row in explained)  # nothing is learned yet: about 0, and every reward is negative


@pytest.mark.slow
def test_behaviour_cloning_has_no_value_error(tmp_path: Path) -> None:
    text = RETURNS.replace("[axes.alpha]", "[axes.agent]\nBC = { agent = { kind = 'bc', bc.hidden = [8] } }\n[axes.unused]")
    text = text[: text.index("[axes.unused]")] + text[text.index("[[tables]]") :].replace("alpha", "agent")
    results = run_study(load_study(write(tmp_path, text), only={"source": ("real",)}), tmp_path / "out")
    assert len(results.units("ood_actions", {})) == 2 and len(results.units("value_error", {})) == 0


def test_runs_from_before_there_were_explanations_have_none() -> None:
    found = {"returns": [[1.0, 2.0], [math.nan, math.nan]], "lengths": [[3, 4], [3, 4]], "score": None, "score_column": "score"}
    assert not set(COLUMNS["returns"][3:]) & {name for row in _returns(found, [], slice(0, 2)).rows for name in row}
    log = [{"step": 4, "returns": [1.0, 2.0]}, {"step": 8, "returns": [1.0, 2.0], "value_error": [0.5, math.nan]}]
    assert [row.get("value_error") for row in _returns(found, log, slice(0, 2)).steps] == [None, None, 0.5, None]
    rows = _returns(found | {"ood_actions": [0.1, math.nan]}, [], slice(0, 2)).rows
    assert [row.get("ood_actions") for row in rows] == [0.1, None, None, None]  # the second seed is lost


@pytest.mark.slow
def test_a_cell_of_a_group_is_that_trained_alone(returns: Path) -> None:
    study = load_study(write(returns, RETURNS), only={"alpha": ("4",)})
    alone = run_study(study, returns / "alone")
    stored = json.loads((returns / "out" / "cells" / study.cells[0].name / "cell.json").read_text())
    rows = [row["return"] for row in alone.rows if row["source"] == "real"]
    np.testing.assert_allclose(rows, [row["return"] for row in stored["rows"]], rtol=1e-4)
    for source in ("real", "unguided"):  # times are at the end twice those at half of all updates, but for the model's
        _, spent = alone.curve("total_training_seconds", {"source": source})
        assert (spent[0] > 0).all() and (spent[1] <= 2 * spent[0]).all() and (spent[1] > spent[0]).all()
        np.testing.assert_array_equal(spent[1], alone.units("total_training_seconds", {"source": source}))
        model = sum(training_seconds(stages_of([str(p)]))["training_seconds"] for p in (returns / "alone" / "models").iterdir())
        expected = model if source == "unguided" else 0.0
        np.testing.assert_allclose(2 * spent[0] - spent[1], expected, atol=1e-9)


JOINT = RETURNS.replace("[axes.alpha]", "[axes.alpha_]").replace('title = "Returns"', 'title = "Joint"\njoint = true')
JOINT = (
    JOINT[: JOINT.index("[axes.alpha_]")]
    + """guided = { arms = ["guided"] }
made = { measure = { kind = "trajectories", source = "guided", trajectories = 4 } }
[[tables]]
value = "return"
columns = "source"
"""
)


@pytest.mark.slow
def test_agents_of_all_sources_are_one_program(returns: Path, tmp_path: Path) -> None:
    study = load_study(write(tmp_path, JOINT))
    results = run_study(study, tmp_path / "out")
    runs = [p.parent.name for p in (tmp_path / "out" / "cells").glob("*/run")]
    assert len(runs) == 1 and runs[0].startswith("together-")
    assert all(len(results.units("return", {"source": name})) == 2 for name in ("real", "unguided", "guided"))
    assert {row["step"] for row in results.steps if "return" in row} == {4, 8}
    assert len({results.units("return", {"source": name})[0] for name in ("real", "unguided", "guided")}) == 3
    assert "made" not in (tmp_path / "out" / "study" / "tables.txt").read_text()  # it has no return of an agent


@pytest.mark.slow
def test_agents_of_a_source_are_those_of_a_study_that_trains_it_alone(returns: Path, tmp_path: Path) -> None:
    """And do not depend on their place."""
    together, alone = (
        run_study(load_study(write(tmp_path, JOINT.replace("joint = true", f"joint = {joint}"))), tmp_path / joint)
        for joint in ("true", "false")
    )
    for name in ("real", "unguided", "guided"):
        found = [results.units("return", {"source": name}) for results in (together, alone)]
        np.testing.assert_allclose(*found, rtol=1e-3)


def test_a_study_of_ones_own_dataset_asks_for_it(tmp_path: Path) -> None:
    study = load_study("data-fraction", "own")
    with pytest.raises(
        InputError, match=r"data.name = 'YOUR_DATASET': expected your dataset. The scale 'own' needs --data.name"
    ):
        run_study(study, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_was_measured_is_written_when_the_study_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = study_run.measure

    def cut(cells, store, folder):
        if cells[0].labels["guidance"] == "reconstruction":
            raise SystemExit(143)
        return measured(cells, store, folder)

    monkeypatch.setattr(study_run, "measure", cut)
    with pytest.raises(SystemExit):
        run_study(load_study(write(tmp_path, TILT)), tmp_path / "out")
    rows = (tmp_path / "out" / "study" / "results.csv").read_text().splitlines()
    assert len(rows) == 2 and "exact" in rows[1]


def test_what_fails_together_after_the_deadline_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def failing(cells, store, folder):
        tried.append(len(cells))
        monkeypatch.setattr(study_run.time, "monotonic", lambda: 1e9)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(study_run, "measure", failing)
    with pytest.raises(InputError, match="All failed"):
        run_study(load_study(write(tmp_path, RETURNS)), tmp_path / "out", deadline=study_run.time.monotonic() + 1e6)
    assert tried == [2]


def test_columns_of_trajectories_from_before_have_their_new_names(tmp_path: Path) -> None:
    rows = [{"seed": 0, "episode": 0, "return": 1.0, "length": 2, "log_likelihood": 3.0}]
    (tmp_path / "cell.json").write_text(json.dumps({"measure": {"kind": "trajectories"}, "rows": rows, "steps": []}))
    found = study_run.read_cell(tmp_path)
    assert found is not None
    assert found.rows == [{"seed": 0, "episode": 0, "synthetic_return": 1.0, "synthetic_length": 2, "log_likelihood": 3.0}]


def test_no_cell_begins_after_the_deadline(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    study = load_study(write(tmp_path, TILT))
    with pytest.raises(InputError, match="no time was left"):
        run_study(study, tmp_path / "out", deadline=0.0)
    assert "exact: no time was left" in capsys.readouterr().err
    assert not run_study(study, tmp_path / "out").failed


@pytest.mark.slow
def test_trajectories_for_a_trained_target(tmp_path: Path) -> None:
    text = f"""
title = "Trajectories"
text = "Of every source."
[measure]
kind = "trajectories"
trajectories = 8
samples = 3
classifier = true
[target]
agent = {{ kind = "bc", updates = 4, updates_per_chunk = 4, bc.hidden = [8] }}
data = {{ episodes = 40 }}
{SIZES}
[axes.source]
rollouts = {{ measure = {{ source = "rollouts" }} }}
dataset = {{ measure = {{ source = "dataset" }} }}
world_model = {{ measure = {{ source = "world_model", length = 5 }} }}
guided = {{ measure = {{ source = "guided" }} }}
[[figures]]
kind = "trajectories"
name = "trajectories"
[[tables]]
value = "dynamics_error"
rows = ["source"]
"""
    results = run_study(load_study(write(tmp_path, text)), tmp_path / "out")
    kinds = sorted(p.name.partition("-point2d")[0] for p in (tmp_path / "out" / "models").iterdir())
    assert kinds == ["agent", "denoiser", "world-model"]
    length = lambda label: {row["synthetic_length"] for row in results.rows if row["source"] == label}
    lengths = {label: length(label) for label in results.labels("source")}
    assert [lengths[label] for label in ("rollouts", "dataset", "world_model")] == [{16}, {16}, {5}]
    error = {label: results.units("dynamics_error", {"source": label})[0] for label in lengths}
    # one step's noise of 0.01 over the deviation of positions, which no transition of the environment can miss
    assert error["rollouts"] < 0.1 and error["dataset"] < 0.1 < error["guided"]
    cells = [json.loads(p.read_text()) for p in (tmp_path / "out" / "cells").glob("*/cell.json")]
    assert_columns("trajectories", cells, absent=("open_loop_error_16", "open_loop_error_31", "truncated_rate"))  # of 16 steps
    assert all(len([row for row in cell["rows"] if "terminal_rate" in row]) == 1 for cell in cells)
    assert len(results.samples) == 4 and all(t.reward.shape[0] == 3 for _, t in results.samples)
    assert (tmp_path / "out" / "study" / "trajectories.png").exists()
    assert all(row["log_likelihood"] == row["log_likelihood"] for row in results.rows)


UNFIT = """
title = "unfit"
[base]
arms = ["unguided"]
data = {{ name = "{data}", env_id = "{env}", window = 4 }}
[measure]
kind = "{kind}"
source = "{source}"
{target}
[axes.a]
one = {{}}
"""


@pytest.mark.parametrize(
    ("env", "kind", "source", "target", "message"),
    [
        ("jaxpgd/Unending-v0", "returns", "guided", "", "evaluation.max_steps = 0: expected a number of steps"),
        (
            "point2d",
            "trajectories",
            "unguided",
            "[target]\nactor = '{actor}'",
            "target.actor = .*: expected 2 inputs and 4",
        ),
        ("jaxpgd/Unending-v0", "trajectories", "unguided", "", "target = None: expected a target policy"),
        ("jaxpgd/Unending-v0", "rollouts", "guided", "[target.agent]\nupdates = 500", "no simulator replay"),
    ],
)
def test_what_is_known_of_a_cell_fails_it_before_its_models_are_trained(
    env: str, kind: str, source: str, target: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unending(gymnasium.Env[Any, Any]):
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    monkeypatch.setitem(gymnasium.registry, "jaxpgd/Unending-v0", EnvSpec("jaxpgd/Unending-v0", lambda: Unending()))
    sizes = {"w0": (3, 4), "b0": (4,), "w1": (4, 4), "b1": (4,), "w2": (4, 4), "b2": (4,)}
    np.savez(tmp_path / "actor.npz", **{name: np.zeros(size, np.float32) for name, size in sizes.items()})
    np.savez(tmp_path / "line.npz", observations=np.zeros((16, 1)), actions=np.zeros((16, 1)), rewards=np.ones(16),
             terminals=np.zeros(16), timeouts=np.arange(16) % 8 == 7)  # fmt: skip
    data = "point2d" if env == "point2d" else tmp_path / "line.npz"
    text = UNFIT.format(data=data, env=env, kind=kind, source=source, target=target.format(actor=tmp_path / "actor.npz"))
    monkeypatch.setattr(Store, "_trained", lambda *given: pytest.fail("a model was trained"))
    monkeypatch.setattr(Store, "policy", lambda *given: pytest.fail("a target was trained"))
    with pytest.raises(InputError, match=message):
        run_study(load_study(write(tmp_path, text)), tmp_path / "out")
