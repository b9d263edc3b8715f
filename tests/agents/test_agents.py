"""What every agent promises: vmapped seeds and hyperparameters, no retracing, donation, clear errors."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import with_next_actions

from jaxpgd.agents import AGENTS, BCConfig, TD3BCConfig, make_agent, normalise_observations, replace_hypers
from jaxpgd.errors import InputError
from jaxpgd.networks.activations import mish
from jaxpgd.networks.actor_critic import Critic, ValueNetwork, member
from jaxpgd.options import numeric
from jaxpgd.training.agent import AgentConfig
from jaxpgd.types import Transition

HIDDEN = (8,)
EXAMPLE = Transition(jnp.zeros(3), jnp.zeros(2), jnp.zeros(()), jnp.ones(()), jnp.zeros(3))
MEAN, STD = jnp.array([1.0, -2.0, 0.5]), jnp.array([2.0, 0.5, 0.0])


def plain(name):
    return AGENTS[name](action_dim=2, hidden=HIDDEN)


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
    batch = Transition(
        obs=jax.random.normal(keys[0], (*lead, 3)),
        action=jax.random.uniform(keys[1], (*lead, 2), minval=-1.0),
        reward=jax.random.normal(keys[2], lead),
        discount=jax.random.bernoulli(keys[3], 0.9, lead).astype(jnp.float32),
        next_obs=jax.random.normal(keys[4], (*lead, 3)),
    )
    return with_next_actions(batch) if agent.next_actions else batch


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
        found = jax.tree.map(lambda x, i=i: x[i], (agent.policy(states).params, metrics))
        chex.assert_trees_all_close(found, (agent.policy(alone).params, expected), rtol=1e-3, atol=1e-4)
    assert not np.allclose(metrics["actor_loss"][0], metrics["actor_loss"][1])
    assert all(m.shape == (2,) and np.isfinite(m).all() for m in metrics.values())


@NAMES
def test_same_key_same_bits_and_another_key_other_parameters(name):
    agent = wrapped(name)
    first, second, other = (UPDATE(agent, k, INIT(agent, k), batch_for(agent)) for k in map(jax.random.key, (5, 5, 6)))
    chex.assert_trees_all_equal(first, second)
    assert first[1]["actor_loss"] != other[1]["actor_loss"]


@NAMES
@BOTH
def test_new_parameters_and_rebuilt_agents_do_not_retrace(name, make):
    chex.clear_trace_counter()
    example_batch = batch_for(make(name))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def act(policy, obs):
        return policy.sample(jax.random.key(0), obs), policy.log_prob(obs, jnp.zeros(2), 0.1)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def update(agent, state):
        return agent.update(jax.random.key(0), state, example_batch)[0]

    for seed in range(3):
        agent = make(name)
        state = agent.init(jax.random.key(seed), EXAMPLE)
        update.eval_shape(agent, state)  # traces where a call would, without compiling
        act.eval_shape(agent.policy(state), jnp.ones(3))


@pytest.mark.slow
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
    chex.assert_trees_all_close(metrics, wanted, rtol=1e-5)
    policy, inner, obs, action = agent.policy(state), reference.policy(expected), raw.obs[0, 0], raw.action[0, 0]
    outputs, wanted = (ACT(p, jax.random.key(2), o, action) for p, o in ((policy, obs), (inner, scale(obs))))
    chex.assert_trees_all_close(outputs, wanted, rtol=1e-5)


def test_statistics_can_be_vmapped():
    means = jnp.stack([MEAN, MEAN + 1])
    obs = jnp.array([0.3, 0.1, 0.2])

    def mode(mean):
        agent = normalise_observations(plain("td3_bc"), mean, jnp.ones(3))
        return agent.policy(agent.init(jax.random.key(0), EXAMPLE)).mode(obs)

    out = jax.jit(jax.vmap(mode))(means)
    np.testing.assert_allclose(out, jnp.stack([mode(m) for m in means]), rtol=1e-5)
    assert not np.allclose(out[0], out[1])


def options(name, **changes):
    """Options of which every number is 0.125, unless it is given."""
    default = getattr(AgentConfig(), name)
    return dataclasses.replace(default, **dict.fromkeys(numeric(type(default)), 0.125) | {"hidden": HIDDEN} | changes)


def test_an_agent_has_every_option_that_it_is_given():
    agent = make_agent("td3_bc", options("td3_bc", alpha=7.0, critic_updates=3), 2)
    assert (agent.name, agent.batches, agent.hypers.alpha, agent.hypers.policy_std) == ("td3_bc", 3, 7.0, 0.125)
    agent = make_agent("iql", options("iql", tau=0.9), 2, obs_mean=MEAN, obs_std=STD)
    assert (agent.name, agent.batches, agent.hypers.inner.tau, agent.hypers.inner.lr) == ("iql", 1, 0.9, 0.125)
    np.testing.assert_array_equal(agent.hypers.stats.mean, MEAN)


def test_options_are_changed_by_name():
    agent = AGENTS["td3_bc"](TD3BCConfig(alpha=7.0, gamma=0.9), action_dim=2, hidden=[8], alpha=1.0)
    assert agent.hypers == TD3BCConfig(alpha=1.0, gamma=0.9, hidden=HIDDEN)
    with pytest.raises(TypeError, match="alfa"):
        AGENTS["td3_bc"](action_dim=2, alfa=1.0)


STRUCTURAL = {  # another value of everything that is structure
    "hidden": HIDDEN,
    "steps": 2,
    "candidates": 3,
    "choice": "best",
    "ema_every": 2,
    "time_features": 4,
    "n_actions": 2,
    "critic_updates": 3,
    "policy_delay": 3,
    "actor": "tanh_gaussian",
    "actor_first": True,
    "init": "lecun_normal",
    "stale_value": True,
    "max_q_backup": 2,
    "own_score": True,
    "action_reconstruction": "one_step",
    "critic_hidden": HIDDEN,
    "critic_activation": "relu",
    "critic_norm": "layer",
    "rebrac.critic_norm": "none",
    "actor_norm": "layer",
}


@NAMES
def test_structure_makes_another_agent_and_numbers_do_not(name):
    config, factory = getattr(AgentConfig(), name), AGENTS[name]
    assert factory(action_dim=2).hypers == config  # one default, in Python and in configs
    reference, numbers = factory(config, action_dim=2), numeric(type(config))
    for field in dataclasses.fields(config):
        another = STRUCTURAL.get(f"{name}.{field.name}", STRUCTURAL.get(field.name))
        value = 0.125 if field.name in numbers else another
        other = factory(config, action_dim=2, **{field.name: value})
        assert other.name == name and getattr(other.hypers, field.name) == value
        assert (other.update_fn == reference.update_fn) == (field.name in numbers)


def normalised(network):
    """Whether a network of a state has layer normalisation."""
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(network)]
    return any("LayerNorm" in path for path in paths)


@pytest.mark.parametrize("name", [name for name in sorted(AGENTS) if hasattr(getattr(AgentConfig(), name), "critic_norm")])
@pytest.mark.parametrize(("critic", "actor"), [("none", "none"), ("layer", "none"), ("none", "layer")])
def test_layer_normalisation_is_that_of_critics_or_of_the_actor(name, critic, actor):
    agent = AGENTS[name](action_dim=2, hidden=HIDDEN, critic_norm=critic, actor_norm=actor)
    state = jax.eval_shape(agent.init, jax.random.key(0), EXAMPLE)
    of = {part: normalised(getattr(state, part)) for part in ("critic", "target_critic", "value", "actor", "target_actor")
          if hasattr(state, part)}  # fmt: skip
    assert of == {part: (actor if "actor" in part else critic) == "layer" for part in of}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AGENTS["td3_bc"](action_dim=2, critic_norm="batch"), "critic_norm = 'batch': expected one of 'none', 'layer'"),
        (lambda: make_agent("sac", options("iql"), 2), "'sac': expected one of bc, cql, diffusion_ql, iql, rebrac, td3_bc"),
        (lambda: AGENTS["cql"](action_dim=2, n_actions=0), "n_actions = 0: expected a number above 0"),
        (lambda: AGENTS["diffusion_ql"](action_dim=2, steps=0), "steps = 0: expected a number above 0"),
        (lambda: AGENTS["diffusion_ql"](action_dim=2, time_features=5), "time_features = 5: expected an even number"),
        (lambda: AGENTS["td3_bc"](action_dim=2, gamma=1.5), "gamma = 1.5: expected a number from 0 to 1"),
        (lambda: make_agent("iql", BCConfig(), 2), "agent.iql = 'BCConfig': expected IQLConfig"),
        (lambda: plain("iql").init(jax.random.key(0), EXAMPLE, BCConfig()), "hypers = 'BCConfig': expected IQLConfig"),
        (lambda: plain("bc").init(jax.random.key(0), EXAMPLE, BCConfig()), r"hypers.hidden = \(256, 256\): .*replace_hypers"),
        (lambda: replace_hypers(plain("iql").hypers, hidden=(4,)), "hyperparameter = 'hidden': expected one of lr, "),
        (lambda: make_agent("iql", options("iql"), 0), "action_dim = 0"),
        (lambda: make_agent("iql", options("iql"), 2, obs_mean=MEAN), "obs_std = None"),
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


@QUICK
def test_values_are_those_that_targets_bootstrap_from(name):
    agent, obs, action = wrapped(name), jnp.array([0.3, 1.0, 0.5]), jnp.array([0.2, -0.7])
    state = INIT(agent, jax.random.key(3))
    if name == "bc":
        assert agent.value(state) is None and plain(name).value(state.inner) is None
        return

    @jax.jit
    def values(state):
        seen = (obs - MEAN) / (STD + 1e-3)
        if name == "iql":
            by_hand = ValueNetwork(HIDDEN, "orthogonal").apply(state.inner.value, seen)
        else:
            norm, activation = ("layer" if name == "rebrac" else "none"), (mish if name == "diffusion_ql" else jax.nn.relu)
            critic, target = Critic(HIDDEN, norm=norm, activation=activation), state.inner.target_critic
            by_hand = jnp.minimum(*(critic.apply(member(target, i), seen, action) for i in (0, 1)))
        return agent.value(state)(obs, action), by_hand

    if name != "iql":  # online critics are others than these
        target = jax.tree.map(lambda x: x + 0.1, state.inner.target_critic)
        state = dataclasses.replace(state, inner=dataclasses.replace(state.inner, target_critic=target))
    np.testing.assert_allclose(*values(state), rtol=1e-5)
    assert agent.value(state).gamma == jnp.float32(0.99)


@NAMES
def test_batch_without_its_leading_axis_is_refused(name):
    agent = plain(name)
    state, batch = agent.init(jax.random.key(0), EXAMPLE), batch_for(agent)
    with pytest.raises(InputError, match=r"batch\.reward shape"):
        agent.update(jax.random.key(0), state, jax.tree.map(lambda x: x[0], batch))
    with pytest.raises(InputError, match=r"batch\.reward shape"):
        agent.update(jax.random.key(0), state, jax.tree.map(lambda x: jnp.concatenate([x, x]), batch))


def test_parts_of_a_batch_that_do_not_fit_each_other_are_refused():
    agent = plain("bc")
    state, batch = agent.init(jax.random.key(0), EXAMPLE), batch_for(agent)
    for name, value in (("discount", batch.discount[..., None]), ("next_obs", batch.next_obs[:, 1:]), ("action", batch.obs)):
        with pytest.raises(AssertionError, match="shape"):
            agent.update(jax.random.key(0), state, batch.replace(**{name: value}))
