"""`jaxpgd train-agent`: the agents of a run whose models are trained."""

from jaxpgd.errors import check
from jaxpgd.experiment.commands.stage_order import reopen
from jaxpgd.experiment.run.view import open_run
from jaxpgd.experiment.stages.train_agents import train_agents


def run_agents(path: str, arm: str | None = None) -> None:
    """Train, or continue, the agents of one arm or of all. Raises InputError."""
    view = open_run(path)
    check(arm is None or arm in view.config.arms, "--arm", arm, f"one of {', '.join(view.config.arms)}")
    run, prepared, models = reopen(path)
    with run:
        for each in [arm] if arm else run.config.arms:
            train_agents(run, prepared, models, each)
