"""The view of a run reads; the claimed run writes."""

from pathlib import Path

import pytest

from jaxpgd.experiment.config import Config
from jaxpgd.experiment.run.checkpoints import CheckpointReader, CheckpointStore
from jaxpgd.experiment.run.directory import ClaimedRun, claim, create_run
from jaxpgd.experiment.run.logs import MetricsLog, MetricsReader
from jaxpgd.experiment.run.view import RunView, open_run

WRITING = ("write_json", "finish", "finish_after_failure", "decide", "figure")


@pytest.fixture
def view(tmp_path: Path) -> RunView:
    with create_run(Config(out=str(tmp_path / "run")), resume=False) as run:
        run.finish("denoiser", {"seconds": 1.0})
        run.log.write("denoiser", 1, {"loss": 0.5})
        return open_run(run.path)


def test_a_view_has_nothing_that_writes(view: RunView) -> None:
    assert type(view) is RunView and not any(hasattr(view, name) for name in WRITING)
    assert all(hasattr(ClaimedRun, name) for name in WRITING)
    assert type(view.log) is MetricsReader and type(view.checkpoints("denoiser")) is CheckpointReader
    public = lambda kind: {name for name in vars(kind) if not name.startswith("_")}
    assert public(MetricsReader) == {"read"}
    assert public(CheckpointReader) == {"saved", "best", "restore", "restore_best"}


@pytest.mark.parametrize("name", ["path", "config", "resolved"])
def test_what_a_run_was_asked_for_and_decided_is_not_assigned(view: RunView, name: str) -> None:
    for run in (view, claim(view)):
        with pytest.raises(AttributeError):
            setattr(run, name, None)


def test_reading_leaves_the_directory_as_it_was(view: RunView) -> None:
    state = lambda: {p: p.stat().st_mtime_ns for p in view.path.rglob("*")}
    before = state()
    assert view.is_done("denoiser") and view.facts("denoiser") == {"seconds": 1.0}
    assert view.log.read() == [{"stage": "denoiser", "chunk": 1, "loss": 0.5}]
    assert view.checkpoints("denoiser").saved() == [] and view.read_json("absent.json") == {}
    view.require("denoiser", "jaxpgd run")
    assert view.effective() == view.config and state() == before


def test_a_claimed_run_is_a_view_that_writes(view: RunView) -> None:
    with claim(view) as run:
        assert isinstance(run.log, MetricsLog) and isinstance(run.checkpoints("denoiser"), CheckpointStore)
        run.write_json("notes.json", {"a": 1})
    assert view.read_json("notes.json") == {"a": 1}
