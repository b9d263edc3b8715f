"""Cells of kind trajectories: making a set of trajectories, and what is measured of each, of the set, and by step."""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from jaxpgd.dataset import in_learned_units, in_own_units, state_entries
from jaxpgd.experiment.stages.build import Models, arm_synthesizer
from jaxpgd.experiment.stages.prepare import Prepared, stage_key
from jaxpgd.experiment.stages.score_trajectories import (
    COVERAGE_NEIGHBOURS,
    OPEN_LOOP_STEPS,
    discount_factor,
    flat_tokens,
    open_loop_squares,
    real_windows,
)
from jaxpgd.experiment.studies.cell import TIMES, Cell
from jaxpgd.metrics.distances import coverage, sliced_wasserstein
from jaxpgd.metrics.dynamics_error import action_log_likelihood, dynamics_error, steps_taken, terminal_rate
from jaxpgd.metrics.rollout_comparison import root_mean
from jaxpgd.metrics.two_sample import classifier_test, discounted_returns, window_features
from jaxpgd.simulators.resimulation import has_simulator, make_simulator
from jaxpgd.simulators.rollout import rollout
from jaxpgd.synthesis.diffusion import synthesize_from
from jaxpgd.synthesis.replay import sample_real
from jaxpgd.types import Policy, Synthesizer, Trajectory
from jaxpgd.world_model.truncation import truncation

Row = dict[str, Any]


@dataclasses.dataclass
class Measured:
    """Columns by trajectory [N], values of the whole set, and columns by step [T] (NaN where nothing is known)."""

    each: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    whole: dict[str, float] = dataclasses.field(default_factory=dict)
    by_step: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def rows(self, seed: int) -> list[Row]:
        """A row for each trajectory; the first has the values of the set, which no trajectory repeats."""
        count = len(next(iter(self.each.values())))
        rows = [{"seed": seed, "episode": i} | {name: values[i] for name, values in self.each.items()} for i in range(count)]
        rows[0] |= self.whole
        return rows

    def steps(self, seed: int) -> list[Row]:
        """A row for each step of which something is known."""
        length = max((len(values) for values in self.by_step.values()), default=0)
        known = lambda i: {name: v[i] for name, v in self.by_step.items() if i < len(v) and v[i] == v[i]}
        return [{"seed": seed, "step": i} | known(i) for i in range(length) if known(i)]


def measure_set(cell: Cell, prepared: Prepared, synthetic: Trajectory, policy: Policy) -> Measured:
    """What is measured of trajectories [N, T], with rewards as learned."""
    found, own = Measured(), in_own_units(prepared.dataset.info, synthetic)
    _, _, likelihood = action_log_likelihood(policy, synthetic)
    taken = steps_taken(synthetic)
    found.each = {
        "synthetic_return": np.where(taken, own.reward, 0.0).sum(axis=1), "synthetic_length": taken.sum(axis=1),
        "synthetic_value": discounted_returns(own, discount_factor(cell.config)), "log_likelihood": likelihood,
    }  # fmt: skip
    found.whole["terminal_rate"] = terminal_rate(synthetic)
    if cell.measure.source == "world_model" and cell.config.synthesis.world_model.truncate > 0:
        found.whole["truncated_rate"] = float(truncation(synthetic)["truncated"])
    if synthetic.reward.shape[1] == prepared.windows.length:
        found.whole |= compared_to_data(cell, prepared, synthetic)
    if has_simulator(prepared.dataset.info):
        _replay(found, prepared, own)
    return found


def _replay(found: Measured, prepared: Prepared, own: Trajectory) -> None:
    """Add what the simulator says: of single steps, and of the actions in a row."""
    info, simulator = prepared.dataset.info, make_simulator(prepared.dataset.info)
    std = np.asarray(prepared.windows.unit.std[prepared.windows.unit.obs])
    error: dict[str, Any] = dynamics_error(own, simulator.step, std, state_entries(info))
    squares = open_loop_squares(simulator, prepared, own)
    found.each |= {"dynamics_error": error["per_trajectory"], "persistence": error["persistence_per_trajectory"]}
    found.each |= {f"open_loop_error_{k}": np.sqrt(squares[:, k]) for k in OPEN_LOOP_STEPS if k < squares.shape[1]}
    found.whole |= {
        "dynamics_error_rms": error["rms"],
        "dynamics_error_median": error["median"],
        "dynamics_error_share": error["rms"] / error["persistence"] if error["persistence"] else np.nan,
        "reward_error": error["reward_rms"],
        "terminal_agreement": error["terminal_agreement"],
    }
    found.by_step = {
        "dynamics_error": np.asarray(error["by_step"]),
        "persistence": np.asarray(error["persistence_by_step"]),
        "open_loop_error": np.concatenate([[np.nan], root_mean(squares)[0][1:]]),  # the first state is the simulator's own
    }


def compared_to_data(cell: Cell, prepared: Prepared, synthetic: Trajectory) -> dict[str, float]:
    """Trajectories [N, T] against as many held-out windows; held-out windows themselves against windows of training.

    Sliced Wasserstein distance in standard deviations of the entries, coverage, discounted returns, and the classifier where
    the cell asks for it. `value_bias` is the difference of the mean discounted returns and `value_distance` the Wasserstein-1
    distance of the returns, both in standard deviations of the real ones.
    """
    config, windows, info = cell.config, prepared.windows, prepared.dataset.info
    starts = np.asarray(windows.train if cell.measure.source == "dataset" else windows.validation)
    chosen = np.random.default_rng(config.seed + 1).permutation(starts)[: len(synthetic.reward)]
    real = real_windows(windows, np.sort(chosen))  # neighbours, which overlap, follow each other
    key = stage_key(config, "study-distance")
    tokens = [flat_tokens(windows, trajectory) for trajectory in (real, synthetic)]
    found = {"sliced_wasserstein": sliced_wasserstein(key, tokens[1], tokens[0])}
    if min(map(len, tokens)) > COVERAGE_NEIGHBOURS:
        found |= coverage(key, *tokens, k=COVERAGE_NEIGHBOURS)
    values = [discounted_returns(in_own_units(info, t), discount_factor(config)) for t in (real, synthetic)]
    if (spread := float(values[0].std())) > 0:
        scaled = [v / spread for v in values]
        found["value_bias"] = float(scaled[1].mean() - scaled[0].mean())
        found["value_distance"] = sliced_wasserstein(key, scaled[1][:, None], scaled[0][:, None], projections=1)
    if cell.measure.classifier:
        test = classifier_test(key, *(window_features(t) for t in (real, synthetic)))
        found["classifier_accuracy"] = test["classifier_accuracy"]
    return found


def make_trajectories(cell: Cell, prepared: Prepared, models: Models, policy: Policy) -> tuple[Trajectory, dict[str, float]]:
    """`measure.trajectories` trajectories [N, T] of `measure.source`, on the host, with rewards as learned; what they took.

    Of the dataset: its held-out windows. Of the target policy in the environment: from the first observations of episodes. Of
    models of states: from observations of the dataset. The seconds of sampling are without compilation.
    """
    config, count, source = cell.config, cell.measure.trajectories, cell.measure.source
    rng = np.random.default_rng(config.seed)
    key_start, key = jax.random.split(stage_key(config, f"study-{source}"))
    if source == "dataset":
        starts = rng.permutation(np.asarray(prepared.windows.validation))[:count]
        return real_windows(prepared.windows, np.sort(starts)), {}
    data = prepared.dataset
    length = cell.measure.length or config.data.window
    if source == "rollouts":
        first = rng.choice(data.offsets[:-1], count)
        true, _ = rollout(key, make_simulator(data.info), policy, np.asarray(data.obs)[first], length)
        return in_learned_units(data.info, true), {}
    if source == "world_model":
        config = dataclasses.replace(config, synthesis=dataclasses.replace(config.synthesis, length=length))
    start = sample_real(key_start, data.transitions(), count).obs
    return _timed(key, arm_synthesizer(config, models, source), policy, start)


def _timed(key: Array, synthesizer: Synthesizer, policy: Policy, start: Array) -> tuple[Trajectory, dict[str, float]]:
    """What `synthesize_from` samples, compiled first, and the seconds that sampling takes."""
    compiled = synthesize_from.lower(key, synthesizer, policy, start).compile()
    began = time.monotonic()
    made = jax.block_until_ready(compiled(key, synthesizer, policy, start))
    return jax.tree.map(np.asarray, made), {"sampling_seconds": time.monotonic() - began}


def stages_of(runs: Sequence[str]) -> list[Path]:
    """What is kept of every stage of some runs."""
    return [path for run in runs for path in sorted((Path(run) / "stages").glob("*.json"))]


def training_seconds(stages: Sequence[Path]) -> dict[str, float]:
    """What some stages took, without compilation: `TIMES`. Nothing where one of them has not measured it, or there is none."""
    facts = [json.loads(path.read_text(encoding="utf-8-sig")) for path in stages]
    names = dict(zip(TIMES, ("step_seconds", "step_cpu_seconds"), strict=True))
    if not facts or any(name not in each for each in facts for name in names.values()):
        return {}
    return {column: sum(each["steps"] * each[name] for each in facts) for column, name in names.items()}
