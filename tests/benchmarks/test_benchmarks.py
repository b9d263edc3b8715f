"""The measuring tools, and the agent suite on sizes that take a moment."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import __main__ as cli
from benchmarks import (
    agents,
    conditions,
    denoiser,
    dydiff,
    end_to_end,
    evaluation,
    guidance,
    refresh,
    sampling,
    scaling,
    timing,
)
from jaxpgd.agents import iql, td3_bc

TINY = agents.Size(
    transitions=500, obs_dim=3, action_dim=2, batch=8, synthetic=6, trajectories=16, window=4, seeds=2, hidden=(8,), updates=4,
    baseline_updates=2, repeats=2,
)  # fmt: skip


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


def test_a_row_tells_rate_arithmetic_and_memory():
    result = timing.measure(lambda x: x @ x, jnp.ones((64, 64)), repeats=2)
    assert result.memory_bytes is not None and result.memory_bytes >= 2 * 4 * 64 * 64  # argument and result
    row = timing.row(timing.Timing(1.0, 0.5, 0.1, 3, 99, (0.5, 0.6, 0.4), (100.0, 50.0, 100.0)), 10, flops=4e9)
    assert row["rate"] == 20 and row["spread_percent"] == pytest.approx(20) and row["memory_bytes"] == 99
    assert row["gflop_per_unit"] == 4 and row["matmul_gflops"] == 100
    assert row["matmul_share"] == pytest.approx(1.0)  # the median of 0.8, 4 / 3 and 1
    assert "matmul_share" not in timing.row(timing.Timing(1.0, 0.5, 0.1, 3), 10)


def test_without_a_name_every_speed_suite_is_run_and_kept(tmp_path, monkeypatch, capsys):
    modules = {"agents": agents, "denoiser": denoiser, "dydiff": dydiff, "end_to_end": end_to_end,
               "evaluation": evaluation, "refresh": refresh, "sampling": sampling, "scaling": scaling}  # fmt: skip
    out = tmp_path / "all.json"
    for name, module in modules.items():
        monkeypatch.setattr(module, "run", lambda name=name: {"suite": name, "before": out.exists()})
    cli.main(["--out", str(out)])
    found = json.loads(out.read_text())
    assert found == json.loads(capsys.readouterr().out) and set(found) == set(modules) == set(cli.SPEED)
    assert [found[name]["before"] for name in cli.SPEED] == [False] + [True] * (len(modules) - 1)


@pytest.mark.parametrize("method", sampling.METHODS, ids=lambda m: m.name)
def test_a_sampling_method_is_what_its_name_says(method):
    sampler, guidance = method.sampler, method.guidance
    if method.published:
        assert (sampler.kind, sampler.steps) == ("heun", 256)
        assert guidance is None or guidance.kind == "published"
        return
    name = rest = method.name
    assert name.startswith(f"{sampler.kind} {sampler.steps}") or name == "smc 32"
    assert ("of [0.01, 20]" in name) == (sampler.sigma_max == 20.0)
    assert (f"{method.features} features" in rest) == (method.features > 0)
    kinds = {"reconstruction": "reconstruction", "moment": "moment", "nudged": "published"}
    named = [kind for word, kind in kinds.items() if word in rest]
    assert named == ([] if guidance is None or guidance.kind == "smc" else [guidance.kind])


def test_unknown_suite_and_folder_are_refused(tmp_path):
    for arguments in (["nonsense"], ["agents", "--out", str(tmp_path / "missing" / "out.json")]):
        with pytest.raises(SystemExit) as error:
            cli.main(arguments)
        assert error.value.code == 2


@pytest.mark.slow
def test_the_denoiser_suite_counts_what_it_trains():
    size = denoiser.Size(
        obs_dim=2, action_dim=1, transitions=400, window=8, batch=4, features=(8,), blocks=1, steps=2, repeats=2
    )
    (row,) = denoiser.run(size)["rows"]
    assert row["ratio"] == pytest.approx(row["rate"] / row["baseline_rate"])
    # the last convolution alone, forward: batch * window * taps * features * features
    assert row["gflop_per_unit"] * 1e9 > 2 * 4 * 8 * 3 * 8 * 8 and row["matmul_share"] > 0


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


REFRESH = refresh.Size(
    trajectories=4, baseline_trajectories=2, features=8, published_features=8, blocks=1, window=8, repeats=2, baseline_steps=2,
    methods=(refresh.METHODS[0],),
)  # fmt: skip


@pytest.mark.slow
def test_a_refresh_for_another_policy_compiles_nothing():
    rows = {row["method"]: row for row in refresh.run(REFRESH)["rows"]}
    ours = rows["dpmpp_2m_sde 32"]
    assert ours["compiled_again"] == 0
    assert ours["ratio"] == pytest.approx(ours["rate"] / rows["published, unguided"]["rate"])


@pytest.mark.slow
def test_the_loop_with_refreshes_compiles_once_and_predicts_the_protocol():
    size = end_to_end.Size(
        updates=4, trajectories=4, transitions=500, repeats=2, protocol_features=8, protocol_batch=2, sampling=REFRESH,
        updating=dataclasses.replace(TINY, obs_dim=17, action_dim=6),
    )  # fmt: skip
    rows = {row["method"]: row for row in end_to_end.run(size)["rows"]}
    assert rows["dpmpp_2m_sde 32"]["compiled"] == 1
    assert set(rows) == {"published, unguided", "published, nudged", "dpmpp_2m_sde 32"}


def test_the_protocol_is_updates_and_forward_passes():
    found = end_to_end.protocol(updates_rate=100.0, evaluation=1e-5, passes=32)
    assert found["updates_minutes"] == pytest.approx(1e6 / 100 / 60)
    assert found["refreshes_minutes"] == pytest.approx(100 * 8192 * 32 * 1e-5 / 60)
    assert found["minutes"] == pytest.approx(found["updates_minutes"] + found["refreshes_minutes"])


@pytest.mark.slow
def test_the_scaling_suite_has_a_row_for_each_number_of_devices():
    size = scaling.Size(
        counts=(1, 2), features=8, blocks=1, batch=4, steps=2, trajectories=4, sampler_steps=2, seeds=2, updates=2,
        agent_batch=8, transitions=500, repeats=1,
    )  # fmt: skip
    rows = scaling.run(size)["rows"]
    assert [row["devices"] for row in rows] == [1, 2]
    assert all(rate > 0 for row in rows for rate in row["of_one"].values())


@pytest.mark.slow
def test_the_dydiff_suite_holds_samplers_against_the_published_one():
    size = dydiff.Size(trajectories=2, window=8, features=8, blocks=1, transitions=500, hidden=(8,), repeats=1)
    rows = dydiff.run(size)["rows"]
    assert rows[0]["ratio"] == 1.0 and len(rows) == len(dydiff.SAMPLERS)


def test_the_evaluation_suite_compares_processes_bit_for_bit(monkeypatch):
    size = evaluation.Size(
        env_id="Pendulum-v1", kwargs=(("g", 9.0),), seeds=2, episodes=2, horizon=20, hidden=8, processes=(1, 2), repeats=1
    )
    rows = evaluation.run(size)["rows"]
    assert [row["processes"] for row in rows] == [1, 2] and all(row["bit_equal"] for row in rows)
    assert rows[1]["of_one"] == pytest.approx(rows[1]["steps_per_second"] / rows[0]["steps_per_second"])
    different = iter(range(99))
    real = evaluation.evaluate

    def drifting(*args, **kwargs):
        found = real(*args, **kwargs | {"processes": 1})
        return found.replace(returns=found.returns + next(different))

    monkeypatch.setattr(evaluation, "evaluate", drifting)
    assert [row["bit_equal"] for row in evaluation.run(size)["rows"]] == [True, False]
