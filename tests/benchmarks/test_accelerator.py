"""The schedule of the accelerator's table: rows that fail or do not fit, a cut, refusals; precision; documents."""

import dataclasses
import json
import re
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks import __main__ as cli
from benchmarks import accelerator, report
from benchmarks.speed.bounds import H100, Peaks, Work
from benchmarks.speed.rows import measuring
from benchmarks.speed.rows.agents import agent_row, official_agent
from benchmarks.speed.rows.base import REHEARSAL, Program, Row, Sizes
from benchmarks.speed.rows.denoiser import training_row
from benchmarks.speed.rows.peaks import peak_rows
from benchmarks.speed.rows.plan import plan
from benchmarks.speed.rows.sampling import batch_of, refresh_row, sampling_row

DOUBLE = jax.jit(lambda x: 2 * x)
WORK = Work(1e3, 1e3, 1.0, "float32")


def a_row(name, build=None, work=WORK, units=4, **other):
    program = Program(DOUBLE, lambda: (jnp.ones(4),))
    return Row(name, "rows", "thing", work, units, build or (lambda units: program), compiling=0.5, **other)


def taken(groups, minutes=1.0):
    kept = []
    session = accelerator.Session(groups, minutes, host=True, keep=lambda rows: kept.append([dict(row) for row in rows]))
    session.run()
    return {row["name"]: row for row in session.rows()}, kept


@pytest.mark.slow
def test_a_row_that_fails_says_so_and_the_rest_goes_on():
    def fail(units):
        raise ValueError("not today")

    def refuse(call, args):
        raise RuntimeError("out of\nmemory")

    runs_badly = Program(DOUBLE, lambda: (jnp.ones(4),), turn=refuse)
    odd_end = Program(DOUBLE, lambda: (jnp.ones(4),), after=lambda args: 1 / 0)
    rows, kept = taken([[a_row("a", fail), a_row("b", lambda units: runs_badly)], [a_row("c", lambda units: odd_end)]])
    assert rows["a"]["error"] == "ValueError: not today" and rows["b"]["error"] == "RuntimeError: out of memory"
    assert rows["c"]["rate"] == pytest.approx(4 / rows["c"]["run_seconds"])  # what comes after it is not missed
    assert [len(rows) for rows in kept] == [1, 2, 3]  # after each


class Slow(Program):
    """A program that compiles for longer than any test has."""

    def lower(self):
        return self

    def compile(self):
        time.sleep(20.0)


@pytest.mark.slow
def test_a_program_that_compiles_for_too_long_costs_no_other_row(monkeypatch):
    monkeypatch.setattr(accelerator.os, "sched_getaffinity", lambda pid: {0, 1})  # two programs are compiled at a time
    slow = a_row("slow", lambda units: Slow(DOUBLE, lambda: (jnp.ones(4),)))
    rows, _ = taken([[a_row("quick"), slow, a_row("after")], [a_row("next group")]], minutes=0.2)
    why = {name: row.get("skipped", row.get("error")) for name, row in rows.items() if "rate" not in row}
    assert why == {"slow": "still being compiled when no time was left to run it"}
    assert rows["quick"]["compiled_meanwhile"] == 1


def test_a_program_that_is_compiled_late_is_still_run():
    class Late(Slow):
        def compile(self):
            time.sleep(1.0)
            return DOUBLE.lower(jnp.ones(4)).compile()

    row = a_row("late", lambda units: Late(DOUBLE, lambda: (jnp.ones(4),)))
    session = accelerator.Session([[row]], 1.0, host=True, keep=lambda rows: None)
    jobs = [session.start(row)]
    session.pending += jobs
    session.settle(0.0, jobs)
    assert session.rows() == [] and session.pending == jobs
    session.settle_late()
    assert session.rows()[0]["rate"] > 0 and session.pending == []


def test_a_row_that_does_not_fit_is_skipped_and_says_what_it_needs():
    large = Work(1e13, 1.0, 1.0, "float32")
    rows, _ = taken([[a_row("small"), a_row("large", work=large), a_row("after")]])
    assert re.fullmatch(r"needs about \d+ s, \d+ s are left", rows["large"]["skipped"])
    assert rows["small"]["rate"] > 0 and rows["after"]["rate"] > 0


def test_long_rows_measure_whole_batches_and_are_scaled():
    seen = []

    def build(units):
        seen.append(units)
        return Program(DOUBLE, lambda: (jnp.ones(4),))

    second = Work(2e10, 1.0, 1.0, "float32")  # a unit takes 5 s at the share expected
    row = a_row("long", build, dataclasses.replace(second, flops=2e9), units=8, part=2)
    found, _ = taken([[row]])
    assert seen == [4]  # of half a second each
    assert found["long"]["measured_units"] == 4 and found["long"]["units"] == 8
    assert found["long"]["seconds"] == pytest.approx(2 * found["long"]["run_seconds"])


@pytest.mark.slow
def test_measured_peaks_are_what_shares_are_of():
    rows, _ = taken([peak_rows(REHEARSAL), [a_row("a", work=Work(1e6, 1.0, 1e-9, "float32"))]])
    product = rows["product, float32"]
    assert product["share"] == pytest.approx(1.0) and rows["copy"]["share"] == pytest.approx(1.0)
    rate = product["rate"] * product["gflop"] * 1e9
    assert rows["a"]["bound"] == "arithmetic" and rows["a"]["bound_seconds"] == pytest.approx(1e6 / rate)
    assert rows["a"]["share"] == pytest.approx(rows["a"]["rate"] * 1e6 / rate)
    assert {"compile_seconds", "memory_bytes", "peak_memory_bytes", "spread_percent", "launches"} <= set(rows["a"])


def test_what_is_known_is_on_disk_after_a_cut(tmp_path, monkeypatch):
    calls = []

    def cut(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measuring.measure_row(*args)

    monkeypatch.setattr(accelerator, "plan", lambda sizes: [[a_row("first"), a_row("second")]])
    monkeypatch.setattr(accelerator, "measure_row", cut)
    with pytest.raises(KeyboardInterrupt):
        accelerator.run(minutes=1.0, rehearse=True, out=tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    assert [row["name"] for row in found["rows"]] == ["first"] and found["finished"] is False
    assert found["planned"] == ["first", "second"] and "first" in (tmp_path / "out.txt").read_text()


def test_a_session_that_ends_is_finished(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(accelerator, "plan", lambda sizes: [[a_row("only")]])
    cli.main(["accelerator", "--rehearse", "--minutes", "1", "--out", str(tmp_path / "out.json")])
    told = capsys.readouterr()
    found = json.loads((tmp_path / "out.json").read_text())
    assert found == json.loads(told.out) and found["finished"] and found["rehearsal"] and found["minutes"] == 1
    assert found["device"]["platform"] == "cpu" and found["peaks"]["bandwidth"] > 0
    assert "only" in told.err and "Aims:" in told.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--rehearse"), (["--rehearse", "--minutes", "0"], "above 0"), (["--rehearse", "--minutes", "nan"], "above 0"),
        (["--rehearse", "--minutes", "0.001"], "at least"), (["--rehearse", "--out", "/nowhere/at/all.json"], "no directory"),
        (["--kills", "3"], "not an option"),
    ],
)  # fmt: skip
def test_bad_input_is_a_line_and_exit_code_2(arguments, said, capsys):
    if not arguments and jax.devices()[0].platform != "cpu":
        pytest.skip("there is an accelerator")
    with pytest.raises(SystemExit) as error:
        cli.main(["accelerator", *arguments])
    lines = capsys.readouterr().err.splitlines()
    assert error.value.code == 2 and len(lines) == 1 and said in lines[0]


def precisions(row):
    """Of the products in what a row lowers."""
    with row.context():
        text = row.build(row.units).lower().as_text()
    return [
        re.search(r"precision = \[(\w+)", line)[1] if "precision" in line else "DEFAULT"
        for line in text.splitlines() if "stablehlo.dot_general" in line
    ]  # fmt: skip


@pytest.mark.slow
def test_the_stated_precision_is_that_of_the_products():
    small, large = REHEARSAL.features
    assert set(precisions(training_row(REHEARSAL, small, 2, "float32"))) == {"HIGHEST"}
    assert set(precisions(training_row(REHEARSAL, large, 2, "bfloat16"))) == {"DEFAULT"}
    assert set(precisions(sampling_row(REHEARSAL, small, 12, "unguided"))) == {"HIGHEST"}
    assert set(precisions(agent_row(REHEARSAL, "td3_bc", 2))) == {"HIGH"}
    assert set(precisions(agent_row(REHEARSAL, "td3_bc", 2, "float32"))) == {"HIGHEST"}
    tf32, full = peak_rows(REHEARSAL)[1], peak_rows(REHEARSAL)[0]
    assert (set(precisions(tf32)), set(precisions(full))) == ({"HIGH"}, {"HIGHEST"})


@pytest.mark.slow
def test_a_row_of_each_kind_runs():
    small = REHEARSAL.features[0]
    rows = [agent_row(REHEARSAL, "td3_bc", 1), agent_row(REHEARSAL, "td3_bc", 2), official_agent(REHEARSAL, "td3_bc"),
            training_row(REHEARSAL, small, 2, "bfloat16"), refresh_row(REHEARSAL, "unguided"),
            sampling_row(REHEARSAL, small, 12, "published")]  # fmt: skip
    found, _ = taken([rows], minutes=10.0)
    assert not [row for row in found.values() if "rate" not in row]
    assert found["refresh, 8 features, unguided"]["compiled_again"] == 0
    two, one = found["td3_bc, 2 seeds"], found["td3_bc, 1 seed"]
    assert two["ratio_to_one_seed"] == pytest.approx(two["rate"] / one["rate"])
    assert one["ratio"] == pytest.approx(one["rate"] / found["official td3_bc"]["rate"])


def test_every_planned_row_has_a_prediction_and_fits_the_memory():
    sizes = Sizes()
    rows = [row for group in plan(sizes) for row in group]
    text = report.prediction_table(plan(sizes))
    assert all(f"| {row.name} |" in text for row in rows) and len(text.splitlines()) == len(rows) + 2
    names = {row.name for row in rows}
    assert all(row.baseline in names for row in rows if row.baseline and "convolution" not in row.details)
    assert all(row.single in names for row in rows if row.single)
    for features in sizes.features:
        assert 32 <= batch_of(sizes, features, "float32") <= sizes.trajectories
    kinds = {"training": 8, "sampling": 24, "refresh": 2, "agents": 10, "official": 10, "peaks": 5}
    plain = [row for row in rows if "convolution" not in row.details]
    assert {kind: sum(row.group == kind for row in plain) for kind in kinds} == kinds


def test_the_documented_predictions_are_those_of_the_code(capsys):
    cli.main(["accelerator", "--predict"])
    printed = capsys.readouterr().out.strip()
    assert printed in Path(accelerator.__file__).with_name("accelerator.md").read_text()


def test_aims_are_read_from_their_rows():
    base = {"gflop": 1.0, "units": 1, "precision": "bfloat16"}
    rows = {
        "t": base | {"name": "t", "group": "training", "compute": "bfloat16", "rate": 0.6e9, "batch": 512},
        "1": base | {"name": "1", "group": "agents", "agent": "td3_bc", "seeds": 1, "rate": 10.0, "precision": "tensorfloat32"},
        "64": base | {"name": "64", "group": "agents", "agent": "td3_bc", "seeds": 64, "rate": 150.0, "single": "1",
                      "precision": "tensorfloat32"},
        "r": base | {"name": "r", "group": "refresh", "guidance": "unguided", "rate": 4.0, "seconds": 0.25, "baseline": "o"},
        "o": base | {"name": "o", "group": "official", "rate": 1.0, "compile_seconds": 3.0},
    }  # fmt: skip
    report.relate(rows, Peaks(dict.fromkeys(H100.flops, 1e18), 1.0, 1.0))
    assert rows["r"]["ratio"] == pytest.approx(4.0 * (3.0 + 1.0))  # the official way compiles each time
    found = {aim["aim"].split(":")[0]: (aim["measured"], aim["met"]) for aim in report.aims(list(rows.values()))}
    assert found["training of the larger network, larger batch, bfloat16"] == (pytest.approx(0.6), True)
    assert found["64 seeds of TD3+BC"] == (pytest.approx(15.0), False)
    assert found["refresh, unguided"] == (0.25, True) and found["refresh, by moment"] == (None, None)
