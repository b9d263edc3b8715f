"""What all figures share: size, titles, legend, ticks, colours and words."""

import itertools

import numpy as np
import pytest

from jaxpgd.experiment.commands.pareto_measures import MEASURES
from jaxpgd.experiment.report.figure import broken, finish, panels, save, text_width
from jaxpgd.experiment.report.marks import barred_points
from jaxpgd.experiment.report.style import _PALETTE, COLOURS, arm_of, colour_of, line_of
from jaxpgd.experiment.report.ticks import LogTicks, log_label, name_ticks, number_ticks
from jaxpgd.experiment.report.words import LABELS, label_of, name_of
from jaxpgd.experiment.studies.cell import COLUMNS, STEP_COLUMNS


def png_size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def test_save_writes_a_png_of_the_stated_resolution_and_nothing_else(tmp_path):
    figure, (axis,) = panels(1, width=7, height=4.2)
    axis.plot([1, 2])
    path = save(figure, tmp_path / "new" / "loss.png")
    assert png_size(path) == (840, 504)
    assert [p.name for p in path.parent.iterdir()] == ["loss.png"]


def test_titles_and_labels_fit_and_panels_keep_their_size():
    figure, (axis,) = panels(1, width=4.0)
    axis.set_ylabel("a label of many words " * 6)
    finish(figure, "a title of many words " * 6)
    lines = figure.get_suptitle().splitlines()
    assert len(lines) > 1 and max(text_width(line, 13) for line in lines) <= 4
    assert max(text_width(line, 11) for line in axis.get_ylabel().splitlines()) <= 4.2
    assert figure.get_figheight() > 4.2
    assert broken("one_long_word", 0.1, 10) == "one_long_word" and broken("", 1, 10) == ""


def test_a_label_that_neighbours_share_is_shown_once():
    figure, axes = panels(3, columns=2)
    for axis in axes:
        axis.set(xlabel="x", ylabel="y")
    axes[1].set_ylabel("other")
    finish(figure)
    shown = [(axis.xaxis.label.get_visible(), axis.yaxis.label.get_visible()) for axis in axes]
    assert shown == [(False, True), (True, True), (True, True)]


def test_the_legend_has_each_label_once_and_stands_below():
    figure, axes = panels(2)
    for axis, names in zip(axes, (("a", "b"), ("b", "c" * 200)), strict=True):
        for name in names:
            axis.plot([0, 1], label=name)
    (legend,) = finish(figure).legends
    assert [t.get_text()[:1] for t in legend.get_texts()] == ["a", "b", "c"] and not legend.get_frame_on()
    figure.draw_without_rendering()
    assert legend.get_window_extent().y1 <= min(axis.get_window_extent().y0 for axis in axes)


@pytest.mark.parametrize("span", [1.001, 1.1, 1.5, 3.0, 8.0, 40.0, 500.0, 1e5, 1e9, 1e15])
@pytest.mark.parametrize("low", [2.3e-7, 0.0317, 0.9, 17.0, 1234.0])
def test_logarithmic_axes_have_three_to_seven_labels_that_differ(low, span):
    ticks = LogTicks().tick_values(low, low * span)
    assert 3 <= len(ticks) <= 7 and all(low <= tick <= low * span for tick in ticks)
    assert len({log_label(tick) for tick in ticks}) == len(ticks) or span < 1.01
    assert LogTicks().tick_values(0.0, 1.0) == []


def test_numbers_are_written_out_where_they_are_short():
    found = [log_label(value) for value in (0.002, 1.0, 0.3, 20000.0, 1e-5, 3e6)]
    assert found == ["0.002", "1", "0.3", "20000", "$10^{-5}$", "$3\\times10^{6}$"]


def test_labels_of_numbers_that_would_touch_are_left_out():
    _, (axis,) = panels(1, width=4)
    number_ticks(axis, [0, 0.001, 1, 2])
    assert [t.get_text() for t in axis.get_xticklabels()] == ["0", "", "1", "2"]
    np.testing.assert_allclose(axis.get_xticks(), [0, 0.001, 1, 2])


@pytest.mark.filterwarnings("error")
def test_a_single_number_on_a_logarithmic_axis_has_room_around_it():
    _, (axis,) = panels(1, width=5.2)
    axis.set(title="hopper", ylabel="return")
    axis.set_xscale("log")
    barred_points(axis, [10.0], [1.0], [0.9], [1.1], "real", ["real"])
    number_ticks(axis, [10.0])
    low, high = axis.get_xlim()
    assert 9 < low < 10 < high < 11


def test_long_names_are_broken_between_words():
    _, (axis,) = panels(1, width=4)
    name_ticks(axis, ["a name of several words", "real"])
    first, second = (t.get_text() for t in axis.get_xticklabels())
    assert "\n" in first and first.replace("\n", " ") == "a name of several words" and second == "real"


def test_an_arm_has_one_colour_and_its_variants_differ_in_line():
    names = ["world_model", "guided, 0.3", "guided, 1", "guided diffusion", "other"]
    assert [arm_of(name) for name in names] == ["world model", "guided", "guided", "guided", ""]
    assert colour_of("dydiff", ["dydiff"]) == COLOURS["DyDiff"]
    assert {colour_of(name, names) for name in names[1:4]} == {COLOURS["guided"]}
    assert len({line_of(name, names) for name in names[1:4]}) == 3
    assert colour_of("other", names) not in {COLOURS["guided"], COLOURS["world model"]}


def test_lines_differ_where_colours_repeat():
    names = [f"method {i}" for i in range(20)]
    assert len({(colour_of(name, names), line_of(name, names)) for name in names}) == 20


# Simulated vision, in linear RGB: Viénot, Brettel and Mollon 1999, as rounded for sRGB by Machado et al. 2009 (severity 1).
SIMULATED = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


def lab(colour, matrix):
    """CIELAB of a colour "#RRGGBB" as seen through a matrix of linear RGB."""
    code = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.clip(np.asarray(matrix) @ np.where(code > 0.04045, ((code + 0.055) / 1.055) ** 2.4, code / 12.92), 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    f = np.cbrt(xyz / [0.9505, 1.0, 1.089])
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("matrix", SIMULATED.values(), ids=SIMULATED)
def test_colours_stay_apart_for_colour_blind_readers(matrix):
    seen = [lab(colour, matrix) for colour in _PALETTE]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 15


def test_every_measured_column_has_words():
    columns = {c for found in (*COLUMNS.values(), *STEP_COLUMNS.values()) for c in found} | set(MEASURES)
    assert columns - set(LABELS) == {"score"}
    assert label_of("score (local)") == "normalised score (local)" and name_of("world_model") == "world model"
    assert not any("_" in text for text in (*LABELS.values(), *map(label_of, columns)))
