"""What a run decides by itself: written once, read from there, with the config as it was given."""

from pathlib import Path

import pytest

from jaxpgd.diffusion.solvers import SamplerConfig
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.run.directory import create_run
from jaxpgd.experiment.run.resolved import (
    BATCH_SIZE,
    COEFFICIENT,
    Decision,
    effective,
    for_device,
    read_resolved,
    with_batch_size,
    with_coefficient,
)
from jaxpgd.experiment.run.view import open_run
from jaxpgd.experiment.stages import batch_size
from jaxpgd.experiment.stages.build import Models

DECIDED = {BATCH_SIZE: Decision(64, "fits", "H100"), COEFFICIENT: Decision(0.25, "dynamics error")}


def test_effective_is_the_config_with_the_decisions() -> None:
    config = with_coefficient(Config(), 2.0)
    found = effective(config, DECIDED)
    assert found == with_coefficient(with_batch_size(config, 64), 0.25)
    assert config.guidance.coefficient == 2.0 and config.sampler.batch_size == 0
    assert effective(config, {}) == config


def test_training_takes_some_decisions_alone() -> None:
    config = with_coefficient(Config(), 2.0)
    assert effective(config, DECIDED, (BATCH_SIZE,)) == with_batch_size(config, 64)


@pytest.mark.parametrize(("asked", "expected"), [(0, 64), (16, 16), (128, 64)])
def test_a_smaller_batch_that_is_asked_for_stays(asked: int, expected: int) -> None:
    assert effective(with_batch_size(Config(), asked), DECIDED).sampler.batch_size == expected


def test_decisions_of_another_device_do_not_hold() -> None:
    assert for_device(DECIDED, "H100") == DECIDED
    assert for_device(DECIDED, "cpu") == {COEFFICIENT: DECIDED[COEFFICIENT]}


def test_decisions_are_written_and_read(tmp_path: Path) -> None:
    run = create_run(Config(out=str(tmp_path / "run")), resume=False)
    for name, decision in DECIDED.items():
        run.decide(name, decision.value, decision.why, device=decision.device)
    assert run.resolved == DECIDED == read_resolved(run.path) == open_run(run.path).resolved
    run.decide(COEFFICIENT, 0.5, "the next refresh")
    assert open_run(run.path).effective().guidance.coefficient == 0.5
    assert create_run(Config(out=str(tmp_path / "run")), resume=True).resolved == run.resolved


def test_the_batch_is_decided_once_for_a_kind_of_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create_run(Config(out=str(tmp_path / "run")), resume=False)
    sizes = iter([64, 32, 48])
    monkeypatch.setattr(batch_size, "largest_batch", lambda config, models: next(sizes))
    batch_size.decide_batch_size(run, Models())
    batch_size.decide_batch_size(run, Models())  # read, not measured again
    assert run.effective().sampler.batch_size == 64
    run.decide(BATCH_SIZE, 64, "measured elsewhere", device="another device")
    batch_size.decide_batch_size(run, Models())
    assert run.effective().sampler.batch_size == 32
    run.decide(BATCH_SIZE, 16, "no memory for 32 trajectories at once")
    batch_size.decide_batch_size(run, Models())  # 48 would fit now: what there was no memory for is not tried again
    assert run.effective().sampler.batch_size == 16


def test_a_batch_that_is_asked_for_is_no_decision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create_run(Config(out=str(tmp_path / "run"), sampler=SamplerConfig(batch_size=8)), resume=False)
    monkeypatch.setattr(batch_size, "largest_batch", lambda config, models: pytest.fail("measured"))
    batch_size.decide_batch_size(run, Models())
    assert run.resolved == {} and not (run.path / "resolved.json").exists()
