"""Figures: what is drawn, and that it is written whole."""

import numpy as np
import pytest

from jaxpgd.experiment.report import plots
from jaxpgd.experiment.report.figure import save
from jaxpgd.metrics.statistics import summarise
from jaxpgd.types import Trajectory

ROWS = [
    {"coefficient": c, "log_likelihood": c - 3, "log_likelihood_se": 0.1, "dynamics_error": 0.04 + c, "dynamics_error_se": 0.0}
    for c in (1.0, 0.0, 0.1)
]


def walk(dims=2, discount=None):
    obs = np.cumsum(np.random.default_rng(0).normal(size=(5, 8, dims)), axis=1)
    discount = np.ones((5, 8)) if discount is None else discount
    return Trajectory(obs, np.zeros((5, 8, 1)), np.zeros((5, 8)), discount, np.ones((5, 8), bool))


def test_trajectories_are_drawn_up_to_their_terminals_in_one_panel_per_group():
    discount = np.ones((5, 8))
    discount[0, 2] = 0
    ended = walk(discount=discount)
    figure = plots.trajectories_figure({"real": walk(), "guided": ended}, {"goal": (1.0, 2.0)}, limit=3)
    real, guided = figure.axes
    assert real.get_title() == "real (3 trajectories)" and guided.get_title() == "guided (3 trajectories)"
    lengths = lambda axis: [len(line.get_xdata()) for line in axis.lines if len(line.get_xdata()) > 1]
    assert lengths(real) == [8, 8, 8, 8] and lengths(guided) == [3, 8, 8]  # the last of the real panel is the mean
    np.testing.assert_allclose(real.lines[-2].get_xydata(), walk().obs[:3].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(guided.lines[0].get_xydata(), ended.obs[0, :3])
    assert any(np.array_equal(line.get_xydata(), [[1.0, 2.0]]) for line in real.lines)


def test_principal_components_of_a_line_are_along_it():
    states = np.linspace(0, 1, 8)[None, :, None] * np.array([1.0, -2.0, 3.0]) * np.arange(1, 6)[:, None, None]
    made = Trajectory(states, np.zeros((5, 8, 1)), np.zeros((5, 8)), np.ones((5, 8)), np.ones((5, 8), bool))
    figure = plots.trajectories_figure({"real": made}, coordinates=None)
    drawn = np.concatenate([line.get_xydata() for line in figure.axes[0].lines])
    assert np.abs(drawn[:, 1]).max() < 1e-6 < np.ptp(drawn[:, 0])


def test_the_sweep_orders_coefficients_and_draws_the_unguided_level():
    left, right = plots.sweep_figure(ROWS, persistence=0.25, chosen=0.1).axes
    np.testing.assert_allclose(left.lines[0].get_xydata(), [[0.1, -2.9], [1.0, -2.0]])
    labels = right.get_legend_handles_labels()[1]
    assert set(labels) == {"guided", "unguided", "persistence (s' = s)", "this run"}
    (level,) = [line for line in right.lines if line.get_label() == "unguided"]
    np.testing.assert_allclose(level.get_ydata(), 0.04)


def test_learning_curve_bands_span_the_seeds():
    figure = plots.learning_curves({"real": (np.array([1, 2]), np.array([[1.0, 3.0], [2.0, 6.0]]))}, unit="score")
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [2.0, 4.0])
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (1.0, 6.0)
    assert "score" in figure.axes[0].get_ylabel()


@pytest.mark.parametrize("scores", [np.array([[1.0, 2.0], [2.0, 4.0]]), np.array([[1.0, 2.0]]), np.array([3.0])])
def test_returns_are_drawn_with_and_without_intervals(scores, tmp_path):
    figure = plots.returns_figure({"real": summarise(scores), "other arm": summarise(scores)}, {"real": scores})
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["real", "other arm"]
    assert summarise(scores).unit in figure.get_suptitle() or "one score" in figure.get_suptitle()
    save(figure, tmp_path / "returns.png")


def test_losses_below_zero_keep_a_linear_axis():
    curve = lambda y: {"a": (np.arange(2), np.array(y))}
    assert plots.loss_curves(curve([1.0, 2.0])).axes[0].get_yscale() == "log"
    assert plots.loss_curves(curve([-1.0, 2.0])).axes[0].get_yscale() == "linear"


def test_dynamics_by_step_counts_from_one():
    axis = plots.dynamics_by_step_figure({"unguided": np.array([0.1, 0.2])}, np.array([0.5, 0.5])).axes[0]
    np.testing.assert_allclose(axis.lines[0].get_xydata(), [[1, 0.1], [2, 0.2]])
    assert axis.get_ylim()[0] == 0
