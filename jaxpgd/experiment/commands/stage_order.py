"""The order of a run: prepare, train models, train agents, evaluate returns, score synthesizers, report.

Commands that train run all of it, or a part (`stages` says what each verb means).
"""

from pathlib import Path

import jax

from jaxpgd.experiment.config import Config
from jaxpgd.experiment.report.run_report import report_stage
from jaxpgd.experiment.run.directory import ClaimedRun, claim, create_run, metrics_log, releasing
from jaxpgd.experiment.run.view import RunView, open_run
from jaxpgd.experiment.stages.agent_programs import by_setting
from jaxpgd.experiment.stages.build import Models
from jaxpgd.experiment.stages.choose_coefficient import check_coefficient_choice
from jaxpgd.experiment.stages.evaluate_returns import evaluate_returns
from jaxpgd.experiment.stages.model_source import require_models
from jaxpgd.experiment.stages.prepare import Prepared, prepare, require_steps, window_coverage
from jaxpgd.experiment.stages.score_synthesizers import check_scoring, score_synthesizers
from jaxpgd.experiment.stages.train_agents import train_agents
from jaxpgd.experiment.stages.train_models import check_models, train_models
from jaxpgd.experiment.sweep import read_sweep
from jaxpgd.parallel import collectively, is_writer
from jaxpgd.types import Policy


def begin(config: Config, *, resume: bool) -> tuple[ClaimedRun, Prepared]:
    """Make or reopen the run of a config. Everything that can be wrong with the input shows here, before compute is spent."""
    prepared = collectively("preparation", lambda: _checked(config))
    log = metrics_log(config)
    if not RunView(Path(config.out), config).is_done("report"):
        log.start()
    run = create_run(config, resume=resume, log=log)
    info, count = prepared.dataset.info, len(jax.devices())
    if is_writer():
        print(f"{info.name}: {prepared.dataset.counts()}; "
              f"{prepared.windows.train.shape[0]} training windows of {prepared.windows.length} steps, which cover "
              f"{window_coverage(config, prepared, prepared.windows)}; run in {run.path} "
              f"on {f'{count} x ' if count > 1 else ''}{jax.devices()[0].device_kind}", flush=True)  # fmt: skip
    return run, prepared


def _checked(config: Config) -> Prepared:
    prepared = _prepared(config)
    read_sweep(config)
    check_models(config, prepared)
    check_coefficient_choice(config, prepared)
    check_scoring(config, prepared)
    return prepared


def reopen(path: str) -> tuple[ClaimedRun, Prepared, Models]:
    """A run whose models are trained, to go on with it. Raises InputError."""
    view = open_run(path)
    require_models(view)
    prepared = collectively("preparation", lambda: _prepared(view.config))
    run = collectively("run directory", lambda: claim(view))
    with releasing(run):
        return run, prepared, train_models(run, prepared)


def _prepared(config: Config) -> Prepared:
    prepared = prepare(config)
    require_steps(config, prepared.dataset)
    return prepared


def train_all_agents(run: ClaimedRun, prepared: Prepared, models: Models) -> dict[str, Policy]:
    """Policies [seeds] by row of the results: arm, or arm and setting where the run sweeps over some."""
    rows: dict[str, Policy] = {}
    for arm in run.config.arms:
        rows |= by_setting(run.config, arm, train_agents(run, prepared, models, arm).policy)
    return rows


def measure_and_report(run: ClaimedRun, prepared: Prepared, models: Models, policies: dict[str, Policy]) -> None:
    """Everything after training. Of several processes the first does it."""
    if not is_writer():
        return
    returns = evaluate_returns(run, prepared, policies)
    synthetic = any(arm != "real" for arm in run.config.arms)
    quality = score_synthesizers(run, prepared, models, policies) if synthetic else {}
    report_stage(run, prepared, returns, quality)
