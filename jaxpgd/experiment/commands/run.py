"""What each command does: open the run directory, prepare, run stages in order."""

import time
from pathlib import Path
from typing import Any

import jax

from jaxpgd.errors import check
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.report.run_report import report_stage
from jaxpgd.experiment.run.device_memory import peak_memory
from jaxpgd.experiment.run.directory import RunDirectory, claim, create_run, open_run, releasing
from jaxpgd.experiment.run.progress import clock
from jaxpgd.experiment.stages.agents import agent_stage, by_setting, returns_stage
from jaxpgd.experiment.stages.calibration import check_calibration
from jaxpgd.experiment.stages.fidelity import check_measurable
from jaxpgd.experiment.stages.models import check_models, models_stage, needs, require_models
from jaxpgd.experiment.stages.parts import Models, Prepared, prepare, require_steps, window_coverage
from jaxpgd.experiment.stages.quality import check_scoring, quality_stage
from jaxpgd.experiment.sweep import read_sweep
from jaxpgd.parallel import collectively, is_writer
from jaxpgd.types import Policy


def _open(config: Config, resume: bool) -> tuple[RunDirectory, Prepared]:
    """Everything that can be wrong with the input shows here, before the directory is made or compute is spent."""
    prepared = collectively("preparation", lambda: _prepared(config))
    planned = RunDirectory(Path(config.out), config)
    if not planned.is_done("report"):
        planned.log.start()
    run = create_run(config, resume=resume)
    run.log = planned.log
    info = prepared.dataset.info
    count = len(jax.devices())
    if is_writer():
        print(f"{info.name}: {prepared.dataset.episodes} episodes, {prepared.dataset.size} transitions; "
              f"{prepared.windows.train.shape[0]} training windows of {prepared.windows.length} steps, which cover "
              f"{window_coverage(config, prepared, prepared.windows)}; run in {run.path} "
              f"on {f'{count} x ' if count > 1 else ''}{jax.devices()[0].device_kind}", flush=True)  # fmt: skip
    return run, prepared


def _prepared(config: Config) -> Prepared:
    prepared = prepare(config)
    require_steps(config, prepared.dataset)
    read_sweep(config)
    check_models(config, prepared)
    check_calibration(config, prepared)
    if config.sampler.kind == "auto" and needs(config, "denoiser"):
        check_measurable("sampler.kind", "auto", config, prepared)
    check_scoring(config, prepared)
    return prepared


def _finish(run: RunDirectory, prepared: Prepared, models: Models, policies: dict[str, Policy]) -> None:
    if not is_writer():  # nothing that follows is divided
        return
    returns = returns_stage(run, prepared, policies)
    synthetic = any(arm != "real" for arm in run.config.arms)
    quality = quality_stage(run, prepared, models, policies) if synthetic else {}
    report_stage(run, prepared, returns, quality)


def run_all(config: Config, *, resume: bool = False) -> Path:
    """Every stage of a run; returns its directory. Stages already done are skipped. Raises InputError."""
    began = time.monotonic()
    run, prepared = _open(config, resume)
    with run:
        models = models_stage(run, prepared)
        policies = _policies(run, prepared, models)
        collectively("evaluation", lambda: _finish(run, prepared, models, policies))
    if is_writer():
        taken = peak_memory()
        memory = f", {taken / 2**30:.1f} GiB of memory at most" if taken else ""
        print(f"done in {clock(time.monotonic() - began)}{memory}", flush=True)
    return run.path


def run_denoiser(config: Config, *, resume: bool = False) -> Path:
    """The models that the arms need (denoisers, world model) alone; `run_agents` and `run_evaluation` continue."""
    run, prepared = _open(config, resume)
    with run:
        models_stage(run, prepared)
    if is_writer():
        print(f"models trained; continue with: jaxpgd train-agent {run.path}")
    return run.path


def _reopen(path: str) -> tuple[RunDirectory, Prepared, Models]:
    run = open_run(path)
    require_models(run)
    prepared = collectively("preparation", lambda: _reprepared(run.config))
    run = collectively("run directory", lambda: claim(run))
    with releasing(run):
        return run, prepared, models_stage(run, prepared)


def _reprepared(config: Config) -> Prepared:
    prepared = prepare(config)
    require_steps(config, prepared.dataset)
    return prepared


def run_agents(path: str, arm: str | None = None) -> None:
    """Train, or continue, the agents of one arm or of all."""
    run = open_run(path)
    check(arm is None or arm in run.config.arms, "--arm", arm, f"one of {', '.join(run.config.arms)}")
    run, prepared, models = _reopen(path)
    with run:
        for each in [arm] if arm else run.config.arms:
            agent_stage(run, prepared, models, each)


def run_evaluation(path: str) -> None:
    """Returns and quality of trajectories of a run whose agents are trained, then the report."""
    run = open_run(path)
    for arm in run.config.arms:
        run.require(f"agent-{arm}", f"jaxpgd train-agent {path}")
    run, prepared, models = _reopen(path)
    with run:
        _finish(run, prepared, models, _policies(run, prepared, models))


def _policies(run: RunDirectory, prepared: Prepared, models: Models) -> dict[str, Policy]:
    """Policies by row of the results: arm, or arm and setting where the run sweeps over some."""
    rows: dict[str, Policy] = {}
    for arm in run.config.arms:
        rows |= by_setting(run.config, arm, agent_stage(run, prepared, models, arm))
    return rows


def run_report(path: str) -> None:
    """Figures and report.html again, from what the run holds."""
    with claim(open_run(path)) as run:
        run.require("returns", f"jaxpgd evaluate {path}")
        quality: dict[str, Any] = run.read_json("quality.json")
        report_stage(run, prepare(run.config), run.read_json("returns.json"), quality)
