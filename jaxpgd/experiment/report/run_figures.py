"""The figures of a run: which of them it has data for, drawn under its directory."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from jaxpgd.envs.point2d import BEHAVIOUR_GOAL, TARGET_GOAL
from jaxpgd.experiment.report import plots
from jaxpgd.experiment.report.figure import save
from jaxpgd.experiment.report.run_tables import rows_by_coefficient
from jaxpgd.experiment.report.words import name_of
from jaxpgd.experiment.run.directory import ClaimedRun
from jaxpgd.experiment.run.view import RunView
from jaxpgd.experiment.stages.prepare import Prepared
from jaxpgd.metrics.statistics import Summary
from jaxpgd.simulators.environments import is_builtin
from jaxpgd.types import Trajectory

Row = dict[str, Any]


def load_samples(run: RunView) -> dict[str, Trajectory]:
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
    run: ClaimedRun, prepared: Prepared, returns: Row, summaries: dict[str, Summary], quality: Row
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
        unguided, _ = rows_by_coefficient(quality)
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
    if not is_builtin(prepared.dataset.info):
        return plots.trajectories_figure(samples, coordinates=None, title="States in the plane of two principal components")
    goals = {"behaviour goal": BEHAVIOUR_GOAL, "target goal": TARGET_GOAL}
    return plots.trajectories_figure(samples, goals, title="Trajectories in the plane")


def _dynamics_curves(quality: Row) -> dict[str, np.ndarray]:
    if not quality or "dynamics_error" not in quality["real"]:
        return {}
    rows = {"real": quality["real"]}
    if quality["rows"]:
        rows["unguided"], rows["guided"] = rows_by_coefficient(quality)
    rows |= quality.get("arms", {})
    return {n: np.asarray(r["dynamics_error_by_step"], np.float64) for n, r in rows.items()}


def _trajectory_caption(quality: Row) -> str:
    parts = ["Held-out real windows"]
    if quality["rows"]:
        parts += ["unguided samples", f"samples guided at coefficient {quality['chosen']:g}"]
    parts += [f"{name_of(arm)} rollouts" for arm in quality.get("arms", {})]
    return f"{', '.join(parts)}. The target policy: {quality['target']}."


def _learning_curves(log: list[Row]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    curves = {}
    for stage in dict.fromkeys(r["stage"] for r in log):
        rows = [r for r in log if r["stage"] == stage and "returns" in r]
        if len(rows) > 1:
            points = np.asarray([r["step"] for r in rows]), np.asarray([r["returns"] for r in rows])
            curves[re.sub("^agent-", "", stage)] = points
    return curves
