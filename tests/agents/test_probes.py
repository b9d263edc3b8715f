"""The agents on problems whose values or optimal actions are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpgd.agents import bc, cql, diffusion_ql, iql, rebrac, replace_hypers, td3_bc
from jaxpgd.networks.activations import mish
from jaxpgd.networks.actor_critic import CriticEnsemble, ValueNetwork
from jaxpgd.parallel import map_seeds
from jaxpgd.types import Transition

pytestmark = pytest.mark.optimised
HIDDEN = (32,)
AGENTS = {
    "td3_bc": td3_bc(action_dim=1, hidden=HIDDEN),
    "iql": iql(action_dim=1, hidden=HIDDEN),
    "cql": cql(action_dim=1, hidden=HIDDEN, n_actions=4),
    "diffusion_ql": diffusion_ql(action_dim=1, hidden=HIDDEN, time_features=8),
    "rebrac": rebrac(action_dim=1, hidden=HIDDEN),
}
# beside gamma: CQL without its conservative term, ReBRAC without the penalty in its targets
PROBE_HYPERS = {"cql": {"weight": 0.0, "actor_lr": 3e-4}, "rebrac": {"critic_penalty": 0.0}}
CRITICS, VALUE = CriticEnsemble(2, HIDDEN), ValueNetwork(HIDDEN)
STATES, GAMMA = np.eye(4, dtype=np.float32), 0.6
# state: (reward, discount, next state, value)
PROBES = {
    0: (1.5, 0.0, 3, 1.5),  # one-step bandit
    1: (0.0, 1.0, 2, GAMMA * 1.0),  # first of two steps
    2: (1.0, 0.0, 2, 1.0),  # second of two steps; a terminal that seems to lead to itself must not bootstrap
    3: (1.0, 1.0, 3, 1 / (1 - GAMMA)),  # leads to itself and goes on, as after a timeout: must bootstrap
}


def train(agent, data, updates, batch=64, seed=0, **hypers):
    """A state after `updates` updates on uniform draws from `data` [N], fast settings unless given others."""
    fast = {"lr": 3e-3, "critic_lr": 3e-3, "polyak": 0.05}
    hypers = {k: v for k, v in fast.items() if hasattr(agent.hypers, k)} | hypers

    def step(state, key):
        draw, update = jax.random.split(key)
        index = jax.random.randint(draw, (agent.batches, batch), 0, data.reward.shape[0])
        return agent.update(update, state, jax.tree.map(lambda x: x[index], data))

    state = agent.init(jax.random.key(seed), jax.tree.map(lambda x: x[0], data), replace_hypers(agent.hypers, **hypers))
    return jax.lax.scan(step, state, jax.random.split(jax.random.key(seed + 1), updates))[0]


def acts_at(agent, trained, settings, seeds):
    """The actions [settings, seeds] in the first state of agents trained with every setting and seed, one program."""
    pairs = [x.ravel() for x in jnp.meshgrid(settings, seeds, indexing="ij")]
    states = jax.jit(lambda *pairs: map_seeds(lambda pair: trained(*pair), pairs))(*pairs)
    actions = jax.vmap(lambda s: agent.policy(s).mode(STATES[0])[0])(states)
    return actions.reshape(len(settings), len(seeds))


@functools.cache
def trained_on_probes(name):
    index = jnp.tile(jnp.arange(4), 64)
    columns = [jnp.array([PROBES[s][i] for s in range(4)])[index] for i in range(3)]
    action = jax.random.uniform(jax.random.key(9), (256, 1), minval=-1.0)
    obs = jnp.asarray(STATES)
    data = Transition(obs=obs[index], action=action, reward=columns[0], discount=columns[1], next_obs=obs[columns[2]])
    if AGENTS[name].next_actions:
        data = data.replace(next_action=action, has_next_action=jnp.ones(256, bool))
    return jax.jit(lambda: train(AGENTS[name], data, 800, gamma=GAMMA, **PROBE_HYPERS.get(name, {})))()


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("state", PROBES)
def test_critics_find_the_known_values(name, state):
    action = jnp.array([[-0.5], [0.0], [0.5]])
    critics = {"diffusion_ql": CRITICS.clone(activation=mish), "rebrac": CRITICS.clone(norm="layer")}.get(name, CRITICS)
    q = critics.apply(trained_on_probes(name).critic, jnp.tile(STATES[state], (3, 1)), action)
    np.testing.assert_allclose(q, PROBES[state][3], atol=0.1)


def bandit(best, n=512):
    """One state, actions uniform on [-1, 1], reward -(action - best)^2."""
    action = jax.random.uniform(jax.random.key(3), (n, 1), minval=-1.0)
    obs, reward = jnp.tile(STATES[0], (n, 1)), -jnp.square(action[:, 0] - best)
    return Transition(obs=obs, action=action, reward=reward, discount=jnp.zeros(n), next_obs=obs)


def test_td3_bc_clones_the_mean_without_q_and_finds_the_optimum_with_it():
    """The best action is -0.4, the data's mean 0.

    Q is flat at its maximum, so a critic still learning moves the greedy action: a spread of 0.2 was measured over weights, and
    what rounding alone changes is as large after 600 updates. Hence the mean over weights and settings.
    """
    data, agent = bandit(best=-0.4), td3_bc(action_dim=1, hidden=(32, 32))
    alphas, seeds = jnp.array([0.0, 5.0, 60.0]), jnp.arange(4)
    actions = acts_at(agent, lambda alpha, seed: train(agent, data, 600, batch=256, seed=seed, alpha=alpha), alphas, seeds)
    np.testing.assert_allclose(actions[0], data.action.mean(), atol=0.08)
    assert ((actions[1:] < 0.0) & (actions[1:] > -0.99)).all()
    assert float(actions[1:].mean()) == pytest.approx(-0.4, abs=0.2)  # two spreads of a mean of four


def test_rebrac_values_what_the_penalty_of_its_targets_leaves():
    """A cloned actor takes the mean action, 0; next actions are uniform, 1/3 from it in the mean square.

    Both states lead to themselves for a reward of 1; only the first has next actions, so that only its value has the penalty.
    """
    keys, index = jax.random.split(jax.random.key(4), 2), jnp.tile(jnp.arange(2), 256)
    action, following = (jax.random.uniform(key, (512, 1), minval=-1.0) for key in keys)
    obs = jnp.asarray(STATES)[index]
    data = Transition(obs, action, jnp.ones(512), jnp.ones(512), obs, following, index == 0)
    agent, penalties = AGENTS["rebrac"], jnp.array([0.0, 1.0])
    settings = {"gamma": GAMMA, "policy_noise": 0.0, "actor_penalty": 1e3}
    states = jax.jit(jax.vmap(lambda beta: train(agent, data, 1000, critic_penalty=beta, **settings)))(penalties)
    critics = CRITICS.clone(norm="layer")
    q = jax.vmap(lambda s: critics.apply(s.critic, jnp.asarray(STATES[:2]), jnp.zeros((2, 1))).mean(0))(states)
    distance = np.square(np.asarray(following)[::2] - np.asarray(action).mean()).mean()
    expected = np.array([[1.0, 1.0], [1.0 - GAMMA * distance, 1.0]]) / (1 - GAMMA)
    assert expected[0, 0] - expected[1, 0] == pytest.approx(0.5, abs=0.06)
    np.testing.assert_allclose(q, expected, atol=0.12)


@pytest.mark.slow
def test_rebrac_clones_the_mean_under_a_large_penalty_and_finds_the_optimum_under_a_small_one():
    """As for TD3+BC: over weights and settings, the best action is -0.4 and the data's mean 0."""
    data, agent = bandit(best=-0.4), rebrac(action_dim=1, hidden=(32, 32))
    data = data.replace(next_action=data.action, has_next_action=jnp.zeros(512, bool))
    betas, seeds = jnp.array([1e3, 0.01]), jnp.arange(4)
    actions = acts_at(agent, lambda beta, seed: train(agent, data, 600, batch=256, seed=seed, actor_penalty=beta), betas, seeds)
    np.testing.assert_allclose(actions[0], data.action.mean(), atol=0.08)
    assert float(actions[1:].mean()) == pytest.approx(-0.4, abs=0.2)


def expectile(x, tau):
    """The v with tau * E[(x - v)+] = (1 - tau) * E[(v - x)+], by bisection."""
    low, high = x.min(), x.max()
    for _ in range(50):
        v = (low + high) / 2
        below = tau * np.maximum(x - v, 0).mean() < (1 - tau) * np.maximum(v - x, 0).mean()
        low, high = (low, v) if below else (v, high)
    return v


def test_iql_value_is_the_expectile_and_its_actor_the_weighted_mean():
    """Q = r. The maximiser of the weighted likelihood is sum(w a) / sum(w) with w = exp(beta r), because V cancels."""
    data, agent = bandit(best=0.5), AGENTS["iql"]
    taus, betas = jnp.array([0.5, 0.9]), jnp.array([0.0, 10.0])
    states = jax.jit(jax.vmap(lambda tau, beta: train(agent, data, 800, batch=128, tau=tau, beta=beta)))(taus, betas)
    reward, action = np.asarray(data.reward), np.asarray(data.action[:, 0])
    value = jax.vmap(lambda s: VALUE.apply(s.value, STATES[0]))(states)
    expected = [reward.mean(), expectile(reward, 0.9)]
    assert expected[1] - expected[0] > 0.3
    np.testing.assert_allclose(value, expected, atol=0.08)
    weights = np.exp(np.asarray(betas)[:, None] * reward)
    expected = (weights * action).sum(1) / weights.sum(1)
    assert expected[1] - expected[0] > 0.4
    means = jax.vmap(lambda s: agent.policy(s).mode(STATES[0])[0])(states)
    np.testing.assert_allclose(means, expected, atol=0.08)


def test_bc_clones_the_mean_of_every_state():
    """Two states, actions skewed the other way in each, rewards that want something else."""
    draw = jnp.square(jax.random.uniform(jax.random.key(5), (512, 1)))
    sign = jnp.tile(jnp.array([1.0, -1.0]), 256)
    obs, action = jnp.asarray(STATES)[(sign < 0).astype(int)], sign[:, None] * draw
    data = Transition(obs=obs, action=action, reward=10 * action[:, 0], discount=jnp.ones(512), next_obs=obs)
    agent = bc(action_dim=1, hidden=HIDDEN)
    state = jax.jit(lambda: train(agent, data, 500, batch=256))()
    for row, which in ((0, sign > 0), (1, sign < 0)):
        mode = agent.policy(state).mode(STATES[row])[0]
        assert mode == pytest.approx(float(action[which].mean()), abs=0.04)  # their median is 0.08 lower


@pytest.mark.slow
def test_cql_holds_unseen_actions_below_those_of_the_data():
    """Every action is worth 1, and the data has those below -0.3 only."""
    action = jax.random.uniform(jax.random.key(3), (512, 1), minval=-1.0, maxval=-0.3)
    obs = jnp.tile(STATES[0], (512, 1))
    data = Transition(obs=obs, action=action, reward=jnp.ones(512), discount=jnp.zeros(512), next_obs=obs)
    weights, agent = jnp.array([0.0, 1.0, 5.0]), AGENTS["cql"]
    states = jax.jit(jax.vmap(lambda w: train(agent, data, 600, batch=64, weight=w, actor_lr=3e-3)))(weights)
    points = jnp.array([-0.9, -0.7, -0.5, 0.1, 0.4, 0.9])[:, None]
    q = jax.vmap(lambda s: CRITICS.apply(s.critic, jnp.tile(STATES[0], (6, 1)), points))(states)  # [3, 2, 6]
    seen, unseen = np.asarray(q[..., :3]), np.asarray(q[..., 3:])
    np.testing.assert_allclose(q[0], 1.0, atol=0.1)
    assert (unseen[1:].max(-1) < seen[1:].min(-1) - 0.5).all()
    # the policy leaves the data only where nothing holds it
    modes = jax.vmap(lambda s: agent.policy(s).mode(STATES[0])[0])(states)
    assert (modes[1:] < -0.3).all()


def two_modes(best, n=1024):
    """One state, actions near -best and best alike and some uniform ones, reward 2 - (action - best)^2."""
    keys = jax.random.split(jax.random.key(3), 4)
    near = jnp.where(jax.random.bernoulli(keys[0], 0.5, (n, 1)), best, -best) + 0.05 * jax.random.normal(keys[1], (n, 1))
    anywhere = jax.random.uniform(keys[2], (n, 1), minval=-1.0)
    action = jnp.where(jax.random.bernoulli(keys[3], 0.2, (n, 1)), anywhere, near)
    obs, reward = jnp.tile(STATES[0], (n, 1)), 2.0 - jnp.square(action[:, 0] - best)
    return Transition(obs=obs, action=action, reward=reward, discount=jnp.zeros(n), next_obs=obs)


@pytest.mark.slow
def test_diffusion_ql_keeps_both_modes_without_q_and_finds_the_optimum_with_it():
    """A Gaussian policy would clone their mean, 0. Five steps end at E[a | x] from sigma 0.49, which is not far from the
    distance between the modes: even with the exact denoiser a share of the samples lies between them.
    """
    data, agent = two_modes(best=0.75), diffusion_ql(action_dim=1, hidden=(32, 32), time_features=8, choice="best")
    states = jax.jit(jax.vmap(lambda eta: train(agent, data, 1000, batch=128, eta=eta, lr=1e-2)))(jnp.array([0.0, 5.0]))
    keys = jax.random.split(jax.random.key(4), 1000)
    policies = jax.vmap(agent.policy)(states)
    act = lambda policy: (jax.vmap(lambda k: policy.sample(k, STATES[0])[0])(keys), policy.mode(STATES[0])[0])
    samples, modes = map(np.asarray, jax.jit(jax.vmap(act))(policies))
    cloned, improved = samples
    assert (cloned < -0.4).mean() > 0.25 and (cloned > 0.4).mean() > 0.25
    assert cloned.std() > 0.5
    assert improved.mean() == pytest.approx(0.75, abs=0.15)
    assert (np.abs(improved - 0.75) < 0.25).mean() > 0.75
    np.testing.assert_allclose(modes, 0.75, atol=0.15)  # the choice among candidates finds it from cloned ones, too
