"""Summaries of the accelerator's rows: ratios, aims, the table as text, the predictions as Markdown."""

from collections.abc import Callable
from typing import Any

from benchmarks.speed.bounds import H100, Peaks
from benchmarks.speed.refresh import interval_rate
from benchmarks.speed.rows.base import Row

Found = dict[str, Any]


def relate(found: dict[str, Found], peaks: Peaks) -> None:
    """Add to each row its ratios to the official way and to one seed, and its share of the matmul peak."""
    for row in found.values():
        if "rate" not in row:
            continue
        row["arithmetic_share"] = row["gflop"] * 1e9 * row["rate"] / peaks.flops[row["precision"]]
        baseline, single = (found.get(row.get(key, ""), {}) for key in ("baseline", "single"))
        if "rate" in baseline:
            row["ratio"] = row["rate"] / _official_rate(row, baseline)
        if "rate" in single:
            row["ratio_to_one_seed"] = row["rate"] / single["rate"]


def _official_rate(row: Found, baseline: Found) -> float:
    """The rate of the official way, which compiles its sampler at every refresh."""
    if row["group"] != "refresh":
        return float(baseline["rate"])
    return interval_rate(row["units"], baseline["compile_seconds"], baseline["rate"])


# name, which rows it is read from, their quantity, direction and value of the threshold
AIMS: tuple[tuple[str, Callable[[Found], bool], str, str, float], ...] = (
    (
        "training of the larger network, larger batch, bfloat16: share of the measured peak",
        lambda row: row["group"] == "training" and row["compute"] == "bfloat16" and "convolution" not in row,
        "arithmetic_share", "at least", 0.5,
    ),
    (
        "64 seeds of TD3+BC: rate over that of one",
        lambda row: row["group"] == "agents" and row["agent"] == "td3_bc" and row["precision"] == "tensorfloat32"
        and row["seeds"] == 64, "ratio_to_one_seed", "at least", 20.0,
    ),
    (
        "refresh, unguided: seconds",
        lambda row: row["group"] == "refresh" and row["guidance"] == "unguided", "seconds", "at most", 1.0,
    ),
    (
        "refresh, by moment: seconds",
        lambda row: row["group"] == "refresh" and row["guidance"] == "moment", "seconds", "at most", 4.0,
    ),
)  # fmt: skip


def aims(rows: list[Found]) -> list[Found]:
    """Each aim, the measured value (None if there is none), and whether it is met."""
    results = []
    for name, of, quantity, way, number in AIMS:
        matching = [row for row in rows if of(row)]
        # of several training rows, the one with the most arithmetic
        value = max(matching, key=lambda row: row["gflop"]).get(quantity) if matching else None
        met = None if value is None else (value >= number if way == "at least" else value <= number)
        results.append({"aim": name, "expected": f"{way} {number:g}", "measured": value, "met": met})
    return results


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    pad = lambda i, text: text.ljust(widths[i]) if i == 0 else text.rjust(widths[i])
    return "\n".join("  ".join(pad(i, text) for i, text in enumerate(row)).rstrip() for row in rows)


def table(about: Found) -> str:
    """The table as text: rows, notes, aims."""
    lines = [["row", "rate/s", "seconds", "+-%", "compiled s", "bound", "share", "predicted s", "ratio", "one seed"]]
    number = lambda row, key: f"{row[key]:.4g}" if row.get(key) is not None else "-"
    notes = []
    for row in about["rows"]:
        if "rate" not in row:
            notes.append(f"{row['name']}: {'error: ' + row['error'] if 'error' in row else 'skipped, ' + row['skipped']}")
            continue
        predicted = f"{row['predicted_seconds'] * row['units']:.4g}"
        lines.append([
            row["name"], number(row, "rate"), number(row, "seconds"), f"{row['spread_percent']:.0f}",
            f"{row['compile_seconds']:.1f}", row["bound"], f"{row['share']:.2f}", predicted, number(row, "ratio"),
            number(row, "ratio_to_one_seed"),
        ])  # fmt: skip
        if row["measured_units"] != row["units"]:
            notes.append(f"{row['name']}: {row['measured_units']} of {row['units']} measured, seconds scaled")
    state = "finished" if about["finished"] else "not finished"
    title = f"{about['device']['device']}, jax {about['device']['jax']}, {about['minutes']:g} minutes, {state}"
    aim_lines = [
        f"{a['aim']}: {'-' if a['measured'] is None else format(a['measured'], '.3g')} ({a['expected']})" for a in about["aims"]
    ]
    return "\n".join([title, "", _aligned(lines), "", *notes, "", "Aims:", *aim_lines]) + "\n"


def prediction_table(groups: list[list[Row]]) -> str:
    """Markdown table of the work of every row, and its lower bound on an H100 by the data sheet."""
    lines = [
        "| row | unit | GFLOP | MB | launches | bound | least time | units | least time of all |",
        "| --- | --- | ---: | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for row in (row for group in groups for row in group):
        bound, seconds = row.work.bound(H100)
        lines.append(
            f"| {row.name} | {row.unit} | {row.work.flops / 1e9:.3g} | {row.work.bytes / 1e6:.3g} | {row.work.launches:.3g} | "
            f"{bound} | {_time(seconds)} | {row.units} | {_time(seconds * row.units)} |"
        )
    return "\n".join(lines)


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
