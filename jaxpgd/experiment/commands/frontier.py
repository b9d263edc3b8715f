"""`jaxpgd frontier`: what every guidance gains in likelihood and costs in dynamics error, over coefficients and denoisers."""

import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpgd.errors import check
from jaxpgd.experiment.config import Config, check_seed
from jaxpgd.experiment.config_files import apply_values
from jaxpgd.experiment.report.figure import save
from jaxpgd.experiment.report.page import text_table
from jaxpgd.experiment.report.tradeoff_plots import frontier_figure
from jaxpgd.experiment.run.directory import make_directory, write_atomic, write_json
from jaxpgd.experiment.run.view import RunView
from jaxpgd.experiment.stages.build import build_synthesizer
from jaxpgd.experiment.stages.importance_truth import known_truth
from jaxpgd.experiment.stages.load import LoadedRun, load_run, open_trained, target_or_chosen
from jaxpgd.experiment.stages.prepare import stage_key
from jaxpgd.experiment.stages.score_trajectories import flat_tokens, real_windows, score_trajectories
from jaxpgd.guidance.kinds import GuidanceConfig
from jaxpgd.simulators.resimulation import has_simulator
from jaxpgd.synthesis.replay import resample
from jaxpgd.types import Policy, Synthesis, Synthesizer

METHODS: dict[str, dict[str, Any]] = {
    "published": {"kind": "published"},
    "reconstruction": {"kind": "reconstruction"},
    # no gradient through the policy's observation
    "reconstruction-held": {"kind": "reconstruction", "reconstruction": {"hold_states": True}},
    "moment": {"kind": "moment", "moment": {"iterations": 2}},
    "smc": {"kind": "smc", "smc": {"proposal": "reconstruction"}},
}
COEFFICIENTS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
WEIGHTS = ("ess", "ancestors", "exponent")  # of weighted populations
SHOWN = (
    "log_likelihood", "dynamics_error", "persistence_error", "of_persistence", "state_coverage", "terminal_rate",
    "forward_equivalents", *WEIGHTS,
)  # fmt: skip
DISTANCES = ("distance_to_truth", "unguided_distance_to_truth")  # where importance weights make the target known


def frontier_runs(
    paths: list[str],
    out: Path | None = None,
    *,
    policy: str = "",
    actor: str = "",
    trajectories: int = 256,
    coefficients: tuple[float, ...] = COEFFICIENTS,
    kinds: tuple[str, ...] = tuple(METHODS),
    max_dynamics_error: float = 0.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Guide the denoiser of every run by every guidance at every coefficient; write table, figure and JSON under `out`.

    The target is "ARM[:SEED]" of the first run, the actor of an npz file (`actor`), or else a built-in environment's. Runs are
    repetitions: rows are means over them, with the range. With `max_dynamics_error`, in multiples of the unguided error, the
    largest coefficient within it is named for every guidance. Raises InputError.
    """
    check_seed(seed)
    check(max_dynamics_error >= 0, "--max-dynamics-error", max_dynamics_error, "a number above 0, or 0 for none")
    check(trajectories > 1, "--trajectories", trajectories, "at least 2")
    sound = bool(coefficients) and all(0 < c < math.inf for c in coefficients)
    check(sound, "--coefficients", coefficients, "finite numbers above 0")
    unknown = [kind for kind in kinds if kind not in METHODS]
    check(not unknown, "--kinds", unknown, f"some of {', '.join(METHODS)}")
    began = time.monotonic()
    runs = [open_trained(path, denoiser=True) for path in paths]
    for run in runs:
        for section in ("data", "sampler", "guidance"):
            ours, first = getattr(run.config, section), getattr(runs[0].config, section)
            check(ours == first, section, str(run.path), f"a run with the [{section}] settings of {paths[0]}")
    directory = out or runs[0].path / "frontier"
    make_directory(directory)
    loaded = [_load(run) for run in runs]
    target, name = target_or_chosen(loaded[0], policy, actor)
    _check_smc(loaded[0], target, kinds)
    about = {"target": name, "dataset": runs[0].config.data.name, "trajectories": trajectories}
    found: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    for path, each in zip(paths, loaded, strict=True):
        for row in _cells(each, target, trajectories, coefficients, kinds, seed):
            found.append(row | {"run": path})
            print(_line(found[-1]), flush=True)
        result = about | _summary(found, max_dynamics_error) | {"seconds": time.monotonic() - began}
        text = _write(directory, result)  # after every run: what is done is not lost
    print(f"{text}\nfigure: {directory / 'frontier.png'}", flush=True)
    return result


def _check_smc(loaded: LoadedRun, target: Policy, kinds: tuple[str, ...]) -> None:
    """Raise InputError where `smc` has no weights for the target or the windows."""
    own_score, padded = target.score_fn is not None, loaded.prepared.windows.left is not None
    check(not own_score or "smc" not in kinds, "--kinds", kinds, "no smc for a policy that is followed by its own score")
    check(not padded or "smc" not in kinds, "--kinds", kinds, "no smc where data.pad_short pads windows")


def _summary(cells: list[dict[str, Any]], max_dynamics_error: float) -> dict[str, Any]:
    """What cells so far say, and of which runs they are."""
    rows = summarise_cells(cells)
    found = {"runs": list(dict.fromkeys(c["run"] for c in cells)), "cells": cells, "rows": rows, "dominated": dominated(rows)}
    return found | ({"largest": largest_coefficients(rows, max_dynamics_error)} if max_dynamics_error > 0 else {})


def _load(run: RunView) -> LoadedRun:
    loaded = load_run(run)
    info = loaded.prepared.dataset.info
    check(has_simulator(info), "env_id", info.env_id, "an environment with a simulator replay")
    return loaded


@jax.jit(static_argnames="count")
def _draw(key: Array, synthesizer: Synthesizer, policy: Policy, count: int) -> Synthesis:
    key_synthetic, key_resample = jax.random.split(key)
    synthetic = synthesizer(key_synthetic, policy, jnp.zeros((count, 1)))
    unweighted = resample(key_resample, synthetic.trajectory, synthetic.log_weight)
    return Synthesis(unweighted, jnp.zeros(count), synthetic.info)


def _cells(
    loaded: LoadedRun, policy: Policy, count: int, coefficients: tuple[float, ...], kinds: tuple[str, ...], seed: int
) -> Iterator[dict[str, Any]]:
    """A row for each guidance and coefficient of one denoiser, the unguided one first; the same noise in all."""
    _, config, prepared, models = loaded
    assert models.denoiser is not None
    key, key_score, key_truth = jax.random.split(jax.random.fold_in(stage_key(config, "frontier"), seed), 3)
    truth = known_truth(prepared.dataset, policy, sorted(coefficients), key_truth)
    held_out = np.random.default_rng(0).permutation(np.asarray(prepared.windows.validation))[:count]
    real = flat_tokens(prepared.windows, real_windows(prepared.windows, held_out))
    cells = [("unguided", 0.0), *((kind, c) for kind in kinds for c in coefficients)]
    plain = None
    for kind, coefficient in cells:
        settings = METHODS.get(kind, {"kind": "reconstruction"})
        stated = {"coefficient": coefficient, "target_ess": 0.0, "max_dynamics_error": 0.0, "smc": {"particles": count}}
        plain_sections = {"reconstruction": {"hold_states": False}, "moment": {"hold_states": False}}
        guidance = config.guidance
        for values in (stated, plain_sections, settings):
            guidance = apply_values(guidance, values, "frontier")
        synthesizer = build_synthesizer(_with(config, guidance), models, guided=coefficient > 0)
        synthetic = _draw(key, synthesizer, policy, count)
        trajectory = jax.tree.map(np.asarray, synthetic.trajectory)
        plain = trajectory if plain is None else plain
        row = score_trajectories(trajectory, policy, prepared, real, key_score)
        if truth is not None and coefficient > 0:
            row |= truth.compared(key_score, prepared.windows, trajectory, plain, coefficient)
        row["of_persistence"] = row["dynamics_error"] / row["persistence_error"] if row["persistence_error"] else float("nan")
        info = {k: float(synthetic.info[k]) for k in ("forward_equivalents", *WEIGHTS) if k in synthetic.info}
        yield {"guidance": kind, "coefficient": coefficient, **row, **info}


def _with(config: Config, guidance: GuidanceConfig) -> Config:
    """The config with this guidance; `smc` takes twice the steps: an evaluation each, as Heun's two."""
    steps = config.sampler.steps * (2 if guidance.kind == "smc" and config.sampler.kind == "heun" else 1)
    return dataclasses.replace(config, guidance=guidance, sampler=dataclasses.replace(config.sampler, steps=steps))


def _line(row: dict[str, Any]) -> str:
    cost = f"{row['forward_equivalents']:.0f} forward passes"
    values = f"log-likelihood {row['log_likelihood']:.3f}, dynamics error {row['dynamics_error']:.4f}"
    return f"{row['guidance']}, coefficient {row['coefficient']:g}: {values} ({cost})"


def summarise_cells(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean over runs of every quantity shown, and its range (`_low`, `_high`), by guidance and coefficient."""
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["guidance"], cell["coefficient"]), []).append(cell)
    rows = []
    for (guidance, coefficient), members in groups.items():
        row: dict[str, Any] = {"guidance": guidance, "coefficient": coefficient, "runs": len(members)}
        for name in (*SHOWN, *DISTANCES):
            values = [float(m[name]) for m in members if name in m]
            if values:
                row |= {name: float(np.mean(values)), f"{name}_low": min(values), f"{name}_high": max(values)}
        rows.append(row)
    return rows


def dominated(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Coefficients of each guidance at which another one has both more likelihood and less dynamics error, on the mean."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["guidance"] == "unguided":
            continue
        better = (
            other
            for other in rows
            if other["guidance"] not in ("unguided", row["guidance"])
            and other["log_likelihood"] > row["log_likelihood"]
            and other["dynamics_error"] < row["dynamics_error"]
        )
        found.setdefault(row["guidance"], [])
        finite = np.isfinite([row["log_likelihood"], row["dynamics_error"]]).all()
        if not finite or next(better, None) is not None:
            found[row["guidance"]].append(row["coefficient"])
    return found


def largest_coefficients(rows: list[dict[str, Any]], times: float) -> dict[str, float]:
    """The largest coefficient of each guidance up to which its dynamics error is within `times` the unguided one; 0: none."""
    bound = times * next(row["dynamics_error"] for row in rows if row["guidance"] == "unguided")
    found: dict[str, float] = {}
    for kind in dict.fromkeys(row["guidance"] for row in rows if row["guidance"] != "unguided"):
        found[kind] = 0.0
        for row in sorted((r for r in rows if r["guidance"] == kind), key=lambda r: r["coefficient"]):
            if not row["dynamics_error"] <= bound:  # nor where it is not a number
                break
            found[kind] = row["coefficient"]
    return found


def _write(out: Path, result: dict[str, Any]) -> str:
    """Table, figure and JSON; returns the table."""
    write_json(out / "frontier.json", result)
    save(frontier_figure(result["rows"]), out / "frontier.png")
    shown = [name for name in (*SHOWN, *DISTANCES) if any(name in row for row in result["rows"])]
    table = [{k: _cell(row, k) for k in ("guidance", "coefficient", *shown)} for row in result["rows"]]
    notes = [
        f"target: {result['target']}; {result['trajectories']} trajectories a cell, {len(result['runs'])} denoisers of "
        f"{result['dataset']}; means over them.",
        "dominated (another guidance has more likelihood and less error): "
        + ", ".join(f"{kind} at {', '.join(f'{c:g}' for c in cs) or 'none'}" for kind, cs in result["dominated"].items()),
    ]
    if "distance_to_truth" in shown:
        notes.append("distance to the truth: of each row's own coefficient, which `published` takes as a step size.")
    if "largest" in result:
        notes.append("largest coefficient: " + ", ".join(f"{k} {c:g}" for k, c in result["largest"].items()))
    text = text_table(table) + "\n" + "\n".join(notes)
    write_atomic(out / "frontier.txt", text + "\n")
    return text


def _cell(row: dict[str, Any], name: str) -> str:
    value = row.get(name, float("nan"))
    if isinstance(value, str):
        return value
    return f"{value:g}" if name in ("coefficient", "forward_equivalents") else f"{value:.4f}"
