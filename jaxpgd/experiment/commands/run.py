"""`jaxpgd run`: all stages of a run."""

import time
from pathlib import Path

from jaxpgd.experiment.commands.stage_order import begin, measure_and_report, train_all_agents
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.run.peak_memory import peak_memory
from jaxpgd.experiment.run.progress import clock
from jaxpgd.experiment.stages.train_models import train_models
from jaxpgd.parallel import collectively, is_writer


def run_all(config: Config, *, resume: bool = False) -> Path:
    """Every stage of a run; returns its directory. Stages already done are skipped. Raises InputError."""
    began = time.monotonic()
    run, prepared = begin(config, resume=resume)
    with run:
        models = train_models(run, prepared)
        policies = train_all_agents(run, prepared, models)
        collectively("evaluation", lambda: measure_and_report(run, prepared, models, policies))
    if is_writer():
        taken = peak_memory()
        memory = f", {taken / 2**30:.1f} GiB of memory at most" if taken else ""
        print(f"done in {clock(time.monotonic() - began)}{memory}", flush=True)
    return run.path
