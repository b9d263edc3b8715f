"""`jaxpgd compare-rollouts`: how far every model's rollouts of one policy are from the real environment, step by step."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from jaxpgd.dataset import in_own_units, state_entries
from jaxpgd.errors import InputError, check
from jaxpgd.experiment.config import Config, check_seed
from jaxpgd.experiment.needs import NEEDS, needs
from jaxpgd.experiment.report.figure import save
from jaxpgd.experiment.report.page import text_table
from jaxpgd.experiment.report.tradeoff_plots import rollout_comparison_figure
from jaxpgd.experiment.run.directory import make_directory, write_atomic, write_json
from jaxpgd.experiment.stages.agent_config import agent_config
from jaxpgd.experiment.stages.build import Models, build_synthesizer
from jaxpgd.experiment.stages.load import agent_number, chosen_policy, load_run, open_trained
from jaxpgd.experiment.stages.prepare import Prepared, stage_key
from jaxpgd.metrics.dynamics_error import action_log_likelihood, terminal_rate
from jaxpgd.metrics.rollout_comparison import compare_rollouts, crossing, paired_crossing
from jaxpgd.simulators.environments import is_builtin
from jaxpgd.simulators.resimulation import make_simulator
from jaxpgd.simulators.rollout import rollout
from jaxpgd.synthesis.diffusion import synthesize_from
from jaxpgd.synthesis.dydiff import StateDenoiser, States, make_dydiff
from jaxpgd.synthesis.given import same_model
from jaxpgd.synthesis.replay import sample_real
from jaxpgd.synthesis.world_model import make_world_model_synthesizer
from jaxpgd.types import Policy, Synthesizer, Trajectory
from jaxpgd.world_model.acting import greedy
from jaxpgd.world_model.model import WorldModel
from jaxpgd.world_model.rollouts import Elite

ITERATIONS = (0, 1, 2, 4, 8)
DYDIFF = {"published": "DyDiff", "innovations": "DyDiff given innovations", "anchored": "DyDiff anchored"}
ENSEMBLES = {"world model, mean": False, "world model, sampled": True}  # whether next states are drawn or the members' means
CROSSED = {  # columns of the table, by kind of crossing
    "state_error": "error below from", "clearly": "clearly from", "state_distance": "distance below from",
}  # fmt: skip
# Errors are against a noise-free truth, where a mean does best. Sets of states are held against true rollouts with their noise,
# where the environment has any, and there both ensembles count.
ERROR_REFERENCE = "world model, mean"
_CLEAR = 2.0  # standard errors


def methods(config: Config, models: Models, length: int) -> dict[str, Synthesizer]:
    """Everything a run can roll a policy out with, from given start observations, for `length` steps."""
    found: dict[str, Synthesizer] = {}
    if models.world is not None:
        for name, sampled in ENSEMBLES.items():
            section = dataclasses.replace(
                config.synthesis.world_model, length=length, penalty=0.0, truncate=0.0, sampled=sampled
            )
            found[name] = make_world_model_synthesizer(models.world, section)
        if models.states is not None:
            found |= dydiff_methods(config, models.world, models.states, length)
    if models.denoiser is not None:
        at_length = dataclasses.replace(config, synthesis=dataclasses.replace(config.synthesis, length=length))
        guided = build_synthesizer(at_length, models, guided=True).starting()
        how = f"start in-painted, trained on {models.denoiser.length} steps"
        found[f"unguided diffusion ({how})"] = guided.unguided()
        found[f"guided diffusion, coefficient {config.guidance.coefficient:g} ({how})"] = guided
    return found


def dydiff_methods(config: Config, world: WorldModel, states: StateDenoiser, length: int) -> dict[str, Synthesizer]:
    """DyDiff by number of iterations; for lengths above that of training also in chained windows.

    States are sampled as the config says; where they are given innovations, both sampled ones and means are shown.
    """
    kind, found = states.entries.kind, dict[str, Synthesizer]()
    hidden = kind == "published" or config.synthesis.dydiff.scaled_conditions
    ways: tuple[States, ...] = (config.synthesis.dydiff.states,) if hidden else ("sampled", "mean")
    for chained, way in itertools.product((False, True)[: 1 + (length > states.length)], ways):
        extra = (", mean" if way == "mean" and len(ways) > 1 else "") + (", chained windows" if chained else "")
        for iterations in ITERATIONS if not extra else ITERATIONS[1:]:
            own, elite = config.synthesis.dydiff, starting_elite(config, states)
            chosen = dataclasses.replace(own, iterations=iterations, chained=chained, states=way, elite=elite)
            name = f"{DYDIFF[kind]}{extra}, {iterations} iteration{'s' * (iterations != 1)}"
            found[name] = make_dydiff(world, states, chosen, config.sampler, length=length)
    return found


def starting_elite(config: Config, states: StateDenoiser) -> Elite:
    """How the rollouts that DyDiff starts from draw elites: anchored states start from the mean of all."""
    return "mean" if states.entries.kind == "anchored" else config.synthesis.dydiff.elite


def compare_runs(
    paths: list[str],
    out: Path | None = None,
    *,
    policy: str = "",
    actor: str = "",
    length: int = 0,
    trajectories: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """Roll one policy out by every model of the runs and in the real environment; write table and figure under `out`.

    The policy is that of "ARM[:SEED]" of the first run (default: its last arm) or the actor of an npz file, acting by its mode;
    start observations are drawn from the dataset. `length` defaults to the longest training window of the runs.
    Raises InputError.
    """
    check(trajectories > 1, "--trajectories", trajectories, "at least 2")
    check_seed(seed)
    runs = [open_trained(path) for path in paths]
    first = runs[0]
    for run in runs:
        same = run.config.data.name == first.config.data.name
        check(same, "data.name", run.config.data.name, f"{first.config.data.name!r}, as in {paths[0]}")
    check(any(needs(run.config, stage) for run in runs for stage in NEEDS), "RUN", paths,
          "a run with a world model or a denoiser (an arm other than real)")  # fmt: skip
    length = length or max(_trained_length(run.config) for run in runs)
    least = max(2, 2 ** (max(run.config.denoiser.blocks for run in runs) - 1))
    check(length >= least, "--length", length, f"at least {least}, as the denoisers need")
    trained = min(_trained_length(run.config) for run in runs)
    if length > trained:
        print(f"note: {length} steps are more than the {trained} of the windows that a denoiser was trained on", flush=True)
    target = out or first.path / "comparison"
    make_directory(target)
    loaded = [load_run(run) for run in runs]
    configs = [agent_config(each.run, each.config, agent_number(policy)) for each in loaded]
    models_of = [
        (f"run {i + 1}, {each.run.path.name}", config, each.prepared, each.models)
        for i, (each, config) in enumerate(zip(loaded, configs, strict=True))
    ]
    chosen, name = chosen_policy(loaded[0], policy or ("" if actor else first.config.arms[-1]), actor)
    key = jax.random.fold_in(stage_key(first.config, "compare"), seed)
    result = compare_models(key, models_of, chosen, length, trajectories)
    result |= {"policy": name, "dataset": loaded[0].prepared.dataset.info.name, "runs": paths}
    _write(target, result)
    return result


def _trained_length(config: Config) -> int:
    """The longest window that the arms' denoisers are trained on."""
    states = config.synthesis.dydiff.window or config.data.window
    return max(config.data.window, states) if "dydiff" in config.arms else config.data.window


def compare_models(
    key: Array, models_of: list[tuple[str, Config, Prepared, Models]], policy: Policy, length: int, count: int
) -> dict[str, Any]:
    """Rollouts [N = `count`, T = `length`] of a policy, acting by its mode, by every model of several runs of one dataset.

    `models_of` has, for each run, its name (told where a method occurs again), its config, its dataset and its models. An
    ensemble that several runs share is rolled out once. Returns
    `methods` (by name, the keys of `compare_rollouts` but for `squares`), `crossings` (by name), `truth` (terminal rate and
    log-likelihood in the real environment), `length`, `trajectories`. Raises InputError where no run has a model.
    """
    prepared, policy = models_of[0][2], greedy(policy)
    info = prepared.dataset.info
    key_start, key_truth, key_noise, key_synthetic, key_score = jax.random.split(key, 5)
    start = sample_real(key_start, prepared.dataset.transitions(), count).obs
    simulator = make_simulator(info)
    truth, _ = rollout(key_truth, simulator, policy, np.asarray(start), length, deterministic=True, noise=False)
    samples = None
    if is_builtin(info):
        samples, _ = rollout(key_noise, simulator, policy, np.asarray(start), length, deterministic=True)
    std = np.asarray(prepared.windows.unit.std[prepared.windows.unit.obs])
    found: dict[str, Any] = {}

    def score(synthetic: Trajectory) -> dict[str, Any]:
        return compare_rollouts(key_score, truth, synthetic, policy, std, entries=state_entries(info), samples=samples)

    started = set[str]()  # how DyDiff's first rollouts have been made
    floor, rolled = truth if samples is None else samples, list[WorldModel]()
    for run, config, own, models in models_of:
        again = models.world is not None and any(same_model(models.world, other) for other in rolled)
        rolled += [] if models.world is None or again else [models.world]
        for name, synthesizer in methods(config, models, length).items():
            first = name.endswith(", 0 iterations")
            elite = starting_elite(config, models.states) if first and models.states is not None else ""
            begun = elite in started
            if again and (name in ENSEMBLES or begun):
                continue
            label = name if name not in found else f"{name} ({run})"
            synthetic = jax.tree.map(np.asarray, synthesize_from(key_synthetic, synthesizer, policy, start))
            found[label] = score(in_own_units(own.dataset.info, synthetic))
            started |= {elite} if elite else set()
            print(f"{label}: {summary_line(found[label])}", flush=True)
    if not found:
        raise InputError("compare-rollouts: expected a run with a world model or a denoiser (an arm other than real).")
    crossed = crossings(found)
    likelihood = action_log_likelihood(policy, floor)[:2] if policy.log_prob_fn is not None else (np.nan, np.nan)
    return {
        "length": length,
        "trajectories": count,
        "truth": {
            "terminal_rate": terminal_rate(floor),
            "policy_log_likelihood": likelihood[0],
            "policy_log_likelihood_se": likelihood[1],
        },
        "methods": {name: {k: v for k, v in row.items() if k != "squares"} for name, row in found.items()},
        "crossings": crossed,
    }


def summary_line(row: dict[str, Any]) -> str:
    """One line of progress."""
    last = int(np.flatnonzero(np.isfinite(row["state_error"]))[-1])
    return f"state error {row['state_error'][last]:.3f} at step {last}, return error {row['return_error']:.3g}"


def crossings(found: dict[str, Any]) -> dict[str, dict[str, int | float | None]]:
    """The step from which each method stays below the (first run's) ensemble; None: never.

    By `state_error` against the ensemble's mean, over the steps that are valid in the truth and in both rollouts; the same by
    two standard errors (`clearly`); and by `state_distance` against the ensemble's mean and its samples, the nearer of the two
    at each step.
    """
    if ERROR_REFERENCE not in found:
        return {}
    squares = found[ERROR_REFERENCE]["squares"]
    distance = np.fmin(*(found[name]["state_distance"] for name in ENSEMBLES))
    return {
        name: {
            "state_error": paired_crossing(row["squares"], squares),
            "clearly": paired_crossing(row["squares"], squares, _CLEAR),
            "state_distance": crossing(np.arange(len(distance)), row["state_distance"], distance),
        }
        for name, row in found.items()
        if name not in ENSEMBLES
    }


def table(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows to print: errors at a few steps, return error, likelihood, terminals."""
    length = result["length"]
    steps = sorted({s for s in (1, 5, 10, 25, 50, 75) if s < length - 1} | {length - 1})
    rows = []
    for name, row in result["methods"].items():
        shown: dict[str, Any] = {"rollouts by": name}
        shown |= {f"error at {s}": _number(row["state_error"][s]) for s in steps}
        shown |= {f"distance at {s}": _number(row["state_distance"][s]) for s in (steps[len(steps) // 2], steps[-1])}
        shown["return error"] = f"{row['return_error']:.3g} ± {row['return_error_se']:.2g}"
        shown["log-likelihood"] = f"{row['policy_log_likelihood']:.3f} ± {row['policy_log_likelihood_se']:.3f}"
        shown["terminals"] = f"{100 * row['terminal_rate']:.0f} %"
        for kind, step in result["crossings"].get(name, {}).items():
            shown[CROSSED[kind]] = "never" if step is None else f"{step:g}"
        rows.append(shown)
    same = [k for k in ("log-likelihood", "terminals") if len(rows) > 1 and len({row[k] for row in rows}) == 1]
    columns = list(dict.fromkeys(k for row in rows for k in row if k not in same))
    return [{k: row.get(k, "-") for k in columns} for row in rows]


def _number(x: float) -> str:
    return f"{float(x):.3f}"


def _write(out: Path, result: dict[str, Any]) -> None:
    write_json(out / "rollouts.json", result)
    save(rollout_comparison_figure(result["methods"]), out / "rollouts.png")
    text, truth = text_table(table(result)), result["truth"]
    notes = (
        f"policy: {result['policy']}; {result['trajectories']} rollouts of {result['length']} steps from dataset states of "
        f"{result['dataset']}; in the real environment {100 * truth['terminal_rate']:.0f} % end in a terminal, and the "
        f"log-likelihood of the actions is {truth['policy_log_likelihood']:.3f} ± {truth['policy_log_likelihood_se']:.3f}.\n"
        "errors and distances are in standard deviations of the state. The last columns: the step from which the error stays "
        "below that of the ensemble's mean over the same rollouts, the same by two standard errors, and the step from which "
        "the distance between the sets of states stays below that of the ensemble's mean and samples. DyDiff starts from the "
        "ensemble's mean, with members drawn anew or averaged (synthesis.dydiff.elite; anchored always averaged): 0 iterations "
        "are that rollout."
    )
    write_atomic(out / "rollouts.txt", f"{text}\n{notes}\n")
    print(f"{text}\n{notes}\nfigure: {out / 'rollouts.png'}", flush=True)
