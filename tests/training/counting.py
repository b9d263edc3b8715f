"""An agent that counts its updates, and a synthesizer whose rewards say how many its policy has seen."""

import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.types import Agent, Metrics, Policy, Synthesis, Synthesizer, Trajectory, Transition, valid_steps

REAL_REWARD = 100.0


@struct.dataclass
class Counter:
    """State of an agent that counts its updates, in steps of `gain`."""

    updates: Array
    total: Array
    gain: Array


@struct.dataclass
class Gain:
    gain: Array | float = 1.0


def _update(key: Array, state: Counter, batch: Transition) -> tuple[Counter, Metrics]:
    assert batch.reward.shape == (2, 16) and batch.obs.shape == (2, 16, 1)
    real = batch.reward == REAL_REWARD
    state = state.replace(updates=state.updates + 1, total=state.total + state.gain)
    return state, {"real": real.sum(-1).max(), "synthetic_reward_seen": jnp.where(real, -jnp.inf, batch.reward).max()}


COUNTING = Agent(
    name="counting",
    init_fn=lambda key, hypers, example: Counter(jnp.zeros((), int), jnp.zeros(()), jnp.asarray(hypers.gain, jnp.float32)),
    update_fn=_update,
    policy_fn=lambda state: Policy(state.updates, lambda p, k, o: o, lambda p, o: o),
    hypers=Gain(),
    batches=2,
)


@struct.dataclass
class Stamp(Synthesizer):
    """A synthesizer whose rewards say how many updates its policy has seen (plus `offset`)."""

    offset: Array | float = 0.0

    def __call__(self, key: Array, policy: Policy, start: Array) -> Synthesis:
        count = start.shape[0]
        reward = jnp.full((count, 3), policy.params + self.offset, jnp.float32)
        discount = jnp.ones((count, 3))
        steps = jnp.zeros((count, 3, 1))
        made = Trajectory(obs=steps, action=steps, reward=reward, discount=discount, mask=valid_steps(discount))
        return Synthesis(trajectory=made, log_weight=jnp.zeros(count), info={})


REAL = Transition(
    obs=jnp.zeros((9, 1)),
    action=jnp.zeros((9, 1)),
    reward=jnp.full(9, REAL_REWARD),
    discount=jnp.ones(9),
    next_obs=jnp.zeros((9, 1)),
)
