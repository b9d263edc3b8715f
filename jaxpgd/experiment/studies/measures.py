"""What is measured of a cell: rows of plain values, one per seed and episode (or trajectory), and rows by step."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpgd.dataset import in_own_units
from jaxpgd.errors import check
from jaxpgd.experiment.commands.compare_rollouts import compare_models
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.precision import set_precision
from jaxpgd.experiment.run.directory import ClaimedRun, create_run
from jaxpgd.experiment.stages.agent_programs import JOINT, Learned, by_setting
from jaxpgd.experiment.stages.build import Models
from jaxpgd.experiment.stages.evaluate_returns import evaluate_returns
from jaxpgd.experiment.stages.known_policies import known_target
from jaxpgd.experiment.stages.prepare import Prepared, require_steps, stage_key
from jaxpgd.experiment.stages.train_agents import train_agents, train_joint_agents
from jaxpgd.experiment.stages.train_models import check_models, train_models
from jaxpgd.experiment.studies.cell import OF_THE_AGENT, TIMES, TOTAL_TIMES, Cell, conditioned
from jaxpgd.experiment.studies.store import Store
from jaxpgd.experiment.studies.tilt import measure_tilt
from jaxpgd.experiment.studies.together import joined, setting_of, swept
from jaxpgd.experiment.studies.trajectories import make_trajectories, measure_set, stages_of, training_seconds
from jaxpgd.experiment.sweep import read_sweep
from jaxpgd.metrics.two_sample import FOLDS
from jaxpgd.simulators.resimulation import make_simulator
from jaxpgd.simulators.stored_actor import actor_for
from jaxpgd.training.health import LOST
from jaxpgd.types import Policy, Trajectory

Row = dict[str, Any]
MadeBy = dict[str, dict[str, str]]  # versions of packages, of the "cell" and of each model or target agent by its folder
SCORE, SCALE = "score", "scale"  # a normalised score, and the heading under which it may stand


@dataclasses.dataclass
class Found:
    """Of one cell: `rows` by seed and episode, `steps` by step, `samples` that are kept to be drawn."""

    rows: list[Row]
    steps: list[Row] = dataclasses.field(default_factory=list)
    samples: Trajectory | None = None
    versions: MadeBy = dataclasses.field(default_factory=dict)


def measure(cells: Sequence[Cell], store: Store, folder: Path) -> list[Found]:
    """Everything that the cells of a group say (`together.groups`); models that they need are trained where they are missing.

    `folder` is the group's own. Raises InputError before anything of it is trained, where that is known.
    """
    for cell in cells:
        check_cell(cell, store)
    if cells[0].measure.kind == "returns":
        return measure_returns(cells, store, folder)
    return [MEASURES[cell.measure.kind](cell, store) for cell in cells]


def reads_data(cell: Cell) -> bool:
    """Whether a cell needs its dataset."""
    return cell.measure.kind != "tilt"


def check_cell(cell: Cell, store: Store) -> None:
    """Raise InputError for what is known to be wrong with a cell before any of its models, or its target, is trained."""
    kind, config = cell.measure.kind, cell.config
    if not reads_data(cell):
        return
    prepared = store.prepared(config)
    check_models(config, prepared)
    if kind == "returns":
        require_steps(config, prepared.dataset)
    elif cell.target.config is None:
        _given_target(cell, prepared)
    if cell.measure.classifier:
        rows = min(cell.measure.trajectories, len(prepared.windows.validation), len(prepared.windows.train))
        check(rows >= FOLDS, "measure.classifier", True, f"false with fewer than {FOLDS} trajectories or real windows")
    if kind == "rollouts" or (kind == "trajectories" and cell.measure.source == "rollouts"):
        make_simulator(prepared.dataset.info)


def measure_returns(cells: Sequence[Cell], store: Store, folder: Path) -> list[Found]:
    """Returns of the agents of the cells: rows by seed and episode; `steps`: those during training.

    The cells have one arm, and differ in numeric settings alone, or differ in their arms alone.
    """
    if len({cell.config.arms for cell in cells}) > 1:
        return _measure_sources(cells, store, folder)
    config = swept(cells)
    models, arm = store.models(config), config.arms[0]
    with create_run(dataclasses.replace(config, models_from=models, out=str(folder / "run")), resume=True) as run:
        prepared = store.prepared(run.config)
        require_steps(run.config, prepared.dataset)
        learned = by_setting(run.config, arm, train_agents(run, prepared, train_models(run, prepared), arm))
        found = list(_evaluated(run, prepared, learned).values())
        log = [row for row in run.log.read() if row["stage"] == f"agent-{arm}" and "returns" in row]
    settings = list(read_sweep(config, arm).settings)
    order = [settings.index(setting_of(cell, list(settings[0]))) for cell in cells]
    each = [_returns(found[i], log, slice(i * config.seeds, (i + 1) * config.seeds)) for i in order]
    if len(cells) == 1:
        add_times(each[0], stages_of(models), folder / "run" / "stages" / f"agent-{arm}.json", config.agent.updates)
    return each


def add_times(found: Found, models: Sequence[Path], agents: Path, updates: int) -> None:
    """`TOTAL_TIMES` of a cell, all seeds together, at the end and by step, where its stages have measured them.

    Cells that are trained as one program have none: nothing says which of them took what.
    """
    before = training_seconds(models) if models else dict.fromkeys(TIMES, 0.0)
    own = training_seconds([agents])
    if not before or not own:
        return
    at = lambda step: {total: before[name] + own[name] * step / updates for total, name in zip(TOTAL_TIMES, TIMES, strict=True)}
    for row in (row for row in found.rows if row["episode"] == 0):
        row |= at(updates)
    for row in found.steps:
        row |= at(row["step"])


def _measure_sources(cells: Sequence[Cell], store: Store, folder: Path) -> list[Found]:
    """The same for cells that differ in their arms alone, whose agents are trained as one program."""
    config = joined(cells)
    with create_run(dataclasses.replace(config, models_from=store.models(config), out=str(folder / "run")), resume=True) as run:
        prepared = store.prepared(run.config)
        require_steps(run.config, prepared.dataset)
        found = _evaluated(run, prepared, train_joint_agents(run, prepared, train_models(run, prepared)))
        log = [row for row in run.log.read() if row["stage"] == JOINT and "returns" in row]
    first = lambda cell: config.seeds * config.arms.index(cell.config.arms[0])
    return [_returns(found[cell.config.arms[0]], log, slice(first(cell), first(cell) + config.seeds)) for cell in cells]


def _evaluated(run: ClaimedRun, prepared: Prepared, learned: dict[str, Learned]) -> Row:
    """Returns of the agents of every row of results, and what explains them."""
    policies = {row: each.policy for row, each in learned.items()}
    return evaluate_returns(run, prepared, policies, {row: each.value for row, each in learned.items()})


def _returns(found: Row, log: list[Row], seeds: slice) -> Found:
    """The rows of one setting, whose `seeds` are some of those that were logged; a seed's first has the values of its agent."""
    returns = np.asarray(found["returns"], np.float64)
    name, score = found["score_column"], found["score"]
    lost: np.ndarray = np.logical_not(np.isfinite(returns).all(axis=1))
    rows = [
        {"seed": seed, "episode": episode, "return": value, "length": None if lost[seed] else found["lengths"][seed][episode]}
        | ({} if score is None else {SCALE: name, SCORE: np.nan if lost[seed] else score[seed][episode]})
        for (seed, episode), value in np.ndenumerate(returns)
    ]
    known = {
        name: found[name] for name in OF_THE_AGENT if name in found
    }  # none where a run was evaluated before there were any
    for row in (row for row in rows if row["episode"] == 0):
        row |= {name: values[row["seed"]] for name, values in known.items() if math.isfinite(values[row["seed"]])}
    steps = [
        {"seed": seed, "step": row["step"], "return": value}
        | {name: of[seeds][seed] for name in OF_THE_AGENT if (of := row.get(name)) and math.isfinite(of[seeds][seed])}
        for row in log
        for seed, value in enumerate(row["returns"][seeds])
        if not row.get(LOST, [False] * len(row["returns"]))[seeds][seed]
    ]
    return Found(rows, steps)


def target_of(cell: Cell, store: Store, prepared: Prepared) -> Policy:
    """The policy that a cell's trajectories are for. Raises InputError where the study names none and none is known."""
    if cell.target.config is not None:
        policy = store.policy(cell.target.config)
        set_precision(cell.config.matmul_precision)  # the target's own may be another
        return policy
    return _given_target(cell, prepared)


def _given_target(cell: Cell, prepared: Prepared) -> Policy:
    """The actor of a file, or the policy that an environment comes with."""
    data, actor = prepared.dataset, cell.target.actor
    known = actor_for(actor, data.obs_dim, data.action_dim, "target.actor") if actor else known_target(data)
    check(known is not None, "target", None, f"a target policy, as {cell.config.data.name!r} comes with none")
    assert known is not None
    return known


def measure_trajectories(cell: Cell, store: Store) -> Found:
    """Trajectories of one source: rows by trajectory (`seed` is that of the models), steps of errors in the simulator."""
    config, kept = cell.config, cell.measure.samples
    runs = store.models(config)
    prepared, models = store.opened(dataclasses.replace(config, models_from=runs))
    policy = target_of(cell, store, prepared)
    synthetic, seconds = make_trajectories(cell, prepared, models, policy)
    found = measure_set(cell, prepared, synthetic, policy)
    found.whole |= seconds | training_seconds(stages_of(runs))
    samples = None
    if kept:
        own, apart = in_own_units(prepared.dataset.info, synthetic), max(1, len(synthetic.reward) // kept)
        samples = jax.tree.map(lambda x: np.asarray(x)[::apart][:kept], own)
    return Found(found.rows(config.seed), found.steps(config.seed), samples)


def measure_rollouts(cell: Cell, store: Store) -> Found:
    """The target policy's rollouts by every model of the config's arms: rows by method, `steps` by method and step."""
    config, runs = cell.config, list[tuple[str, Config, Prepared, Models]]()
    for kind in cell.measure.conditionings or (config.synthesis.dydiff.conditioning,):
        own = conditioned(config, kind)
        if runs:  # the other arms' models are in the first
            own = dataclasses.replace(own, arms=("dydiff",))
        own = dataclasses.replace(own, models_from=store.models(own))
        runs.append((kind, own, *store.opened(own)))
    policy = target_of(cell, store, runs[0][2])
    length = cell.measure.length or max(config.data.window, config.synthesis.dydiff.window)
    key, count = stage_key(config, "compare"), cell.measure.trajectories
    found = compare_models(key, runs, policy, length, count)
    rows, steps = [], []
    for name, values in found["methods"].items():
        method = name.partition(" (")[0]  # without the length that its denoiser was trained on
        scalars = {k: v for k, v in values.items() if np.ndim(v) == 0}
        rows.append({"seed": config.seed, "episode": 0, "method": method} | scalars)
        by_step = ("state_error", "state_error_se", "state_distance", "alive", "true_alive")
        steps += [
            {"seed": config.seed, "method": method, "step": i} | {name: values[name][i] for name in by_step}
            for i in range(length)
        ]
    return Found(rows, steps)


def _tilt(cell: Cell, store: Store) -> Found:
    set_precision(cell.config.matmul_precision)
    rows, steps = measure_tilt(cell.config, cell.measure)
    return Found(rows, steps)


MEASURES: dict[str, Callable[[Cell, Store], Found]] = {
    "trajectories": measure_trajectories,
    "rollouts": measure_rollouts,
    "tilt": _tilt,
}
