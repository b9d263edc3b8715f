"""What cells of kind trajectories measure, of sets whose answers are known."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpgd.errors import InputError
from jaxpgd.experiment.stages.known_policies import known_target
from jaxpgd.experiment.stages.prepare import Prepared
from jaxpgd.experiment.stages.score_synthesizers import check_scoring
from jaxpgd.experiment.stages.score_trajectories import real_windows, score_trajectories, told_from_training
from jaxpgd.experiment.studies.cell import Cell
from jaxpgd.experiment.studies.measures import Found, add_times, check_cell
from jaxpgd.experiment.studies.plan import load_study
from jaxpgd.experiment.studies.store import Store
from jaxpgd.experiment.studies.trajectories import measure_set, stages_of, training_seconds
from jaxpgd.simulators.resimulation import make_simulator
from jaxpgd.simulators.rollout import replay_actions
from jaxpgd.types import Trajectory, valid_steps
from jaxpgd.world_model.rollouts import RolloutConfig
from jaxpgd.world_model.truncation import cut

STUDY = """
title = "Made up"
[measure]
kind = "trajectories"
source = "unguided"
trajectories = 20
[base]
data = { episodes = 80, validation_fraction = 0.5, window = 12 }
[axes.a]
one = {}
"""


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Cell:
    path = tmp_path_factory.mktemp("study") / "made.toml"
    path.write_text(STUDY)
    return load_study(str(path)).cells[0]


@pytest.fixture(scope="module")
def prepared(cell: Cell) -> Prepared:
    return Store(Path("unused")).prepared(cell.config)


def reference(cell: Cell, prepared: Prepared) -> Trajectory:
    """The held-out windows that trajectories are compared with."""
    starts = np.random.default_rng(cell.config.seed + 1).permutation(np.asarray(prepared.windows.validation))[:20]
    return real_windows(prepared.windows, np.sort(starts))


def test_what_the_data_is_compared_with_itself(cell: Cell, prepared: Prepared) -> None:
    windows, policy = reference(cell, prepared), known_target(prepared.dataset)
    assert policy is not None
    found = measure_set(cell, prepared, windows, policy)
    assert found.whole["sliced_wasserstein"] == pytest.approx(0.0, abs=1e-6) and found.whole["coverage"] == 1.0
    assert found.whole["value_bias"] == pytest.approx(0.0, abs=1e-6) and found.whole["terminal_rate"] == 0.0
    values = found.each["synthetic_value"]
    richer = measure_set(cell, prepared, dataclasses.replace(windows, reward=windows.reward + 1.0), policy).whole
    gain = (1 - 0.99**12) / 0.01 / values.std()  # of a reward of 1 at each of 12 steps
    assert richer["value_bias"] == pytest.approx(gain, rel=1e-4) == pytest.approx(richer["value_distance"], rel=1e-4)
    assert richer["reward_error"] == pytest.approx(1.0, abs=0.05)  # the noise of a step is 0.01
    assert "classifier_accuracy" not in richer


def test_errors_of_a_constant_drift(cell: Cell, prepared: Prepared) -> None:
    """In point2d errors of a step add up: after k steps k times that of one."""
    windows, policy = reference(cell, prepared), known_target(prepared.dataset)
    assert policy is not None
    true = replay_actions(make_simulator(prepared.dataset.info), windows.obs[:, 0], windows.action)
    drift = 0.05 * np.asarray(prepared.windows.unit.std[prepared.windows.unit.obs])  # 0.05 standard deviations a step
    obs = true.obs + drift * np.arange(12)[:, None]
    made = dataclasses.replace(true, obs=obs, last_obs=None, mask=np.asarray(valid_steps(jnp.asarray(true.discount))))
    found = measure_set(cell, prepared, made, policy)
    for name in ("dynamics_error_rms", "dynamics_error_median"):
        assert found.whole[name] == pytest.approx(0.05, rel=1e-3)
    np.testing.assert_allclose(found.each["open_loop_error_4"], 0.2, rtol=1e-3)
    np.testing.assert_allclose(found.each["open_loop_error_8"], 0.4, rtol=1e-3)
    assert "open_loop_error_16" not in found.each
    steps = found.steps(seed=3)
    assert [row["step"] for row in steps] == list(range(12)) and {row["seed"] for row in steps} == {3}
    assert "open_loop_error" not in steps[0] and steps[11]["open_loop_error"] == pytest.approx(0.55, rel=1e-3)
    rows = found.rows(seed=3)
    assert [row["episode"] for row in rows] == list(range(20))
    assert set(found.whole) <= set(rows[0]) and not set(found.whole) & set(rows[1])


def test_rollouts_that_are_cut_are_counted(cell: Cell, prepared: Prepared) -> None:
    """Of 20 rollouts a quarter is cut at step 4: their errors are those of four steps, and their returns."""
    policy = known_target(prepared.dataset)
    measure = dataclasses.replace(cell.measure, source="world_model")
    synthesis = dataclasses.replace(cell.config.synthesis, world_model=RolloutConfig(truncate=0.9))
    truncated = dataclasses.replace(cell, measure=measure, config=dataclasses.replace(cell.config, synthesis=synthesis))
    windows = reference(cell, prepared)
    whole = replay_actions(make_simulator(prepared.dataset.info), windows.obs[:, 0], windows.action)
    apart = np.where((np.arange(20) < 5)[:, None] & (np.arange(12) >= 4), 1.0, 0.0)
    made = jax.tree.map(np.asarray, jax.vmap(cut, in_axes=(0, 0, None))(jax.tree.map(jnp.asarray, whole), apart, 0.5))
    assert policy is not None
    found = measure_set(truncated, prepared, made, policy)
    assert found.whole["truncated_rate"] == 0.25 and found.whole["terminal_rate"] == 0.0
    np.testing.assert_array_equal(found.each["synthetic_length"], [5] * 5 + [12] * 15)  # with the step that is not trusted
    np.testing.assert_allclose(found.each["synthetic_return"][:5], whole.reward[:5, :4].sum(1), rtol=1e-5)
    assert found.whole["reward_error"] < 0.1  # what is cut has rewards of 0, and does not count
    assert "truncated_rate" not in measure_set(cell, prepared, windows, policy).whole


def test_the_classifier_is_asked_for(cell: Cell, prepared: Prepared) -> None:
    policy = known_target(prepared.dataset)
    assert policy is not None
    asked = dataclasses.replace(cell, measure=dataclasses.replace(cell.measure, classifier=True))
    windows = reference(cell, prepared)
    far = dataclasses.replace(windows, obs=windows.obs + 5.0)
    assert measure_set(asked, prepared, far, policy).whole["classifier_accuracy"] > 0.9
    assert asked.key != cell.key


def test_the_table_of_a_run_has_them_too(cell: Cell, prepared: Prepared) -> None:
    windows, key = reference(cell, prepared), jax.random.key(0)
    far = dataclasses.replace(windows, obs=windows.obs + 5.0)
    found = score_trajectories(far, None, prepared, None, key, told_from=windows)
    assert found["classifier_accuracy"] > 0.9
    among = told_from_training(key, prepared.windows, windows)["classifier_accuracy"]
    assert abs(among - 0.5) < 4 * 0.5 / np.sqrt(40)
    # point2d is the same everywhere: noise of 0.01 a step, in standard deviations of each entry
    noise = 0.01 * np.sqrt(np.mean(1 / np.asarray(prepared.windows.unit.std[prepared.windows.unit.obs]) ** 2))
    for k in (4, 8):
        assert found[f"open_loop_error_{k}"] == pytest.approx(noise * np.sqrt(k), rel=4 / np.sqrt(2 * 40))
    assert found["dynamics_error_median"] < found["dynamics_error"] and "open_loop_error_16" not in found


def test_training_is_counted_where_it_was_measured(tmp_path: Path) -> None:
    stages = {
        "a": {"steps": 10, "step_seconds": 2.0, "step_cpu_seconds": 3.0},
        "b": {"steps": 5, "step_seconds": 1.0, "step_cpu_seconds": 1.0},
    }
    for run, facts in stages.items():
        (tmp_path / run / "stages").mkdir(parents=True)
        (tmp_path / run / "stages" / "denoiser.json").write_text(json.dumps(facts))
    runs = stages_of([str(tmp_path / run) for run in stages])
    assert training_seconds(runs) == {"training_seconds": 25.0, "training_core_seconds": 35.0}
    assert training_seconds([]) == {}
    (tmp_path / "b" / "stages" / "denoiser.json").write_text(json.dumps({"steps": 5, "seconds": 1.0}))
    assert training_seconds(runs) == {}


def test_times_of_agents_count_their_models(tmp_path: Path) -> None:
    for name, facts in {
        "denoiser": {"steps": 10, "step_seconds": 2.0, "step_cpu_seconds": 3.0},
        "agent-guided": {"steps": 40, "step_seconds": 0.5, "step_cpu_seconds": 1.0},
        "stopped": {"steps": 40, "seconds": 1.0},
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(facts))
    of = lambda name: tmp_path / f"{name}.json"
    made = lambda: Found([{"seed": 0, "episode": e} for e in range(2)], [{"seed": 0, "step": s} for s in (20, 40)])
    add_times(with_models := made(), [of("denoiser")], of("agent-guided"), 40)
    assert with_models.rows == [
        {"seed": 0, "episode": 0, "total_training_seconds": 40.0, "total_training_core_seconds": 70.0},
        {"seed": 0, "episode": 1},
    ]
    assert [row["total_training_seconds"] for row in with_models.steps] == [30.0, 40.0]
    add_times(real := made(), [], of("agent-guided"), 40)
    assert [row["total_training_core_seconds"] for row in real.steps] == [20.0, 40.0]
    for models, agents in (([of("stopped")], of("agent-guided")), ([], of("stopped"))):
        add_times(unknown := made(), models, agents, 40)
        assert unknown == made()


def test_too_few_to_classify_are_refused_before_anything_is_trained(cell: Cell, prepared: Prepared) -> None:
    few = dataclasses.replace(cell, measure=dataclasses.replace(cell.measure, classifier=True, trajectories=4))
    with pytest.raises(InputError, match=r"measure.classifier = True: expected false with fewer than 5"):
        check_cell(few, Store(Path("unused")))
    evaluation = dataclasses.replace(cell.config.evaluation, classifier=True, trajectories=5)
    check_scoring(dataclasses.replace(cell.config, evaluation=evaluation), prepared)
    evaluation = dataclasses.replace(evaluation, trajectories=4)
    with pytest.raises(InputError, match=r"evaluation.classifier = True: expected false with fewer than 5"):
        check_scoring(dataclasses.replace(cell.config, evaluation=evaluation), prepared)
