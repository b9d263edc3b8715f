"""Tables, figures and `report.html` of a study, from its rows."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxpgd.evaluation import plots
from jaxpgd.evaluation.report import Report, text_table
from jaxpgd.pipeline.run_directory import write_atomic
from jaxpgd.studies.comparisons import difference_rows, differences, sentences
from jaxpgd.studies.draw import checked, summary
from jaxpgd.studies.plan import slug
from jaxpgd.studies.results import Results, by_scale
from jaxpgd.studies.spec import Table
from jaxpgd.training.progress import clock

Row = dict[str, Any]
COMPARED = (
    "Intervals are of each comparison alone; corrected p-values (Holm) of all of them together. P(better): the chance that a "
    "seed of the first is better than one of the second. Seeds of agents share one denoiser and one world model."
)


def study_report(results: Results, folder: Path, seconds: float) -> None:
    """Write figures, `tables.txt` and `report.html`, and print the tables and what they support."""
    study = results.study
    report = Report(study.title).text(study.text)
    found = differences(results)
    said = sentences(found)
    report.text("\n\n".join(said))
    texts, missing = list[str](), list[str]()
    for table in by_scale(results, study.tables):
        rows = table_rows(results, table)
        title = ": ".join(dict.fromkeys(filter(None, (table.title, table.value if table.value in results.scales else ""))))
        title = title or table.value
        report.table(title, rows, caption(table))
        texts.append(f"{title}\n{caption(table)}\n\n{text_table(rows)}")
    for i, drawing in enumerate(by_scale(results, study.figures)):
        figure = checked(results, drawing)
        if figure is None:
            missing.append(drawing.title or drawing.name)
        else:
            name = drawing.name or f"{drawing.kind}-{i + 1}"
            if drawing.value in results.scales[1:]:
                name += "-" + slug(drawing.value)
            path = plots.save(figure, folder / f"{name}.png")
            report.figure(drawing.title or path.stem, path)
    if found:
        report.table("Comparisons", difference_rows(found), COMPARED)
    if missing:
        report.text("Not drawn, as no complete cells have what they show: " + "; ".join(missing) + ".")
    if results.failed:
        report.table("Cells that failed", [{"cell": label, "why": why} for label, why in results.failed.items()])
        said = [*said, f"{len(results.failed)} cells failed and are not shown: {'; '.join(results.failed)}."]
    report.details("Cells", text_table([{"cell": cell.key, **cell.labels, "folder": cell.name} for cell in results.cells]))
    now = json.loads((folder / "versions.json").read_text())
    older = {key: values for key, values in results.versions.items() if values != now}
    if older:
        report.text(f"{len(older)} cells were measured with other versions or on another machine (see Cells).")
        report.details("Versions of those", json.dumps(older, indent=1))
    report.details("Versions", (folder / "versions.json").read_text())
    report.write(folder / "report.html")
    write_atomic(folder / "tables.txt", "\n\n".join([*texts, *said]) + "\n")
    print("\n\n".join([*texts, *said]))
    done = f"{len(results.cells)} of {len(study.cells)} cells"
    print(f"{done} in {clock(seconds)}; report: {folder / 'report.html'}", flush=True)


def caption(table: Table) -> str:
    """What the entries of a table are."""
    what = "interquartile mean" if table.statistic == "iqm" else "mean"
    return (
        f"{what.capitalize()} over seeds [its 95 % bootstrap interval; of two or three seeds no more than their range; of one "
        "seed over its episodes, where it has several] (number of seeds)."
    )


def table_rows(results: Results, table: Table) -> list[Row]:
    """One row for each combination of the labels of `table.rows`; combinations without any value are left out."""
    found = []
    for labels in itertools.product(*(results.labels(axis) for axis in table.rows)):
        where = dict(zip(table.rows, labels, strict=True))
        columns = results.labels(table.columns) if table.columns else [""]
        cells = {c or table.value: entry(results, table, where | ({table.columns: c} if c else {})) for c in columns}
        if any(cells.values()):
            found.append({**where, **cells})
    return found


def entry(results: Results, table: Table, where: Mapping[str, str]) -> str:
    """A value with its interval, as text; empty where there is none."""
    s = summary(results, table.value, where)
    if s is None:
        return ""
    value, low, high = (s.iqm, s.iqm_low, s.iqm_high) if table.statistic == "iqm" else (s.mean, s.mean_low, s.mean_high)
    bounds = f" [{low:.4g}, {high:.4g}]" if low == low else ""
    return f"{value:.4g}{bounds} ({s.seeds})"
