"""`jaxpgd pareto`: number of function evaluations (NFE) against fidelity for every solver, and the cheapest that suffices.

This is how a solver is chosen: the command prints the settings that it recommends, and writes them as a TOML file.
"""

import dataclasses
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

from jaxpgd.diffusion.solvers import SOLVERS, SamplerConfig
from jaxpgd.errors import check
from jaxpgd.experiment.commands.pareto_measures import (
    GUIDED_MEASURES,
    MEASURES,
    NFE,
    REFERENCE_STEPS,
    SHOWN,
    TOLERANCE,
    Measure,
    Row,
    build,
    candidates,
    check_measurable,
    error_of,
    make_measure,
    measured,
    reference_of,
    suffices,
)
from jaxpgd.experiment.config import Config, check_seed
from jaxpgd.experiment.report.figure import save
from jaxpgd.experiment.report.page import text_table
from jaxpgd.experiment.report.tradeoff_plots import pareto_figure
from jaxpgd.experiment.run.directory import make_directory, write_atomic, write_json
from jaxpgd.experiment.stages.load import LoadedRun, load_run, open_trained, target_or_chosen
from jaxpgd.guidance.kinds import GuidanceConfig
from jaxpgd.types import Policy

RECOMMENDED = "sampler.toml"
_ALWAYS = ("kind", "steps", "sigma_min", "sigma_max")  # in the recommendation also where they are at their defaults
_TOP = ("rho",)  # and where they are not


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
    nfe: tuple[int, ...] = NFE,
    kinds: tuple[str, ...] = tuple(SOLVERS),
    trajectories: int = 256,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure every solver at every NFE; write table, figure, JSON and the recommended settings (`sampler.toml`) under `out`.

    The bar is 256 Heun steps with churn: of the run's own denoiser, or of that of another run (`reference`), whose guidance
    then counts as well. With `guided`, or a policy "ARM[:SEED]" or an actor's npz file, trajectories are guided towards it (by
    default the target of a built-in environment) by the run's guidance, or by `guidance` and `coefficient`. Recommended is the
    cheapest that suffices. Raises InputError.
    """
    check_seed(seed)
    check(trajectories > 1, "--trajectories", trajectories, "at least 2")
    check(bool(nfe) and min(nfe) > 1, "--nfe", nfe, "numbers above 1")
    unknown = [kind for kind in kinds if kind not in SOLVERS]
    check(not unknown and bool(kinds), "--kinds", unknown, f"some of {', '.join(SOLVERS)}")
    guided, named, began = guided or bool(policy or actor), guidance or coefficient, time.monotonic()
    check(guided or not named, "--guidance, --coefficient", named, "--guided, --policy or --actor too")
    own = _loaded(path, guidance, coefficient)
    target = _target(own, policy, actor) if guided else None
    other = _loaded(reference) if reference else own
    check(other.prepared.windows.dim == own.prepared.windows.dim, "--reference", reference, "a run on data of the same sizes")
    check_measurable("RUN", path, own.config, own.prepared, guided=guided)
    directory = out or own.run.path / "pareto"
    make_directory(directory)
    measure = make_measure(own.config, own.prepared, target[0] if target else None, trajectories, seed)
    bar = _bar(other, measure, guided)
    print("reference: " + _line(bar), flush=True)
    rows = []
    for row in _rows(own, measure, candidates(own.config.sampler, nfe, kinds), bar, guided):
        rows.append(row)
        so_far = {"reference": bar, "rows": rows}
        write_json(directory / "rows.json", so_far)  # what is done is not lost
    enough = [row for row in rows if row["suffices"]]
    result: dict[str, Any] = {
        "run": path, "reference_run": reference or path, "dataset": own.config.data.name, "target": target[1] if target else "",
        "guidance": _guidance(own.config) if target else "", "reference_guidance": _guidance(other.config) if target else "",
        "trajectories": trajectories, "tolerance": TOLERANCE, "reference": bar, "rows": rows,
        "chosen": min(enough, key=cost) if enough else None, "seconds": time.monotonic() - began,
    }  # fmt: skip
    text = _write(directory, result)
    print(f"{text}\nfigure: {directory / 'pareto.png'}", flush=True)
    return result


def _loaded(path: str, guidance: str = "", coefficient: float | None = None) -> LoadedRun:
    """A run with a denoiser, and with other guidance in its config where that is named."""
    loaded = load_run(open_trained(path, denoiser=True))
    return loaded._replace(config=_with_guidance(loaded.config, guidance, coefficient))


def _with_guidance(config: Config, kind: str, coefficient: float | None) -> Config:
    kinds = [name for name in get_args(get_type_hints(GuidanceConfig)["kind"]) if name != "smc"]
    check(kind in ("", *kinds), "--guidance", kind, f"one of {', '.join(kinds)}")
    check(coefficient is None or 0 < coefficient < math.inf, "--coefficient", coefficient, "a finite number above 0")
    chosen = {"kind": kind or config.guidance.kind, "coefficient": coefficient or config.guidance.coefficient}
    return dataclasses.replace(config, guidance=dataclasses.replace(config.guidance, **chosen))  # type: ignore[arg-type]


def _target(loaded: LoadedRun, policy: str, actor: str) -> tuple[Policy, str]:
    check(loaded.config.guidance.kind != "smc", "guidance.kind", "smc", "a guidance without weights")
    return target_or_chosen(loaded, policy, actor)


def _guidance(config: Config) -> str:
    return f"{config.guidance.kind} at {config.guidance.coefficient:g}"


def _bar(loaded: LoadedRun, measure: Measure, guided: bool) -> Row:
    """The row of the reference; guided also the log-likelihood that it has without guidance."""
    config, models = loaded.config, loaded.models
    sampler = reference_of(config.sampler)
    (bar,) = measured(config, models, measure, [sampler], guided)
    if guided:
        bar["unguided_log_likelihood"] = measure(build(config, models, sampler, False))["log_likelihood"]
    return bar


def _rows(loaded: LoadedRun, measure: Measure, samplers: list[SamplerConfig], bar: Row, guided: bool) -> Iterator[Row]:
    """A row for each sampler, told as it comes: its measures, and whether they suffice."""
    for i, row in enumerate(measured(loaded.config, loaded.models, measure, samplers, guided)):
        judged = row | {"suffices": suffices(row, bar)}
        print(f"{i + 1}/{len(samplers)} {_line(judged)}", flush=True)
        yield judged


def cost(row: Row) -> tuple[float, float]:
    """What the cheaper of two rows has less of: the price of a trajectory, then its error."""
    return float(row["forward_equivalents"]), error_of(row)


def recommended(row: Row) -> str:
    """The sampler of a row as TOML sections, without its batch size: what to put into a config."""
    settings, default = row["settings"], dataclasses.asdict(SamplerConfig())
    kind = settings["kind"]
    top = {k: settings[k] for k in settings if k in _ALWAYS or (k in _TOP and settings[k] != default[k])}
    own = {k: v for k, v in settings.get(kind, {}).items() if v != default[kind][k]}
    return _section("sampler", top) + (_section(f"sampler.{kind}", own) if own else "")


def _section(name: str, values: dict[str, Any]) -> str:
    return f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def _line(row: Row) -> str:
    values = ", ".join(f"{name.replace('_', ' ')} {row[name]:.4f}" for name in (*MEASURES, "log_likelihood") if name in row)
    enough = " (suffices)" if row.get("suffices") else ""
    return f"{row['solver']}, NFE {row['nfe']} in [{row['sigma_min']:g}, {row['sigma_max']:g}]: {values}{enough}"


def _write(out: Path, result: dict[str, Any]) -> str:
    """Table, figure, JSON and recommendation; returns the table."""
    write_json(out / "pareto.json", result)
    measures = GUIDED_MEASURES if result["target"] else MEASURES
    save(pareto_figure(result["rows"], result["reference"], measures), out / "pareto.png")
    rows = [result["reference"] | {"solver": "reference"}, *result["rows"]]
    shown = [name for name in SHOWN if name in result["reference"]]
    guided = f"; guided towards {result['target']} by {result['guidance']}, the reference by {result['reference_guidance']}"
    chosen = result["chosen"]
    text = "\n".join([
        text_table([_cells(row, shown) for row in rows]),
        f"{result['trajectories']} trajectories a row; reference: {REFERENCE_STEPS} Heun steps with churn of "
        f"{result['reference_run']}" + (guided if result["target"] else ""),
        f"suffices: no measure ({', '.join(measures)}) more than {TOLERANCE:.0%} above the reference's"
        + ", none of them not a number"
        + (f", log-likelihood short by at most {TOLERANCE:.0%} of what guidance gains" if result["target"] else ""),
        "cheapest that suffices: " + (_line(chosen) if chosen else "none"),
        *([f"recommended, in {out / RECOMMENDED}:", recommended(chosen).rstrip()] if chosen else []),
    ])  # fmt: skip
    write_atomic(out / "pareto.txt", text + "\n")
    if chosen:
        write_atomic(out / RECOMMENDED, recommended(chosen))
    else:
        (out / RECOMMENDED).unlink(missing_ok=True)  # of an earlier measurement
    return text


def _cells(row: Row, shown: list[str]) -> Row:
    cells = {"solver": row["solver"], "NFE": row["nfe"], "levels": f"{row['sigma_min']:g}-{row['sigma_max']:g}"}
    return cells | {name: f"{row[name]:.4f}" for name in shown} | {"suffices": "yes" if row.get("suffices") else ""}
