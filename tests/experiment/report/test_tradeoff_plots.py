"""Figures of `frontier`, `pareto` and `compare-rollouts`: what is drawn."""

import numpy as np
import pytest

from jaxpgd.experiment.report.tradeoff_plots import frontier_figure, pareto_figure, rollout_comparison_figure


def test_the_rollout_comparison_has_a_line_for_each_method_in_each_panel():
    method = {
        "state_error": np.array([0.0, 0.2]),
        "state_error_se": np.array([0.0, 0.05]),
        "state_distance": np.array([0.0, 0.1]),
    }
    curves = {"unguided": method, "one-step model": method | {"state_error": np.array([0.0, np.nan])}}
    figure = rollout_comparison_figure(curves | {"truth again": {"state_distance": np.array([0.01, 0.02])}})
    error, distance = figure.axes
    names = lambda axis: [line.get_label() for line in axis.lines]
    assert names(error) == ["unguided", "one-step model"] and names(distance) == [*names(error), "truth again"]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == names(distance)
    np.testing.assert_allclose(error.lines[0].get_xydata(), [[0, 0], [1, 0.2]])
    np.testing.assert_allclose(distance.lines[2].get_xydata(), [[0, 0.01], [1, 0.02]])
    band = error.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (0.0, pytest.approx(0.3)) and not distance.collections
    assert all(axis.get_xlabel() and axis.get_ylabel() and axis.get_ylim()[0] == 0 for axis in figure.axes)


def test_the_frontier_has_a_line_for_each_guidance_and_a_number_for_each_coefficient():
    row = lambda kind, c: (
        {"guidance": kind, "coefficient": c}
        | {
            f"{name}{bound}": c + shift
            for name in ("log_likelihood", "dynamics_error")
            for bound, shift in (("", 1.0), ("_low", 0.9), ("_high", 1.2))
        }
    )
    (axis,) = frontier_figure([row("unguided", 0.0), row("moment", 2.0), row("moment", 0.5)]).axes
    unguided, moment = (lines for lines, *_ in axis.containers)
    np.testing.assert_allclose(unguided.get_xydata(), [[1.0, 1.0]])
    np.testing.assert_allclose(moment.get_xydata(), [[1.5, 1.5], [3.0, 3.0]])
    assert sorted(text.get_text() for text in axis.texts) == ["0.5", "2"] and axis.get_yscale() == "log"


def test_numbers_without_room_are_left_out():
    near = [
        {"guidance": "moment", "coefficient": c}
        | {f"{name}{b}": 1 + 1e-9 * c for name in ("log_likelihood", "dynamics_error") for b in ("", "_low", "_high")}
        for c in range(1, 11)
    ]
    far = dict.fromkeys(near[0], 5.0) | {"guidance": "smc"}
    (axis,) = frontier_figure([*near, far]).axes
    assert [text.get_text() for text in axis.texts] == ["1", "2", "3", "4", "5"]  # a point has four sides


def test_the_cheapest_of_a_solver_is_its_least_error_at_each_price():
    rows = [{"solver": "heun", "forward_equivalents": p, "dynamics_error": e} for p, e in ((8, 0.3), (4, 0.5), (4, 0.4))]
    rows.append({"solver": "dpmpp_2m", "forward_equivalents": 4, "dynamics_error": float("nan")})
    figure = pareto_figure(rows, {"dynamics_error": 0.2}, ("dynamics_error", "sliced_wasserstein_1"))
    (axis,) = figure.axes
    np.testing.assert_allclose(axis.lines[0].get_xydata(), [[4, 0.4], [8, 0.3]])
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["Heun", "reference"]
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
