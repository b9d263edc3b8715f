"""`jaxpgd pareto`: which solver is as faithful as the published sampler, and what it costs."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpgd.diffusion.single_step import EDMConfig
from jaxpgd.diffusion.solvers import SOLVERS, SamplerConfig
from jaxpgd.errors import InputError
from jaxpgd.experiment import cli
from jaxpgd.experiment.commands import pareto_measures
from jaxpgd.experiment.commands.pareto import recommended
from jaxpgd.experiment.commands.pareto_measures import SHORT_RANGE, candidates, described, reference_of, suffices
from jaxpgd.experiment.config_files import load_config

REFERENCE = {"dynamics_error": 1.0, "surviving_reward_error": 2.0, "sliced_wasserstein_1": 3.0}


@pytest.mark.parametrize(
    ("changes", "enough"),
    [
        ({}, True),
        ({"dynamics_error": 1.049}, True),
        ({"dynamics_error": 1.051}, False),
        ({"surviving_reward_error": 2.11}, False),
        ({"sliced_wasserstein_1": 3.2}, False),
        ({"sliced_wasserstein_1": np.nan}, False),
        ({"dynamics_error": 0.1, "surviving_reward_error": 0.1, "sliced_wasserstein_1": 0.1}, True),
    ],
)
def test_a_sampler_suffices_where_no_measure_is_five_percent_worse(changes: dict[str, float], enough: bool) -> None:
    assert suffices(REFERENCE | changes, REFERENCE) is enough


def test_a_measure_that_the_reference_lacks_does_not_count() -> None:
    assert suffices(REFERENCE | {"dynamics_error": 9.0}, REFERENCE | {"dynamics_error": np.nan})
    assert suffices({"sliced_wasserstein_1": 3.0}, {"sliced_wasserstein_1": 3.0})


@pytest.mark.parametrize(("likelihood", "enough"), [(4.0, True), (3.1, True), (2.9, False), (9.0, True)])
def test_guided_the_likelihood_counts_and_the_distance_to_data_does_not(likelihood: float, enough: bool) -> None:
    reference = REFERENCE | {"log_likelihood": 4.0, "unguided_log_likelihood": -16.0}  # 5 % of what is gained: 1
    row = REFERENCE | {"sliced_wasserstein_1": 99.0, "log_likelihood": likelihood}
    assert suffices(row, reference) is enough


def test_candidates_come_cheapest_first_and_say_what_they_cost() -> None:
    section = SamplerConfig("heun", sigma_max=50.0, heun=EDMConfig(churn=7.0), euler=EDMConfig(churn=7.0))
    found = candidates(section, (64, 8, 4), tuple(SOLVERS))
    costs = [described(s)["nfe"] for s in found]
    assert sorted({described(s)["solver"] for s in found}) == sorted(SOLVERS)
    assert [c for c in costs if c in (4, 8, 64)] == sorted(c for c in costs if c in (4, 8, 64))
    assert max(described(s)["nfe"] for s in found if s.kind == "heun") == 63
    assert {(s.sigma_min, s.sigma_max) for s in found if s.steps == 8} == {(0.002, 50.0), SHORT_RANGE}
    assert {(s.sigma_min, s.sigma_max) for s in found if s.steps == 64} == {(0.002, 50.0)}
    assert {part.churn for s in found for part in (s.heun, s.euler)} == {7.0}
    assert described(reference_of(section)) == {"solver": "heun", "nfe": 511, "sigma_min": 0.002, "sigma_max": 80.0}


def test_what_is_recommended_is_a_section_of_a_config(tmp_path: Path) -> None:
    """Read back, it is the sampler that was measured. The batch size is the config's own."""
    section = SamplerConfig("heun", sigma_max=50.0, batch_size=5)
    for sampler in (*candidates(section, (64, 8), tuple(SOLVERS)), reference_of(section)):
        row = described(sampler) | {"settings": dataclasses.asdict(sampler)}
        (tmp_path / "sampler.toml").write_text(recommended(row))
        found = load_config(str(tmp_path / "sampler.toml"), {"arms": ["unguided"]}).sampler
        assert dataclasses.replace(found, batch_size=5) == sampler and found.batch_size == 0


SMALL = """
out = "{out}"
seeds = 1
arms = ["unguided"]
[data]
episodes = 20
window = 8
[denoiser]
features = 8
blocks = 1
steps = 20
batch_size = 8
validate_every = 10
validation_batches = 1
[sampler]
kind = "euler"
steps = 2
[synthesis]
trajectories = 16
interval = 10
[agent]
updates = 10
batch_size = 16
updates_per_chunk = 10
[agent.td3_bc]
hidden = [8]
[evaluation]
episodes = 2
trajectories = 16
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run whose solvers are measured."""
    out = tmp_path_factory.mktemp("pareto") / "run"
    config = out.with_suffix(".toml")
    config.write_text(SMALL.format(out=out))
    cli.main(["run", str(config)])
    return out


@pytest.mark.slow
def test_pareto_writes_its_table_and_what_it_recommends(run: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    state = lambda: {p: p.stat().st_mtime_ns for p in run.rglob("*") if run / "pareto" not in (p, *p.parents)}
    before = state()
    monkeypatch.setattr(pareto_measures, "REFERENCE_STEPS", 2)
    cli.main(["pareto", str(run), "--kinds", "euler,dpmpp_2m", "--nfe", "2,3", "--trajectories", "16"])
    said = capsys.readouterr().out
    assert "cheapest that suffices" in said
    found = json.loads((run / "pareto" / "pareto.json").read_text())
    assert len(found["rows"]) == 8  # two solvers, two NFE, two ranges
    assert {row["nfe"] for row in found["rows"]} == {2, 3}
    assert all(np.isfinite(row["sliced_wasserstein_1"]) for row in found["rows"])
    enough = [row["nfe"] for row in found["rows"] if row["suffices"]]
    assert (found["chosen"] or {}).get("nfe") == min(enough, default=None)
    fragment = run / "pareto" / "sampler.toml"
    assert fragment.exists() == bool(enough)
    if enough:
        assert load_config(str(fragment), {"arms": ["unguided"]}).sampler.kind == found["chosen"]["solver"]
        assert fragment.read_text() in said
    assert state() == before  # the run itself is only read
    assert (run / "pareto" / "pareto.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_pareto_guided_measures_likelihood_against_another_run(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "guided"
    arguments = ["--kinds", "euler", "--nfe", "2", "--trajectories", "16", "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pareto_measures, "REFERENCE_STEPS", 2)
        cli.main(
            [
                "pareto",
                str(run),
                "--guided",
                "--guidance",
                "published",
                "--coefficient",
                "2",
                "--reference",
                str(run),
                *arguments,
            ]
        )
    found = json.loads((out / "pareto.json").read_text())
    assert found["guidance"] == "published at 2" and found["target"] == "the environment's target policy"
    assert np.isfinite(found["reference"]["unguided_log_likelihood"])
    assert all(np.isfinite(row["log_likelihood"]) for row in found["rows"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kinds", "rk4"], "--kinds"),
        (["--nfe", "1"], "--nfe"),
        (["--trajectories", "1"], "--trajectories"),
        (["--guidance", "smc"], "--guidance"),
        (["--coefficient", "-1", "--guided"], "--coefficient"),
        (["--coefficient", "2"], "--guided"),
        (["--policy", "unguided:7"], "policy"),
        (["--reference", "nowhere"], "nowhere"),
    ],
)
def test_pareto_refuses_what_it_cannot_measure(finished: Path, arguments: list[str], message: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as error:
        cli.main(["pareto", str(finished), *arguments])
    assert error.value.code == 2 and message in capsys.readouterr().err


def test_a_solver_is_named_and_not_left_to_the_run() -> None:
    with pytest.raises(InputError, match=r"sampler\.kind = 'auto': expected one of"):
        load_config(None, {"sampler": {"kind": "auto"}})


def test_a_reference_without_any_number_is_refused() -> None:
    with pytest.raises(InputError, match="measures"):
        suffices(REFERENCE, dict.fromkeys(REFERENCE, np.nan))


@pytest.mark.slow
def test_pareto_guides_towards_an_agent_of_the_run(run: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pareto_measures, "REFERENCE_STEPS", 2)
        cli.main(["pareto", str(run), "--policy", "unguided:0", "--kinds", "euler", "--nfe", "2", "--trajectories", "8",
                  "--out", str(tmp_path / "out")])  # fmt: skip
    assert json.loads((tmp_path / "out" / "pareto.json").read_text())["target"].startswith("unguided:0")
