"""`jaxpgd evaluate`: returns and quality of trajectories of a run whose agents are trained, then its report."""

from jaxpgd.experiment.commands.stage_order import measure_and_report, reopen, train_all_agents
from jaxpgd.experiment.run.view import open_run


def run_evaluation(path: str) -> None:
    """Measure what a run has trained, and report it. Raises InputError."""
    view = open_run(path)
    for arm in view.config.arms:
        view.require(f"agent-{arm}", f"jaxpgd train-agent {path}")
    run, prepared, models = reopen(path)
    with run:
        measure_and_report(run, prepared, models, train_all_agents(run, prepared, models))
