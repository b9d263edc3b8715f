"""Tables, figures and `report.html` of a study, from its rows."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxpgd.experiment.precision import STATED
from jaxpgd.experiment.report.figure import save
from jaxpgd.experiment.report.page import Report, text_table
from jaxpgd.experiment.report.words import label_of, name_of
from jaxpgd.experiment.run.directory import write_atomic
from jaxpgd.experiment.run.progress import clock
from jaxpgd.experiment.studies.cell import TOTAL_TIMES
from jaxpgd.experiment.studies.comparisons import difference_rows, differences, sentences
from jaxpgd.experiment.studies.draw import checked
from jaxpgd.experiment.studies.identity import slug
from jaxpgd.experiment.studies.places import fitted, last, summary, summary_at
from jaxpgd.experiment.studies.results import Results, by_scale, matching
from jaxpgd.experiment.studies.spec import Table

Row = dict[str, Any]
Versions = Mapping[str, str]
COMPARED = (
    "Intervals are of each comparison alone; corrected p-values (Holm) of all of them together. P(better): the chance that a "
    "seed of the first is better than one of the second. Seeds of agents share one denoiser and one world model."
)


def study_report(results: Results, folder: Path, seconds: float) -> None:
    """Write figures, `tables.txt` and `report.html`, and print the tables and what they support."""
    study = results.study
    found = differences(results)
    command = f"Command: {study.command}"
    report, said = Report(study.title).text(study.text).text(command).text(study.plan), sentences(found)
    report.text("\n\n".join(said))
    texts = _tables(results, report)
    missing = _figures(results, folder, report)
    if found:
        report.table("Comparisons", difference_rows(found), COMPARED)
    now = json.loads((folder / "versions.json").read_text(encoding="utf-8-sig"))
    others = _others(results, now)
    notes = _notes(results, missing, others)
    report.text("\n\n".join(notes))
    if results.failed:
        report.table("Cells that failed", [{"cell": label, "why": why} for label, why in results.failed.items()])
    report.details("Cells", text_table([{"cell": cell.key, **cell.labels, "folder": cell.name} for cell in results.cells]))
    if others:
        report.details("Other versions, by cell", json.dumps(others, indent=1))
    report.details("Versions", json.dumps(now, indent=1))
    report.write(folder / "report.html")
    told = "\n\n".join(filter(None, [command, study.plan, *texts, *said, *notes]))
    write_atomic(folder / "tables.txt", told + "\n")
    print(told)
    done = f"{len(results.cells)} of {len(study.cells)} cells"
    print(f"{done} in {clock(seconds)}; report: {folder / 'report.html'}", flush=True)


def _tables(results: Results, report: Report) -> list[str]:
    """Every table of which something was measured as text, each added to the report."""
    texts = []
    for table in by_scale(results, results.study.tables):
        rows = table_rows(results, table)
        if not rows:
            continue
        title = ": ".join(dict.fromkeys(filter(None, (table.title, table.value if table.value in results.scales else ""))))
        title = title or label_of(table.value)
        report.table(title, rows, caption(table))
        texts.append(f"{title}\n{caption(table)}\n\n{text_table(rows)}")
    return texts


def _figures(results: Results, folder: Path, report: Report) -> list[str]:
    """Write every figure and add it to the report; those that cannot be drawn, and why. Older files of `folder` are removed."""
    missing, drawn = list[str](), list[str]()
    for i, drawing in enumerate(by_scale(results, results.study.figures)):
        figure, why = checked(results, drawing)
        if figure is None and drawing.x in TOTAL_TIMES and last(results, drawing.x, {}) != last(results, drawing.x, {}):
            continue  # agents that are trained as one program have no times
        if figure is None:
            missing.append(f"{drawing.title or drawing.name} ({why})")
            continue
        name = drawing.name or f"{drawing.kind}-{i + 1}"
        if drawing.value in results.scales[1:]:
            name += "-" + slug(drawing.value)
        path = save(figure, folder / f"{name}.png")
        drawn.append(path.name)
        report.figure(drawing.title or path.stem, path)
    for path in folder.glob("*.png"):
        if path.name not in drawn:  # of the study as its file said before
            path.unlink()
    return missing


def _others(results: Results, now: Versions) -> dict[str, dict[str, Versions]]:
    """Versions other than those of `now` that measured a cell, or trained a model that it used, by cell."""
    told = lambda values: {name: value for name, value in values.items() if name != STATED}  # a setting, which cells may vary
    other = lambda made_by: {what: values for what, values in made_by.items() if told(values) != told(now)}
    return {key: other(made_by) for key, made_by in results.versions.items() if other(made_by)}


def _notes(results: Results, missing: Sequence[str], others: Mapping[str, Any]) -> list[str]:
    """What a reader has to know of the numbers above."""
    lost = [f"{label} (seed{'s' * (len(seeds) > 1)} {', '.join(seeds)})" for label, seeds in results.lost().items()]
    failed = list(results.failed)
    count = f"{len(failed)} cell{'s' * (len(failed) > 1)}"
    return [
        *([f"Not drawn: {'; '.join(missing)}."] if missing else []),
        *([f"Seeds that diverged in training, which no number above contains: {'; '.join(lost)}."] if lost else []),
        *([f"{count} failed and {'are' if len(failed) > 1 else 'is'} not shown: {'; '.join(failed)}."] if failed else []),
        *([f"Computed with other versions or on another machine: {len(others)} cells, or their models."] if others else []),
    ]


def caption(table: Table) -> str:
    """What the entries of a table are."""
    if table.power:
        return "Exponent ± its standard error, by least squares on logarithms (number of points, one for each cell and seed)."
    if table.value in TOTAL_TIMES:
        told = label_of(table.value).capitalize()
        return f"{told}: of all seeds of a cell together, without compilation, evaluation and the first trajectories."
    what = "interquartile mean" if table.statistic == "iqm" else "mean"
    equal = (
        f" Compared at equal {label_of(table.at_equal)}, the total of the quickest column: interpolated linearly between "
        "intermediate evaluations, empty where there was none by then."
    )
    return (
        f"{what.capitalize()} over seeds [its 95 % bootstrap interval; of two or three seeds no more than their range; of one "
        "seed over its episodes, where it has several] (number of seeds)."
        f"{equal if table.at_equal else ''}"
    )


def table_rows(results: Results, table: Table) -> list[Row]:
    """One row for each combination of the labels of `table.rows`; combinations without any value are left out."""
    found = []
    for labels in itertools.product(*(results.labels(axis) for axis in table.rows)):
        where = dict(zip(table.rows, labels, strict=True))
        columns = [c for c in results.labels(table.columns) if _has(results, table, c)] if table.columns else [""]
        spots = {name_of(c) if c else label_of(table.value): {table.columns: c} if c else {} for c in columns}
        spent = [last(results, table.at_equal, where | spot) for spot in spots.values()] if table.at_equal else []
        most = min((x for x in spent if x == x), default=math.nan)
        cells = {heading: entry(results, table, where | spot, most) for heading, spot in spots.items()}
        if table.at_equal and sum(x == x for x in spent) < 2:  # nothing to compare with, as cells of before have no times
            continue
        if any(cells.values()):
            found.append({**{name_of(axis): name_of(label) for axis, label in where.items()}, **cells})
    return found


def _has(results: Results, table: Table, column: str) -> bool:
    """Whether any row with this label measures the table's value at all."""
    return any(row.get(table.value) is not None for row in matching(results.rows, {table.columns: column}))


def entry(results: Results, table: Table, where: Mapping[str, str], most: float = math.nan) -> str:
    """A value with its interval, or an exponent with its standard error, as text; empty where there is none.

    With `table.at_equal` the value where that column is `most`.
    """
    if table.power:
        law = fitted(results, table.power, table.value, where)
        if law is None:
            return ""
        error = "" if math.isnan(law.standard_error) else f" ± {law.standard_error:.3f}"
        return f"{law.exponent:.3f}{error} ({law.points})"
    at_equal = table.at_equal
    s = summary_at(results, table.value, at_equal, most, where) if at_equal else summary(results, table.value, where)
    if s is None:
        return ""
    if table.value in TOTAL_TIMES:  # one number, which every seed of a cell has
        return f"{s.mean:.4g}"
    value, low, high = (s.iqm, s.iqm_low, s.iqm_high) if table.statistic == "iqm" else (s.mean, s.mean_low, s.mean_high)
    bounds = f" [{low:.4g}, {high:.4g}]" if low == low else ""
    return f"{value:.4g}{bounds} ({s.seeds})"
