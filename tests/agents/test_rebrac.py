"""ReBRAC's targets, losses and update against hand computations, and where its next actions come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import random_batch
from targets import check_targets_moved

from jaxpgd.agents import common, rebrac, replace_hypers
from jaxpgd.agents.rebrac import ReBRACConfig, _structure
from jaxpgd.errors import InputError
from jaxpgd.networks.actor_critic import CriticEnsemble, TanhActor
from jaxpgd.options import structure

HIDDEN = (8, 6)
AGENT = rebrac(action_dim=2, hidden=HIDDEN, policy_delay=1)
STRUCTURE = _structure(2, structure(ReBRACConfig(hidden=HIDDEN, policy_delay=1)))
ACTOR, CRITICS = TanhActor(2, HIDDEN), CriticEnsemble(2, HIDDEN, norm="layer")
BATCH = random_batch(next_actions=True)
ONE = jax.tree.map(lambda x: x[0], BATCH)


def make_state(agent=AGENT, **hypers):
    return agent.init(jax.random.key(0), jax.tree.map(lambda x: x[0], ONE), replace_hypers(agent.hypers, **hypers))


def moved(params):
    """Parameters whose layer normalisation has scales and biases other than 1 and 0."""
    draw = lambda x: x + 0.1 * np.random.default_rng(x.size).normal(size=x.shape).astype(np.float32)
    return jax.tree.map(draw, params)


def by_hand(critic, member, obs, action):
    """One critic of an ensemble: dense, ReLU, layer normalisation, twice, then dense; in NumPy."""
    layers = jax.tree.map(lambda x: np.asarray(x[member], np.float64), critic["params"]["members"]["MLP_0"])
    x = np.concatenate([obs, action], axis=-1)
    for i in range(2):
        x = np.maximum(x @ layers[f"Dense_{i}"]["kernel"].T + layers[f"Dense_{i}"]["bias"], 0.0)
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        x = x * layers[f"LayerNorm_{i}"]["scale"] + layers[f"LayerNorm_{i}"]["bias"]
    return (x @ layers["Dense_2"]["kernel"].T + layers["Dense_2"]["bias"])[..., 0]


def test_targets_subtract_the_distance_to_the_next_action_where_there_is_one():
    state = make_state(policy_noise=0.0, gamma=0.6, critic_penalty=0.7)
    state = state.replace(target_critic=moved(state.target_critic))
    action = np.asarray(ACTOR.apply(state.target_actor, ONE.next_obs))
    q = np.minimum(*(by_hand(state.target_critic, i, ONE.next_obs, action) for i in range(2)))
    distance = ((action - np.asarray(ONE.next_action)) ** 2).sum(-1)
    known, discount = np.asarray(ONE.has_next_action), np.asarray(ONE.discount)
    expected = ONE.reward + 0.6 * discount * (q - 0.7 * known * distance)
    targets = STRUCTURE.targets(jax.random.key(1), state, ONE)
    np.testing.assert_allclose(targets, expected, rtol=1e-4, atol=1e-5)
    differs = np.abs(targets - ONE.reward - 0.6 * discount * q) > 1e-4
    np.testing.assert_array_equal(differs, known & (discount == 1))
    assert {(bool(k), float(d)) for k, d in zip(known, discount, strict=True)} == {
        (k, d) for k in (True, False) for d in (0, 1)
    }


def test_the_penalty_is_that_of_the_noisy_target_action():
    state = make_state(policy_noise=1e4, noise_clip=10.0, critic_penalty=1.0, gamma=1.0)  # every entry ends at -1 or 1
    taken = ONE.replace(discount=jnp.ones(32), has_next_action=jnp.ones(32, bool), next_action=jnp.zeros((32, 2)))
    without = make_state(policy_noise=1e4, noise_clip=10.0, critic_penalty=0.0, gamma=1.0)
    both = (STRUCTURE.targets(jax.random.key(1), each, taken) for each in (without, state))
    np.testing.assert_allclose(np.subtract(*both), 2.0, rtol=1e-4)


def test_what_has_no_next_action_is_not_read():
    """Nor does it leave a trace where it is not finite."""
    state = make_state(critic_penalty=0.7)
    holes = ONE.replace(next_action=jnp.where(ONE.has_next_action[:, None], ONE.next_action, jnp.nan))
    same = (STRUCTURE.targets(jax.random.key(1), state, each) for each in (ONE, holes))
    np.testing.assert_array_equal(*same)


def test_the_actor_climbs_the_smaller_critic_and_is_held_by_a_sum_over_entries():
    state = make_state(actor_penalty=0.3)
    critic = moved(state.critic)
    loss, metrics = STRUCTURE.actor_loss(jax.random.key(3), state.actor, critic, ONE, state.hypers)
    pi = np.asarray(ACTOR.apply(state.actor, ONE.obs))
    first, second = (by_hand(critic, i, ONE.obs, pi) for i in range(2))
    assert 0 < (first < second).sum() < 32
    q = np.minimum(first, second)
    penalty = ((pi - np.asarray(ONE.action)) ** 2).sum(-1)
    assert loss == pytest.approx((0.3 * penalty).mean() - q.mean() / np.abs(q).mean(), rel=1e-4)
    assert metrics["q_weight"] == pytest.approx(1 / np.abs(q).mean(), rel=1e-4)


def test_one_update_by_hand():
    """Critics step by their rate, then the actor by its own and by the new critics, then the targets move."""
    state = make_state(actor_lr=1e-2, critic_lr=3e-3, polyak=0.25, policy_noise=0.0)
    new, metrics = jax.jit(AGENT.update)(jax.random.key(1), state, BATCH)
    y = STRUCTURE.targets(jax.random.key(1), state, ONE)
    loss = lambda p: jnp.square(CRITICS.apply(p, ONE.obs, ONE.action) - y).mean(-1).sum()
    value, grads = jax.jit(jax.value_and_grad(loss))(state.critic)
    critic, _ = common.adam_step(grads, state.critic_opt, state.critic, 3e-3, 1e-8)
    assert metrics["critic_loss"] == pytest.approx(float(value), rel=1e-4)
    gradient = jax.grad(lambda p: STRUCTURE.actor_loss(jax.random.key(0), p, new.critic, ONE, state.hypers)[0])
    actor, _ = common.adam_step(gradient(state.actor), state.actor_opt, state.actor, 1e-2, 1e-8)
    # Adam's first step has the gradient's sign, which rounding decides where the gradient is 0
    near = lambda a, b: np.mean(
        [np.isclose(x, y, atol=1e-4).mean() for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)]
    )
    assert near(new.critic, critic) > 0.99 and near(new.actor, actor) > 0.99
    assert near(new.critic, state.critic) < 0.5 and near(new.actor, state.actor) < 0.5
    check_targets_moved(state, new, 0.25)


def test_actor_and_targets_move_in_every_second_update():
    agent = rebrac(action_dim=2, hidden=HIDDEN)
    update, state, still = jax.jit(agent.update), make_state(agent), []
    for i in range(4):
        new, _ = update(jax.random.key(i), state, BATCH)
        same = [all(jax.tree.leaves(jax.tree.map(np.array_equal, getattr(state, name), getattr(new, name))))
                for name in ("actor", "target_actor", "target_critic", "critic")]  # fmt: skip
        still.append(same)
        state = new
    assert still == [[True, True, True, False], [False] * 4] * 2


def test_batches_without_next_actions_are_refused():
    assert AGENT.next_actions
    with pytest.raises(InputError, match=r"batch.next_action = None: expected the actions that follow.*next_actions=True"):
        AGENT.update(jax.random.key(0), make_state(), random_batch())
    with pytest.raises(AssertionError, match="shape"):
        AGENT.update(jax.random.key(0), make_state(), BATCH.replace(next_action=BATCH.next_action[..., :1]))


@pytest.mark.parametrize(("name", "value"), [("critic_norm", "batch"), ("policy_delay", 0), ("critic_penalty", -1.0)])
def test_what_rebrac_cannot_be_is_refused(name, value):
    with pytest.raises(InputError, match=f"{name} = "):
        rebrac(action_dim=1, **{name: value})
