"""Figures of studies: what is drawn."""

import numpy as np
import pytest

from jaxpgd.errors import InputError
from jaxpgd.experiment.report import study_plots
from jaxpgd.experiment.report.figure import save
from jaxpgd.metrics.aggregate import aggregate
from jaxpgd.metrics.comparison import performance_profile, probability_of_improvement
from jaxpgd.metrics.policy_selection import policy_selection

RNG = np.random.default_rng(0)
SCORES = {name: {"a": RNG.normal(50 + i, 5, 4), "b": RNG.normal(70, 5, 3)} for i, name in enumerate(("real", "DyDiff"))}


def labels(ticks):
    return [t.get_text() for t in ticks]


def test_aggregates_have_a_row_for_each_method_and_a_panel_for_each_metric():
    results = {name: aggregate(s, gamma=100.0) for name, s in SCORES.items()}
    figure = study_plots.aggregates_figure(results, metrics=("iqm", "optimality_gap"))
    left, right = figure.axes
    assert (left.get_title(), right.get_title()) == ("interquartile mean", "optimality gap")
    assert labels(left.get_yticklabels()) == ["real", "DyDiff"] and left.get_ylim() == (1.5, -0.5)
    assert figure.get_suptitle() == "Aggregates over 2 tasks, 3 to 4 seeds each\nbars: 95% intervals over seeds"
    for axis, metric in ((left, "iqm"), (right, "optimality_gap")):
        for result, bar, line in zip(results.values(), axis.patches, axis.lines, strict=True):
            estimate = getattr(result, metric)
            assert (bar.get_x(), bar.get_x() + bar.get_width()) == pytest.approx((estimate.low, estimate.high))
            assert list(line.get_xdata()) == [estimate.value] * 2
        low, high = axis.get_xlim()
        assert all(low < bar.get_x() and bar.get_x() + bar.get_width() < high for bar in axis.patches)
    assert "lower is better" in right.get_xlabel() and "below 100" in right.get_xlabel()


def test_without_intervals_the_title_says_so(tmp_path):
    single = {"a": np.array([1.0])}
    figures = [
        study_plots.aggregates_figure({"real": aggregate(single, gamma=1.0)}),
        study_plots.profiles_figure({"real": performance_profile(single, np.array([0.0, 2.0]))}),
        study_plots.improvement_figure({("real", "DyDiff"): probability_of_improvement(single, single)}),
    ]
    for i, figure in enumerate(figures):
        title = figure.get_suptitle()
        assert "1 task, 1 seed each\nno intervals" in title
        assert not any(axis.patches for axis in figure.axes)
        save(figure, tmp_path / f"{i}.png")


def test_profiles_have_a_curve_and_a_band_for_each_method():
    profiles = {name: performance_profile(s, np.array([60.0, 40.0, 80.0])) for name, s in SCORES.items()}
    figure = study_plots.profiles_figure(profiles)
    (axis,) = figure.axes
    assert labels(figure.legends[0].get_texts()) == ["real", "DyDiff"]
    for line, band, profile in zip(axis.lines, axis.collections, profiles.values(), strict=True):
        np.testing.assert_allclose(line.get_xydata(), np.stack([[40.0, 60, 80], profile.fraction[[1, 0, 2]]], axis=1))
        heights = band.get_paths()[0].vertices[:, 1]
        assert (heights.min(), heights.max()) == (profile.low.min(), profile.high.max())


def test_improvement_names_both_methods_and_marks_one_half():
    pairs = {pair: probability_of_improvement(*(SCORES[n] for n in pair)) for pair in (("real", "DyDiff"), ("DyDiff", "real"))}
    figure = study_plots.improvement_figure(pairs)
    axis = figure.axes[0]
    assert labels(axis.get_yticklabels()) == ["real", "DyDiff"]
    assert labels(axis.child_axes[0].get_yticklabels()) == ["DyDiff", "real"]
    assert [bar.get_x() for bar in axis.patches] == pytest.approx([p.probability.low for p in pairs.values()])
    points = [line.get_xydata()[0] for line in axis.lines if line.get_marker() == "D"]
    np.testing.assert_allclose(points, [[p.probability.value, i] for i, p in enumerate(pairs.values())])
    assert any(list(line.get_xdata()) == [0.5, 0.5] for line in axis.lines)


def test_selection_is_drawn_against_the_episodes_spent(tmp_path):
    returns = np.random.default_rng(1).normal(size=(5, 8))
    one = policy_selection(returns, episodes=2, draws=200)
    figure = study_plots.selection_figure({"guided": one, "real": policy_selection(returns, draws=200)})
    regret, value = figure.axes
    np.testing.assert_allclose(regret.lines[0].get_xydata(), np.stack([[2, 4, 6, 8, 10], one.regret], axis=1))
    np.testing.assert_allclose(regret.lines[1].get_ydata(), one.best - one.noiseless)
    np.testing.assert_allclose(value.lines[0].get_ydata(), one.value)
    shown = labels(figure.legends[0].get_texts())
    assert shown[:2] == ["guided (5 candidates, 2 episodes each)", "real (5 candidates, 1 episode each)"]
    save(figure, tmp_path / "selection.png")


def test_nothing_to_draw_is_refused():
    draws = (study_plots.aggregates_figure, study_plots.profiles_figure, study_plots.improvement_figure,
             study_plots.selection_figure)  # fmt: skip
    for draw in draws:
        with pytest.raises(InputError, match="at least one"):
            draw({})
    with pytest.raises(InputError, match="metrics"):
        study_plots.aggregates_figure({"real": aggregate(SCORES["real"], gamma=1.0)}, metrics=("range",))
