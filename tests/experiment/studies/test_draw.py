"""Every figure of every study that comes with the package can be read, whatever its cells are."""

import functools

import numpy as np
import pytest
from experiment.report.legible import check_legible

from jaxpgd.experiment.studies.cell import COLUMNS, STEP_COLUMNS, Cell
from jaxpgd.experiment.studies.draw import DRAWINGS, draw
from jaxpgd.experiment.studies.measures import Found
from jaxpgd.experiment.studies.plan import load_study, shipped
from jaxpgd.experiment.studies.results import Results, by_scale
from jaxpgd.experiment.studies.spec import Drawing
from jaxpgd.types import Trajectory

METHODS = ("world model, mean", "world model, sampled", "DyDiff, 0 iterations", "DyDiff, 1 iteration", "DyDiff, 2 iterations",
           "DyDiff, 4 iterations", "unguided diffusion", "guided diffusion, coefficient 1")  # fmt: skip
SEEDS, EPISODES, STEPS = 3, 2, 9


def made_up(cell: Cell, rng: np.random.Generator) -> Found:
    """Rows of numbers above 0 in every column that such a cell has."""
    kind = cell.measure.kind
    columns = [c for c in COLUMNS[kind] if c != "score"]
    values = lambda names: {name: float(rng.lognormal(1, 2)) for name in names}
    methods = [{"method": name} for name in METHODS] if kind == "rollouts" else [{}]
    score = {"scale": "score (local)", "score": 50.0} if kind == "returns" else {}
    rows = [
        {"seed": s, "episode": e} | method | values(columns) | score
        for s in range(SEEDS)
        for e in range(EPISODES)
        for method in methods
    ]
    steps = [
        {"seed": s, "step": k * 1000 if kind == "returns" else k} | method | values(STEP_COLUMNS[kind])
        for s in range(SEEDS)
        for k in range(1, STEPS)
        for method in methods
    ]
    return Found(rows, steps, walks(rng) if cell.measure.samples else None)


def walks(rng: np.random.Generator) -> Trajectory:
    obs = np.cumsum(rng.normal(size=(5, STEPS, 2)), axis=1)
    ones = np.ones((5, STEPS))
    return Trajectory(obs, np.zeros((5, STEPS, 2)), 0 * ones, ones, ones > 0)


FEW = {
    "pgd-lambda": {"lambda": ("0.1", "3"), "guidance": ("exact samples", "published")},
    "pgd-dynamics": {"coefficient": ("3",)},
}


@functools.cache
def filled(name: str) -> Results:
    """A study's results, made up; of some studies less than all, which is drawn sooner."""
    study, rng = load_study(name, only=FEW.get(name)), np.random.default_rng(0)
    results = Results(study)
    for cell in study.cells:
        results.add(cell, made_up(cell, rng))
    return results


STUDIES = [name for name in shipped() if name not in ("pgd-accelerator", "dydiff-returns")]  # whose figures others have too


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_every_figure_of_a_study_can_be_read(name: str) -> None:
    results = filled(name)
    for drawing in by_scale(results, results.study.figures):
        figure = draw(results, drawing)
        assert figure is not None, drawing.name
        check_legible(figure)


def test_figures_of_learning_say_what_their_steps_are() -> None:
    results = filled("pgd-regimes")
    figure = draw(results, Drawing(kind="steps", value="return", hue="source", panels=("agent", "regime")))
    assert figure is not None and figure.axes[-1].get_xlabel() == "agent updates"
    check_legible(figure)
    figure = draw(results, Drawing(kind="steps", value="value_error", hue="source", panels=("agent", "regime")))
    assert figure is not None and figure.axes[-1].get_xlabel() == "agent updates"


def test_all_kinds_of_figures_are_drawn() -> None:
    assert {drawing.kind for name in STUDIES for drawing in filled(name).study.figures} == set(DRAWINGS)
