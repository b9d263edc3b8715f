"""`jaxpgd pareto`: denoiser evaluations against fidelity for every solver, and the cheapest that suffices."""

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any, get_args, get_type_hints

from jaxpgd.diffusion.solvers import SAMPLERS
from jaxpgd.errors import check
from jaxpgd.experiment.config import Config, check_seed
from jaxpgd.experiment.report.figure import save
from jaxpgd.experiment.report.page import text_table
from jaxpgd.experiment.report.tradeoff_plots import pareto_figure
from jaxpgd.experiment.run.directory import RunDirectory, make_directory, open_run, write_atomic
from jaxpgd.experiment.run.logs import plain
from jaxpgd.experiment.stages.agents import chosen_policy
from jaxpgd.experiment.stages.fidelity import (
    EVALUATIONS,
    GUIDED_MEASURES,
    MEASURES,
    REFERENCE_STEPS,
    SHOWN,
    STAGE,
    TOLERANCE,
    Row,
    build,
    candidates,
    check_measurable,
    error_of,
    make_measure,
    measured,
    reference_of,
    suffices,
)  # fmt: skip
from jaxpgd.experiment.stages.models import models_stage, needs, require_models
from jaxpgd.experiment.stages.parts import Prepared, known_target, prepare
from jaxpgd.guidance.kinds import GuidanceConfig
from jaxpgd.synthesis.diffusion import TrajectoryDenoiser
from jaxpgd.types import Policy


def pareto_run(
    path: str,
    out: Path | None = None,
    *,
    guided: bool = False,
    policy: str = "",
    actor: str = "",
    guidance: str = "",
    coefficient: float | None = None,
    reference: str = "",
    evaluations: tuple[int, ...] = EVALUATIONS,
    kinds: tuple[str, ...] = tuple(SAMPLERS),
    trajectories: int = 256,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure every solver at every number of evaluations; write table, figure and JSON, and name the cheapest that suffices.

    The bar is 256 Heun steps with churn: of the run's own denoiser, or of that of another run (`reference`), whose guidance
    then counts as well. With `guided`, or a policy "ARM[:SEED]" or an actor's npz file, trajectories are guided towards it (by
    default the target of a built-in environment) by the run's guidance, or by `guidance` and `coefficient`. Unguided and
    against its own denoiser, of all solvers and numbers, the choice is what `sampler.kind = "auto"` takes in this run, unless
    it has settled already. Raises InputError.
    """
    check_seed(seed)
    check(trajectories > 1, "--trajectories", trajectories, "at least 2")
    check(bool(evaluations) and min(evaluations) > 1, "--evaluations", evaluations, "numbers above 1")
    unknown = [kind for kind in kinds if kind not in SAMPLERS]
    check(not unknown and bool(kinds), "--kinds", unknown, f"some of {', '.join(SAMPLERS)}")
    run, began = open_run(path), time.monotonic()
    named = guidance or coefficient
    check(guided or bool(policy or actor) or not named, "--guidance, --coefficient", named, "--guided, --policy or --actor too")
    run.config = _with_guidance(run.config, guidance, coefficient)
    if run.config.sampler.kind == "auto":  # what is to be found out here
        run.config = dataclasses.replace(run.config, sampler=dataclasses.replace(run.config.sampler, kind="heun"))
    config, prepared, denoiser = _opened(run)
    target = _target(run, prepared, policy, actor) if guided or policy or actor else None
    other = _opened(open_run(reference)) if reference else (config, prepared, denoiser)
    check(other[1].windows.dim == prepared.windows.dim, "--reference", reference, "a run on data of the same sizes")
    check_measurable("RUN", path, config, prepared, guided=target is not None)
    directory = out or run.path / "pareto"
    make_directory(directory)
    measure = make_measure(config, prepared, target[0] if target else None, trajectories, seed)
    bar = _bar(other[0], other[2], measure, target is not None)
    print("reference: " + _line(bar), flush=True)
    samplers = candidates(config.sampler, evaluations, kinds)
    rows = []
    for row in measured(config, denoiser, measure, samplers, target is not None):
        rows.append(row | {"suffices": suffices(row, bar)})
        print(f"{len(rows)}/{len(samplers)} {_line(rows[-1])}", flush=True)
        so_far = plain({"reference": bar, "rows": rows})
        write_atomic(directory / "rows.json", json.dumps(so_far, indent=1, allow_nan=False))
    enough = [row for row in rows if row["suffices"]]
    result: dict[str, Any] = {
        "run": path, "reference_run": reference or path, "dataset": config.data.name, "target": target[1] if target else "",
        "guidance": _guidance(config) if target else "", "reference_guidance": _guidance(other[0]) if target else "",
        "trajectories": trajectories, "tolerance": TOLERANCE, "reference": bar, "rows": rows,
        "chosen": min(enough, key=cost) if enough else None, "seconds": time.monotonic() - began,
    }  # fmt: skip
    text = _write(directory, result)
    whole = tuple(evaluations) == EVALUATIONS and set(kinds) == set(SAMPLERS)
    if whole and enough and not target and not reference and not run.is_done(STAGE):
        run.finish(STAGE, result["chosen"])
    print(f"{text}\nfigure: {directory / 'pareto.png'}", flush=True)
    return result


def _with_guidance(config: Config, kind: str, coefficient: float | None) -> Config:
    kinds = [name for name in get_args(get_type_hints(GuidanceConfig)["kind"]) if name != "smc"]
    check(kind in ("", *kinds), "--guidance", kind, f"one of {', '.join(kinds)}")
    check(coefficient is None or 0 < coefficient < math.inf, "--coefficient", coefficient, "a finite number above 0")
    chosen = {"kind": kind or config.guidance.kind, "coefficient": coefficient or config.guidance.coefficient}
    return dataclasses.replace(config, guidance=dataclasses.replace(config.guidance, **chosen))  # type: ignore[arg-type]


def _opened(run: RunDirectory) -> tuple[Config, Prepared, TrajectoryDenoiser]:
    has = needs(run.config, "denoiser")
    check(has, "RUN", str(run.path), "a run with a trajectory denoiser (an arm unguided or guided)")
    require_models(run)
    prepared = prepare(run.config)
    models = models_stage(run, prepared, settle=False)
    assert models.denoiser is not None
    return run.config, prepared, models.denoiser


def _target(run: RunDirectory, prepared: Prepared, policy: str, actor: str) -> tuple[Policy, str]:
    check(run.config.guidance.kind != "smc", "guidance.kind", "smc", "a guidance without weights")
    known = known_target(prepared.dataset)
    if known is not None and not policy and not actor:
        return known, "the environment's target policy"
    models = models_stage(run, prepared, settle=False)
    return chosen_policy(run, prepared, models, policy or ("" if actor else run.config.arms[-1]), actor)


def _guidance(config: Config) -> str:
    return f"{config.guidance.kind} at {config.guidance.coefficient:g}"


def _bar(config: Config, denoiser: TrajectoryDenoiser, measure: Any, guided: bool) -> Row:
    """The row of the reference; guided also the log-likelihood that it has without guidance."""
    sampler = reference_of(config.sampler)
    (bar,) = measured(config, denoiser, measure, [sampler], guided)
    if guided:
        bar["unguided_log_likelihood"] = measure(build(config, denoiser, sampler, False))["log_likelihood"]
    return bar


def cost(row: Row) -> tuple[float, float]:
    """What the cheaper of two rows has less of: the price of a trajectory, then its error."""
    return float(row["forward_equivalents"]), error_of(row)


def _line(row: Row) -> str:
    values = ", ".join(f"{name.replace('_', ' ')} {row[name]:.4f}" for name in (*MEASURES, "log_likelihood") if name in row)
    enough = " (suffices)" if row.get("suffices") else ""
    return (
        f"{row['solver']}, {row['evaluations']} evaluations of [{row['sigma_min']:g}, {row['sigma_max']:g}]: {values}{enough}"
    )


def _write(out: Path, result: dict[str, Any]) -> str:
    """Table, figure and JSON; returns the table."""
    write_atomic(out / "pareto.json", json.dumps(plain(result), indent=1, allow_nan=False))
    measures = GUIDED_MEASURES if result["target"] else MEASURES
    save(pareto_figure(result["rows"], result["reference"], measures), out / "pareto.png")
    rows = [result["reference"] | {"solver": "reference"}, *result["rows"]]
    shown = [name for name in SHOWN if name in result["reference"]]
    guided = f"; guided towards {result['target']} by {result['guidance']}, the reference by {result['reference_guidance']}"
    text = "\n".join([
        text_table([_cells(row, shown) for row in rows]),
        f"{result['trajectories']} trajectories a row; reference: {REFERENCE_STEPS} Heun steps with churn of "
        f"{result['reference_run']}" + (guided if result["target"] else ""),
        f"suffices: no measure ({', '.join(measures)}) more than {TOLERANCE:.0%} above the reference's"
        + ", none of them not a number"
        + (f", log-likelihood short by at most {TOLERANCE:.0%} of what guidance gains" if result["target"] else ""),
        "cheapest that suffices: " + (_line(result["chosen"]) if result["chosen"] else "none"),
    ])  # fmt: skip
    write_atomic(out / "pareto.txt", text + "\n")
    return text


def _cells(row: Row, shown: list[str]) -> Row:
    cells = {"solver": row["solver"], "evaluations": row["evaluations"], "levels": f"{row['sigma_min']:g}-{row['sigma_max']:g}"}
    return cells | {name: f"{row[name]:.4f}" for name in shown} | {"suffices": "yes" if row.get("suffices") else ""}
