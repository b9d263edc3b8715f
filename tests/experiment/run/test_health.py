"""Numbers that are not finite: injected into data, gradients, samples and parameters, named, with the state before saved."""

import dataclasses
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from jax import Array

from jaxpgd.agents import replace_hypers
from jaxpgd.agents.td3_bc import td3_bc
from jaxpgd.datasets.scores import OGBENCH
from jaxpgd.diffusion.edm import coefficients
from jaxpgd.errors import DivergenceError
from jaxpgd.experiment.config import Config, HealthConfig
from jaxpgd.experiment.config_files import load_config
from jaxpgd.experiment.report.run_tables import health_notes
from jaxpgd.experiment.run.directory import ClaimedRun, create_run
from jaxpgd.experiment.run.driver import drive
from jaxpgd.experiment.stages import evaluate_returns as stages
from jaxpgd.experiment.stages.prepare import prepare
from jaxpgd.experiment.stages.train_agents import _mean_return
from jaxpgd.synthesis.replay import SynthesisConfig
from jaxpgd.training.agent import AgentConfig, agent_program, init_agent, make_schedule, value_excess
from jaxpgd.training.experience import Experience
from jaxpgd.training.health import checked, first_bad, first_of_blocks, firsts, non_finite, skipping, split_firsts, where
from jaxpgd.training.program import Program, mean_metrics
from jaxpgd.training.world_model import world_model_program
from jaxpgd.types import Policy, Synthesis, Synthesizer, Trajectory, Transition
from jaxpgd.world_model.data import prepare_transitions
from jaxpgd.world_model.model import WorldModelConfig

STEPS = 4  # of a chunk


def open_run(tmp_path: Path, **health: Any) -> ClaimedRun:
    config = Config(out=str(tmp_path / "run"), checkpoint_seconds=1e9, health=HealthConfig(**health))
    return create_run(config, resume=True)


def descent(chunks: int, *, skip: bool = False, seeds: int = 0) -> Program[Array]:
    """x goes down by 1 a step under the loss sqrt(x): at 0 the loss is finite and its gradient is not."""

    def update(x: Array, _: None) -> tuple[Array, dict[str, Array]]:
        loss, gradient = jax.value_and_grad(jnp.sqrt)(x)
        new = x - jnp.where(x > 0, 1.0, gradient)
        return new, {"loss": loss, "gradient_norm": jnp.abs(gradient)}

    def chunk(x: Array, data: Any, index: Array) -> tuple[Array, dict[str, Array]]:
        x, metrics = jax.lax.scan(skipping(update) if skip else update, x, None, length=STEPS)
        return x, {**mean_metrics(metrics), **firsts(metrics)}

    one = Program(init=lambda key, data: jnp.asarray(data), chunk=chunk, chunks=chunks, steps_per_chunk=STEPS,
                  quantities=lambda x: {"parameter": {"x": x}})  # fmt: skip
    if seeds == 0:
        return one
    several = lambda x, data, index: jax.vmap(lambda x: chunk(x, data, index))(x)
    return dataclasses.replace(one, chunk=several, seeds=seeds)


def test_the_host_waits_for_the_device_once_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a chunk says and whether its state is finite come together, the latter as one array; and once at the start."""
    fetched, fetch = [], jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda x: fetched.append(x) or fetch(x))
    monkeypatch.setattr(jax, "block_until_ready", lambda x: x)
    drive(open_run(tmp_path), "down", jax.random.key(0), descent(3), 100.0)
    assert len(fetched) == 1 + 3 and fetched[0].shape == (1, 1)
    assert [look.shape for look, _ in fetched[1:]] == [(1, 1)] * 3 and "loss" in fetched[-1][1]


def test_a_gradient_is_named_before_the_loss_that_it_spoils(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    # 10, 9, ... 0: the eleventh step, in the third chunk, has the gradient of sqrt at 0; the twelfth a loss that is no number
    message = r"stage 'stage' of .*: gradient_norm is not finite from step 11 on\. The state before, of step 8, is saved"
    with pytest.raises(DivergenceError, match=message):
        drive(run, "stage", jax.random.key(0), descent(6), 10.0)
    assert run.checkpoints("stage").saved()[-1] == 2 and not run.is_done("stage")
    found = run.checkpoints("stage").restore(jnp.zeros(()))
    assert found is not None and float(found[0]) == 2.0  # after eight steps
    assert run.read_json("failures/stage.json")["last_good_step"] == 8
    assert [row["chunk"] for row in run.log.read()] == [1, 2]


def test_the_replay_names_the_operation(tmp_path: Path) -> None:
    def chunk(x: Array, data: Any, index: Array) -> tuple[Array, dict[str, Array]]:
        def update(x: Array, _: None) -> tuple[Array, dict[str, Array]]:
            return x - 1.0, {"loss": jnp.sum(jnp.log(x))}

        return jax.lax.scan(update, x, None, length=STEPS)[0], {"loss": jnp.sum(jnp.log(x - STEPS + 1))}

    program = Program(init=lambda key, data: jnp.asarray(data), chunk=chunk, chunks=6, steps_per_chunk=STEPS)
    run = open_run(tmp_path)
    with pytest.raises(DivergenceError, match="loss is not finite in the chunk that ends at step 12"):
        drive(run, "stage", jax.random.key(0), program, 10.0)
    with run:
        pass
    again = open_run(tmp_path, debug_nans=True)
    with pytest.raises(DivergenceError, match=r"the chunk that ends at step 12: nan generated by primitive: log\. The state"):
        drive(again, "stage", jax.random.key(0), program, 10.0)


def test_a_first_state_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    with pytest.raises(DivergenceError, match="parameter/x has entries that are not finite"):
        drive(run, "stage", jax.random.key(0), descent(2), np.nan)
    assert run.checkpoints("stage").saved() == []


def test_one_lost_seed_stops_or_stays_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = jnp.array([100.0, 5.0, 100.0])
    with pytest.raises(DivergenceError, match=r"gradient_norm is not finite from step 6 on \(seed 1\)"):
        drive(open_run(tmp_path / "stop"), "stage", jax.random.key(0), descent(3, seeds=3), start)
    run = open_run(tmp_path / "keep", lost_seeds="keep")
    state = drive(run, "stage", jax.random.key(0), descent(3, seeds=3), start)
    np.testing.assert_array_equal(np.isfinite(state), [True, False, True])
    assert capsys.readouterr().err.count("warning: stage 'stage'") == 1  # once, though every later chunk has it
    assert run.facts("stage")["lost_seeds"] == [1]
    assert [row.get("lost_seeds") for row in run.log.read()] == [None, [False, True, False], [False, True, False]]
    assert health_notes(run) == ["stage 'stage' went on without seed 1, whose numbers were not finite."]
    with pytest.raises(DivergenceError, match=r"\(seeds 0, 1\)"):
        drive(open_run(tmp_path / "all", lost_seeds="keep"), "stage", jax.random.key(0), descent(3, seeds=2), jnp.full(2, 5.0))


def test_seeds_that_an_earlier_process_lost_stay_lost(tmp_path: Path) -> None:
    program, start = descent(6, seeds=2), jnp.array([5.0, 17.0])
    stopped = dataclasses.replace(program, chunks=3)  # seed 0 is lost in the second chunk
    with open_run(tmp_path, lost_seeds="keep") as run:
        drive(run, "stage", jax.random.key(0), stopped, start)
        (run.path / "stages" / "stage.json").unlink()  # as a run has it that was killed there
    mended = dataclasses.replace(program, chunk=lambda x, data, i: program.chunk(jnp.where(jnp.isfinite(x), x, 50.0), data, i))
    with pytest.raises(DivergenceError, match=r"\(seed 1\)"):  # the only one that was left, though seed 0 is finite again
        drive(open_run(tmp_path, lost_seeds="keep"), "stage", jax.random.key(0), mended, start)


def test_lost_seeds_have_no_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(None, {"out": str(tmp_path / "run"), "arms": ["real"], "seeds": 3, "data": {"episodes": 4}})
    run = create_run(config, resume=True)
    run.finish("agent-real", {"lost_seeds": [1]})
    finite = SimpleNamespace(returns=np.ones((3, 2)), lengths=np.ones((3, 2)), successes=None)  # though its parameters are not
    monkeypatch.setattr(stages, "evaluate", lambda *args, **options: finite)
    found = stages.evaluate_returns(run, prepare(config), {"real": None})  # type: ignore[dict-item]
    np.testing.assert_array_equal(np.isfinite(found["real"]["returns"]).all(1), [True, False, True])
    successes = np.array([[True, False], [True, True], [False, False]])
    ogbench = SimpleNamespace(returns=np.ones((3, 2)), lengths=np.ones((3, 2)), successes=successes)
    monkeypatch.setattr(stages, "evaluate", lambda *args, **options: ogbench)
    prepared = prepare(config)
    info = dataclasses.replace(prepared.dataset.info, ref_source=OGBENCH)
    prepared = dataclasses.replace(prepared, dataset=dataclasses.replace(prepared.dataset, info=info))
    (run.path / "stages" / "returns.json").unlink()
    found = stages.evaluate_returns(run, prepared, {"real": None})  # type: ignore[dict-item]
    np.testing.assert_array_equal(np.nanmean(np.array(found["real"]["score"], float)), 25.0)
    assert _mean_return({"returns": [1.0, 9.0], "lost_seeds": [False, True]}) == 1.0


def test_looking_for_nans_changes_no_bits(tmp_path: Path) -> None:
    def chunk(x: Array, data: Any, index: Array) -> tuple[Array, dict[str, Array]]:
        x = jax.lax.fori_loop(0, 50, lambda _, x: jnp.sin(1.7 * x) + jnp.cos(x) / 3.0 + jnp.exp(-x * x), x)
        return x, {"loss": x.mean()}

    start = jnp.linspace(-2.0, 2.0, 1000)
    program = Program(init=lambda key, data: jnp.asarray(data), chunk=chunk, chunks=3, steps_per_chunk=1)
    states = [
        drive(open_run(tmp_path / str(d), debug_nans=d), "stage", jax.random.key(0), program, start) for d in (False, True)
    ]
    np.testing.assert_array_equal(*states)


def test_rare_bad_updates_are_left_out_and_counted(tmp_path: Path) -> None:
    def chunk(x: Array, data: Any, index: Array) -> tuple[Array, dict[str, Array]]:
        def update(x: Array, step: Array) -> tuple[Array, dict[str, Array]]:
            bad = jnp.where(step % 3 == 2, jnp.nan, 2.0)  # one or two of the four steps of a chunk
            return x + bad, {"loss": bad}

        x, metrics = jax.lax.scan(skipping(update), x, index * STEPS + jnp.arange(STEPS))
        return x, {**mean_metrics(metrics), **firsts(metrics)}

    program = Program(init=lambda key, data: jnp.asarray(data), chunk=chunk, chunks=3, steps_per_chunk=STEPS)
    run = open_run(tmp_path / "two", skip_updates=2)
    assert float(drive(run, "stage", jax.random.key(0), program, 0.0)) == 2.0 * (12 - 4)
    assert [(row["skipped_updates"], row["loss"]) for row in run.log.read()] == [(1, 2.0), (1, 2.0), (2, 2.0)]
    assert run.facts("stage")["skipped_updates"] == [4]
    assert health_notes(run) == ["stage 'stage' left out updates that were not finite: 4."]
    with pytest.raises(DivergenceError, match="2 updates were not finite in the chunk that ends at step 12, more than"):
        drive(open_run(tmp_path / "one", skip_updates=1), "stage", jax.random.key(0), program, 0.0)


def test_a_chunk_of_bad_updates_alone_is_never_left_out(tmp_path: Path) -> None:
    message = "4 updates were not finite in the chunk that ends at step 16, which are all that it has"
    with pytest.raises(DivergenceError, match=message):  # from the eleventh step on there is no good one
        drive(open_run(tmp_path, skip_updates=100), "stage", jax.random.key(0), descent(6, skip=True), 10.0)


def test_a_failure_that_was_overcome_is_kept_with_its_stage(tmp_path: Path) -> None:
    with pytest.raises(DivergenceError), open_run(tmp_path) as run:
        drive(run, "stage", jax.random.key(0), descent(3, skip=False), 10.0)
    again = open_run(tmp_path, skip_updates=2)  # steps 11 and 12 of the third chunk are bad
    drive(again, "stage", jax.random.key(0), descent(3, skip=True), 10.0)
    assert not (again.path / "failures" / "stage.json").exists()
    facts = again.facts("stage")
    assert facts["skipped_updates"] == [2] and facts["health"]["skip_updates"] == 2
    assert "gradient_norm is not finite from step 11 on" in facts["overcame"]
    assert len(health_notes(again)) == 2


def test_the_line_that_made_it_is_named() -> None:
    error, _ = jax.jit(checked(lambda sigma: coefficients(sigma, 1.0)))(jnp.asarray(-1.0))
    assert re.fullmatch(r"nan generated by primitive: log, by diffusion/edm\.py, line \d+", where(error))


def test_a_bad_update_of_a_real_agent_changes_nothing() -> None:
    agent = td3_bc(action_dim=1, hidden=(8,))
    real = transitions(64)
    config = AgentConfig(updates=8, updates_per_chunk=4, batch_size=16)
    program = agent_program(agent, config, SynthesisConfig(), skip=True)
    state = program.init(jax.random.key(0), Experience(real))
    spoiled = Experience(real.replace(reward=real.reward * jnp.nan))  # type: ignore[attr-defined]
    after, metrics = program.chunk(state, spoiled, jnp.asarray(0))
    jax.tree.map(np.testing.assert_array_equal, after.agent, state.agent)
    assert float(metrics["skipped_updates"]) == 1.0
    moved, metrics = program.chunk(state, Experience(real), jnp.asarray(0))
    plain, _ = agent_program(agent, config, SynthesisConfig()).chunk(state, Experience(real), jnp.asarray(0))
    # sound updates are what they are without it, to the rounding of another program
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-12), moved.agent, plain.agent)
    assert float(metrics["skipped_updates"]) == 0.0


def transitions(size: int, reward: float = 1.0) -> Transition:
    obs = jax.random.normal(jax.random.key(3), (size, 2))
    return Transition(obs, jnp.tanh(obs[:, :1]), jnp.full(size, reward), jnp.ones(size), obs + 0.1)


@struct.dataclass
class Fragile(Synthesizer):
    """Trajectories of zeros; from an actor that has moved from where it began, of NaN."""

    def __call__(self, key: Array, policy: Policy, start: Array) -> Synthesis:
        count = start.shape[0]
        moved = jnp.abs(jax.vmap(policy.mode)(start)).sum()
        obs = jnp.zeros((count, 3, 2)) + jnp.where(jnp.isfinite(moved) & (policy.params[1] > 0.5), jnp.nan, 0.0)
        rest = jnp.zeros((count, 3))
        made = Trajectory(obs, jnp.zeros((count, 3, 1)), rest, rest + 1.0, jnp.ones((count, 3), bool))
        return Synthesis(made, jnp.zeros(count), {})


def counting_agent() -> Any:
    """TD3+BC whose policy also holds whether more than eight updates were made: what spoils `Fragile`'s samples."""
    agent = td3_bc(action_dim=1, hidden=(8,))

    def policy(state: Any) -> Policy:
        inner = agent.policy(state[0])
        return Policy(
            params=(inner.params, (state[1] > 8).astype(jnp.float32)),
            sample_fn=lambda p, key, obs: inner.sample_fn(p[0], key, obs),
            mode_fn=lambda p, obs: inner.mode_fn(p[0], obs),
        )

    def update(key: Array, state: Any, batch: Transition) -> Any:
        new, metrics = agent.update(key, state[0], batch)
        return (new, state[1] + 1), metrics

    return agent.replace(  # type: ignore[attr-defined]
        init_fn=lambda key, hypers, example: (agent.init(key, example, hypers), jnp.zeros((), jnp.int32)),
        update_fn=update,
        policy_fn=policy,
    )


CONFIG = AgentConfig(updates=24, updates_per_chunk=4, batch_size=16)
SYNTHESIS = SynthesisConfig(regime="periodic", trajectories=4, interval=4)


def test_a_bad_sample_is_named_before_the_losses_that_it_spoils(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    program = agent_program(counting_agent(), CONFIG, SYNTHESIS)
    # the refresh before the fourth chunk (twelve updates done) is the first that sees a count above eight
    with pytest.raises(DivergenceError, match=r"sample/obs has entries that are not finite\. The state before, of step 12"):
        drive(run, "agent", jax.random.key(0), program, Experience(transitions(64), Fragile()))
    assert run.checkpoints("agent").saved()[-1] == 3


def test_bad_data_show_in_the_critic_first(tmp_path: Path) -> None:
    real = transitions(64)
    spoiled = real.replace(reward=jnp.where(jnp.arange(64) == 5, jnp.inf, real.reward))  # type: ignore[attr-defined]
    program = agent_program(td3_bc(action_dim=1, hidden=(8,)), CONFIG, SynthesisConfig())
    with pytest.raises(DivergenceError, match=r": critic_loss is not finite from step \d+ on\. The state before, of step 0,"):
        drive(open_run(tmp_path), "agent", jax.random.key(0), program, Experience(spoiled))


@pytest.mark.slow
def test_the_saved_state_is_that_of_a_run_without_the_failure(tmp_path: Path) -> None:
    program = agent_program(counting_agent(), CONFIG, SYNTHESIS)
    data = Experience(transitions(64), Fragile())
    run = open_run(tmp_path)
    with pytest.raises(DivergenceError):
        drive(run, "agent", jax.random.key(0), program, data)
    state = program.init(jax.random.key(0), data)
    for index in range(3):
        state, _ = jax.jit(program.chunk)(state, data, jnp.asarray(index))
    found = run.checkpoints("agent").restore(state)
    assert found is not None
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(jax.random.key_data(a) if a.dtype == state.key.dtype else a,
                 jax.random.key_data(b) if b.dtype == state.key.dtype else b), found[0], state)  # fmt: skip


def test_values_beyond_what_rewards_allow_are_flagged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = transitions(8).replace(reward=jnp.linspace(-1.0, 3.0, 8))  # type: ignore[attr-defined]
    # from -1 / (1 - 0.9) to 3 / (1 - 0.9): 40 wide
    for value, excess in ((0.0, 0.0), (30.0, 0.0), (-10.0, 0.0), (70.0, 1.0), (-20.0, 0.25)):
        assert float(value_excess(real, 0.9, jnp.asarray(value))) == pytest.approx(excess, abs=1e-5)
    chunk = lambda x, data, index: (x + 1, {"loss": x, "value_excess": jnp.array([0.0, 0.9, 3.0]) * x})
    program = Program(init=lambda key, data: jnp.zeros(3), chunk=chunk, chunks=4, steps_per_chunk=1, seeds=3)
    run = open_run(tmp_path, value_excess=1.0)
    drive(run, "stage", jax.random.key(0), program, None)
    assert run.facts("stage")["diverging_critics"] == [1, 2]
    said = capsys.readouterr().err
    assert re.search(r"at step 2 the critic diverges \(seed 2\): values are 3 times the width", said)
    assert re.search(r"at step 3 the critic diverges \(seed 1\)", said) and said.count("diverges") == 2


def test_the_first_bad_step_over_blocks() -> None:
    nan = float("nan")
    assert int(first_bad(jnp.array([1.0, 2.0]))) == 2 and int(first_bad(jnp.array([[1.0, nan], [nan, 1.0]]))) == 0
    blocks = jnp.array([[1.0, 1.0], [1.0, float("inf")], [nan, 1.0]])
    each = jax.vmap(first_bad)(blocks)
    assert int(first_of_blocks(each, 2)) == 3 and int(first_of_blocks(jnp.array([2, 2]), 2)) == 4


def test_causes_come_before_effects() -> None:
    metrics, first = split_firsts({"critic_loss": nan(), "first_bad/critic_loss": 3, "first_bad/actor_loss": 3,
                                   "first_bad/critic_gradient_norm": 2, "other_loss": nan()})  # fmt: skip
    state = {"parameter/w": np.array([False]), "sample/obs": np.array([False]), "parameter/b": np.array([True])}
    order = [each.what.split()[0] for each in non_finite(state, metrics, first, 4, 8, np.zeros(1, bool))]
    assert order == ["sample/obs", "critic_gradient_norm", "critic_loss", "actor_loss", "other_loss", "parameter/w"]


def nan() -> np.ndarray:
    return np.array(np.nan)


def world_model_data(spoiled: float = 1.0) -> Any:
    found = prepare_transitions(transitions(200).replace(next_obs=jnp.arange(400.0).reshape(200, 2)), WORLD_MODEL)  # type: ignore[attr-defined]
    return found.replace(transitions=jax.tree.map(lambda x: x * spoiled, found.transitions))  # type: ignore[attr-defined]


WORLD_MODEL = WorldModelConfig(members=2, elites=1, hidden=(8,), reward_hidden=(8,), epochs=3, steps_per_epoch=6, batch_size=8)


@pytest.mark.slow
def test_a_world_model_names_the_gradient_step(tmp_path: Path) -> None:
    data = world_model_data(np.nan)
    program = world_model_program(data, WORLD_MODEL, lambda obs: jnp.zeros((), bool))
    with pytest.raises(DivergenceError, match=r": (state|reward)_training_loss is not finite from step 1 on"):
        drive(open_run(tmp_path), "world-model", jax.random.key(0), program, data)


def test_a_world_model_counts_the_gradient_steps_that_it_leaves_out(tmp_path: Path) -> None:
    data = world_model_data()
    spoiled = lambda rows: data.replace(transitions=data.transitions.replace(obs=data.transitions.obs.at[rows].set(jnp.nan)))
    # what is held out stays sound, and so does its loss
    all_bad, few_bad = spoiled(data.train), spoiled(data.train[:8])
    program = world_model_program(data, WORLD_MODEL, lambda obs: jnp.zeros((), bool), skip=True)
    with pytest.raises(DivergenceError, match=r": 6 updates were not finite .* which are all that it has"):
        drive(open_run(tmp_path / "none", skip_updates=6), "world-model", jax.random.key(0), program, all_bad)
    run = open_run(tmp_path / "some", skip_updates=5)
    state = drive(run, "world-model", jax.random.key(0), program, few_bad)
    skipped = [row["skipped_updates"] for row in run.log.read()]
    assert 0 < sum(skipped) < 6 * WORLD_MODEL.epochs
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.state.params))
    assert max(skipped) > 1
    with pytest.raises(DivergenceError, match=r"updates were not finite .* more than health\.skip_updates = 1"):
        drive(open_run(tmp_path / "few", skip_updates=1), "world-model", jax.random.key(0), program, few_bad)


def test_the_network_that_leaves_out_the_most_is_counted() -> None:
    data = world_model_data()
    program = world_model_program(data, WORLD_MODEL, lambda obs: jnp.zeros((), bool), skip=True)
    state = program.init(jax.random.key(0), data)
    params = jax.tree.map(lambda x: x.at[0].mul(1e30), state.state.params)  # of one of two: no step of it is sound
    _, metrics = program.chunk(state.replace(state=state.state.replace(params=params)), data, jnp.asarray(0))
    assert float(metrics["skipped_updates"]) == 1.0


def test_the_cause_is_that_of_the_seed_that_is_lost_now(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = jnp.array([2.0, 9.0, 100.0])  # the gradient of seed 0 fails in step 3, that of seed 1 in step 10
    drive(open_run(tmp_path, lost_seeds="keep"), "stage", jax.random.key(0), descent(4, seeds=3), start)
    said = capsys.readouterr().err
    assert "gradient_norm is not finite from step 3 on (seed 0)" in said
    assert "gradient_norm is not finite from step 10 on (seed 1)" in said and said.count("warning") == 2


def test_every_seed_is_judged_by_its_own_discount() -> None:
    agent = td3_bc(action_dim=1, hidden=(8,))
    experience = Experience(transitions(64, reward=1e-3))  # worth 0.002 at a discount of 0.5, 1000 at 0.999999
    schedule, found = make_schedule(CONFIG, SynthesisConfig()), {}
    for gamma in (0.5, 0.999999, 1.0):
        hypers = replace_hypers(agent.hypers, gamma=gamma)
        state = init_agent(jax.random.key(0), experience, agent, schedule, hypers)
        # the program is made with the agent's own discount, as that of one setting is for all settings of a sweep
        _, metrics = agent_program(agent, CONFIG, SynthesisConfig()).chunk(state, experience, jnp.asarray(0))
        found[gamma] = float(metrics["value_excess"])
    assert found[0.5] > 1.0 and found[0.999999] < 0.01 and found[1.0] == 0.0
