"""What is measured of a cell: rows of plain values, one per seed and episode (or trajectory), and rows by step."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpgd.dataset import in_learned_units, in_own_units, state_entries
from jaxpgd.errors import check
from jaxpgd.experiment.commands.compare_rollouts import compare_models
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.precision import set_precision
from jaxpgd.experiment.run.directory import create_run
from jaxpgd.experiment.stages.agent_programs import JOINT, by_setting
from jaxpgd.experiment.stages.build import Models, arm_synthesizer
from jaxpgd.experiment.stages.evaluate_returns import evaluate_returns
from jaxpgd.experiment.stages.known_policies import known_target
from jaxpgd.experiment.stages.prepare import Prepared, require_steps, stage_key
from jaxpgd.experiment.stages.score_trajectories import flat_tokens, real_windows
from jaxpgd.experiment.stages.train_agents import train_agents, train_joint_agents
from jaxpgd.experiment.stages.train_models import check_models, train_models
from jaxpgd.experiment.studies.cell import Cell
from jaxpgd.experiment.studies.store import Store
from jaxpgd.experiment.studies.tilt import measure_tilt
from jaxpgd.experiment.studies.together import joined, setting_of, swept
from jaxpgd.experiment.sweep import read_sweep
from jaxpgd.metrics.distances import sliced_wasserstein
from jaxpgd.metrics.dynamics_error import action_log_likelihood, dynamics_error, steps_taken
from jaxpgd.simulators.behaviour import actor_for
from jaxpgd.simulators.resimulation import has_simulator, make_simulator
from jaxpgd.simulators.rollout import rollout
from jaxpgd.synthesis.diffusion import synthesize_from
from jaxpgd.synthesis.replay import sample_real
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


def check_cell(cell: Cell, store: Store) -> None:
    """Raise InputError for what is known to be wrong with a cell before any of its models, or its target, is trained."""
    kind, config = cell.measure.kind, cell.config
    if kind == "tilt":
        return
    prepared = store.prepared(config)
    check_models(config, prepared)
    if kind == "returns":
        require_steps(config, prepared.dataset)
    elif cell.target.config is None:
        _given_target(cell, prepared)
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
        policies = train_agents(run, prepared, train_models(run, prepared), arm)
        found = list(evaluate_returns(run, prepared, by_setting(run.config, arm, policies)).values())
        log = [row for row in run.log.read() if row["stage"] == f"agent-{arm}" and "returns" in row]
    settings = list(read_sweep(config, arm).settings)
    order = [settings.index(setting_of(cell, list(settings[0]))) for cell in cells]
    return [_returns(found[i], log, slice(i * config.seeds, (i + 1) * config.seeds)) for i in order]


def _measure_sources(cells: Sequence[Cell], store: Store, folder: Path) -> list[Found]:
    """The same for cells that differ in their arms alone, whose agents are trained as one program."""
    config = joined(cells)
    with create_run(dataclasses.replace(config, models_from=store.models(config), out=str(folder / "run")), resume=True) as run:
        prepared = store.prepared(run.config)
        require_steps(run.config, prepared.dataset)
        found = evaluate_returns(run, prepared, train_joint_agents(run, prepared, train_models(run, prepared)))
        log = [row for row in run.log.read() if row["stage"] == JOINT and "returns" in row]
    first = lambda cell: config.seeds * config.arms.index(cell.config.arms[0])
    return [_returns(found[cell.config.arms[0]], log, slice(first(cell), first(cell) + config.seeds)) for cell in cells]


def _returns(found: Row, log: list[Row], seeds: slice) -> Found:
    """The rows of one setting, whose `seeds` are some of those that were logged."""
    returns = np.asarray(found["returns"], np.float64)
    name, score = found["score_column"], found["score"]
    lost: np.ndarray = np.logical_not(np.isfinite(returns).all(axis=1))
    rows = [
        {"seed": seed, "episode": episode, "return": value, "length": None if lost[seed] else found["lengths"][seed][episode]}
        | ({} if score is None else {SCALE: name, SCORE: np.nan if lost[seed] else score[seed][episode]})
        for (seed, episode), value in np.ndenumerate(returns)
    ]
    steps = [
        {"seed": seed, "step": row["step"], "return": value}
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
    """Trajectories of one source: rows by trajectory (`seed` is that of the models), `steps`: dynamics error by step."""
    config = cell.config
    models_from = store.models(config)
    prepared, models = store.opened(dataclasses.replace(config, models_from=models_from))
    policy = target_of(cell, store, prepared)
    synthetic = make_trajectories(cell, prepared, models, policy)
    _, _, likelihood = action_log_likelihood(policy, synthetic)
    taken, info = steps_taken(synthetic), prepared.dataset.info
    own = in_own_units(info, synthetic)
    columns: dict[str, Any] = {
        "synthetic_return": np.where(taken, own.reward, 0.0).sum(axis=1), "synthetic_length": taken.sum(axis=1),
        "log_likelihood": likelihood,
    }  # fmt: skip
    if synthetic.reward.shape[1] == prepared.windows.length:  # of the set, not of a trajectory: the same in every row
        columns["sliced_wasserstein"] = np.full(len(synthetic.reward), distance_to_data(config, prepared, synthetic))
    steps: list[Row] = []
    if has_simulator(info):
        std = np.asarray(prepared.windows.unit.std[prepared.windows.unit.obs])
        error = dynamics_error(own, make_simulator(info).step, std, state_entries(info))
        columns |= {"dynamics_error": error["per_trajectory"], "persistence": error["persistence_per_trajectory"]}
        by_step = zip(np.asarray(error["by_step"]), np.asarray(error["persistence_by_step"]), strict=True)
        steps = [
            {"seed": config.seed, "step": i, "dynamics_error": e, "persistence": p}
            for i, (e, p) in enumerate(by_step)
            if e == e
        ]
    rows = [
        {"seed": config.seed, "episode": i} | {name: values[i] for name, values in columns.items()}
        for i in range(len(synthetic.reward))
    ]
    kept = jax.tree.map(lambda x: np.asarray(x)[: cell.measure.samples], own) if cell.measure.samples else None
    return Found(rows, steps, kept)


def distance_to_data(config: Config, prepared: Prepared, synthetic: Trajectory) -> float:
    """Sliced Wasserstein distance of trajectories [N, T] to as many held-out windows, in standard deviations of the entries."""
    rng, windows = np.random.default_rng(config.seed + 1), prepared.windows
    held_out = real_windows(windows, rng.permutation(np.asarray(windows.validation))[: len(synthetic.reward)])
    return sliced_wasserstein(
        stage_key(config, "study-distance"), flat_tokens(windows, synthetic), flat_tokens(windows, held_out)
    )


def make_trajectories(cell: Cell, prepared: Prepared, models: Models, policy: Policy) -> Trajectory:
    """`measure.trajectories` trajectories [N, T] of `measure.source`, on the host, with rewards as learned.

    Of the dataset: its held-out windows. Of the target policy in the environment: from the first observations of episodes. Of
    models of states: from observations of the dataset.
    """
    config, count, source = cell.config, cell.measure.trajectories, cell.measure.source
    rng = np.random.default_rng(config.seed)
    key_start, key = jax.random.split(stage_key(config, f"study-{source}"))
    if source == "dataset":
        return real_windows(prepared.windows, rng.permutation(np.asarray(prepared.windows.validation))[:count])
    data = prepared.dataset
    length = cell.measure.length or config.data.window
    if source == "rollouts":
        first = rng.choice(data.offsets[:-1], count)
        true, _ = rollout(key, make_simulator(data.info), policy, np.asarray(data.obs)[first], length)
        return in_learned_units(data.info, true)
    if source == "world_model":
        config = dataclasses.replace(config, synthesis=dataclasses.replace(config.synthesis, length=length))
    start = sample_real(key_start, data.transitions(), count).obs
    return jax.tree.map(np.asarray, synthesize_from(key, arm_synthesizer(config, models, source), policy, start))


def measure_rollouts(cell: Cell, store: Store) -> Found:
    """The target policy's rollouts by every model of the config's arms: rows by method, `steps` by method and step."""
    config = cell.config
    prepared, models = store.opened(dataclasses.replace(config, models_from=store.models(config)))
    policy = target_of(cell, store, prepared)
    length = cell.measure.length or max(config.data.window, config.synthesis.dydiff.window)
    key, count = stage_key(config, "compare"), cell.measure.trajectories
    found = compare_models(key, [("", config, prepared, models)], policy, length, count)
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
