"""Every figure can be read: words and units at every axis, and nothing that covers anything else."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from experiment.report.legible import check_legible
from matplotlib.figure import Figure

from jaxpgd.experiment.commands.pareto_measures import GUIDED_MEASURES, MEASURES
from jaxpgd.experiment.report import plots, study_plots, tradeoff_plots
from jaxpgd.experiment.report.figure import panels
from jaxpgd.metrics.aggregate import aggregate
from jaxpgd.metrics.comparison import performance_profile, probability_of_improvement
from jaxpgd.metrics.policy_selection import policy_selection
from jaxpgd.metrics.statistics import summarise
from jaxpgd.types import Trajectory

ARMS = ("real", "unguided", "guided", "world_model", "dydiff")
GOALS = {"behaviour goal": (0.0, 1.0), "target goal": (1.0, 0.0)}
MEASURED = {"state_error": np.arange(64.0) ** 2, "state_error_se": np.ones(64), "state_distance": np.arange(64.0)}
ROLLOUTS = ("world model, mean", "world model, sampled", *(f"DyDiff, {i} iterations" for i in (0, 2, 4)),
            "unguided diffusion (start in-painted, trained on 16 steps)",
            "guided diffusion, coefficient 0.3 (start in-painted, trained on 16 steps) (run 2, hopper-medium)")  # fmt: skip
LONG = "normalised score (of a family of datasets with a long name)"


def walks(scale: tuple[float, float] = (1.0, 1.0), steps: int = 12) -> Trajectory:
    obs = np.cumsum(np.random.default_rng(0).normal(size=(6, steps, 2)), axis=1) * scale
    return Trajectory(obs, np.zeros((6, steps, 1)), np.zeros((6, steps)), np.ones((6, steps)), np.ones((6, steps), bool))


def scores(seed: int, tasks: int = 2) -> dict[str, np.ndarray]:
    return {f"task {i}": np.random.default_rng(seed).normal(40 + 9 * i, 5, 4) for i in range(tasks)}


def sweep(values: dict[float, float]) -> list[dict[str, float]]:
    named = {"log_likelihood": -1.0, "dynamics_error": 0.04}
    return [
        {"coefficient": c, **{name: v * at for name, at in named.items()}, **{f"{name}_se": 0.1 * v for name in named}}
        for c, v in values.items()
    ]


def frontier(spread: float) -> list[dict[str, object]]:
    kinds = ("published", "reconstruction", "reconstruction-held", "moment", "smc")
    rows = [("unguided", 0.0), *((kind, c) for kind in kinds for c in (0.03, 0.1, 0.3, 1.0, 3.0, 10.0))]
    found = []
    for i, (kind, c) in enumerate(rows):
        value = {"log_likelihood": -1 + spread * np.sin(i), "dynamics_error": 0.05 * (1 + spread * c)}
        bounds = {f"{k}{b}": v * (1 + s) for k, v in value.items() for b, s in (("", 0.0), ("_low", -0.1), ("_high", 0.1))}
        found.append({"guidance": kind, "coefficient": c} | bounds)
    return found


def pareto(low: float, high: float, measures: tuple[str, ...] = MEASURES) -> Figure:
    solvers = ("euler", "heun", "ancestral", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "dpmpp_3m_sde")
    rows = [
        {"solver": s, "forward_equivalents": n} | dict.fromkeys(measures, high * (low / high) ** (i / 3 + j / 99))
        for j, s in enumerate(solvers)
        for i, n in enumerate((3, 15, 63, 511))
    ]
    return tradeoff_plots.pareto_figure(rows, dict.fromkeys(measures, low), measures)


def summaries(names: tuple[str, ...], seeds: int = 3) -> Figure:
    tables = {name: np.random.default_rng(i).normal(size=(seeds, 4)) for i, name in enumerate(names)}
    return plots.returns_figure({name: summarise(table) for name, table in tables.items()}, tables)


def curves(names: tuple[str, ...], low: float, high: float) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {name: (np.arange(1, 6) * 20_000, np.linspace(low, high, 5) + 0.01 * low * i) for i, name in enumerate(names)}


def selection() -> Figure:
    table = np.random.default_rng(1).normal(size=(24, 8))
    names = [f"{agent}, {arm}" for agent in ("TD3+BC", "diffusion Q-learning") for arm in ARMS[:3]]
    return study_plots.selection_figure({name: policy_selection(table, draws=50) for name in names}, unit=LONG)


def by_seed(names: tuple[str, ...]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {name: (np.arange(1, 4), np.random.default_rng(i).normal(size=(3, 5))) for i, name in enumerate(names)}


PAIRS = [(x, y) for x in ARMS for y in ("real", "unguided") if x != y]
FIGURES: dict[str, Callable[[], Figure]] = {
    "trajectories_figure": lambda: plots.trajectories_figure({"real": walks()}, GOALS),
    "trajectories_figure, arms": lambda: plots.trajectories_figure(dict.fromkeys(ARMS, walks()), GOALS, title="In the plane"),
    "trajectories_figure, flat": lambda: plots.trajectories_figure(dict.fromkeys(ARMS[:3], walks((9.0, 0.1)))),
    "trajectories_figure, tall": lambda: plots.trajectories_figure(dict.fromkeys(ARMS[:3], walks((0.1, 9.0))), title="Tall"),
    "trajectories_figure, projected": lambda: plots.trajectories_figure(dict.fromkeys(ARMS, walks()), coordinates=None),
    "learning_curves": lambda: plots.learning_curves(by_seed(ARMS), unit="normalised score"),
    "returns_figure": lambda: summaries(ARMS),
    "returns_figure, long names": lambda: summaries(tuple(f"{arm}, regularised diffusion Q-learning" for arm in ARMS)),
    "returns_figure, one seed": lambda: summaries(("real",), 1),
    "loss_curves": lambda: plots.loss_curves(curves(("loss", "validation_loss"), 0.31, 0.36)),
    "loss_curves, below zero": lambda: plots.loss_curves(curves(("loss",), -3.0, 2.0)),
    "sweep_figure": lambda: plots.sweep_figure(sweep({c: 1 + c for c in (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)}), chosen=0.3),
    "sweep_figure, near": lambda: plots.sweep_figure(sweep({0.0: 1, 0.97: 1, 1.0: 1, 1.02: 1}), persistence=0.4, chosen=1.0),
    "dynamics_by_step_figure": lambda: plots.dynamics_by_step_figure(dict.fromkeys(ARMS, np.arange(15.0)), np.ones(15)),
    "guidance_strength_figure": lambda: plots.guidance_strength_figure(
        {"sigma": np.geomspace(0.002, 80, 9), "score_norm": np.geomspace(500, 0.01, 9), "guidance_norm": np.full(9, 1e-7)}
    ),
    "rollout_comparison_figure": lambda: tradeoff_plots.rollout_comparison_figure(dict.fromkeys(ROLLOUTS, MEASURED)),
    "frontier_figure": lambda: tradeoff_plots.frontier_figure(frontier(0.3)),
    "frontier_figure, dense": lambda: tradeoff_plots.frontier_figure(frontier(0.001)),
    "pareto_figure": lambda: pareto(0.01, 70.0),
    "pareto_figure, within a decade": lambda: pareto(0.16, 0.26, GUIDED_MEASURES),
    "pareto_figure, nearly equal": lambda: pareto(0.0316, 0.0319, GUIDED_MEASURES),
    "pareto_figure, many decades": lambda: pareto(1e-9, 1e6, GUIDED_MEASURES),
    "aggregates_figure": lambda: study_plots.aggregates_figure(
        {f"diffusion Q-learning, {arm}": aggregate(scores(i), gamma=100.0) for i, arm in enumerate(ARMS)}, unit=LONG
    ),
    "profiles_figure": lambda: study_plots.profiles_figure(
        {arm: performance_profile(scores(i), np.linspace(10, 70, 9)) for i, arm in enumerate(ARMS)}, unit=LONG
    ),
    "improvement_figure": lambda: study_plots.improvement_figure(
        {(x, y): probability_of_improvement(scores(0), scores(1), resamples=50) for x, y in PAIRS}
    ),
    "selection_figure": selection,
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_can_be_read(name: str) -> None:
    check_legible(FIGURES[name]())


def test_no_figure_is_forgotten() -> None:
    found = [
        name
        for module in (plots, tradeoff_plots, study_plots)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and inspect.signature(function).return_annotation is Figure
    ]
    assert set(found) == {name.partition(",")[0] for name in FIGURES}


def test_what_cannot_be_read_is_found() -> None:
    """The checks themselves: each of these figures has one fault."""

    def figure(**changes: object) -> Figure:
        found, (axis,) = panels(1)
        axis.plot([0, 1], label="line")
        axis.set(**({"xlabel": "words", "ylabel": "words", "title": "title"} | changes))
        return found

    check_legible(figure())
    within, crowded, cut = figure(), figure(), figure()
    within.axes[0].legend()
    crowded.axes[0].text(0.5, 0.5, "one")
    crowded.axes[0].text(0.5, 0.5, "other")
    cut.text(0.99, 0.5, "too far to the right")
    faults = {
        "the name of a field": figure(ylabel="surviving_reward_error"), "words at the x axis": figure(xlabel=""),
        "a legend within": within, "over": crowded, "cut off": cut,
    }  # fmt: skip
    for message, faulty in faults.items():
        with pytest.raises(AssertionError, match=message):
            check_legible(faulty)


RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/**/pareto.json")) + sorted(RESULTS.glob("*/frontier.json")), ids=str)
def test_committed_results_can_be_drawn_and_read(path: Path) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))
    rows = [{k: np.nan if v is None else v for k, v in row.items()} for row in found["rows"]]
    if path.name == "frontier.json":
        check_legible(tradeoff_plots.frontier_figure(rows))
    else:
        check_legible(tradeoff_plots.pareto_figure(rows, found["reference"], GUIDED_MEASURES if found["target"] else MEASURES))
