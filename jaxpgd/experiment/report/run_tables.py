"""Tables and sentences of a run's report, from what its stages stored."""

from functools import partial
from typing import Any

import numpy as np

from jaxpgd.experiment.report.words import name_of
from jaxpgd.experiment.run.view import RunView
from jaxpgd.experiment.stages.score_trajectories import OPEN_LOOP_STEPS
from jaxpgd.experiment.sweep import read_sweep
from jaxpgd.metrics.statistics import Summary
from jaxpgd.training.health import name_seeds

Row = dict[str, Any]


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
        ("dynamics_error_median", "median"),
        ("persistence_error", "persistence"),
        *((f"open_loop_error_{k}", f"open-loop error, {k} steps") for k in OPEN_LOOP_STEPS),
        ("reward_error", "reward error"),
        ("sliced_wasserstein_1", "sliced W1 to held-out windows"),
        ("sliced_wasserstein_2", "sliced W2 to held-out windows"),
        ("coverage", "coverage"),
        ("state_coverage", "coverage of states"),
        ("density", "density"),
        ("classifier_accuracy", "accuracy of a classifier against real"),
        ("terminal_rate", "ending in a terminal"),
        ("truncated_rate", "cut where the ensemble disagrees"),
        ("valid_steps", "valid steps"),
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


def rows_by_coefficient(quality: Row) -> tuple[Row, Row]:
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
    if "correction" in quality:
        lines.append(correction_verdict(quality["correction"], rows_by_coefficient(quality)[0]))
    if "innovations" in quality:
        lines.append(_innovations_verdict(quality["innovations"]))
    for arm, row in quality.get("arms", {}).items():
        if "dynamics_error" in row:
            lines.append(
                f"{name_of(arm)}: one-step dynamics error {row['dynamics_error']:.4f} "
                f"({_share(row['dynamics_error'], row['persistence_error'])} of persistence), action log-likelihood under "
                f"{quality['target']} {row['log_likelihood']:.3f}"
            )
    return lines


def correction_verdict(correction: Row, unguided: Row) -> str:
    """What dynamics-consistent denoising changes of unguided trajectories of the same noise."""
    told, without = [], correction["without"]
    for key, name in (("dynamics_error", "one-step dynamics error"), ("reward_error", "reward error")):
        if key in without:
            told.append(f"{name} {without[key]:.4f} -> {unguided[key]:.4f}")
    changed = f", unguided: {', '.join(told)}" if told else ""
    return f"dynamics-consistent denoising at {correction['corrected']} of {correction['levels']} noise levels{changed}"


def _innovations_verdict(row: Row) -> str:
    """How far innovations are from what DyDiff takes them to be: independent of the state."""
    told = (
        f"DyDiff's innovations: the state explains up to {max(row['explained']):.3f} of them and up to "
        f"{max(row['explained_square']):.3f} of their squares (R^2 on held-out transitions, by entry of the action; at 0 or "
        "below no dependence on states is seen)"
    )
    return told + (f"; {row['anchors_clipped']:.2%} of the anchors were clipped" if "anchors_clipped" in row else "")


def _share(value: float, total: float) -> str:
    """A share as text; there is none where nothing moves in the data."""
    return f"{value / total:.2f}" if total else "no share"


def _guidance_verdicts(quality: Row) -> list[str]:
    unguided, guided = rows_by_coefficient(quality)
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


def health_notes(run: RunView) -> list[str]:
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


def refresh_rows(log: list[Row]) -> list[Row]:
    """One row per refresh of the guided arm's synthetic data, means over healthy seeds: what `metrics.jsonl` says of it."""
    shown: list[Row] = []
    for row in log:
        if row["stage"] != "agent-guided" or "synthetic_coefficient" not in row:
            continue
        mean = lambda name, row=row: _healthy_mean(row[f"synthetic_{name}"])
        found: Row = {"coefficient": mean("coefficient"), "effective sample size": mean("ess")}
        if "synthetic_log_likelihood" in row:
            found["log-likelihood of the dataset's actions"] = mean("data_log_likelihood")
            found["of the synthetic actions"] = mean("log_likelihood")
        found["actions at their bounds"] = mean("clipped_actions")
        if not shown or str(found) != str({k: v for k, v in shown[-1].items() if k in found}):  # as text NaN equals NaN
            shown.append({"updates": row["step"], **found})  # chunks without a refresh repeat the last one
    return shown


def _healthy_mean(seeds: list[float]) -> float:
    values = np.asarray(seeds, np.float64)
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")
