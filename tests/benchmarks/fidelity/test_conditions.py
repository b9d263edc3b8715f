"""The suite `conditions`: its exact moments, and a run at sizes that take a moment."""

import dataclasses

import jax
import numpy as np
import pytest

from benchmarks.fidelity import conditionings, conditions
from jaxpgd.diffusion.solvers import SamplerConfig


def test_exact_moments_of_states_given_actions_leave_nothing_to_explain():
    """What is left of simulated states has unit variance and no relation to any action; a blind policy's are the dynamics'."""
    env, policies = conditions.problems()
    count = 20_000
    for policy in policies.values():
        test = conditions.make_test(jax.random.key(0), env, policy, count)
        left = (np.asarray(test.data.obs[:, 1:]) - test.mean) / test.std
        assert np.abs(left.mean(0)).max() < 5 / np.sqrt(count)
        np.testing.assert_allclose(left.var(0), 1.0, atol=5 * np.sqrt(2 / count))
        action = np.asarray(test.data.action[..., 0])
        related = np.einsum("nto,nk->tok", left, (action - action.mean(0)) / action.std(0)) / count
        assert np.abs(related).max() < 5 / np.sqrt(count)
    test = conditions.make_test(jax.random.key(1), env, policies["blind"], 3)
    state = np.asarray(test.data.obs[:, 0], np.float64)
    for t in range(15):
        state = state @ np.asarray(env.A).T + np.asarray(test.data.action[:, t]) @ np.asarray(env.B).T
        np.testing.assert_allclose(test.mean[:, t], state, rtol=1e-4, atol=1e-5)


def test_the_closed_form_of_every_conditioning():
    """Given actions the error begins at 1.46 and a policy that acts again makes it grow; given innovations there is none."""
    rows = {(row["actions_of"], row["given"], row["iteration"]): row["error_of_the_mean"]
            for row in conditions.closed_form(*conditions.problems(), 64)}  # fmt: skip
    others = [rows["another policy's actions", "actions", i] for i in conditions.ITERATIONS]
    assert others == pytest.approx([1.46] * 4, abs=0.15)
    reacting = [rows["a policy that reacts more", "actions", i] for i in conditions.ITERATIONS]
    assert reacting == sorted(reacting) and reacting[-1] > 4 * reacting[0] > 0.5
    assert max(error for (_, given, _), error in rows.items() if given == "innovations") < 1e-5


@pytest.mark.slow
def test_the_conditions_suite_scores_every_way():
    small = dataclasses.replace(conditions.Size().denoiser, features=8, blocks=1, steps=2, batch_size=4, validate_every=2)
    sampler = dataclasses.replace(conditions.Size().sampler, steps=2)
    world = dataclasses.replace(conditionings.Size().world_model, hidden=(8,), epochs=1, steps_per_epoch=1)
    cloned = dataclasses.replace(conditionings.Size().behaviour, hidden=(8,), epochs=1, steps_per_epoch=1)
    trained = conditionings.Size(samples=2, world_model=world, behaviour=cloned, sampler=SamplerConfig(steps=2))
    size = conditions.Size(
        episodes=20, conditions=2, samples=3, denoiser=small, sampler=sampler, trained=trained,
    )  # fmt: skip
    found = conditions.run(size)
    rows = found["rows"]
    kinds = [row["conditioning"] for row in found["conditionings"]]
    assert kinds == ["none: the ensemble", *(kind for kind in ("published", "innovations", "anchored") for _ in range(3))]
    assert all(np.isfinite(row["error_of_the_mean"]) for row in found["conditionings"])
    assert [(row["behaviour"], row["conditions"]) for row in rows] == [
        (behaviour, kind) for behaviour in ("blind", "reacting") for kind in ("clean", "churned", "noised")
    ]
    assert all(row["error_given_other_actions"] == row["error_of_the_mean"] for row in rows[:3])
    assert all(np.isfinite(row["error_of_the_mean"]) and row["spread_over_exact"] > 0 for row in rows)
