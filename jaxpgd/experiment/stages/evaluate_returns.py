"""Evaluate: the returns of every arm's final policies in the environment."""

import time
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from jaxpgd.datasets.scores import normalized_score, score_column
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.run.directory import ClaimedRun
from jaxpgd.experiment.run.progress import evaluation_progress
from jaxpgd.experiment.run.view import RunView
from jaxpgd.experiment.stages.agent_programs import JOINT, by_arm, by_setting
from jaxpgd.experiment.stages.explain_returns import discount_of, explain
from jaxpgd.experiment.stages.prepare import Prepared, stage_key
from jaxpgd.experiment.sweep import read_sweep
from jaxpgd.simulators.returns import Returns, evaluate
from jaxpgd.training.health import LOST
from jaxpgd.types import Policy, Value


def evaluate_returns(
    run: ClaimedRun, prepared: Prepared, policies: dict[str, Policy], values: Mapping[str, Value | None] | None = None
) -> dict[str, Any]:
    """Evaluate the policies [seeds] of every row of results; writes `returns.json` and returns its content.

    With `values`, those of the agents by row (None: without critics), there are `ood_actions` [seeds] and `value_error` [seeds]
    as well. A finished stage is only read. Seeds that were lost in training have returns that are not a number.
    """
    if run.is_done("returns"):
        stored: dict[str, Any] = run.read_json("returns.json")
        return stored
    began, lost = time.monotonic(), lost_seeds(run)
    results = {}
    for row, policy in policies.items():
        value = (values or {}).get(row)
        results[row], found = _measure(run.config, prepared, row, policy, lost[row], value)
        if values is not None:
            why = explain(run.config, prepared, policy, value, found)
            results[row] |= {name: np.where(lost[row], np.nan, each) for name, each in why.items()}
    run.write_json("returns.json", results)
    run.finish("returns", {"seconds": time.monotonic() - began})
    return run.read_json("returns.json")  # type: ignore[no-any-return]


def _measure(
    config: Config, prepared: Prepared, row: str, policy: Policy, lost: np.ndarray, value: Value | None
) -> tuple[dict[str, Any], Returns]:
    """The results of a row, and its evaluation, which discounts as `value` does."""
    own, info = config.evaluation, prepared.dataset.info
    with evaluation_progress(f"returns, {row}") as watch:
        found = evaluate(stage_key(config, "returns"), policy, info, episodes=own.episodes, gamma=discount_of(value),
                         horizon=own.max_steps or None, processes=own.processes, watch=watch)  # fmt: skip
    returns = np.array(found.returns)
    returns[lost] = np.nan  # whatever their last parameters reach, these seeds have not been trained
    score, label = normalized_score(info, returns, found.successes)
    label += f"; episodes of at most {own.max_steps} steps" if own.max_steps else ""
    if score is not None:
        score[lost] = np.nan  # successes, too
    sound = returns[np.isfinite(returns).all(1)]
    mean = f"mean {sound.mean():.4g} over {sound.shape[0]} seeds x {sound.shape[1]} episodes" if sound.size else "no sound seed"
    print(f"returns, {row}: {mean}", flush=True)
    return {
        "returns": returns, "lengths": np.asarray(found.lengths), "successes": found.successes,
        "score": score, "score_label": label, "score_column": score_column(info),
    }, found  # fmt: skip


def lost_seeds(run: RunView) -> dict[str, np.ndarray]:
    """Which seeds [seeds] of every row of results were lost in training."""
    config, rows = run.config, dict[str, np.ndarray]()

    def lost(stage: str, count: int) -> Policy:
        found = np.zeros(config.seeds * count, bool)
        found[run.facts(stage).get(LOST, []) if run.is_done(stage) else []] = True
        return cast(Policy, found)

    if run.is_done(JOINT):
        return cast(dict[str, np.ndarray], by_arm(config, lost(JOINT, len(config.arms))))
    for arm in config.arms:
        found = lost(f"agent-{arm}", len(read_sweep(config, arm).settings))
        rows |= cast(dict[str, np.ndarray], by_setting(config, arm, found))
    return rows
