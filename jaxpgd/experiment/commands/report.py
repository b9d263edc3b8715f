"""`jaxpgd report`: figures and report.html again, from what a run holds."""

from jaxpgd.experiment.report.run_report import report_stage
from jaxpgd.experiment.run.directory import claim
from jaxpgd.experiment.run.view import open_run
from jaxpgd.experiment.stages.prepare import prepare


def run_report(path: str) -> None:
    """Write the report of a run whose returns are measured. Raises InputError."""
    with claim(open_run(path)) as run:
        run.require("returns", f"jaxpgd evaluate {path}")
        report_stage(run, prepare(run.config), run.read_json("returns.json"), run.read_json("quality.json"))
