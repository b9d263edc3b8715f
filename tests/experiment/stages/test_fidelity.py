import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpgd.diffusion.solvers import SAMPLERS, SamplerConfig
from jaxpgd.errors import InputError
from jaxpgd.experiment import cli
from jaxpgd.experiment.stages import fidelity
from jaxpgd.experiment.stages.fidelity import SHORT_RANGE, candidates, chosen_sampler, described, reference_of, suffices

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
    section = SamplerConfig("heun", sigma_max=50.0, churn=7.0)
    found = candidates(section, (64, 8, 4), tuple(SAMPLERS))
    costs = [described(s)["evaluations"] for s in found]
    assert sorted({described(s)["solver"] for s in found}) == sorted(SAMPLERS)
    assert [c for c in costs if c in (4, 8, 64)] == sorted(c for c in costs if c in (4, 8, 64))
    assert max(described(s)["evaluations"] for s in found if s.kind == "heun") == 63
    assert {(s.sigma_min, s.sigma_max) for s in found if s.steps == 8} == {(0.002, 50.0), SHORT_RANGE}
    assert {(s.sigma_min, s.sigma_max) for s in found if s.steps == 64} == {(0.002, 50.0)}
    assert {s.churn for s in found} == {7.0}
    for sampler in (*found, reference_of(section)):
        row = described(sampler) | {"settings": dataclasses.asdict(sampler)}
        assert chosen_sampler(dataclasses.replace(section, batch_size=5), row) == dataclasses.replace(sampler, batch_size=5)
    assert described(reference_of(section)) == {"solver": "heun", "evaluations": 511, "sigma_min": 0.002, "sigma_max": 80.0}


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
kind = "auto"
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
    """A small run whose sampler is left to measurement, with few candidates and a short reference."""
    out = tmp_path_factory.mktemp("auto") / "run"
    config = out.with_suffix(".toml")
    config.write_text(SMALL.format(out=out))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "REFERENCE_STEPS", 2)
        patch.setattr(fidelity, "EVALUATIONS", (2,))
        cli.main(["run", str(config)])
    return out


def test_auto_is_settled_before_the_first_trajectory_and_kept(run: Path) -> None:
    facts = json.loads((run / "stages" / "sampler.json").read_text())
    assert facts["solver"] in SAMPLERS and facts["evaluations"] <= 3 and facts["seconds"] > 0
    assert facts["trajectories"] == 16 and np.isfinite(facts["reference"]["sliced_wasserstein_1"])
    assert 'kind = "auto"' in (run / "config.toml").read_text()
    assert json.loads((run / "quality.json").read_text())["rows"]


def test_pareto_writes_its_table_and_the_choice(run: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settled = (run / "stages" / "sampler.json").read_text()
    monkeypatch.setattr(fidelity, "REFERENCE_STEPS", 2)
    cli.main(["pareto", str(run), "--kinds", "euler,dpmpp_2m", "--evaluations", "2,3", "--trajectories", "16"])
    assert "cheapest that suffices" in capsys.readouterr().out
    found = json.loads((run / "pareto" / "pareto.json").read_text())
    assert len(found["rows"]) == 8  # two solvers, two numbers of evaluations, two ranges
    assert {row["evaluations"] for row in found["rows"]} == {2, 3}
    assert all(np.isfinite(row["sliced_wasserstein_1"]) for row in found["rows"])
    enough = [row["evaluations"] for row in found["rows"] if row["suffices"]]
    assert (found["chosen"] or {}).get("evaluations") == min(enough, default=None)
    assert (run / "stages" / "sampler.json").read_text() == settled  # what the run samples with does not change under it
    assert (run / "pareto" / "pareto.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_pareto_guided_measures_likelihood_against_another_run(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "guided"
    arguments = ["--kinds", "euler", "--evaluations", "2", "--trajectories", "16", "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "REFERENCE_STEPS", 2)
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
        (["--evaluations", "1"], "--evaluations"),
        (["--trajectories", "1"], "--trajectories"),
        (["--guidance", "smc"], "--guidance"),
        (["--coefficient", "-1", "--guided"], "--coefficient"),
        (["--coefficient", "2"], "--guided"),
        (["--policy", "unguided:7"], "policy"),
        (["--reference", "nowhere"], "nowhere"),
    ],
)
def test_pareto_refuses_what_it_cannot_measure(run: Path, arguments: list[str], message: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as error:
        cli.main(["pareto", str(run), *arguments])
    assert error.value.code == 2 and message in capsys.readouterr().err


def test_auto_is_refused_where_nothing_is_measured() -> None:
    from jaxpgd.experiment.config_files import load_config
    from jaxpgd.synthesis.sampling import make_sampling

    with pytest.raises(InputError, match=r"sampler\.kind"):
        load_config(None, {"arms": ["dydiff"], "sampler": {"kind": "auto"}})
    with pytest.raises(InputError, match=r"sampler\.kind"):
        make_sampling(SamplerConfig("auto"), lambda x, sigma: x, (8, 3), guided=False)


def test_a_reference_without_any_number_is_refused() -> None:
    with pytest.raises(InputError, match="measures"):
        suffices(REFERENCE, dict.fromkeys(REFERENCE, np.nan))


@pytest.mark.slow
def test_pareto_guides_towards_an_agent_of_a_run_with_auto(run: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "REFERENCE_STEPS", 2)
        cli.main(["pareto", str(run), "--policy", "unguided:0", "--kinds", "euler", "--evaluations", "2", "--trajectories", "8",
                  "--out", str(tmp_path / "out")])  # fmt: skip
    assert json.loads((tmp_path / "out" / "pareto.json").read_text())["target"].startswith("unguided:0")
