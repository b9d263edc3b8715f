import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxpgd.datasets import load
from jaxpgd.datasets.nested import nest
from jaxpgd.errors import InputError
from jaxpgd.experiment.cli import main
from jaxpgd.experiment.commands.report import run_report
from jaxpgd.experiment.commands.reproduce import compare_runs, environment_changes, reproduce
from jaxpgd.experiment.commands.run import run_all
from jaxpgd.experiment.commands.synthesize import export_synthetic
from jaxpgd.experiment.run.checkpoints import read_arrays, save_tree
from jaxpgd.experiment.run.directory import create_run
from jaxpgd.experiment.run.logs import MetricsLog
from jaxpgd.experiment.run.view import open_run
from jaxpgd.experiment.stages import evaluate_returns, score_synthesizers
from jaxpgd.experiment.stages.load import load_policy, load_trajectory_denoiser
from jaxpgd.experiment.stages.prepare import prepare
from jaxpgd.experiment.stages.train_models import train_denoiser

ARMS = ("real", "unguided", "guided")


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def checkpoints(path: Path) -> dict[str, np.ndarray]:
    """Every entry of the newest checkpoint of every stage."""
    found = {}
    for stage in sorted((path / "checkpoints").iterdir()):
        newest = max((p for p in stage.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
        with ocp.StandardCheckpointer() as reader:
            values = reader.restore(newest.absolute())
        found |= {f"{stage.name}/{newest.name}/{name}": np.asarray(value) for name, value in values.items()}
    return found


def test_products(finished: Path) -> None:
    results = read(finished / "results.json")
    assert [r["arm"] for r in results["returns"]] == list(ARMS)
    for row in results["returns"]:
        assert row["seeds"] == 2 and row["episodes per seed"] == 2
        assert -16 * 5 < row["mean return"] < 0  # the reward is minus a distance, 16 times
    rows = {r["coefficient"]: r for r in results["quality"]["rows"]}
    assert list(rows) == [0.0, 0.5, 1.0] and results["quality"]["chosen"] == 0.5
    for row in rows.values():
        assert np.isfinite([row["log_likelihood"], row["dynamics_error"], row["distance_to_truth"]]).all()
    assert (finished / "config.toml").exists() and "jax" in read(finished / "versions.json")
    with np.load(finished / "samples.npz") as samples:
        assert samples["guided_obs"].shape == (32, 16, 2)
        assert not np.array_equal(samples["guided_action"], samples["unguided_action"])


def test_report_and_figures(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    figures = sorted((finished / "figures").glob("*.png"))
    assert {f.stem for f in figures} >= {"trajectories", "returns", "sweep", "dynamics"}
    assert all(f.stat().st_size > 5000 and f.read_bytes().startswith(b"\x89PNG") for f in figures)
    assert page.count("data:image/png;base64,") == len(figures)  # self-contained
    assert all(arm in page for arm in ARMS) and "distance to the weighted truth" in page
    assert "data:image" in page and "updates_per_chunk = 2" in page


def test_metrics(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    steps = lambda stage: [r["step"] for r in rows if r["stage"] == stage]
    assert steps("denoiser") == [2, 4, 6]
    for arm in ARMS:
        assert steps(f"agent-{arm}") == [2, 4, 6, 8]
        evaluated = [r["step"] for r in rows if r["stage"] == f"agent-{arm}" and "returns" in r]
        assert evaluated == [4, 8]
    assert all(len(r["critic_loss"]) == 2 for r in rows if r["stage"] == "agent-guided")  # a number per seed


def test_arms_start_from_the_same_agents(finished: Path) -> None:
    """The first chunk of the synthetic arms draws from one unguided replay: both have the same metrics until a refresh."""
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    losses = {r["stage"]: r["critic_loss"] for r in reversed(rows) if "critic_loss" in r}
    np.testing.assert_allclose(losses["agent-unguided"], losses["agent-guided"], rtol=1e-5)
    assert losses["agent-real"] != losses["agent-guided"]
    assert losses["agent-real"][0] != losses["agent-real"][1]


def test_finished_stages_are_skipped(finished: Path, make_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("jaxpgd.experiment.run.driver.StageProgress", fail)  # opened wherever a stage trains
    for module, name in ((evaluate_returns, "evaluate"), (score_synthesizers, "score_trajectories")):
        monkeypatch.setattr(module, name, fail)
    before = (finished / "results.json").read_text()
    assert run_all(make_config(finished)) == finished
    assert (finished / "results.json").read_text() == before


class Interruption(Exception):
    pass


def interrupt(monkeypatch: pytest.MonkeyPatch, stage: str, calls: int) -> None:
    """Raise within `stage`: after it has logged `calls` chunks, or in its `calls`-th computation."""
    if stage.startswith(("denoiser", "agent")):
        write = MetricsLog.write

        def write_then_stop(self: MetricsLog, name: str, chunk: int, values: dict[str, Any]) -> None:
            write(self, name, chunk, values)
            if (name, chunk) == (stage, calls):
                raise Interruption

        monkeypatch.setattr(MetricsLog, "write", write_then_stop)
        return
    module, name = {"returns": (evaluate_returns, "evaluate"), "quality": (score_synthesizers, "score_trajectories")}[stage]
    function, count = getattr(module, name), 0

    def count_then_stop(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == calls:
            raise Interruption
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, count_then_stop)


# agents of all synthetic arms are one stage's code: the guided ones stand for them
INTERRUPTIONS = [("denoiser", 2), ("agent-real", 3), ("agent-guided", 3), ("returns", 2), ("quality", 3)]


def test_interrupted_in_every_stage_it_ends_with_the_same_bits(finished: Path, make_config: Any, tmp_path: Path) -> None:
    config = make_config(tmp_path / "interrupted")
    for stage, calls in INTERRUPTIONS:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Interruption):
            interrupt(patch, stage, calls)
            run_all(config, resume=True)
        assert not (tmp_path / "interrupted" / "stages" / f"{stage}.json").exists()
    with pytest.raises(InputError, match=r"unfinished run.*--resume"):
        run_all(config)
    path = run_all(config, resume=True)
    expected, found = checkpoints(finished), checkpoints(path)
    assert expected.keys() == found.keys()
    for part in ("params", "optimiser", "replay", "key"):
        assert any(part in name for name in expected), part
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert read(path / "results.json") == read(finished / "results.json")
    lines = [(p / "metrics.jsonl").read_text().splitlines() for p in (path, finished)]
    assert [json.loads(x) for x in lines[0]] == [json.loads(x) for x in lines[1]]


def test_differences_between_two_runs_are_named(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    same = compare_runs(open_run(finished), open_run(copy))
    assert [each.differing for each in same] == [0] * len(same) and {each.part for each in same} >= {
        "agent-guided",
        "quality.json",
    }
    store = open_run(copy).checkpoints("denoiser")
    values = read_arrays(store.directory / str(store.saved()[-1]))
    name = next(name for name in values if name.startswith("params"))
    values[name] = values[name] + np.float32(0.5)
    save_tree(store.directory / str(store.saved()[-1]), nest(list(values), list(values.values())))
    rows = (copy / "metrics.jsonl").read_text().splitlines()
    changed = [json.dumps(json.loads(line) | ({"loss": -1.0} if i == 1 else {})) for i, line in enumerate(rows)]
    (copy / "metrics.jsonl").write_text("\n".join(changed[:-1]) + "\n")
    found = {each.part: each for each in compare_runs(open_run(finished), open_run(copy))}
    assert found["denoiser"].differing == 1 and found["denoiser"].first == f"{name}, by 0.5 at most"
    assert found["denoiser, metrics"].first == "chunk 2: loss"
    assert found["agent-guided, metrics"].first == "lines missing" and found["agent-real"].differing == 0


def test_checkpoints_are_compared_by_what_can_be_read(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    store = open_run(copy).checkpoints("denoiser")
    for file in (store.directory / str(store.saved()[-1])).rglob("*"):
        if file.is_file() and file.name != "manifest.json":
            file.write_bytes(b"x")
    with pytest.raises(InputError, match=r"denoiser.*expected one that can be read"):
        compare_runs(open_run(finished), open_run(copy))


def test_a_run_that_changed_in_the_middle_of_a_stage_is_not_reproduced(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    last = max(i for i, row in enumerate(rows) if row["stage"] == "denoiser")
    rows[last]["skipped_updates"] = 0
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"health\.skip_updates, but 'denoiser' changed in the middle"):
        reproduce(str(copy))
    assert not (copy / "reproduced").exists()


def test_what_a_run_was_made_with_is_stored(finished: Path) -> None:
    stored = read(finished / "versions.json")
    assert {"python", "jax", "device", "devices", "source", "data"} <= stored.keys()
    changed = open_run(finished)
    assert environment_changes(changed) == []
    versions = {**stored, "jax": "0.0.1"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(changed), "read_json", lambda self, name: versions)
        assert environment_changes(changed) == [("jax", "0.0.1", stored["jax"])]


def test_export_loads_with_minari(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import minari

    export_synthetic(str(finished), tmp_path / "made", policy="guided:1", trajectories=6, coefficient=0.3)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "made"))
    dataset = minari.load_dataset("jaxpgd/synthetic-guided-v0")
    flat = load(str(tmp_path / "made" / "transitions.npz"))
    assert dataset.total_episodes == flat.episodes == 6 and dataset.total_steps == flat.size
    episodes = list(dataset.iterate_episodes())
    for episode in episodes:  # up to a terminal; else without step 16, of which nobody knows what follows
        steps = len(episode.actions)
        assert episode.observations.shape == (steps + 1, 2) and dataset.action_space.contains(episode.actions[0])
        assert bool(episode.terminations[-1]) or steps == 15
    np.testing.assert_allclose(flat.obs, np.concatenate([e.observations[:-1] for e in episodes]), rtol=1e-6)
    with pytest.raises(InputError, match=r"--out = .*a new or empty directory"):
        export_synthetic(str(finished), tmp_path / "made")
    with pytest.raises(InputError, match=r"--coefficient = 0.3: expected no value without --policy"):
        export_synthetic(str(finished), tmp_path / "other", coefficient=0.3)


def test_a_borrowed_denoiser(finished: Path, make_config: Any, tmp_path: Path) -> None:
    config = make_config(tmp_path / "borrower", models_from=[str(finished)])
    borrower, prepared = create_run(config, resume=False), prepare(config)
    ours = train_denoiser(borrower, prepared)
    theirs = load_trajectory_denoiser(open_run(finished), prepared)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not (tmp_path / "borrower" / "checkpoints").exists()
    other = make_config(tmp_path / "other", models_from=[str(finished)], denoiser={**vars(config.denoiser), "features": 16})
    with pytest.raises(InputError, match=r"denoiser.features = 16: expected 8, as in models_from"):
        train_denoiser(create_run(other, resume=False), prepared)


@pytest.mark.parametrize(
    ("name", "message"),
    [("other", "one of real"), ("guided:9", "a seed below 2"), ("guided:x", "ARM:SEED with a whole number")],
)
def test_policies_are_named_by_arm_and_seed(finished: Path, name: str, message: str) -> None:
    opened = open_run(finished)
    with pytest.raises(InputError, match=f"policy = '{name}': expected {message}"):
        load_policy(opened, None, None, name)  # type: ignore[arg-type]


def test_report_again(finished: Path) -> None:
    page = finished / "report.html"
    before = page.read_text()
    page.unlink()
    run_report(str(finished))
    assert page.read_text() == before


def test_a_finished_stage_without_its_last_checkpoint_is_run_again(finished: Path, make_config: Any, tmp_path: Path) -> None:
    """Deleting a damaged checkpoint, as its error says, must not pass an earlier state off as the final one."""
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    saved = sorted(p.name for p in (copy / "checkpoints" / "agent-real").iterdir())
    shutil.rmtree(copy / "checkpoints" / "agent-real" / saved[-1])
    run_all(make_config(copy), resume=True)
    again = checkpoints(copy)
    for name, value in checkpoints(finished).items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)


@pytest.mark.slow
def test_frontier_command(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--trajectories", "8", "--coefficients", "0.5,2", "--kinds", "published,smc", "--policy", "guided:1"]
    main(["frontier", str(finished), *arguments, "--max-dynamics-error", "100", "--out", str(tmp_path / "f")])
    result = json.loads((tmp_path / "f" / "frontier.json").read_text())
    assert [(c["guidance"], c["coefficient"]) for c in result["cells"]] == [
        ("unguided", 0.0), ("published", 0.5), ("published", 2.0), ("smc", 0.5), ("smc", 2.0),
    ]  # fmt: skip
    costs = [c["forward_equivalents"] for c in result["cells"][::2]]
    assert costs == [3, 3 + 3, 2 * 3]  # euler, 3 steps; smc proposes by reconstruction
    assert np.isfinite([c["dynamics_error"] for c in result["cells"]]).all()
    assert set(result["largest"]) == {"published", "smc"}
    assert (tmp_path / "f" / "frontier.png").stat().st_size > 5000
    assert "dominated" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "message"), [
    (["--coefficients", "0,1"], "--coefficients = (0.0, 1.0)"),
    (["--coefficients", "a"], "--coefficients = 'a': expected numbers"),
    (["--kinds", "magic"], "--kinds = ['magic']"),
    (["--actor", "nowhere.npz"], "policy = 'nowhere.npz'"),
    (["--actor", "a.npz", "--policy", "guided"], "expected one of them"),
])  # fmt: skip
def test_bad_arguments_of_frontier(
    finished: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["frontier", str(finished), *arguments])
    assert stopped.value.code == 2 and message in capsys.readouterr().err
