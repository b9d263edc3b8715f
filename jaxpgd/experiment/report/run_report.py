"""The last stage: results.json, figures and report.html from what the earlier stages stored. Trains and samples nothing."""

import sys
from typing import Any

import numpy as np

from jaxpgd.experiment.config_files import to_toml
from jaxpgd.experiment.report.page import Report, text_table
from jaxpgd.experiment.report.run_figures import draw_figures
from jaxpgd.experiment.report.run_tables import health_notes, quality_row, refresh_rows, return_row, verdicts
from jaxpgd.experiment.report.words import name_of
from jaxpgd.experiment.run.directory import ClaimedRun
from jaxpgd.experiment.stages.prepare import Prepared
from jaxpgd.metrics.statistics import summarise

Row = dict[str, Any]


def report_stage(run: ClaimedRun, prepared: Prepared, returns: dict[str, Any], quality: dict[str, Any]) -> list[Row]:
    """Write everything, print the table of returns, and return its rows."""
    confidence = run.config.evaluation.confidence
    finite = {arm: _finite(r["returns"], arm) for arm, r in returns.items()}
    summaries = {arm: summarise(r, confidence=confidence) for arm, r in finite.items() if len(r)}
    rows = [return_row(arm, s, returns[arm], confidence) for arm, s in summaries.items()]
    rows += [{"arm": arm, "mean return": "all seeds diverged"} for arm in returns if arm not in summaries]
    run.write_json("results.json", {"returns": rows, "quality": quality, "dataset": prepared.dataset.info.name})
    figures = draw_figures(run, prepared, returns, summaries, quality)
    named = [row | {"arm": name_of(row["arm"])} for row in rows]
    write_report(run, prepared, named, returns, quality, figures)
    print(text_table(named))
    print(next(iter(returns.values()))["score_label"])
    for line in verdicts(quality):
        print(line)
    for line in health_notes(run):
        print(f"warning: {line}", file=sys.stderr)
    print(f"report: {run.path / 'report.html'}", flush=True)
    run.finish("report", {"figures": sorted(figures)})
    return rows


def _finite(returns: list[list[float]], arm: str) -> np.ndarray:
    """Returns [S, E] without the seeds that diverged (some return is not finite), which are named."""
    table = np.asarray(returns, np.float64)
    good = np.isfinite(table).all(axis=1)
    if not good.all():
        print(f"{arm}: seeds {np.flatnonzero(~good).tolist()} diverged; they are left out of the table")
    return table[good]


def write_report(
    run: ClaimedRun, prepared: Prepared, rows: list[Row], returns: Row, quality: Row, figures: dict[str, str]
) -> None:
    """`report.html`, self-contained: `rows` of the table of returns, and figures by file name with their captions."""
    info, config = prepared.dataset.info, run.config
    report = Report(f"jaxpgd: {info.name}, {name_of(config.agent.kind)}")
    agent, arms = name_of(config.agent.kind), ", ".join(map(name_of, config.arms))
    report.text(
        f"{prepared.dataset.counts()}. {config.agent.updates} updates of "
        f"{agent} on {arms} data; regime {name_of(config.synthesis.regime)}; "
        f"{config.evaluation.episodes} evaluation episodes per seed."
    )
    intervals = "Intervals are bootstrapped over seeds, each by its mean over episodes; with one seed, over its episodes."
    if config.seeds == 2:
        intervals += " With two seeds that is no more than their range."
    report.table("Returns", rows, f"{intervals} Scores: {next(iter(returns.values()))['score_label']}.")
    report.points([f"Not sound: {note}" for note in health_notes(run)])
    if quality:
        _add_quality(report, quality)
    if refreshes := refresh_rows(run.log.read()):
        note = "Under the policy of the time, means over seeds; by the first chunk of updates on each."
        report.table("Refreshes of the guided arm's synthetic data", refreshes, note)
    comparison = run.path / "comparison"
    if (comparison / "rollouts.png").exists():
        report.figure("Long rollouts", comparison / "rollouts.png", "By `jaxpgd compare-rollouts`.")
        report.details("Long rollouts, by step", (comparison / "rollouts.txt").read_text(encoding="utf-8-sig"))
    for name, caption in figures.items():
        report.figure(name.replace("_", " ").capitalize(), run.figure(name), caption)
    report.table("Time", _times(run))
    report.details("Configuration", to_toml(config))
    report.details("Versions", (run.path / "versions.json").read_text(encoding="utf-8-sig"))
    report.write(run.path / "report.html")


def _add_quality(report: Report, quality: Row) -> None:
    """What the trajectory metrics say, as sentences and as a table."""
    report.points(verdicts(quality))
    table = [quality_row("real, held out", quality["real"])]
    table += [quality_row(_sample_name(r["coefficient"], quality), r) for r in quality["rows"]]
    table += [quality_row(name_of(arm), r) for arm, r in quality.get("arms", {}).items()]
    report.table("Synthetic trajectories", table, f"Likelihoods are under {quality['target']}; ± one standard error.")
    if "truth" in quality:
        truth = quality["truth"]
        report.text(
            f"The truth: {truth['rollouts']} behaviour rollouts weighted by the target policy's likelihood to the power "
            f"{truth['coefficient']:g} (effective sample size {truth['effective_sample_size']:.0f}). "
            "Each row is held against the truth of its own coefficient; where too few rollouts count there is none."
        )


def _sample_name(coefficient: float, quality: Row) -> str:
    if coefficient == 0:
        return "unguided"
    return f"guided, {coefficient:g}" + (" (chosen)" if coefficient == quality["chosen"] else "")


def _times(run: ClaimedRun) -> list[Row]:
    """Seconds and steps of every stage."""
    return [
        {"stage": p.stem, **{k: v for k, v in run.facts(p.stem).items() if k in ("seconds", "steps", "resumed")}}
        for p in sorted((run.path / "stages").glob("*.json"))
        if p.stem != "report"
    ]
