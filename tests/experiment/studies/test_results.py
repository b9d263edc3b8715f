"""Rows of a study by seed, task and step; comparisons and their correction; what tables and figures show of them."""

import csv
import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxpgd.errors import InputError
from jaxpgd.experiment.studies import comparisons, report
from jaxpgd.experiment.studies.draw import DRAWINGS, checked, draw
from jaxpgd.experiment.studies.measures import Found
from jaxpgd.experiment.studies.over_tasks import methods_of
from jaxpgd.experiment.studies.plan import Study, load_study
from jaxpgd.experiment.studies.report import table_rows
from jaxpgd.experiment.studies.results import Results, by_scale
from jaxpgd.experiment.studies.spec import Comparison, Drawing, Table

TEXT = """
title = "Made up"
[axes.task]
"1" = { data.episodes = 10 }
"10" = { data.episodes = 20 }
[axes.source]
real = { arms = ["real"] }
guided = { arms = ["guided"] }
"""
GAIN = 2.5  # of guided over real, at every seed


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    path = tmp_path_factory.mktemp("study") / "made.toml"
    path.write_text(TEXT)
    return load_study(str(path))


@pytest.fixture
def results(study: Study) -> Results:
    """Six seeds of three episodes: task * 100 + seed + (guided: 3), episodes one below, at and above it."""
    found = Results(study)
    for cell in study.cells:
        base = 100 * float(cell.labels["task"]) + GAIN * (cell.labels["source"] == "guided")
        rows = [{"seed": s, "episode": e, "return": base + s + e - 1} for s in range(6) for e in range(3)]
        steps = [{"seed": s, "step": k, "return": base + s + k} for s in range(6) for k in (0, 5)]
        found.add(cell, Found(rows, steps))
    return found


def test_a_seed_counts_once_by_its_mean_over_episodes(results: Results) -> None:
    np.testing.assert_allclose(results.units("return", {"task": "1", "source": "real"}), 100.0 + np.arange(6))


def test_tasks_that_are_not_told_apart_are_averaged_and_no_repetitions(results: Results) -> None:
    np.testing.assert_allclose(results.units("return", {"source": "guided"}), 550.0 + GAIN + np.arange(6))


def test_lost_seeds_and_missing_values_are_left_out(results: Results) -> None:
    for row in results.rows:
        if row["task"] == "10" and row["seed"] == 2:
            row["return"] = float("nan")
    assert len(results.units("return", {"task": "10", "source": "real"})) == 5
    assert len(results.units("return", {"task": "1", "source": "real"})) == 6
    assert len(results.units("return", {"source": "real"})) == 5  # averages are of seeds that all tasks have
    assert len(results.units("score", {})) == 0


def test_curves_by_step(results: Results) -> None:
    steps, values = results.curve("return", {"task": "1", "source": "real"})
    np.testing.assert_array_equal(steps, [0, 5])
    np.testing.assert_allclose(values, [100.0 + np.arange(6), 105.0 + np.arange(6)])


def test_the_tidy_tables(results: Results, tmp_path: Path) -> None:
    results.write(tmp_path)
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 6 * 3 and list(rows[0]) == ["cell", "task", "source", "seed", "episode", "return"]
    assert (rows[0]["task"], rows[0]["source"], float(rows[0]["return"])) == ("1", "real", 99.0)
    with (tmp_path / "by_step.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4 * 6 * 2


def test_a_table_has_means_intervals_and_seeds(results: Results) -> None:
    rows = table_rows(results, Table(value="return", rows=("task",), columns="source"))
    assert [row["task"] for row in rows] == ["1", "10"]
    assert rows[0]["real"].startswith("102.5 [") and rows[0]["real"].endswith("(6)")
    low, high = (float(x) for x in rows[0]["real"].split("[")[1].split("]")[0].split(","))
    assert 100 < low < 102.5 < high < 105


def test_tables_have_words_for_fields_and_labels(results: Results) -> None:
    for row in results.rows:
        row["log_likelihood"] = 1.0
        row["source"] = {"real": "dataset", "guided": "world_model"}[row["source"]]
    results._incomplete = lambda where: False  # type: ignore[method-assign]
    by_task = table_rows(results, Table(value="log_likelihood", rows=("task",)))
    assert list(by_task[0]) == ["task", "log-likelihood (nats per action)"]
    assert list(table_rows(results, Table(value="log_likelihood", columns="source"))[0]) == ["dataset", "world model"]


def spend(results: Results) -> None:
    """Ten seconds for five updates on real data, twenty and two for a model on guided data; returns grow by one an update."""
    for row in results.steps:
        row["total_training_seconds"] = 2.0 * row["step"] if row["source"] == "real" else 2.0 + 4.0 * row["step"]


def test_a_table_at_equal_time_is_that_of_the_cheapest_source(results: Results) -> None:
    spend(results)
    table = Table(value="return", rows=("task",), columns="source", at_equal="total_training_seconds")
    rows = table_rows(results, table)
    # real data has 10 seconds for 5 updates, guided data then 2: of what 6 seeds have at the start, their mean is 2.5
    assert [float(rows[0][source].split(" ")[0]) for source in ("real", "guided")] == [100 + 2.5 + 5, 100 + 2.5 + GAIN + 2]
    assert rows[0]["guided"].endswith("(6)") and "interpolated linearly" in report.caption(table)
    lost = next(r for r in results.steps if (r["task"], r["source"], r["seed"], r["step"]) == ("1", "guided", 3, 5))
    lost["return"] = float("nan")  # a seed that diverges after the time that is compared
    assert table_rows(results, table)[0]["guided"].endswith("(5)")
    del lost["return"]
    assert table_rows(results, table)[0]["guided"].endswith("(5)")
    for row in results.steps:  # a model that takes longer than all of real data
        row["total_training_seconds"] += 11.0 * (row["source"] == "guided")
    rows = table_rows(results, table)
    assert rows[0]["guided"] == "" and rows[0]["real"].startswith("107.5 [")
    for row in results.steps:  # as cells that were measured before there were times
        if row["source"] == "guided":
            del row["total_training_seconds"]
    assert table_rows(results, table) == []


def test_a_seed_is_compared_with_its_own_time(results: Results) -> None:
    """Whatever the order in which seeds have their values; those of one cell may come from cells of other times."""
    spend(results)
    for row in results.steps:
        row["total_training_seconds"] += row["seed"]
        if row["seed"] == 0 and row["step"] == 0:
            del row["return"]
    steps, spent, found = results.curves(("total_training_seconds", "return"), {"task": "1", "source": "real"})
    assert list(steps) == [0, 5] and np.isnan(spent[0]).sum() == np.isnan(found[0]).sum() == 1
    np.testing.assert_array_equal(found[1] - 105.0, spent[1] - 10.0)  # both are the seed


def test_a_time_is_one_number(results: Results) -> None:
    for row in results.rows:
        row["total_training_seconds"] = 12.5
    table = Table(value="total_training_seconds", rows=("task",), columns="source")
    assert table_rows(results, table)[0]["real"] == "12.5"
    assert report.caption(table).startswith("Training, models included (seconds): of all seeds")


def test_figures_of_times_that_no_cell_has_are_not_missed(results: Results, tmp_path: Path) -> None:
    drawing = Drawing(kind="steps", name="by_time", x="total_training_seconds", hue="source", panels=("task",))
    object.__setattr__(results.study, "figures", (drawing, Drawing(kind="trajectories")))
    assert len(report._figures(results, tmp_path, report.Report("made"))) == 1


def test_curves_can_be_drawn_over_time(results: Results) -> None:
    spend(results)
    drawing = Drawing(kind="steps", value="return", x="total_training_seconds", hue="source", panels=("task",))
    figure = draw(results, drawing)
    assert figure is not None and figure.axes[0].get_xlabel() == "training, models included (seconds)"
    assert [list(line.get_xdata()) for line in figure.axes[0].lines] == [[0, 10], [2, 22]]
    figure = draw(results, Drawing(kind="steps", value="return", hue="source", panels=("task",)))
    assert figure is not None and figure.axes[0].get_xlabel() == "agent updates"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ('[[figures]]\nkind = "steps"\nx = "source"', "figure 1: x = 'source': expected one of .*total_training_core_seconds"),
        (
            '[[tables]]\nrows = ["task", "source"]\nat_equal = "length"',
            "table 1: at_equal = 'length': expected one of total_training_core_seconds, total_training_seconds",
        ),
        (
            '[[tables]]\nrows = ["task", "source"]\npower = "length"\nat_equal = "total_training_seconds"',
            "expected nothing beside power",
        ),
        ('[[figures]]\nkind = "steps"\nhue = "source"\nx = "total_training_seconds"', "expected every axis named: task too"),
        ('[[tables]]\ncolumns = "source"\nat_equal = "total_training_seconds"', "expected every axis named: task too"),
    ],
)
def test_columns_by_step_are_checked(tmp_path: Path, spec: str, expected: str) -> None:
    (tmp_path / "made.toml").write_text(TEXT + spec)
    with pytest.raises(InputError, match=expected):
        load_study(str(tmp_path / "made.toml"))


def compare(results: Results, **changes: object) -> list[comparisons.Difference]:
    spec = Comparison(axis="source", pairs=("guided", "real"), value="return", **changes)  # type: ignore[arg-type]
    object.__setattr__(results.study, "comparisons", (spec,))
    return comparisons.differences(results)


def test_differences_are_those_of_welch_and_of_pairs(results: Results) -> None:
    found = compare(results)
    assert [d.where for d in found] == [{"task": "1"}, {"task": "10"}]
    assert all(d.difference == pytest.approx(GAIN) for d in found)
    deviation = np.sqrt(3.5)  # of 0 ... 5
    from scipy import stats

    p = 2 * stats.t.sf(GAIN / (deviation * np.sqrt(2 / 6)), 10)  # equal variances and sizes: 10 degrees of freedom
    assert found[0].p == pytest.approx(p) and found[0].corrected == pytest.approx(2 * p)
    for row in results.rows:
        row["return"] += 0.01 * row["seed"] ** 2 * (row["source"] == "guided")
    assert compare(results, paired=True)[0].p < 1e-4 < found[0].p


def test_only_what_holds_after_the_correction_is_a_sentence(results: Results) -> None:
    found = compare(results)
    assert 0.01 < found[0].p < 0.05 < found[0].corrected
    lines = comparisons.sentences(found)
    assert len(lines) == 1 and lines[0].startswith("2 comparisons tested") and "for 2 of them" in lines[0]
    for row in results.rows:
        row["return"] += 20 * (row["source"] == "guided") * (row["task"] == "1")
    lines = comparisons.sentences(compare(results))
    assert len(lines) == 3 and lines[0].startswith("1: guided has a higher return than real, by 22.5")
    assert lines[1].startswith("10: guided has a higher return than real, by 2.5")  # the last of two is held to 5 % alone
    assert lines[0].endswith("better.") and "no difference" not in lines[2]
    assert comparisons.sentences(compare(results, better="lower"))[0].endswith("worse.")


def test_pairs_are_those_of_the_same_seed(results: Results) -> None:
    lost = {("guided", 0), ("real", 5)}
    results.rows = [row for row in results.rows if (row["source"], row["seed"]) not in lost]
    for row in results.rows:
        row["return"] += 10 * row["seed"] ** 2 + 0.01 * row["seed"] * (row["source"] == "guided")
    found = compare(results, paired=True)[0]
    assert found.seeds == (4, 4)  # seeds 1 to 4
    assert found.difference == pytest.approx(GAIN + 0.025) and found.p < 1e-6


def test_values_without_spread_are_not_tested(results: Results) -> None:
    for row in results.rows:
        row["return"] = 100.0 * (row["source"] == "guided")
    for paired in (False, True):
        assert all(np.isnan(d.p) and d.difference == 100 for d in compare(results, paired=paired))


def test_no_average_is_taken_over_places_that_failed(study: Study) -> None:
    part = Results(study)
    for cell in study.cells[:3]:  # of task 10 guided is missing
        part.add(cell, Found([{"seed": s, "episode": 0, "return": float(s)} for s in range(2)]))
    assert len(part.units("return", {"source": "real"})) == 2
    assert len(part.units("return", {"source": "guided"})) == 0
    assert len(part.units("return", {"source": "guided", "task": "1"})) == 2


def test_scores_of_families_have_columns_of_their_own(study: Study) -> None:
    mixed = Results(study)
    for cell in study.cells:
        scale = "score (local)" if cell.labels["task"] == "1" else "score (D4RL)"
        mixed.add(cell, Found([{"seed": s, "episode": 0, "return": 1.0, "scale": scale, "score": 50.0 + s} for s in range(2)]))
    assert mixed.scales == ["score (local)", "score (D4RL)"]
    tables = [table_rows(mixed, t) for t in by_scale(mixed, [Table(value="score", rows=("task",), columns="source")])]
    assert [[row["task"] for row in rows] for rows in tables] == [["1"], ["10"]]
    assert "score" not in mixed.rows[0] and mixed.rows[0]["score (local)"] == 50.0


def test_one_seed_is_not_tested(results: Results) -> None:
    results.rows = [row for row in results.rows if row["seed"] == 0]
    found = compare(results)
    assert all(np.isnan(d.p) and np.isnan(d.corrected) for d in found)
    assert comparisons.sentences(found)[0].startswith("No comparison is tested")


def test_holm_on_a_case_worked_by_hand() -> None:
    np.testing.assert_allclose(comparisons.holm(np.array([0.04, np.nan, 0.01, 0.03])), [0.06, np.nan, 0.03, 0.06])
    np.testing.assert_allclose(comparisons.holm(np.array([0.6, 0.7])), [1.0, 1.0])


def test_exponents_are_those_of_all_cells_and_seeds(results: Results) -> None:
    for row in results.rows:
        row["cost"] = float(row["task"]) * 2.0 ** row["seed"]
        row["error"] = 3.0 * row["cost"] ** (-0.5 if row["source"] == "real" else -0.25)
    results.rows = [row for row in results.rows if row["episode"] == 0]
    rows = table_rows(results, Table(value="error", power="cost", columns="source"))
    assert rows == [{"real": "-0.500 ± 0.000 (12)", "guided": "-0.250 ± 0.000 (12)"}]
    assert table_rows(results, Table(value="missing", power="cost", columns="source")) == []
    figure = draw(results, Drawing(kind="power", title="A title", value="error", x="cost", hue="source"))
    assert figure is not None and "real: -0.50 ± 0.00\nguided: -0.25 ± 0.00" in figure.axes[0].get_title()
    assert (figure.axes[0].get_xscale(), figure.axes[0].get_yscale()) == ("log", "log")
    for row in results.rows:
        row["error"] = float("nan") if row["task"] == "1" else row["error"]  # of a panel there is nothing
    both = draw(results, Drawing(kind="power", value="error", x="cost", hue="source", panels=("task",)))
    assert both is not None and len(both.axes) == 2
    both.savefig(io.BytesIO())
    for row in results.rows:
        row["error"] = float("nan")
    assert draw(results, Drawing(kind="power", value="error", x="cost", hue="source")) is None


@pytest.mark.parametrize(
    ("kind", "panels", "lines"),
    [
        ("intervals", ("task",), 2),
        ("lines", (), 1),
        ("steps", ("task",), 2),
        ("profile", (), 1),
        ("aggregates", (), 3),
        ("improvement", (), 1),
        ("regret", ("task",), 2),
    ],
)
def test_figures_have_a_panel_for_each_place(results: Results, kind: str, panels: tuple[str, ...], lines: int) -> None:
    drawing = Drawing(kind=kind, title="A title", value="return", x="task", hue="source", panels=panels)  # type: ignore[arg-type]
    figure = draw(results, drawing)
    assert isinstance(figure, Figure)
    assert len([axis for axis in figure.axes if axis.get_visible()]) == lines
    texts = " ".join(t.get_text() for t in figure.findobj(lambda o: hasattr(o, "get_text")))
    assert "A title" in texts and "guided" in texts and "real" in texts


def test_a_figure_of_what_is_not_there_is_left_out(results: Results) -> None:
    assert draw(results, Drawing(kind="trajectories")) is None
    figure, why = checked(results, Drawing(kind="profile", value="score", x="task", hue="source"))
    assert figure is None and why == "no complete cells have what it shows"


@pytest.mark.parametrize("kind", [kind for kind in DRAWINGS if kind not in ("trajectories", "densities", "power")])
def test_figures_do_without_a_cell_that_failed(results: Results, kind: str) -> None:
    gone = next(cell for cell in results.cells if cell.labels == {"task": "10", "source": "guided"})
    results.cells.remove(gone)
    results.rows = [row for row in results.rows if row["cell"] != gone.key]
    results.steps = [row for row in results.steps if row["cell"] != gone.key]
    figure = draw(results, Drawing(kind=kind, title="A title", x="task", hue="source", panels=()))  # type: ignore[arg-type]
    assert figure is not None or kind == "intervals"  # which would average tasks that one source lacks
    for panels in (("task",), ("source",), ("task", "source")):
        figure, why = checked(results, Drawing(kind=kind, title="A title", x="", panels=panels))  # type: ignore[arg-type]
        assert (figure is None) == bool(why) and "Error" not in why


def test_a_figure_of_several_tasks_says_of_which(results: Results) -> None:
    title = lambda: draw(results, Drawing(kind="aggregates", title="Over tasks", x="task", hue="source"))._suptitle.get_text()
    assert title() == "Over tasks\n2 tasks, 6 seeds of each"
    results.rows = [
        r for r in results.rows if (r["task"], r["source"]) != ("10", "real") and (r["task"], r["seed"]) != ("1", 5)
    ]
    results.cells = [cell for cell in results.cells if cell.labels != {"task": "10", "source": "real"}]
    assert title() == "Over tasks\n1 task, 5 seeds of each; without 10, which some lack"


def test_sources_are_compared_where_they_are_alike(results: Results) -> None:
    drawing = Drawing(kind="improvement", x="", hue="source", panels=("task",))
    figure = draw(results, drawing)
    assert isinstance(figure, Figure)
    left, right = figure.axes[0], figure.axes[0].child_axes[0]
    named = [[label.get_text() for label in axis.get_yticklabels()] for axis in (left, right)]
    assert named == [["task 1, guided", "task 10, guided"], ["task 1, real", "task 10, real"]]


def test_seeds_that_are_lost_are_told(results: Results) -> None:
    for row in results.rows:
        if row["task"] == "10" and row["seed"] in (2, 4) and row["source"] == "real":
            row["return"] = np.nan if row["seed"] == 2 else None
    assert results.lost() == {"10, real": ["2", "4"]}
    notes = report._notes(results, [], {})
    assert notes == ["Seeds that diverged in training, which no number above contains: 10, real (seeds 2, 4)."]


def test_a_source_has_one_colour_wherever_it_is_shown(results: Results) -> None:
    methods = methods_of(results, Drawing(kind="regret", hue="source", panels=("task",)))
    styles = {method.name: method.style for method in methods}
    assert set(styles) == {f"task {task}, {source}" for task in ("1", "10") for source in ("real", "guided")}
    for source in ("real", "guided"):
        (colour, line), (other, dashes) = styles[f"task 1, {source}"], styles[f"task 10, {source}"]
        assert colour == other and line != dashes


def test_logarithmic_axes_leave_out_errors_of_rounding(results: Results) -> None:
    for row in results.steps:
        row["return"] = 1e-8 if row["step"] == 0 else row["return"]
    drawing = Drawing(kind="steps", hue="source", panels=("task",))
    shown = {log: draw(results, dataclasses.replace(drawing, log=log)).axes[0].lines[0].get_xdata() for log in (False, True)}
    assert list(shown[False]) == [0, 5] and list(shown[True]) == [5]
