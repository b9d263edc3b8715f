"""The suite `agents` at sizes that take a moment."""

import json

import jax
import numpy as np
import pytest

from benchmarks import __main__ as cli
from benchmarks.speed import agents
from jaxpgd.agents import iql, td3_bc

TINY = agents.Size(
    transitions=500, obs_dim=3, action_dim=2, batch=8, synthetic=6, trajectories=16, window=4, seeds=2, hidden=(8,), updates=4,
    baseline_updates=2, repeats=2,
)  # fmt: skip


def test_data_has_the_stated_sizes_and_bounds():
    data = agents.make_data(jax.random.key(0), TINY)
    assert data.obs.shape == data.next_obs.shape == (500, 3)
    assert data.action.shape == (500, 2)
    assert np.abs(data.action).max() <= 1


@pytest.mark.slow
def test_both_loops_train_the_agent_and_are_timed():
    data, replay = agents.make_data(jax.random.key(0), TINY), agents.make_replay(jax.random.key(1), TINY)
    assert int(replay.count) == 16 * 3  # the last step of each is not usable
    agent = td3_bc(action_dim=2, hidden=(8,))
    state = agents.start(jax.random.key(0), agent, data, replay)
    ours, metrics = agents.scan_updates(state, agent, data, TINY)
    assert int(ours.agent.actor_opt.count) == TINY.updates and metrics["critic_loss"].shape == ()
    theirs, _ = agents.loop_update(jax.random.key(1), agent, state.agent, data, replay, TINY)
    assert int(theirs.actor_opt.count) == 1
    result = agents.measure_agent(agent, data, replay, TINY)
    assert result["ratio"] == pytest.approx(result["rate"] / result["baseline_rate"])
    assert result["matmul_share"] > 0 and result["gflop_per_unit"] == agents.update_flops(agent, TINY) / 1e9


@pytest.mark.slow
def test_seeds_of_one_program_are_the_single_runs():
    data, replay = agents.make_data(jax.random.key(0), TINY), agents.make_replay(jax.random.key(1), TINY)
    found = agents.measure_seeds(iql(action_dim=2, hidden=(8,)), data, replay, TINY)
    assert found["largest_relative_difference_of_losses"] < 1e-5
    assert found["cost_of_seeds_over_singles"] > 0


@pytest.mark.parametrize("make", [td3_bc, iql])
def test_stated_arithmetic_is_what_the_compiler_counts(make):
    """Up to elementwise work, a few percent at these widths."""
    size = agents.Size(hidden=(64, 64))
    agent = make(action_dim=6, hidden=size.hidden)
    data = jax.eval_shape(lambda: agents.make_data(jax.random.key(0), size))
    shape = lambda *lead: jax.tree.map(lambda x: jax.ShapeDtypeStruct((*lead, *x.shape[1:]), x.dtype), data)
    state = jax.eval_shape(agent.init, jax.random.key(0), shape())
    analysis = jax.jit(agent.update).lower(jax.random.key(0), state, shape(agent.batches, size.batch)).compile().cost_analysis()
    assert analysis["flops"] == pytest.approx(agents.update_flops(agent, size), rel=0.15)


def test_the_command_prints_and_writes_the_results(tmp_path, monkeypatch, capsys):
    for name in ("measure_agent", "measure_seeds"):
        monkeypatch.setattr(agents, name, lambda agent, *_: {"agent": agent.name})
    results = agents.run(TINY)
    assert [row["agent"] for row in results["rows"]] == ["td3_bc", "iql", "td3_bc", "iql"]
    assert results["size"]["batch"] == 8 and results["matmul_gflops"] > 0 and results["matmul_precision"] == "default"
    monkeypatch.setattr(agents, "run", lambda: results)
    cli.main(["agents", "--out", str(tmp_path / "out.json")])
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads(capsys.readouterr().out)
