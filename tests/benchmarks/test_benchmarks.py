"""The measuring tools, and the agent suite on sizes that take a moment."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import __main__ as cli
from benchmarks import agents, conditions, denoiser, guidance, sampling, timing
from jaxpgd.agents import iql, td3_bc

TINY = agents.Size(transitions=500, obs_dim=3, action_dim=2, batch=8, hidden=(8,), updates=3, baseline_updates=2, repeats=2)


def test_time_calls_waits_for_results_and_measure_separates_compilation():
    calls = []
    assert len(timing.time_calls(lambda: calls.append(1), 3)) == len(calls) == 3
    traces = []

    def fn(x):
        traces.append(1)
        return x + 1

    result = timing.measure(fn, jnp.ones(3), repeats=4)
    assert len(traces) == 1
    assert result.repeats == 4
    assert 0 < result.median_seconds < result.compile_seconds
    assert result.spread_seconds >= 0


def test_matmul_peak_is_a_plausible_rate():
    assert 0.01 < timing.matmul_peak(size=64, repeats=2) < 1e7


def test_data_has_the_stated_sizes_and_bounds():
    data = agents.make_data(jax.random.key(0), TINY)
    assert data.obs.shape == data.next_obs.shape == (500, 3)
    assert data.action.shape == (500, 2)
    assert np.abs(data.action).max() <= 1


def test_both_loops_train_the_agent_and_are_timed():
    data, agent = agents.make_data(jax.random.key(0), TINY), td3_bc(action_dim=2, hidden=(8,))
    state = agent.init(jax.random.key(0), jax.tree.map(lambda x: x[0], data))
    ours = jax.eval_shape(lambda: agents.scan_updates(jax.random.key(1), agent, state, data, TINY))[1]
    theirs, _ = agents.loop_update(jax.random.key(1), agent, state, data, TINY)
    assert ours["critic_loss"].shape == (TINY.updates,)
    assert int(theirs.actor_opt.count) == 1
    result = agents.measure_agent(agent, data, TINY)
    assert result["ratio"] == pytest.approx(result["updates_per_second"] / result["baseline_updates_per_second"])


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
    monkeypatch.setattr(agents, "measure_agent", lambda agent, data, size: {"gflops": 1.0, "name": agent.name})
    results = agents.run(TINY)
    assert results["td3_bc"]["matmul_share"] == 1 / results["matmul_gflops"]
    assert results["size"]["batch"] == 8
    monkeypatch.setattr(agents, "run", lambda: results)
    cli.main(["agents", "--out", str(tmp_path / "out.json")])
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("method", sampling.METHODS, ids=lambda m: m.name)
def test_a_sampling_method_is_what_its_name_says(method):
    sampler, guidance = method.sampler, method.guidance
    if method.published:
        assert (sampler.kind, sampler.steps) == ("heun", 256)
        assert guidance is None or guidance.kind == "published"
        return
    name, _, kind = method.name.partition(", ")
    if name != "smc 32":
        assert name == f"{sampler.kind} {sampler.steps}" and (guidance.kind if guidance else "") == kind


def test_unknown_suite_and_folder_are_refused(tmp_path):
    for arguments in (["nonsense"], ["agents", "--out", str(tmp_path / "missing" / "out.json")]):
        with pytest.raises(SystemExit) as error:
            cli.main(arguments)
        assert error.value.code == 2


def test_the_denoiser_suite_counts_what_it_trains():
    size = denoiser.Size(
        obs_dim=2, action_dim=1, transitions=400, window=8, batch=4, features=(8,), blocks=1, steps=2, repeats=2
    )
    (row,) = denoiser.run(size)["rows"]
    assert row["ratio"] == pytest.approx(row["steps_per_second"] / row["baseline_steps_per_second"])
    # the last convolution alone, forward: batch * window * taps * features * features
    assert row["gflop_per_step"] * 1e9 > 2 * 4 * 8 * 3 * 8 * 8 and row["matmul_share"] > 0


@pytest.mark.slow
def test_the_sampling_suite_names_its_baselines():
    chosen = ("published, unguided", "published, nudged", "smc 32")
    few = lambda method: dataclasses.replace(method, sampler=dataclasses.replace(method.sampler, steps=2))
    methods = tuple(few(method) for method in sampling.METHODS if method.name in chosen)
    found = sampling.run(sampling.Size(trajectories=2, features=8, blocks=1, window=8, repeats=1, methods=methods))["rows"]
    ratios = {row["method"]: row["ratio"] for row in found}
    assert ratios["published, unguided"] == ratios["published, nudged"] == 1.0
    assert ratios["smc 32"] > 0 and len(ratios) == 3


def test_the_guidance_suite_scores_exact_samples_at_their_floor(monkeypatch):
    monkeypatch.setattr(guidance, "COUNT", 512)
    problem = guidance.cases()["16 steps, 6 states, 3 actions"]
    row = guidance.floor(problem, 0.25)
    assert row["w2"] < 2.0 and row["dynamics_error"] > 0
    method = guidance.Method("moment", guidance.Guidance(0.0, kind="moment", iterations=2), "heun", (4,))
    assert guidance.measure(problem, method, 0.25, 4)["forward_equivalents"] == 35
    text = guidance.table([row])
    assert "exact samples" in text and "w2" in text


@pytest.mark.slow
def test_costs_are_measured_beside_those_counted():
    found = guidance.costs(sampling.Size(trajectories=2, features=8, blocks=1, window=8, repeats=1))
    assert [row["forward_equivalents"] for row in found] == [2, 5, 9]
    assert all(row["forward_times"] > 0 for row in found)
    assert "forward_times" in guidance.table(found)


def test_exact_moments_of_states_given_actions_leave_nothing_to_explain():
    """What is left of simulated states has unit variance and no relation to any action; a blind policy's are the dynamics'."""
    env, policies = conditions.problems()
    count = 20_000
    for policy in policies.values():
        test = conditions.make_test(jax.random.key(0), env, policy, count)
        left = (np.asarray(test.made.obs[:, 1:]) - test.mean) / test.std
        assert np.abs(left.mean(0)).max() < 5 / np.sqrt(count)
        np.testing.assert_allclose(left.var(0), 1.0, atol=5 * np.sqrt(2 / count))
        action = np.asarray(test.made.action[..., 0])
        related = np.einsum("nto,nk->tok", left, (action - action.mean(0)) / action.std(0)) / count
        assert np.abs(related).max() < 5 / np.sqrt(count)
    test = conditions.make_test(jax.random.key(1), env, policies["blind"], 3)
    state = np.asarray(test.made.obs[:, 0], np.float64)
    for t in range(15):
        state = state @ np.asarray(env.A).T + np.asarray(test.made.action[:, t]) @ np.asarray(env.B).T
        np.testing.assert_allclose(test.mean[:, t], state, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_conditions_suite_scores_every_way():
    small = dataclasses.replace(conditions.Size().denoiser, features=8, blocks=1, steps=2, batch_size=4, validate_every=2)
    sampler = dataclasses.replace(conditions.Size().sampler, steps=2)
    rows = conditions.run(conditions.Size(episodes=20, conditions=2, samples=3, denoiser=small, sampler=sampler))["rows"]
    assert [(row["behaviour"], row["conditions"]) for row in rows] == [
        (behaviour, kind) for behaviour in ("blind", "reacting") for kind in ("clean", "churned", "noised")
    ]
    assert all(row["error_given_other_actions"] == row["error_of_the_mean"] for row in rows[:3])
    assert all(np.isfinite(row["error_of_the_mean"]) and row["spread_over_exact"] > 0 for row in rows)
