"""`jaxpgd study --minutes`: how time becomes lengths of training, and that what is compiled first is what the study runs."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

from jaxpgd.errors import InputError
from jaxpgd.experiment.cli import main
from jaxpgd.experiment.run.view import RunView
from jaxpgd.experiment.stages.agent_programs import joint_training
from jaxpgd.experiment.stages.load import load_models
from jaxpgd.experiment.studies.budget import Lengths, divide, fit_to_minutes
from jaxpgd.experiment.studies.plan import Budget, Study, load_study
from jaxpgd.experiment.studies.store import Store
from jaxpgd.experiment.studies.together import groups, joined
from jaxpgd.experiment.studies.workload import Rates, Workload

MOST = Lengths(denoiser_chunks=1000, agent_chunks=20, denoiser_seconds=0.0, agent_seconds=0.0)
RATES = Rates(denoiser=1.0, denoisers=1, agents=4.0, refreshes=2.0, starts=3.0)

STUDY = """
title = "Small"
text = "A study that takes a moment."
joint = true
[budget]
denoiser = 0.5
reserve = 0.25
[base]
seeds = 2
data = { episodes = 40, validation_fraction = 0.25 }
denoiser = { features = 8, groups = 4, blocks = 1, block = "plain", steps = 20, validate_every = 2, batch_size = 8 }
sampler = { kind = "euler", steps = 2, batch_size = 8 }
guidance = { kind = "reconstruction" }
synthesis = { trajectories = 8, interval = 8 }
agent = { kind = "iql", updates = 40, updates_per_chunk = 4, batch_size = 16, iql.hidden = [8] }
evaluation = { episodes = 2 }
[target]
agent = { kind = "bc", updates = 4, updates_per_chunk = 4, bc.hidden = [8] }
[axes.source]
real = { arms = ["real"] }
guided = { arms = ["guided"] }
made = { measure = { kind = "trajectories", source = "guided", trajectories = 4 } }
[[tables]]
value = "return"
columns = "source"
"""


def test_agents_come_first_but_for_the_share_of_the_denoiser() -> None:
    # 20 chunks: 3 + 80, and refreshes before chunks 5, 10, 15: 89 seconds
    assert divide(1000.0, Budget(denoiser=0.5), RATES, MOST, 5) == Lengths(911, 20, 911.0, 89.0)
    # of 100 seconds agents get 50: 10 chunks, 3 + 40 + one refresh are 45, 11 chunks would be 51
    assert divide(100.0, Budget(denoiser=0.5), RATES, MOST, 5) == Lengths(55, 10, 55.0, 45.0)
    # two denoisers are trained in the same time
    assert divide(100.0, Budget(denoiser=0.5), Rates(1.0, 2, 4.0, 2.0, 3.0), MOST, 5).denoiser_chunks == 27


def test_the_study_is_never_longer_than_it_says_itself() -> None:
    assert divide(1e6, Budget(), RATES, MOST, 5) == Lengths(1000, 20, 1000.0, 89.0)


def test_too_little_time_is_no_chunk() -> None:
    assert divide(5.0, Budget(denoiser=0.5), RATES, MOST, 5).agent_chunks == 0
    assert divide(-5.0, Budget(denoiser=0.5), RATES, MOST, 0) == Lengths(0, 0, 0.0, 3.0)


def test_without_a_denoiser_agents_get_all() -> None:
    found = divide(43.0, Budget(denoiser=0.5), Rates(0.0, 0, 4.0, 0.0, 3.0), Lengths(0, 20, 0.0, 0.0), 0)
    assert found == Lengths(0, 10, 0.0, 43.0)


def fitting(path: str) -> Callable[[dict[str, Any]], Study]:
    """The study with other lengths, as the command line reads it."""
    return lambda lengths: load_study(path, overrides=lengths)


@pytest.fixture
def study_file(tmp_path: Path) -> str:
    (tmp_path / "mine.toml").write_text(STUDY)
    return str(tmp_path / "mine.toml")


def test_bad_times_are_refused(study_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = load_study(study_file)
    for minutes in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"--minutes = .*: expected a number above 0"):
            fit_to_minutes(study, tmp_path / "out", minutes, fitting(study_file))
    (tmp_path / "plain.toml").write_text(STUDY.replace("[budget]\ndenoiser = 0.5\nreserve = 0.25\n", ""))
    with pytest.raises(InputError, match=r"expected a study with a \[budget\], which plain has not"):
        fit_to_minutes(load_study(str(tmp_path / "plain.toml")), tmp_path / "out", 5.0, fitting(study_file))
    monkeypatch.setattr(Workload, "rates", lambda self, last: Rates(60.0, 1, 60.0, 0.0, 30.0))
    with pytest.raises(InputError, match=r"--minutes = 2: expected at least 10; compilation"):
        fit_to_minutes(study, tmp_path / "out", 2.0, fitting(study_file))
    assert not list((tmp_path / "out").glob("budget-*"))  # the next try measures again


def test_the_least_time_that_is_named_is_enough(study_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Workload, "rates", lambda self, last: Rates(60.0, 1, 60.0, 0.0, 30.0))
    with pytest.raises(InputError) as error:
        fit_to_minutes(load_study(study_file), tmp_path / "out", 2.0, fitting(study_file))
    least = float(str(error.value).split("at least ")[1].split(";")[0])
    study = fit_to_minutes(load_study(study_file), tmp_path / "out", least, fitting(study_file))
    # a refresh comes before the third chunk of 4 updates: before it nothing would be guided
    assert {cell.config.agent.updates for cell in study.cells} == {12}


def test_all_cells_have_one_length(study_file: str, tmp_path: Path) -> None:
    text = STUDY.replace("[axes.source]", '[axes.chunk]\n"4" = {}\n"2" = { agent.updates_per_chunk = 2 }\n[axes.source]')
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(InputError, match=r"--minutes: agent.updates_per_chunk = \[2, 4\]: expected one value"):
        fit_to_minutes(load_study(study_file), tmp_path / "out", 5.0, fitting(study_file))


def test_what_is_compiled_first_is_what_the_study_runs(study_file: str, tmp_path: Path) -> None:
    study, store = load_study(study_file), Store(tmp_path / "models")
    timed = Workload(study, store).agents[0]
    config = joined(groups(study.cells, joint=True)[0])
    trained = RunView(tmp_path / "run", dataclasses.replace(config, models_from=store.models(config)))
    prepared = store.prepared(config)
    training = joint_training(trained.config, prepared, load_models(trained, prepared))
    texts = [jax.jit(training.program.init).lower(timed.key, each).as_text() for each in (timed.data, training.data)]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_the_command_runs_what_fits_and_goes_on_from_there(
    study_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    words = ["study", study_file, "--minutes", "20", "--out", str(tmp_path / "out")]
    main(words)
    said = capsys.readouterr().out
    assert "plan for 20 minutes" in said and "denoiser 20 of 20 steps" in said and "agents 40 of 40 updates" in said
    folder = next(p.parent for p in (tmp_path / "out").glob("mine*/tables.txt"))
    assert all("plan for 20 minutes" in (folder / name).read_text() for name in ("tables.txt", "report.html"))
    plan = json.loads(next((tmp_path / "out").glob("budget-*.json")).read_text())
    assert plan["settings"] == {"agent": {"updates": 40}, "denoiser": {"steps": 20}}
    assert {"denoiser", "agents", "refreshes"} < set(plan["rates"])
    monkeypatch.setattr(Workload, "rates", lambda self, last: pytest.fail("measured again"))
    main(words)
    said = capsys.readouterr().out
    assert "planned before" in said and "3 of them there already" in said


@pytest.mark.slow
def test_compilation_that_takes_all_the_time_is_ended(study_file: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--minutes = '1 of \d programs in \d+ s': expected time for more than compilation"):
        fit_to_minutes(load_study(study_file), tmp_path / "out", 0.01, fitting(study_file))
