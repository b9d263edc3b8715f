"""States given actions, given innovations and given the dynamics alone: closed forms, simulation, and closed loops."""

import jax
import numpy as np
import pytest

from jaxpgd.envs.linear_gaussian import collect, linear_policy, make_env
from jaxpgd.envs.linear_states import innovations, later_states, states_of_dynamics

ENV = make_env([[1.0, 0.2], [0.0, 0.95]], [[0.06], [0.6]], 0.02 * np.eye(2), 0.5 * np.eye(2), horizon=16)
A, B = np.asarray(ENV.A, np.float64), np.asarray(ENV.B, np.float64)
REACTING, BLIND = linear_policy([[-0.17, -0.2]], [0.05], 0.17), linear_policy([[0.0, 0.0]], [0.0], 0.25)
TARGET = linear_policy([[-0.4, -0.3]], [0.2], 0.1)
COUNT = 20_000


def episodes(policy, count=COUNT, seed=0):
    data, _ = collect(jax.random.key(seed), ENV, policy, count)
    return np.asarray(data.obs, np.float64), np.asarray(data.action, np.float64)


def stepped(start, action_at):
    """Noise-free states [N, T - 1, O] from start [N, O] where a_t = action_at(t, s_t)."""
    states = [start]
    for t in range(15):
        states.append(states[-1] @ A.T + action_at(t, states[-1]) @ B.T)
    return np.stack(states[1:], axis=1)


def test_what_is_left_of_states_given_innovations_has_unit_variance_and_no_relation_to_them():
    states, actions = episodes(REACTING)
    found, e = later_states(ENV, REACTING, "innovations"), innovations(REACTING, states, actions)
    left = (states[:, 1:] - found.mean(states[:, 0], e)) / found.std
    assert np.abs(left.mean(0)).max() < 5 / np.sqrt(COUNT)
    np.testing.assert_allclose(left.var(0), 1.0, atol=5 * np.sqrt(2 / COUNT))
    assert np.abs(np.einsum("nto,nk->tok", left, e[..., 0] / e[..., 0].std(0)) / COUNT).max() < 5 / np.sqrt(COUNT)


def test_given_innovations_the_mean_is_that_of_the_closed_loop():
    """s_{t+1} = A s_t + B (mu_b(s_t) + e_t): the innovations of the future say nothing about the states before them."""
    states, actions = episodes(TARGET, 5)  # whoever acted
    e, K, k = innovations(REACTING, states, actions), np.asarray(REACTING.params.K), np.asarray(REACTING.params.k)
    expected = stepped(states[:, 0], lambda t, s: s @ K.T + k + e[:, t])
    found = later_states(ENV, REACTING, "innovations")
    np.testing.assert_allclose(found.mean(states[:, 0], e), expected, rtol=1e-5, atol=1e-6)
    gain = found.gain[:, 2:].reshape(15, 2, 16)
    assert max(np.abs(gain[t - 1, :, t:]).max() for t in range(1, 16)) < 1e-9


def test_given_actions_of_a_reacting_behaviour_later_actions_are_evidence():
    gain = later_states(ENV, REACTING, "actions").gain[:, 2:].reshape(15, 2, 16)
    assert min(np.abs(gain[t - 1, :, t:]).max() for t in range(1, 15)) > 0.1
    blind = later_states(ENV, BLIND, "actions")
    np.testing.assert_allclose(blind.gain, states_of_dynamics(ENV).gain, atol=1e-6)


def test_the_error_about_another_policys_actions():
    """In standard deviations of the data: the published conditions are 1.46 off, which no training can mend."""
    states, actions = episodes(BLIND, 64, seed=1)
    truth = states_of_dynamics(ENV).mean(states[:, 0], actions)
    unit = episodes(REACTING)[0].std((0, 1))
    error = np.sqrt(np.mean(((later_states(ENV, REACTING, "actions").mean(states[:, 0], actions) - truth) / unit) ** 2))
    assert error == pytest.approx(1.46, abs=0.15)


@pytest.mark.parametrize("mix", [0.0, 0.5])
def test_closed_loops(mix):
    """Iterated means of the target policy: given innovations they go to the truth from anywhere, given actions away from it."""
    start = np.random.default_rng(0).normal(size=(64, 2))
    K, k = np.asarray(TARGET.params.K), np.asarray(TARGET.params.k)
    truth = stepped(start, lambda t, s: s @ K.T + k)
    unit = episodes(REACTING)[0].std((0, 1))
    error = {}
    for given in ("innovations", "actions"):
        found, states = later_states(ENV, REACTING, given), np.concatenate([start[:, None], 0 * truth], axis=1)
        if given == "actions":
            states[:, 1:] = truth
        for _ in range(60):
            actions = states @ K.T + k
            values = innovations(REACTING, states, actions) if given == "innovations" else actions
            states[:, 1:] = mix * states[:, 1:] + (1 - mix) * found.mean(start, values)
        error[given] = np.sqrt(np.mean(((states[:, 1:] - truth) / unit) ** 2))
    assert error["innovations"] < 1e-5
    assert error["actions"] > 0.3


def test_an_anchor_of_start_and_innovations_adds_no_evidence():
    """Whatever linear model rolls the anchor out: given (s_0, e) the anchor is known, and what is left is the same."""
    states, actions = episodes(REACTING)
    e, found = innovations(REACTING, states, actions), later_states(ENV, REACTING, "innovations")
    K, k = np.asarray(REACTING.params.K), np.asarray(REACTING.params.k)
    wrong, anchor = 0.8 * A, [states[:, 0]]
    for t in range(15):
        anchor.append(anchor[-1] @ wrong.T + (anchor[-1] @ K.T + k + e[:, t]) @ B.T)
    anchor = np.stack(anchor[1:], axis=1)
    features = np.concatenate([np.ones((COUNT, 1)), states[:, 0], e[..., 0], anchor.reshape(COUNT, -1)], axis=1)
    deviation = (states[:, 1:] - anchor).reshape(COUNT, -1)
    fitted = features @ np.linalg.lstsq(features, deviation, rcond=None)[0]
    mean = anchor + fitted.reshape(anchor.shape)
    exact = found.mean(states[:, 0], e)
    parameters = np.linalg.matrix_rank(features)
    assert parameters == 1 + 2 + 16  # start and innovations: the anchor is a function of them
    difference = np.sqrt(np.mean(((mean - exact) / found.std) ** 2, axis=0))
    np.testing.assert_allclose(difference, np.sqrt(parameters / COUNT), rtol=0.6)  # the noise of the regression
