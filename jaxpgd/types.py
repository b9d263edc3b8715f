"""The contracts of the library: data containers and callables, with their shapes.

Dimensions: T steps, O observation, A action, D token, N trajectories, B batch, S seeds.

Rules:
- Every callable that enters a compiled step is a pytree: a struct dataclass with static functions and array leaves. New
  parameters then never cause a new trace.
- Functions take one example, and their callers vmap them. Functions that need a batch say so.
- Random functions take their key first and consume it.
- Actions are in [-1, 1]^A. `datasets` rescales them on load, `simulators` and exports scale them back.
"""

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

PyTree = Any
Metrics = dict[str, Array]
State = TypeVar("State")


@struct.dataclass
class Transition:
    """One step, or a batch of steps with leading axes.

    `discount` is 0 at a terminal and 1 elsewhere, timeouts included. The discount factor of an agent is its `gamma`.
    Transitions for an `Agent` with `next_actions` also hold the action that the same episode or trajectory took at `next_obs`,
    and whether there is one: there is none at its last step, whose `next_action` means nothing.
    """

    obs: Array  # [..., O]
    action: Array  # [..., A], in [-1, 1]
    reward: Array  # [...]
    discount: Array  # [...]
    next_obs: Array  # [..., O]
    next_action: Array | None = None  # [..., A]
    has_next_action: Array | None = None  # [...], bool; present where `next_action` is


@struct.dataclass
class Trajectory:
    """T consecutive steps of one episode. Step t leads to `obs[t + 1]`, the last step to `last_obs` if that is known.

    Rollouts know `last_obs`, and every step of theirs, terminals included, has its own next observation. Windows and the
    samples of trajectory denoisers do not: their `last_obs` is None, and what they hold after a terminal is not where it led.
    `mask[t]` marks a valid transition: either its next observation is known, or `discount[t]` is 0, so that no target depends
    on it. Without `last_obs` the last step is therefore valid only at a terminal. Steps after a terminal are never valid, nor
    are those of a rollout from where it is cut on (`world_model.truncation`).
    """

    obs: Array  # [..., T, O]
    action: Array  # [..., T, A]
    reward: Array  # [..., T]
    discount: Array  # [..., T]
    mask: Array  # [..., T], bool
    last_obs: Array | None = None  # [..., O]


def until_terminal(discount: Array) -> Array:
    """Which steps [..., T] come before or at the first terminal, bool, of trajectories with these discounts [..., T]."""
    going = jnp.cumprod(discount > 0, axis=-1, dtype=jnp.int32)
    return jnp.concatenate([jnp.ones_like(going[..., :1]), going[..., :-1]], axis=-1) > 0


def valid_steps(discount: Array, *, end_known: bool = False) -> Array:
    """`Trajectory.mask` [..., T], bool, of trajectories with these discounts [..., T].

    `end_known` says that the observation after the last step is known, so that the last step is valid too.
    """
    taken = until_terminal(discount)
    if end_known:
        return taken
    last = jnp.arange(discount.shape[-1]) == discount.shape[-1] - 1
    return taken & (~last | (discount == 0))


class Denoise(Protocol):
    """The estimate E[x0 | x = x0 + sigma * noise]. x [T, D], sigma [] -> [T, D]. Any such pytree callable can be sampled."""

    def __call__(self, x: Array, sigma: Array) -> Array: ...


@struct.dataclass
class Memory:
    """What a denoiser keeps of one sample from an evaluation to the next, and what it has cost so far."""

    kept: PyTree
    passes: Array  # [] forward-equivalents of the evaluations so far


@runtime_checkable
class DenoiseWithMemory(Protocol):
    """A Denoise whose evaluations of one sample may use what earlier ones of it computed.

    A sampler takes `init_memory(x)` before its first evaluation and calls `evaluate` instead of the Denoise itself, at each
    noise level in turn. `diffusion.sampling.with_memory` gives every Denoise the two methods, and a wrapper forwards them so,
    whatever it wraps:

        def init_memory(self, x):
            return with_memory(self.denoise).init_memory(x)

        def evaluate(self, x, sigma, memory):
            x0, memory = with_memory(self.denoise).evaluate(x, sigma, memory)
            return self.change(x0, sigma), memory

    A wrapper whose change costs forward passes adds them: `memory.replace(passes=memory.passes + 2)`. One without these
    methods is called as it is, and then evaluates what it wraps without memory. Whether something is computed should depend on
    `sigma` and on counters only, which stay unbatched under vmap, so that `jax.lax.cond` stays a branch.
    """

    def __call__(self, x: Array, sigma: Array) -> Array:
        """x [T, D], sigma [] -> [T, D], as of a first evaluation: what hooks call."""
        ...

    def init_memory(self, x: Array) -> Memory:
        """The memory before the first evaluation of a sample shaped like x [T, D]."""
        ...

    def evaluate(self, x: Array, sigma: Array, memory: Memory) -> tuple[Array, Memory]:
        """x [T, D], sigma [] -> the denoised sample [T, D] and the new memory."""
        ...


@struct.dataclass
class Stage:
    """Where a sampler stands when it calls a hook."""

    index: Array  # [] step i of `count`, from 0
    count: int = struct.field(pytree_node=False)  # number of steps
    sigma: Array  # [] noise level of the x that the hook receives
    key: Array
    denoise: Denoise


class Hook(Protocol):
    """Changes a sample between the stages of a sampler. x [T, D] -> [T, D]."""

    def __call__(self, x: Array, stage: Stage) -> Array: ...


@struct.dataclass
class Policy:
    """A policy as data: parameters are leaves, functions are static. All functions take one observation.

    `log_prob_fn(params, obs [O], action [A], variance [A] or [])` is the log-density of the action in [-1, 1]^A under the
    policy blurred by Gaussian noise of that variance (0: the policy itself). Deterministic policies define a Gaussian around
    their action, with a documented standard deviation. A policy with a better score than the gradient of its `log_prob`, such
    as a diffusion policy, provides it as `score_fn` with the same arguments, and guidance uses that.
    """

    params: PyTree
    sample_fn: Callable[[PyTree, Array, Array], Array] = struct.field(pytree_node=False)
    mode_fn: Callable[[PyTree, Array], Array] = struct.field(pytree_node=False)
    log_prob_fn: Callable[[PyTree, Array, Array, Array | float], Array] | None = struct.field(pytree_node=False, default=None)
    score_fn: Callable[[PyTree, Array, Array, Array | float], Array] | None = struct.field(pytree_node=False, default=None)

    def sample(self, key: Array, obs: Array) -> Array:
        """Draw an action [A] at obs [O]."""
        return self.sample_fn(self.params, key, obs)

    def mode(self, obs: Array) -> Array:
        """The action [A] at obs [O] that evaluation takes."""
        return self.mode_fn(self.params, obs)

    def log_prob(self, obs: Array, action: Array, variance: Array | float = 0.0) -> Array:
        """Log-density [] of action [A] at obs [O], blurred by `variance`. Raises TypeError if the policy has none."""
        chex.assert_rank([obs, action], 1)
        if self.log_prob_fn is None:
            raise TypeError("this policy has no log_prob: give it log_prob_fn to guide towards it or to score actions")
        return self.log_prob_fn(self.params, obs, action, variance)

    def score(self, obs: Array, action: Array, variance: Array | float = 0.0) -> Array:
        """Gradient [A] of the log-density in the action: by `score_fn` if the policy has one, else that of `log_prob`."""
        chex.assert_rank([obs, action], 1)
        if self.score_fn is not None:
            return self.score_fn(self.params, obs, action, variance)
        gradient: Array = jax.grad(lambda a: self.log_prob(obs, a, variance))(action)
        return gradient


@struct.dataclass
class Value:
    """The value function that an agent has learned, as data: parameters are leaves, the function is static.

    `value_fn(params, obs [O], action [A])` is the agent's estimate [] of the discounted sum of rewards, as learned from, that
    follow obs where the policy's action there is `action`. Time limits end nothing: values go on after them.
    """

    params: PyTree
    gamma: Array  # [] discount factor
    value_fn: Callable[[PyTree, Array, Array], Array] = struct.field(pytree_node=False)

    def __call__(self, obs: Array, action: Array) -> Array:
        """The value [] of obs [O] under the policy, which takes action [A] there."""
        return self.value_fn(self.params, obs, action)


class Synthesizer:
    """Generates trajectories for a policy: the base class of synthesizers, with the defaults of what not all of them can do.

    A subclass is a pytree (a struct dataclass) that implements `__call__`.
    """

    def __call__(self, key: Array, policy: Policy, start: Array) -> "Synthesis":
        """`start` [N, O] are real observations. Some synthesizers start from them; the others only use N."""
        raise NotImplementedError

    @property
    def weighted(self) -> bool:
        """Whether trajectories come with weights that differ."""
        return False

    @property
    def may_be_empty(self) -> bool:
        """Whether there may be no valid step in any of its trajectories. Batches are of real data alone until there is one."""
        return False

    @property
    def profile_levels(self) -> int:
        """Noise levels K by which info has the strength of guidance (`profile_sigma`, `guidance_norm`, `score_norm`), or 0."""
        return 0

    @property
    def guided(self) -> bool:
        """Whether it has a guidance whose coefficient can be set."""
        return False

    def with_coefficient(self, coefficient: Array | float) -> "Synthesizer":
        """The same synthesizer with a guidance coefficient lambda []. Raises ValueError where it is not `guided`."""
        raise ValueError("this synthesizer has no guidance whose coefficient could be set")

    def unguided(self) -> "Synthesizer":
        """The same synthesizer without guidance."""
        return self


@struct.dataclass
class Synthesis:
    """N synthetic trajectories with importance weights. They are resampled before they enter a replay."""

    trajectory: Trajectory  # [N, T, ...]
    log_weight: Array  # [N], zeros if the samples are not weighted
    info: Metrics  # metrics [], or [K] by noise level


@struct.dataclass
class Agent(Generic[State]):
    """An offline-RL algorithm as three pure functions. Numeric hyperparameters are leaves of the state.

    `init_fn(key, hypers, example) -> state` (example: one Transition, unbatched, for shapes),
    `update_fn(key, state, batch [batches, B]) -> (state, metrics)`, `policy_fn(state) -> Policy`.
    `hypers` is a pytree of numbers, any of which may be a traced or vmapped array; jaxpgd's own agents take their options.
    An agent with `next_actions` needs transitions that have them: `Dataset.transitions(next_actions=True)`.
    One that learns values says which are those of its policy: `value_fn(state) -> Value`.
    """

    name: str = struct.field(pytree_node=False)
    init_fn: Callable[[Array, PyTree, Transition], State] = struct.field(pytree_node=False)
    update_fn: Callable[[Array, State, Transition], tuple[State, Metrics]] = struct.field(pytree_node=False)
    policy_fn: Callable[[State], Policy] = struct.field(pytree_node=False)
    hypers: PyTree = None  # defaults, used where `init` is given none
    batches: int = struct.field(pytree_node=False, default=1)  # batches of B transitions that one update consumes
    next_actions: bool = struct.field(pytree_node=False, default=False)  # whether updates need `Transition.next_action`
    value_fn: Callable[[State], Value] | None = struct.field(pytree_node=False, default=None)

    def init(self, key: Array, example: Transition, hypers: PyTree = None) -> State:
        """A fresh state for transitions shaped like `example` (no batch axis)."""
        return self.init_fn(key, self.hypers if hypers is None else hypers, example)

    def update(self, key: Array, state: State, batch: Transition) -> tuple[State, Metrics]:
        """One update from transitions with leading axes [batches, B]."""
        chex.assert_equal_shape([batch.reward, batch.discount])
        chex.assert_equal_shape([batch.obs, batch.next_obs])
        return self.update_fn(key, state, batch)

    def policy(self, state: State) -> Policy:
        """The policy of a state."""
        return self.policy_fn(state)

    def value(self, state: State) -> Value | None:
        """The value function of a state's policy; None for agents that learn none."""
        return None if self.value_fn is None else self.value_fn(state)


class Environment(Protocol):
    """A pure-JAX environment for one episode. Callers vmap it."""

    obs_dim: int
    action_dim: int
    horizon: int

    def reset(self, key: Array) -> Array:
        """First observation [O]."""
        ...

    def step(self, key: Array, obs: Array, action: Array) -> tuple[Array, Array, Array]:
        """obs [O], action [A] -> next_obs [O], reward [], discount []."""
        ...
