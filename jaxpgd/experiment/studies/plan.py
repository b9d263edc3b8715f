"""A study as its TOML file says it: axes, the product of which are cells, each a config with what is measured of it."""

import dataclasses
import itertools
import shlex
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from jaxpgd.errors import InputError, check
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.config_files import apply_values, load_config, preset_of, with_preset
from jaxpgd.experiment.precision import STATED
from jaxpgd.experiment.studies.cell import (
    COLUMNS,
    MEASURED,
    STEP_COLUMNS,
    Cell,
    MeasureConfig,
    Target,
    conditioned,
    measured_configs,
)
from jaxpgd.experiment.studies.identity import short_hash
from jaxpgd.experiment.studies.spec import METHOD, UNIT, Comparison, Drawing, Table, read_specs
from jaxpgd.experiment.studies.tables import dotted, get_nested, merge
from jaxpgd.experiment.used_settings import check_used, unused
from jaxpgd.experiment.validation import validate
from jaxpgd.options import names_of

RESERVED = ("cell", "episode", "step", METHOD, "scale")  # of all rows; columns that a study's cells measure come on top


@dataclasses.dataclass(frozen=True)
class Budget:
    """`[budget]`: how `--minutes` is divided. Lengths of training follow from it and from rates measured before the study.

    They stay at or below `agent.updates` and `denoiser.steps` of the study.
    """

    denoiser: float = 0.4  # least share of the training time that the denoiser gets
    reserve: float = 0.25  # share of all time for the rest: world model, target policies, evaluation, scores, report


@dataclasses.dataclass(frozen=True)
class Study:
    """A study that is ready to run: every cell's settings have been checked."""

    name: str
    toml: str  # the file's text
    scale: str
    title: str
    text: str  # what it asks, and what it differs in from the figure or table it follows
    axes: Mapping[str, tuple[str, ...]]  # labels of each axis
    cells: tuple[Cell, ...]
    part: str  # of its folder's name, where it is less or other than the whole study: a hash that tells it apart
    figures: tuple[Drawing, ...]
    tables: tuple[Table, ...]
    comparisons: tuple[Comparison, ...]
    joint: bool = False  # agents of cells that differ in their source of data alone are trained as one program
    budget: Budget | None = None
    plan: str = ""  # the lengths that `--minutes` chose, in words
    command: str = ""  # that measures these cells


def shipped() -> dict[str, Traversable]:
    """The studies that come with the package, by name."""
    found = (p for p in resources.files("jaxpgd.experiment.studies").iterdir() if p.name.endswith(".toml"))
    return {p.name.removesuffix(".toml"): p for p in sorted(found, key=lambda p: p.name)}


def study_text(name: str) -> str:
    """The TOML text of a shipped study, or of the file of that path. Raises InputError."""
    if name in shipped():
        return shipped()[name].read_text(encoding="utf-8-sig")
    check(name.endswith(".toml"), "study", name, f"one of {', '.join(shipped())}, or the path of a .toml file")
    try:
        return Path(name).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"study = {name!r}: expected a readable TOML file ({error}).") from error


def load_study(
    name: str, scale: str = "", *, only: Mapping[str, tuple[str, ...]] | None = None, overrides: dict[str, Any] | None = None
) -> Study:
    """Read a study, at one of its scales (default: its first), with all cells checked.

    `only` keeps some labels of axes, `overrides` are settings that apply to every cell on top. Raises InputError.
    """
    raw = _parse(name, toml := study_text(name))
    scales = raw.pop("scale", {})
    for label, values in {"": scales, **(scales if isinstance(scales, Mapping) else {})}.items():
        check(isinstance(values, Mapping), f"{name}: scale{label and '.'}{label}", values, "a table")
    chosen = scale or next(iter(scales), "")
    expected = f"one of {', '.join(scales)}" if scales else "not to be given: this study has no scales"
    check(chosen in scales or not chosen, "--scale", chosen, expected)
    for table in _extended(scales, chosen, name):
        raw = merge(raw, table)
    known = ("title", "text", "measure", "target", "base", "axes", "figures", "tables", "comparisons", "joint", "budget")
    for key in raw:
        check(key in known, f"{name}: key", key, f"one of {', '.join((*known, 'scale'))}")
    for key in ("title", "axes"):
        check(key in raw, f"{name}: {key}", None, "to be given")
    _check_form(raw, name)
    values = _columns(raw)
    reserved = (*RESERVED, *sorted({*values["rows"], *values["steps"]}))
    for axis in raw["axes"]:
        check(axis not in reserved, f"{name}: axes", axis, f"another name than {', '.join(reserved)}, which rows have")
    axes = {axis: _kept(axis, values, (only or {}).get(axis)) for axis, values in raw["axes"].items()}
    for axis in only or {}:
        check(axis in axes, "--only", axis, f"an axis: {', '.join(axes)}")
    varied = {setting for values in axes.values() for label in values.values() for setting in dotted(label)}
    remedy = "Use --only to choose among an axis' labels, or change the study's file."
    for setting in dotted(overrides or {}):
        value = get_nested(overrides or {}, setting)
        check(setting not in varied, f"--{setting}", value, "a setting that no axis of the study varies", remedy)
    sweep = (overrides or {}).get("sweep")
    check(not sweep, "--sweep", sweep, "no sweep: what a study varies are its axes", remedy)
    cells = tuple(_cells(raw, axes, name, overrides or {}))
    if not only:
        _check_used(cells, [raw, *(each for label in axes.values() for each in label.values())], f"{name}: ")
    _check_used(cells, [{"base": overrides or {}}], "--")
    if overrides and not raw.get("joint"):  # whose cells differ in their source alone
        cells = tuple(_with_effect(cells, raw, axes, name, overrides))
    labels = {axis: tuple(values) for axis, values in axes.items()}
    stem = Path(name).stem
    check(name in shipped() or stem not in shipped(), "study", name, "a file whose name is not that of a shipped study")
    part = short_hash([[*cell.labels.values(), cell.key] for cell in cells]) if only or overrides else ""
    every_axis = raw["axes"] | ({METHOD: {}} if "state_error" in values["steps"] else {})
    return Study(
        stem, toml, chosen, raw["title"], raw.get("text", ""), labels, cells, part,
        figures=read_specs(Drawing, raw.get("figures", []), labels, every_axis, values, name),
        tables=read_specs(Table, raw.get("tables", []), labels, every_axis, values, name),
        comparisons=read_specs(Comparison, raw.get("comparisons", []), labels, every_axis, values, name),
        joint=raw.get("joint", False), budget=_budget(raw, name),
        command=_command(name, scale, only or {}, overrides or {}),
    )  # fmt: skip


def _extended(scales: Mapping[str, Mapping[str, Any]], chosen: str, name: str) -> list[dict[str, Any]]:
    """The tables of a scale, after those of the scale that it `extends`. Raises InputError for one that is not there."""
    found: list[dict[str, Any]] = []
    while chosen:
        table = dict(scales[chosen])
        found.insert(0, table)
        below, field = table.pop("extends", ""), f"{name}: scale.{chosen}.extends"
        check(
            below == "" or (isinstance(below, str) and below in scales),
            field,
            below,
            f"one of {', '.join(s for s in scales if s != chosen)}",
        )
        check(len(found) <= len(scales), field, below, "a scale that does not extend this one")
        chosen = below
    return found


def _command(name: str, scale: str, only: Mapping[str, Sequence[str]], overrides: Mapping[str, Any]) -> str:
    """The command line of these cells, but for where they are kept."""
    words = ["jaxpgd", "study", name, *(("--scale", scale) if scale else ())]
    for axis, labels in only.items():
        words += ["--only", f"{axis}={','.join(labels)}"]
    for setting in dotted(overrides):
        value = get_nested(overrides, setting)
        told = value if isinstance(value, list | tuple) else [value]
        words += [f"--{setting}", *(str(each).lower() if isinstance(each, bool) else str(each) for each in told)]
    return shlex.join(words)


def _check_used(cells: Sequence[Cell], tables: Iterable[Mapping[str, Any]], before: str) -> None:
    """Check that all that tables of a study set, but for its targets, has an effect in one of its cells. Raises InputError."""
    given = {setting for table in tables for setting in dotted({**table, **table.get("base", {})})}
    known = sorted(given & set(names_of(Config)))
    configs = [config for cell in cells for config in measured_configs(cell.config, cell.measure.conditionings)]
    check_used(configs, known, preset_of, before)
    for key, kinds in MEASURED.items():
        changed = [cell.measure for cell in cells if getattr(cell.measure, key) != getattr(MeasureConfig(), key)]
        check(f"measure.{key}" not in given or not changed or any(measure.kind in kinds for measure in changed),
              f"{before}measure.{key}", getattr(changed[0], key) if changed else None,
              f"its default, as it counts only where measure.kind is {' or '.join(map(repr, kinds))}")  # fmt: skip


def _budget(raw: Mapping[str, Any], name: str) -> Budget | None:
    if "budget" not in raw:
        return None
    budget = apply_values(Budget(), raw["budget"], name, "budget.")
    for field, value in vars(budget).items():
        check(0 < value < 1, f"{name}: budget.{field}", value, "a share between 0 and 1")
    return budget


def _columns(raw: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The columns of "rows" and "steps" that cells of the study measure, also those that `--only` leaves out."""
    first = {"measure": {"kind": MeasureConfig().kind} | raw.get("measure", {})}
    tables = [first, raw.get("base", {}), *(label for values in raw["axes"].values() for label in values.values())]
    kinds = {str(measure.get("kind", "")) for table in tables if isinstance(measure := table.get("measure", {}), Mapping)}
    kinds &= set(COLUMNS)
    every = {"rows": COLUMNS, "steps": STEP_COLUMNS}
    return {name: tuple({column for kind in kinds for column in of[kind]}) for name, of in every.items()}


def _check_form(raw: dict[str, Any], name: str) -> None:
    """Raise InputError where a part of a study is not of the kind of TOML value that it has to be."""
    kinds: dict[str, tuple[type, str]] = dict.fromkeys(("measure", "target", "base", "axes", "budget"), (Mapping, "a table"))
    kinds |= dict.fromkeys(("title", "text"), (str, "text")) | {"joint": (bool, "true or false")}
    kinds |= dict.fromkeys(("figures", "tables", "comparisons"), (list, "a list of tables"))
    for key, (kind, expected) in kinds.items():
        value = raw.get(key, kind() if kind is not Mapping else {})
        check(isinstance(value, kind), f"{name}: {key}", value, expected)
        for entry in value if kind is list else ():
            check(isinstance(entry, Mapping), f"{name}: {key}", entry, "a table in each entry")
    for axis, values in raw["axes"].items():
        check(isinstance(values, Mapping), f"axes.{axis}", values, "a table of labels with their settings")
        for label, settings in values.items():
            check(isinstance(settings, Mapping), f"axes.{axis}.{label}", settings, "a table of settings")


def _parse(name: str, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"study = {name!r}: expected valid TOML ({error}).") from error


def _kept(axis: str, values: Any, only: tuple[str, ...] | None) -> dict[str, dict[str, Any]]:
    check(isinstance(values, Mapping) and len(values) > 0, f"axes.{axis}", values, "a table of labels with their settings")
    if only is None:
        return dict(values)
    for label in only:
        check(label in values, f"--only {axis}", label, f"one of {', '.join(values)}")
    return {label: values[label] for label in only}


def _cells(raw: dict[str, Any], axes: dict[str, dict[str, Any]], name: str, overrides: dict[str, Any]) -> Iterator[Cell]:
    targets = dict[str, Target]()  # of most studies' cells a few
    for labels, values in _values(raw, axes):
        yield _cell(labels, merge(values, overrides), name, targets)


def _values(raw: dict[str, Any], axes: dict[str, dict[str, Any]]) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """The labels of every cell, and what they set."""
    common = {key: raw.get(key, {}) for key in ("measure", "target")} | raw.get("base", {})
    for labels in itertools.product(*axes.values()):
        values: dict[str, Any] = common
        for axis, label in zip(axes, labels, strict=True):
            values = merge(values, axes[axis][label])
        yield dict(zip(axes, labels, strict=True)), values


def _with_effect(
    cells: Sequence[Cell], raw: dict[str, Any], axes: dict[str, dict[str, Any]], name: str, overrides: dict[str, Any]
) -> Iterator[Cell]:
    """The cells of agents without what the command changes and has no effect on them, which is then in no key of theirs.

    Agents on real data are not trained again for another denoiser.
    """
    targets = dict[str, Target]()
    own = {setting for setting in dotted(overrides) if setting.partition(".")[0] not in _OF_TARGETS}
    for cell, (labels, values) in zip(cells, _values(raw, axes), strict=True):
        idle = set(unused(cell.config)) & own if cell.measure.kind == "returns" else ()
        yield _cell(labels, merge(values, _without(overrides, idle)), name, targets) if idle else cell


def _without(values: Mapping[str, Any], names: Collection[str], prefix: str = "") -> dict[str, Any]:
    """Nested tables without some settings, by dotted name."""
    inside = lambda key, value: _without(value, names, f"{prefix}{key}.") if isinstance(value, Mapping) else value
    return {key: inside(key, value) for key, value in values.items() if prefix + key not in names}


def _cell(labels: dict[str, str], values: dict[str, Any], name: str, targets: dict[str, Target]) -> Cell:
    values, where = dict(values), f"{name}: {', '.join(labels.values())}"
    measure = apply_values(MeasureConfig(), values.pop("measure", {}), where, "measure.")
    check(measure.trajectories > 1, f"{where}: measure.trajectories", measure.trajectories, "at least 2")
    raw = dict(values.pop("target", {}))
    said = repr([raw, *(values.get(name) for name in _OF_TARGETS)])
    target = targets.get(said) or targets.setdefault(said, _target(values, raw, where))
    if measure.kind != "returns":  # no agent learns from the trajectories
        values = merge(values, {"synthesis": {"first_unguided": False}})
    if measure.kind == "trajectories":  # what no model makes needs none
        values["arms"] = ["real"] if measure.source in ("rollouts", "dataset") else [measure.source]
    values = merge({"health": {"lost_seeds": "keep"}}, values)  # a seed that diverges does not stop the others
    try:
        config = load_config(None, values, unused="kept")  # `_check_used` looks at all cells together
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    check(
        not config.models_from, f"{where}: models_from", list(config.models_from), "nothing: cells share models by themselves"
    )
    check(not config.sweep, f"{where}: sweep", list(config.sweep), "nothing: what a study varies are its axes")
    least = 2 ** (config.denoiser.blocks - 1)
    steps = measure.length or max(config.data.window, config.synthesis.dydiff.window)
    fits = measure.kind != "rollouts" or steps >= least
    check(fits, f"{where}: measure.length", steps, f"at least {least}, as the denoisers need")
    _check_conditionings(measure, config, where)
    repeated = measure.kind == "returns" and UNIT in labels and config.seeds > 1
    check(not repeated, f"{where}: seeds", config.seeds, f"1, as the axis {UNIT!r} repeats the cell")
    confidence = config.evaluation.confidence
    check(confidence == 0.95, f"{where}: evaluation.confidence", confidence, "0.95, which a study's intervals always have")
    one = measure.kind != "returns" or len(config.arms) == 1
    check(one, f"{where}: arms", list(config.arms), "one of them, as a cell of kind returns has agents of one source")
    return Cell(labels, measure, config, target)


def _check_conditionings(measure: MeasureConfig, config: Config, where: str) -> None:
    """Check that DyDiff has every conditioning of a cell, once. Raises InputError."""
    kinds, name = measure.conditionings, f"{where}: measure.conditionings"
    check(not kinds or "dydiff" in config.arms, name, list(kinds), "nothing where arms lacks dydiff")
    check(len(set(kinds)) == len(kinds), name, list(kinds), "none twice")
    for kind in kinds:
        try:
            validate(conditioned(config, kind))
        except InputError as error:
            raise InputError(f"{where}: {error}") from error


_OF_TARGETS = ("data", STATED)  # settings of a cell that its target has, too


def _target(values: dict[str, Any], raw: dict[str, Any], where: str) -> Target:
    """What `[target]` says: settings of a run on the cell's data, or an actor's file."""
    if not raw or "actor" in raw:
        check(set(raw) <= {"actor"}, f"{where}: target", sorted(raw), "either actor or settings of a run")
        actor = raw.get("actor", "")
        check(isinstance(actor, str), f"{where}: target.actor", actor, "the path of an .npz file")
        return Target(actor=actor)
    raw = merge({name: values[name] for name in _OF_TARGETS if name in values} | {"seeds": 1}, raw)
    plain = apply_values(Config(), raw, where, "target.")
    config = apply_values(with_preset(plain), raw, where, "target.")
    config = dataclasses.replace(config, arms=("real",), out="")
    validate(config)
    return Target(config=config)
