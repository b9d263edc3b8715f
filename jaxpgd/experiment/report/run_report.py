"""The last stage: results.json, figures and report.html from what the earlier stages stored. Trains and samples nothing."""

import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from jaxpgd.envs.point2d import BEHAVIOUR_GOAL, TARGET_GOAL
from jaxpgd.experiment.config_files import to_toml
from jaxpgd.experiment.report import plots
from jaxpgd.experiment.report.figure import save
from jaxpgd.experiment.report.page import Report, text_table
from jaxpgd.experiment.run.directory import RunDirectory
from jaxpgd.experiment.stages.parts import Prepared
from jaxpgd.experiment.sweep import read_sweep
from jaxpgd.metrics.statistics import Summary, summarise
from jaxpgd.simulators.environments import is_builtin
from jaxpgd.training.health import name_seeds
from jaxpgd.types import Trajectory

Row = dict[str, Any]


def report_stage(run: RunDirectory, prepared: Prepared, returns: dict[str, Any], quality: dict[str, Any]) -> list[Row]:
    """Write everything, print the table of returns, and return its rows."""
    confidence = run.config.evaluation.confidence
    finite = {arm: _finite(r["returns"], arm) for arm, r in returns.items()}
    summaries = {arm: summarise(r, confidence=confidence) for arm, r in finite.items() if len(r)}
    rows = [return_row(arm, s, returns[arm], confidence) for arm, s in summaries.items()]
    rows += [{"arm": arm, "mean return": "all seeds diverged"} for arm in returns if arm not in summaries]
    run.write_json("results.json", {"returns": rows, "quality": quality, "dataset": prepared.dataset.info.name})
    figures = draw_figures(run, prepared, returns, summaries, quality)
    write_report(run, prepared, rows, returns, quality, figures)
    print(text_table(rows))
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


def return_row(arm: str, summary: Summary, result: dict[str, Any], confidence: float) -> Row:
    """One row of the table: an arm's mean and IQM return with their intervals."""
    percent = f"{100 * confidence:g} %"
    row = {
        "arm": arm,
        "mean return": summary.mean,
        f"{percent} interval": _bounds(summary.mean_low, summary.mean_high),
        "IQM return": summary.iqm,
        f"{percent} interval (IQM)": _bounds(summary.iqm_low, summary.iqm_high),
        "seeds": summary.seeds,
        "episodes per seed": summary.episodes,
    }
    if result.get("score") is not None:
        row[result.get("score_column", "normalised score")] = float(np.nanmean(np.asarray(result["score"], np.float64)))
    return row


def _bounds(low: float, high: float) -> str:
    """An interval as text; what stands there where a single score has none."""
    return f"[{low:.4g}, {high:.4g}]" if low == low else "none: one score"


def quality_row(name: str, row: Row) -> Row:
    """One row of the table of trajectory quality."""
    shown: Row = {"trajectories": name, "log-likelihood per action": _with_error(row, "log_likelihood")}
    for key, title in (
        ("behaviour_log_likelihood", "under the behaviour policy"),
        ("dynamics_error", "dynamics error"),
        ("persistence_error", "persistence"),
        ("reward_error", "reward error"),
        ("sliced_wasserstein_1", "sliced W1 to held-out windows"),
        ("sliced_wasserstein_2", "sliced W2 to held-out windows"),
        ("coverage", "coverage"),
        ("state_coverage", "coverage of states"),
        ("density", "density"),
        ("terminal_rate", "ending in a terminal"),
        ("saturated_actions", "actions at their bounds"),
    ):
        if key in row:
            shown[title] = _with_error(row, key) if f"{key}_se" in row else row[key]
    if "unguided_distance_to_truth" in row:
        title = "distance to the weighted truth of its coefficient (of unguided samples)"
        shown[title] = f"{row['distance_to_truth']:.3f} ({row['unguided_distance_to_truth']:.3f})"
    return shown


def _with_error(row: Row, key: str) -> str:
    return f"{row[key]:.3f} ± {row[key + '_se']:.3f}"


def _rows_by_coefficient(quality: Row) -> tuple[Row, Row]:
    """The unguided row and that of the chosen coefficient."""
    rows = {row["coefficient"]: row for row in quality["rows"]}
    return rows[0.0], rows[quality["chosen"]]


def verdicts(quality: Row) -> list[str]:
    """What the trajectory metrics say, in sentences with their numbers."""
    if not quality:
        return []
    lines = [] if not quality["rows"] else _guidance_verdicts(quality)
    if "dynamics_error" not in quality["real"]:
        lines.append("no dynamics error: no simulator replays this environment")
    for arm, row in quality.get("arms", {}).items():
        if "dynamics_error" in row:
            lines.append(
                f"{arm}: one-step dynamics error {row['dynamics_error']:.4f} "
                f"({_share(row['dynamics_error'], row['persistence_error'])} of persistence), action log-likelihood under "
                f"{quality['target']} {row['log_likelihood']:.3f}"
            )
    return lines


def _share(value: float, whole: float) -> str:
    """Where nothing moves in the data, and so nothing is made that does, there is none."""
    return f"{value / whole:.2f}" if whole else "no share"


def _guidance_verdicts(quality: Row) -> list[str]:
    unguided, guided = _rows_by_coefficient(quality)
    gain = guided["log_likelihood"] - unguided["log_likelihood"]
    error = float(np.hypot(guided["log_likelihood_se"], unguided["log_likelihood_se"]))
    lines = [
        f"guidance at coefficient {quality['chosen']:g} towards {quality['target']}: action log-likelihood "
        f"{unguided['log_likelihood']:.3f} -> {guided['log_likelihood']:.3f} ({gain / max(error, 1e-12):+.1f} standard errors)"
    ]
    if "dynamics_error" in guided:
        lines.append(
            f"one-step dynamics error: unguided {unguided['dynamics_error']:.4f} "
            f"({_share(unguided['dynamics_error'], unguided['persistence_error'])} of persistence), guided "
            f"{guided['dynamics_error']:.4f} ({_share(guided['dynamics_error'], unguided['dynamics_error'])} of unguided)"
        )
    if "distance_to_truth" in unguided:
        coefficient = quality["truth"]["coefficient"]
        compared = next(row for row in quality["rows"] if row["coefficient"] == coefficient)
        lines.append(
            f"distance to the importance-weighted truth for coefficient {coefficient:g}: "
            f"unguided {unguided['distance_to_truth']:.4f}, guided {compared['distance_to_truth']:.4f}"
        )
    for order in (1, 2):
        key = f"sliced_wasserstein_{order}"
        if key in unguided:
            among = _among_real(quality["reference"], key)
            lines.append(f"sliced W{order} distance to held-out windows: unguided {unguided[key]:.4f} ({among})")
    lines.append(
        f"trajectories ending in a terminal: unguided {100 * unguided['terminal_rate']:.2f} %, "
        f"training windows {100 * quality['training_terminal_rate']:.2f} %"
    )
    return lines


def _among_real(reference: dict[str, Any], key: str) -> str:
    """How far real windows are from each other."""
    if not reference["windows"]:
        return "nothing to compare with: one training window"
    halves, held_out = (reference[name][key] for name in ("halves", "held_out"))
    return f"two halves of {reference['windows']} real windows each {halves:.4f}, training windows {held_out:.4f}"


def load_samples(run: RunDirectory) -> dict[str, Trajectory]:
    """The trajectories that the quality stage stored, by name."""
    path = run.path / "samples.npz"
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as stored:
        names = [k.removesuffix("_action") for k in stored.files if k.endswith("_action")]
        return {
            n: Trajectory(
                obs=stored[f"{n}_obs"], action=stored[f"{n}_action"], reward=stored[f"{n}_reward"],
                discount=stored[f"{n}_discount"],
                mask=stored[f"{n}_mask"] if f"{n}_mask" in stored else jnp.ones(stored[f"{n}_reward"].shape, bool),
                last_obs=stored[f"{n}_last_obs"] if f"{n}_last_obs" in stored else None,
            )
            for n in names
        }  # fmt: skip


def draw_figures(
    run: RunDirectory, prepared: Prepared, returns: Row, summaries: dict[str, Summary], quality: Row
) -> dict[str, str]:
    """Draw and save what the run has data for; file name -> caption."""
    figures: dict[str, str] = {}

    def keep(name: str, caption: str, draw: Callable[[], Figure]) -> None:
        save(draw(), run.figure(name))
        figures[name] = caption

    samples = load_samples(run)
    if samples and quality:
        keep("trajectories", _trajectory_caption(quality), lambda: _trajectories(prepared, samples))
    scores = {arm: np.asarray(returns[arm]["returns"]) for arm in summaries}
    if summaries:
        keep("returns", "Final returns: mean and interquartile mean with bootstrap intervals; dots are seeds.",
             lambda: plots.returns_figure(summaries, scores))  # fmt: skip
    if quality and quality["rows"] and "dynamics_error" in quality["rows"][0]:
        unguided, _ = _rows_by_coefficient(quality)
        level, chosen = unguided["persistence_error"], quality["chosen"]
        keep("sweep", f"Guidance towards {quality['target']}, over its coefficient.",
             lambda: plots.sweep_figure(quality["rows"], persistence=level, chosen=chosen))  # fmt: skip
    if quality and "profile" in quality:
        keep("guidance_strength", f"Size of guidance and of the score by noise level, coefficient {quality['chosen']:g}.",
             lambda: plots.guidance_strength_figure(quality["profile"]))  # fmt: skip
    curves = _dynamics_curves(quality)
    if curves:
        keep("dynamics", "One-step dynamics error by step of the trajectory.", lambda: plots.dynamics_by_step_figure(curves))
    log = run.log.read()
    for stage in ("denoiser", "state-denoiser"):
        losses = _losses(log, stage)
        if losses:
            caption = f"EDM loss of the {stage}: training, and held-out episodes with averaged weights."
            keep(f"{stage.replace('-', '_')}_loss", caption, partial(plots.loss_curves, losses))
    learned = _learning_curves(log)
    if learned:
        keep("learning", "Returns during training.", lambda: plots.learning_curves(learned))
    return figures


def _losses(log: list[Row], stage: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rows = [r for r in log if r["stage"] == stage]
    if len(rows) < 2:
        return {}
    steps = np.asarray([r["step"] for r in rows])
    return {k: (steps, np.asarray([r[k] for r in rows])) for k in ("loss", "validation_loss")}


def _trajectories(prepared: Prepared, samples: dict[str, Trajectory]) -> Figure:
    chosen: dict[str, Trajectory] = samples
    if not is_builtin(prepared.dataset.info):
        return plots.trajectories_figure(chosen, coordinates=None, title="States in the plane of two principal components")
    goals = {"behaviour goal": BEHAVIOUR_GOAL, "target goal": TARGET_GOAL}
    return plots.trajectories_figure(chosen, goals, title="Trajectories in the plane")


def _dynamics_curves(quality: Row) -> dict[str, np.ndarray]:
    if not quality or "dynamics_error" not in quality["real"]:
        return {}
    rows = {"real": quality["real"]}
    if quality["rows"]:
        rows["unguided"], rows["guided"] = _rows_by_coefficient(quality)
    rows |= quality.get("arms", {})
    return {n: np.asarray(r["dynamics_error_by_step"], np.float64) for n, r in rows.items()}


def _trajectory_caption(quality: Row) -> str:
    parts = ["Held-out real windows"]
    if quality["rows"]:
        parts += ["unguided samples", f"samples guided at coefficient {quality['chosen']:g}"]
    parts += [f"{arm} rollouts" for arm in quality.get("arms", {})]
    return f"{', '.join(parts)}. The target policy: {quality['target']}."


def _learning_curves(log: list[Row]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    curves = {}
    for stage in dict.fromkeys(r["stage"] for r in log):
        rows = [r for r in log if r["stage"] == stage and "returns" in r]
        if len(rows) > 1:
            points = np.asarray([r["step"] for r in rows]), np.asarray([r["returns"] for r in rows])
            curves[re.sub("^agent-", "", stage)] = points
    return curves


def write_report(
    run: RunDirectory, prepared: Prepared, rows: list[Row], returns: Row, quality: Row, figures: dict[str, str]
) -> None:
    """`report.html`, self-contained."""
    info, config = prepared.dataset.info, run.config
    report = Report(f"jaxpgd: {info.name}, {config.agent.kind}")
    report.text(
        f"{prepared.dataset.episodes} episodes, {prepared.dataset.size} transitions. {config.agent.updates} updates of "
        f"{config.agent.kind} on {', '.join(config.arms)} data; regime {config.synthesis.regime}; "
        f"{config.evaluation.episodes} evaluation episodes per seed."
    )
    label = next(iter(returns.values()))["score_label"]
    intervals = "Intervals are bootstrapped over seeds, each by its mean over episodes; with one seed, over its episodes."
    if config.seeds == 2:
        intervals += " With two seeds that is no more than their range."
    report.table("Returns", rows, f"{intervals} Scores: {label}.")
    if notes := health_notes(run):
        report.text("\n\n".join(f"Not sound: {note}" for note in notes))
    if quality:
        report.text("\n\n".join(verdicts(quality)))
        table = [quality_row("real, held out", quality["real"])]
        table += [quality_row(_name(r["coefficient"], quality), r) for r in quality["rows"]]
        table += [quality_row(arm, r) for arm, r in quality.get("arms", {}).items()]
        report.table("Synthetic trajectories", table, f"Likelihoods are under {quality['target']}; ± one standard error.")
        if "truth" in quality:
            truth = quality["truth"]
            report.text(
                f"The truth: {truth['rollouts']} behaviour rollouts weighted by the target policy's likelihood to the power "
                f"{truth['coefficient']:g} (effective sample size {truth['effective_sample_size']:.0f}). "
                "Each row is held against the truth of its own coefficient; where too few rollouts count there is none."
            )
    made = generation_rows(run.log.read())
    if made:
        report.table(
            "Generations of the guided arm",
            made,
            "Under the policy of the time, means over seeds; by the first chunk of updates on each.",
        )
    comparison = run.path / "comparison"
    if (comparison / "rollouts.png").exists():
        report.figure("Long rollouts", comparison / "rollouts.png", "By `jaxpgd compare-rollouts`.")
        report.details("Long rollouts, by step", (comparison / "rollouts.txt").read_text(encoding="utf-8-sig"))
    for name, caption in figures.items():
        report.figure(name.replace("_", " ").capitalize(), run.figure(name), caption)
    seconds = [
        {"stage": p.stem, **{k: v for k, v in run.facts(p.stem).items() if k in ("seconds", "steps", "resumed")}}
        for p in sorted((run.path / "stages").glob("*.json"))
        if p.stem != "report"
    ]
    report.table("Time", seconds)
    report.details("Configuration", to_toml(config))
    report.details("Versions", (run.path / "versions.json").read_text(encoding="utf-8-sig"))
    report.write(run.path / "report.html")


def health_notes(run: RunDirectory) -> list[str]:
    """What went wrong on the way, a line for each: updates left out, critics that diverged, seeds that were lost."""
    notes = []
    for path in sorted((run.path / "stages").glob("*.json")):
        facts, of = run.facts(path.stem), f"stage {path.stem!r}"
        counts = {i: n for i, n in enumerate(facts.get("skipped_updates", [])) if n}
        arm = path.stem.removeprefix("agent-")
        seeds, agents = run.config.seeds, arm in run.config.arms
        named = partial(name_seeds, seeds=seeds, count=seeds * len(read_sweep(run.config, arm).settings) if agents else 0)
        if counts:
            which = ", ".join(f"{named([i])}: {n}" if agents else str(n) for i, n in counts.items())
            notes.append(f"{of} left out updates that were not finite: {which}.")
        if facts.get("diverging_critics"):
            notes.append(f"{of}: the critic diverged, {named(facts['diverging_critics'])}.")
        if facts.get("lost_seeds"):
            notes.append(f"{of} went on without {named(facts['lost_seeds'])}, whose numbers were not finite.")
        if "overcame" in facts:
            notes.append(f"{of} had stopped before, and went on with other settings of health: {facts['overcame']}.")
    return notes


def generation_rows(log: list[Row]) -> list[Row]:
    """One row per generation of a run's guided arm, means over healthy seeds: what `metrics.jsonl` says of it."""
    shown: list[Row] = []
    for row in log:
        if row["stage"] != "agent-guided" or "synthetic_coefficient" not in row:
            continue
        mean = lambda name, row=row: _healthy_mean(row[f"synthetic_{name}"])
        found: Row = {"coefficient": mean("coefficient"), "effective sample size": mean("ess")}
        if "synthetic_log_likelihood" in row:
            found["log-likelihood of the dataset's actions"] = mean("data_log_likelihood")
            found["of those made"] = mean("log_likelihood")
        found["actions at their bounds"] = mean("clipped_actions")
        if not shown or str(found) != str({k: v for k, v in shown[-1].items() if k in found}):  # as text NaN equals NaN
            shown.append({"updates": row["step"], **found})  # chunks without a refresh repeat their generation
    return shown


def _healthy_mean(seeds: list[float]) -> float:
    values = np.asarray(seeds, np.float64)
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")


def _name(coefficient: float, quality: Row) -> str:
    if coefficient == 0:
        return "unguided"
    return f"guided, {coefficient:g}" + (" (chosen)" if coefficient == quality["chosen"] else "")
