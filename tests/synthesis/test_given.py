"""What a state denoiser is given: known entries, closed loops and anchors computed by hand, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from jaxpgd.diffusion.solvers import SamplerConfig
from jaxpgd.errors import InputError
from jaxpgd.synthesis.dydiff import DyDiffConfig, StateDenoiser, make_dydiff
from jaxpgd.synthesis.given import GivenActions, GivenAnchor, GivenInnovations, same_model
from jaxpgd.tokens import TokenCodec
from jaxpgd.types import Policy
from jaxpgd.world_model.behaviour import explained
from jaxpgd.world_model.rollouts import anchor
from jaxpgd.world_model.scales import Scales, Statistics

T = 4
CODEC = TokenCodec(jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.array([2.0, 1.0, 1.0, 1.0]), 1, 1)
SAMPLER = SamplerConfig(steps=6, batch_size=8)


@struct.dataclass
class Half:
    """A behaviour that acts by -s / 2."""

    def mean(self, obs):
        return -0.5 * obs

    def innovation(self, obs, action):
        return action - self.mean(obs)


@struct.dataclass
class Moves:
    """s' = s + gain a by two members that are 0.2 apart, within [-limit, limit]; reward s + a; no terminals."""

    gain: jax.Array
    members: int = struct.field(pytree_node=False, default=2)
    limit: float = struct.field(pytree_node=False, default=10.0)
    width: float = struct.field(pytree_node=False, default=1.0)  # of the data

    @property
    def elites(self):
        return self.gain

    @property
    def scales(self):
        own = Statistics(jnp.zeros(1), *(jnp.array([x * self.width]) for x in (1.0, -2.0, 2.0)))
        return Scales(own, own, own)

    def next_states(self, obs, action):
        return obs + self.gain * action + jnp.array([[-0.1], [0.1]]), jnp.zeros((2, 1))

    def reward(self, obs, action):
        return obs[0] + action[0]

    def discount(self, obs, action, next_obs):
        return jnp.ones(())

    def clip_obs(self, obs):
        return jnp.clip(obs, -self.limit, self.limit)


@struct.dataclass
class Says:
    """A denoiser that is sure of the first entry `z` [T], whatever the conditions."""

    z: jax.Array

    def given(self, x, sigma, condition):
        return condition.impose(jnp.zeros_like(x).at[:, 0].set(self.z))


INNOVATIONS = GivenInnovations(CODEC, Half(), jnp.array([0.5]))
CENTRE, SPREAD = jnp.array([[0.0], [0.1], [0.2], [0.3]]), jnp.array([[1.0], [0.5], [1.0], [2.0]])
ANCHOR = GivenAnchor(INNOVATIONS, Moves(jnp.ones(())), CENTRE, SPREAD, jnp.zeros(()))
LOOPS = ("closed", "open")
GIVEN = {"published": None, "innovations": INNOVATIONS, "anchored": ANCHOR}


def dydiff(kind, z=(0.0, 0.0, 0.0, 0.0), model=None, **settings):
    denoiser = StateDenoiser(Says(jnp.asarray(z, jnp.float32)), CODEC, T, "clean", GIVEN[kind])
    config = DyDiffConfig(conditioning=kind, **settings)
    return make_dydiff(Moves(jnp.ones(())) if model is None else model, denoiser, config, SAMPLER)


def test_the_anchor_is_the_ensembles_mean_rollout_of_the_behaviour_with_the_innovations():
    e = jnp.array([[1.0], [0.0], [-0.5], [9.0]])
    states, _, clipped = anchor(Moves(jnp.ones(())), Half(), jnp.array([1.0]), e)
    np.testing.assert_allclose(states[:, 0], [1.0, 1.5, 0.75, -0.125], rtol=1e-6)  # s/2 + e; the last e leads out of the window
    assert float(clipped) == 0.0
    bounded, _, _ = anchor(Moves(jnp.ones(())), Half(), jnp.array([1.0]), 10 * e)
    np.testing.assert_allclose(bounded[:, 0], [1.0, 2.0, 1.0, 0.0])  # actions stay within their bounds
    states, _, clipped = anchor(Moves(jnp.ones(()), limit=1.2), Half(), jnp.array([1.0]), e)
    np.testing.assert_allclose(states[:, 0], [1.0, 1.2, 0.6, -0.2], rtol=1e-6)
    assert float(clipped) == 0.25


def test_known_entries():
    assert (ANCHOR.dim, INNOVATIONS.dim, GivenActions(CODEC).dim) == (3, 2, 2)
    np.testing.assert_array_equal(ANCHOR.known(2), [[True, True, True], [False, True, True]])
    np.testing.assert_array_equal(INNOVATIONS.known(2), GivenActions(CODEC).known(2))


def test_tokens_and_their_states():
    s, a = jnp.array([[1.0], [2.0], [3.0], [-1.0]]), jnp.array([[0.5], [0.0], [-1.0], [0.5]])
    e = [1.0, 1.0, 0.5, 0.0]
    condition = INNOVATIONS.condition(s, a)
    np.testing.assert_allclose(condition.value[:, 1], np.divide(e, 0.5), rtol=1e-6)
    assert float(condition.value[0, 0]) == 0.0  # (1 - mean) / std
    condition = ANCHOR.condition(s, a)
    s_hat = np.array([1.0, 1.5, 1.75, 1.375])
    np.testing.assert_allclose(condition.value[:, 2], (s_hat - 1.0) / 2.0, rtol=1e-6)
    np.testing.assert_allclose(condition.value[0], [0.0, 2.0, 0.0], atol=1e-6)  # the first deviation is none
    x = ANCHOR.encode(s, INNOVATIONS.behaviour.innovation(s, a))
    np.testing.assert_allclose(ANCHOR.states(x, condition), s, rtol=1e-6)  # back to the states
    longer = ANCHOR.encode(jnp.ones((6, 1)), jnp.zeros((6, 1)), jnp.zeros((6, 1)))
    np.testing.assert_allclose(longer[3:, 0], np.arcsinh((1 - 0.3) / 2.0), rtol=1e-6)  # beyond training: the last spread


@pytest.mark.parametrize("gain", [0.25, -1.9])
@pytest.mark.parametrize("iterations", [1, 4])
def test_without_deviation_iterations_are_the_policys_rollout_by_the_ensembles_mean(gain, iterations):
    """At every step, also of policies whose actions answer an error of the state by more than it."""
    policy = Policy(jnp.zeros(()), lambda p, key, obs: gain * obs, lambda p, obs: gain * obs)
    truth = 0.5 * (1.0 + gain) ** np.arange(T)
    z = -np.arcsinh(np.asarray(CENTRE[:, 0]) / np.asarray(SPREAD[:, 0]))
    made = dydiff("anchored", z, iterations=iterations)
    found = made(jax.random.key(0), policy, 0.5 * jnp.ones((2, 1))).trajectory
    np.testing.assert_allclose(found.obs[..., 0], np.tile(truth, (2, 1)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.action, gain * found.obs, rtol=1e-5)


def test_in_an_open_loop_the_policys_rollout_is_found_step_by_step():
    """After i iterations of other states 0 ... i are right; one iteration from the anchor is that of a closed loop."""
    policy = Policy(jnp.zeros(()), lambda p, key, obs: 0.25 * obs, lambda p, obs: 0.25 * obs)
    z = np.arcsinh((0.1 - np.asarray(CENTRE[:, 0])) / np.asarray(SPREAD[:, 0]))
    one = [dydiff("anchored", z, iterations=1, loop=loop)(jax.random.key(0), policy, jnp.ones((1, 1))) for loop in LOOPS]
    np.testing.assert_allclose(one[0].trajectory.obs, one[1].trajectory.obs, rtol=1e-6)
    found = dydiff("anchored", z, iterations=2, mix=0.0, loop="open")(jax.random.key(0), policy, jnp.ones((1, 1)))
    before = np.array([1.0, 1.35, 1.6625, 2.053125])  # 1.25^t + 0.1 after the start
    s_hat = [1.0]
    for s in before[:-1]:  # s_hat + mu_b(s_hat) + e with e = pi(s) - mu_b(s) and mu_b(s) = -s / 2
        s_hat.append(0.5 * s_hat[-1] + 0.75 * s)
    np.testing.assert_allclose(found.trajectory.obs[0, :, 0], np.array(s_hat) + 0.1 * (np.arange(T) > 0), rtol=1e-5)


def test_deviations_are_mixed_and_the_policy_acts_in_them_while_the_anchor_is_rolled_out():
    """Deviations of 0.1 after the start: half of them after one iteration, three quarters after two; pi(s) = s / 4."""
    policy = Policy(jnp.zeros(()), lambda p, key, obs: 0.25 * obs, lambda p, obs: 0.25 * obs)
    z = np.arcsinh((0.1 - np.asarray(CENTRE[:, 0])) / np.asarray(SPREAD[:, 0]))
    for iterations, before, after in ((1, 0.0, 0.05), (2, 0.05, 0.075)):
        found = dydiff("anchored", z, iterations=iterations)(jax.random.key(0), policy, jnp.ones((1, 1)))
        s_hat = [1.0, 1.25]
        for _ in range(T - 2):  # s_hat + mu_b(s_hat) + e with e = pi(s) - mu_b(s) and mu_b(s) = -s / 2
            s_hat.append(0.5 * s_hat[-1] + 0.75 * (s_hat[-1] + before))
        states = np.array(s_hat) + after * (np.arange(T) > 0)
        np.testing.assert_allclose(found.trajectory.obs[0, :, 0], states, rtol=1e-5)


@struct.dataclass
class Ends(Moves):
    """Moves whose episodes end at states of `end` and above."""

    end: float = struct.field(pytree_node=False, default=2.0)

    def discount(self, obs, action, next_obs):
        return jnp.where(next_obs[0] >= self.end, 0.0, 1.0)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("chained", [False, True])
def test_a_rollout_ends_where_its_anchor_does_and_no_deviation_revives_it(loop, chained):
    """The anchor is 1, 1.5, 2.25 and stands still; deviations take states below 2. It ended late, in states of no episode."""
    policy = Policy(jnp.zeros(()), lambda p, key, obs: 0.5 * obs, lambda p, obs: 0.5 * obs)
    model = Ends(jnp.ones(()))
    denoiser = StateDenoiser(Says(-2.0 * jnp.ones(T)), CODEC, T, "clean", ANCHOR.replace(model=model))
    config = DyDiffConfig(conditioning="anchored", iterations=1, mix=0.0, loop=loop, chained=chained)
    length = 2 * T if chained else T
    found = make_dydiff(model, denoiser, config, SAMPLER, length=length)(jax.random.key(0), policy, jnp.ones((1, 1))).trajectory
    assert (found.obs[0, 1:T, 0] < 2.0).all()
    np.testing.assert_array_equal(found.discount[0, :2], [1, 0])
    np.testing.assert_array_equal(found.mask[0], [True, True] + (length - 2) * [False])


@pytest.mark.parametrize("loop", LOOPS)
def test_a_terminal_at_the_last_state_of_a_window_ends_the_chain(loop):
    """The anchor is 1, 1.2, 1.44, 1.728 in the first window; the second would begin at a state below the terminal of 1.7."""
    policy = Policy(jnp.zeros(()), lambda p, key, obs: 0.2 * obs, lambda p, obs: 0.2 * obs)
    model = Ends(jnp.ones(()), end=1.7)
    denoiser = StateDenoiser(Says(-2.0 * jnp.ones(T)), CODEC, T, "clean", ANCHOR.replace(model=model))
    config = DyDiffConfig(conditioning="anchored", iterations=1, mix=0.0, loop=loop, chained=True)
    found = make_dydiff(model, denoiser, config, SAMPLER, length=2 * T)(jax.random.key(0), policy, jnp.ones((1, 1))).trajectory
    np.testing.assert_array_equal(found.mask[0], [True] * 3 + [False] * (2 * T - 3))


def test_an_anchor_at_rest_has_not_ended():
    """Neither at a fixed point of its dynamics nor at the end of the data's range."""
    rest = Policy(jnp.zeros(()), lambda p, key, obs: 0.0 * obs, lambda p, obs: 0.0 * obs)
    for model, start in ((Moves(jnp.ones(())), 0.5), (Moves(jnp.ones(()), limit=0.5), 0.5)):
        denoiser = StateDenoiser(Says(jnp.zeros(T)), CODEC, T, "clean", ANCHOR.replace(model=model))
        config = DyDiffConfig(conditioning="anchored", iterations=1)
        found = make_dydiff(model, denoiser, config, SAMPLER)(jax.random.key(0), rest, start * jnp.ones((1, 1))).trajectory
        np.testing.assert_array_equal(found.discount, np.ones((1, T)))


def test_mixing_and_rewards_as_published():
    policy = Policy(jnp.zeros(()), lambda p, key, obs: 0.0 * obs, lambda p, obs: 0.0 * obs)
    found = dydiff("innovations", (9.0, 1.0, 2.0, 3.0), iterations=1, mix=0.5)(
        jax.random.key(0), policy, jnp.ones((1, 1))
    ).trajectory
    first = dydiff("innovations", iterations=0)(jax.random.key(0), policy, jnp.ones((1, 1))).trajectory
    np.testing.assert_allclose(found.obs[0, 1:, 0], 0.5 * first.obs[0, 1:, 0] + 0.5 * np.array([3.0, 5.0, 7.0]), rtol=1e-5)
    np.testing.assert_allclose(found.reward, found.obs[..., 0], rtol=1e-6)


def test_a_denoiser_of_another_conditioning_or_ensemble_is_refused():
    for kind in GIVEN:
        for other in GIVEN:
            denoiser = StateDenoiser(Says(jnp.zeros(T)), CODEC, T, "clean", GIVEN[kind])
            if other != kind:
                with pytest.raises(InputError, match=f"conditioning = '{other}': expected '{kind}', as in the denoiser's"):
                    make_dydiff(Moves(jnp.ones(())), denoiser, DyDiffConfig(conditioning=other), SAMPLER)
            assert make_dydiff(Moves(jnp.ones(())), denoiser).denoiser.entries.kind == kind
    dydiff("innovations", model=Moves(2.0 * jnp.ones(())))  # has no ensemble of its own
    with pytest.raises(InputError, match="world model = 'another ensemble': expected the ensemble that the anchored"):
        dydiff("anchored", model=Moves(2.0 * jnp.ones(())))


def test_an_ensemble_is_the_same_where_sums_over_its_data_differ_by_rounding():
    """Scales are such sums, which another number of cores adds in another order; parameters come from a checkpoint."""
    own = Moves(jnp.ones(()))
    assert same_model(own, Moves(jnp.ones(())))
    assert same_model(own, Moves(jnp.ones(()), width=1.0 + 1e-6))
    assert not same_model(own, Moves(jnp.ones(()), width=1.01))
    assert not same_model(own, Moves(jnp.ones(()) * (1 + 1e-6)))


def test_what_a_state_explains():
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, 6000, 2))
    size = np.exp(x[:, :1])
    y = jnp.asarray(np.concatenate([noise[:, :1], np.sin(2 * x[:, :1]) + noise[:, 1:], size * noise[:, :1]], axis=1))
    found = np.asarray(explained(jnp.asarray(x), y))
    share = np.var(np.sin(2 * x[:, 0])) / (1 + np.var(np.sin(2 * x[:, 0])))
    np.testing.assert_allclose(found, [0.0, share, 0.0], atol=0.08)  # 130 features of 3,000 rows
    squares = np.asarray(explained(jnp.asarray(x), y**2))
    assert abs(squares[0]) < 0.08 and squares[2] > 0.1  # its size is told by the state
