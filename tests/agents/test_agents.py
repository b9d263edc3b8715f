"""What every agent promises: vmapped seeds and hyperparameters, no retracing, donation, clear errors."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpgd.agents import AGENTS, make_agent, normalise_observations, replace_hypers
from jaxpgd.errors import InputError
from jaxpgd.training.agent import AgentConfig
from jaxpgd.types import Transition

HIDDEN = (8,)
EXAMPLE = Transition(jnp.zeros(3), jnp.zeros(2), jnp.zeros(()), jnp.ones(()), jnp.zeros(3))
MEAN, STD = jnp.array([1.0, -2.0, 0.5]), jnp.array([2.0, 0.5, 0.0])


def plain(name):
    return AGENTS[name][0](action_dim=2, hidden=HIDDEN)


def wrapped(name):
    return normalise_observations(plain(name), MEAN, STD)


BOTH = pytest.mark.parametrize("make", [plain, wrapped])
NAMES = pytest.mark.parametrize("name", sorted(AGENTS))
# for what does not depend on the agent: those whose updates compile in seconds
QUICK = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in ("cql", "diffusion_ql") else ()) for name in sorted(AGENTS)]
)
VARIED = {"bc": ("lr", (0.0, 1e-3))}  # a numeric setting and two values of it


def batch_for(agent, key=7, size=16):
    keys, lead = jax.random.split(jax.random.key(key), 5), (agent.batches, size)
    return Transition(
        obs=jax.random.normal(keys[0], (*lead, 3)),
        action=jax.random.uniform(keys[1], (*lead, 2), minval=-1.0),
        reward=jax.random.normal(keys[2], lead),
        discount=jax.random.bernoulli(keys[3], 0.9, lead).astype(jnp.float32),
        next_obs=jax.random.normal(keys[4], (*lead, 3)),
    )


# compiled once per agent structure
UPDATE = jax.jit(lambda agent, key, state, batch: agent.update(key, state, batch))
INIT = jax.jit(lambda agent, key: agent.init(key, EXAMPLE))
ACT = jax.jit(lambda policy, key, obs, a: (policy.mode(obs), policy.sample(key, obs), policy.log_prob(obs, a, 0.3)))


@QUICK
def test_vmapped_seeds_and_hyperparameters_equal_single_runs(name):
    agent, keys = wrapped(name), jax.random.split(jax.random.key(0), 2)
    batch = batch_for(agent)
    varied, values = VARIED.get(name, ("gamma", (0.5, 0.9)))
    hypers = [replace_hypers(agent.hypers, **{varied: value}) for value in values]
    starts = [agent.init(k, EXAMPLE, h) for k, h in zip(keys, hypers, strict=True)]
    together = jax.jit(jax.vmap(agent.update, in_axes=(0, 0, None)))
    states = jax.tree.map(lambda *x: jnp.stack(x), *starts)
    for _ in range(3):
        states, metrics = together(keys, states, batch)
    for i, alone in enumerate(starts):
        for _ in range(3):
            alone, expected = UPDATE(agent, keys[i], alone, batch)
        close = lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-3, atol=1e-4)
        jax.tree.map(close, (agent.policy(states).params, metrics), (agent.policy(alone).params, expected))
    assert not np.allclose(metrics["actor_loss"][0], metrics["actor_loss"][1])
    assert all(m.shape == (2,) and np.isfinite(m).all() for m in metrics.values())


@NAMES
def test_same_key_same_bits_and_another_key_other_parameters(name):
    agent = wrapped(name)
    first, second, other = (UPDATE(agent, k, INIT(agent, k), batch_for(agent)) for k in map(jax.random.key, (5, 5, 6)))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert first[1]["actor_loss"] != other[1]["actor_loss"]


@NAMES
@BOTH
def test_new_parameters_and_rebuilt_agents_do_not_retrace(name, make):
    traces = []
    example_batch = batch_for(make(name))

    @jax.jit
    def act(policy, obs):
        traces.append("act")
        return policy.sample(jax.random.key(0), obs), policy.log_prob(obs, jnp.zeros(2), 0.1)

    @jax.jit
    def update(agent, state):
        traces.append("update")
        return agent.update(jax.random.key(0), state, example_batch)[0]

    for seed in range(3):
        agent = make(name)
        state = agent.init(jax.random.key(seed), EXAMPLE)
        update.eval_shape(agent, state)  # traces where a call would, without compiling
        act.eval_shape(agent.policy(state), jnp.ones(3))
    assert sorted(traces) == ["act", "update"]


@NAMES
def test_states_can_be_donated(name):
    agent = dataclasses.replace(wrapped(name), hypers=jax.tree.map(jnp.asarray, wrapped(name).hypers))
    update = jax.jit(agent.update, donate_argnums=1)
    update(jax.random.key(1), agent.init(jax.random.key(0), EXAMPLE), batch_for(agent))
    update(jax.random.key(1), jax.jit(agent.init)(jax.random.key(0), EXAMPLE), batch_for(agent))
    agent.init(jax.random.key(0), EXAMPLE)  # its hyperparameters survived


@QUICK
def test_wrapped_agent_equals_plain_agent_on_standardised_observations(name):
    agent, reference = wrapped(name), plain(name)
    scale = lambda x: (x - MEAN) / (STD + 1e-3)
    raw = batch_for(agent)
    scaled = raw.replace(obs=scale(raw.obs), next_obs=scale(raw.next_obs))
    state, expected = INIT(agent, jax.random.key(0)), INIT(reference, jax.random.key(0))
    (state, metrics), (expected, wanted) = (
        UPDATE(a, jax.random.key(1), s, b) for a, s, b in ((agent, state, raw), (reference, expected, scaled))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), metrics, wanted)
    policy, inner, obs, action = agent.policy(state), reference.policy(expected), raw.obs[0, 0], raw.action[0, 0]
    outputs, wanted = (ACT(p, jax.random.key(2), o, action) for p, o in ((policy, obs), (inner, scale(obs))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), outputs, wanted)


def test_statistics_can_be_vmapped():
    means = jnp.stack([MEAN, MEAN + 1])
    obs = jnp.array([0.3, 0.1, 0.2])

    def mode(mean):
        agent = normalise_observations(plain("td3_bc"), mean, jnp.ones(3))
        return agent.policy(agent.init(jax.random.key(0), EXAMPLE)).mode(obs)

    out = jax.jit(jax.vmap(mode))(means)
    np.testing.assert_allclose(out, jnp.stack([mode(m) for m in means]), rtol=1e-5)
    assert not np.allclose(out[0], out[1])


def section(name, **changes):
    hypers = {f.name: 0.125 for f in dataclasses.fields(plain(name).hypers)}
    return SimpleNamespace(**{**vars(getattr(AgentConfig(), name)), **hypers, "hidden": HIDDEN, "critic_updates": 3, **changes})


def test_make_agent_reads_every_setting():
    agent = make_agent("td3_bc", section("td3_bc", alpha=7.0), 2)
    assert (agent.name, agent.batches, agent.hypers.alpha, agent.hypers.policy_std) == ("td3_bc", 3, 7.0, 0.125)
    agent = make_agent("iql", section("iql", tau=0.9), 2, obs_mean=MEAN, obs_std=STD)
    assert (agent.name, agent.batches, agent.hypers.inner.tau, agent.hypers.inner.lr) == ("iql", 1, 0.9, 0.125)
    np.testing.assert_array_equal(agent.hypers.stats.mean, MEAN)


@NAMES
def test_sections_have_every_setting_of_their_agent_and_no_other(name):
    config = getattr(AgentConfig(), name)
    changed = {
        "hidden": HIDDEN,
        "steps": 2,
        "candidates": 3,
        "choice": "best",
        "ema_every": 2,
        "time_features": 4,
        "n_actions": 2,
        "actor_first": True,
        "init": "lecun_normal",
        "stale_value": True,
        "max_q_backup": 2,
    }
    structural = AGENTS[name][1]
    small = dataclasses.replace(config, **{k: v for k, v in changed.items() if k in structural})
    agent, factory = make_agent(name, small, 2), AGENTS[name][0]
    numeric = {f.name for f in dataclasses.fields(agent.hypers)}
    assert numeric | set(structural) == {f.name for f in dataclasses.fields(config)}
    same = factory(action_dim=2, **{k: getattr(small, k) for k in structural})
    assert agent.name == name and agent.update_fn == same.update_fn
    for k in structural:  # each of them reaches the structure
        other = factory(action_dim=2, **{j: getattr(config if j == k else small, j) for j in structural})
        assert (agent.update_fn == other.update_fn) == (getattr(config, k) == getattr(small, k))
    assert dataclasses.asdict(agent.hypers) == dataclasses.asdict(same.hypers)  # one default, in Python and in configs


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_agent("sac", section("iql"), 2), "'sac': expected one of bc, cql, diffusion_ql, iql, td3_bc"),
        (lambda: AGENTS["cql"][0](action_dim=2, n_actions=0), "n_actions = 0: expected a number above 0"),
        (lambda: AGENTS["diffusion_ql"][0](action_dim=2, steps=0), "steps = 0: expected a number above 0"),
        (lambda: AGENTS["diffusion_ql"][0](action_dim=2, time_features=5), "time_features = 5: expected an even number"),
        (
            lambda: make_agent("iql", SimpleNamespace(hidden=HIDDEN, init="uniform", stale_value=False), 2),
            "a section with 'lr'",
        ),
        (lambda: make_agent("iql", section("iql"), 0), "action_dim = 0"),
        (lambda: make_agent("iql", section("iql"), 2, obs_mean=MEAN), "obs_std = None"),
        (lambda: normalise_observations(plain("iql"), MEAN, STD[:2]), "obs_std shape"),
        (lambda: normalise_observations(plain("iql"), MEAN * jnp.nan, STD), "obs_mean.*finite"),
        (lambda: normalise_observations(plain("iql"), MEAN, -STD), "obs_std.*not below 0"),
        (lambda: replace_hypers(wrapped("iql").hypers, alpha=1.0), "hyperparameter = 'alpha'.*tau"),
        (lambda: wrapped("iql").init(jax.random.key(0), EXAMPLE, plain("iql").hypers), "replace_hypers"),
        (lambda: plain("iql").init(jax.random.key(0), EXAMPLE.replace(action=jnp.zeros(5))), r"example.action shape = \(5,\)"),
        (lambda: plain("iql").init(jax.random.key(0), EXAMPLE.replace(obs=jnp.zeros((4, 3)))), "example.obs shape"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


@NAMES
def test_batch_without_its_leading_axis_is_refused(name):
    agent = plain(name)
    state, batch = agent.init(jax.random.key(0), EXAMPLE), batch_for(agent)
    with pytest.raises(InputError, match=r"batch\.reward shape"):
        agent.update(jax.random.key(0), state, jax.tree.map(lambda x: x[0], batch))
    with pytest.raises(InputError, match=r"batch\.reward shape"):
        agent.update(jax.random.key(0), state, jax.tree.map(lambda x: jnp.concatenate([x, x]), batch))
