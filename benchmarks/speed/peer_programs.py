"""Compiled programs of agent updates: ours, and those of the peers' scripts.

Every program makes the same number of updates, with batches drawn from the same transitions in device memory. One update is
one step of the actor. In TD3+BC it holds two critic steps: `num_critic_updates_per_step = 2` of unifloral, `policy_freq = 2` of
JAX-CORL, `critic_updates = 2` here.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxpgd.agents import iql, td3_bc
from jaxpgd.errors import check
from jaxpgd.training.agent import AgentState, update_many
from jaxpgd.training.experience import Experience
from jaxpgd.types import Transition

CRITIC_STEPS = 2  # in an update of TD3+BC


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes of the measurement; the defaults are HalfCheetah's. unifloral's scripts know no other hidden layers."""

    transitions: int = 1_000_000
    obs_dim: int = 17
    action_dim: int = 6
    batch: int = 256
    hidden: tuple[int, ...] = (256, 256)
    updates: int = 64  # per round: a third of a second, so that the load of the machine is alike for all programs of a round
    rounds: int = 21


@dataclasses.dataclass(frozen=True)
class Program:
    """`run` makes `Size.updates` updates from a fresh agent and returns its state."""

    run: Callable[[], Any]
    compile_seconds: float


def _compiled(fn: Any, *args: Any, **options: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    compiled = jax.jit(fn, **options).lower(*args).compile()
    return compiled, time.perf_counter() - start


def ours(algorithm: str, changes: dict[str, Any], data: Transition, size: Size) -> Program:
    """This package's training loop on real data, with some of the agent's options changed."""
    steps = {"critic_updates": CRITIC_STEPS} if algorithm == "td3_bc" else {}
    make: Any = {"td3_bc": td3_bc, "iql": iql}[algorithm]
    agent = make(action_dim=size.action_dim, hidden=size.hidden, **steps, **changes)
    state = AgentState(agent.init(jax.random.key(0), jax.tree.map(lambda x: x[0], data)), None, jax.random.key(1))
    many = lambda state, agent, data: update_many(state, Experience(data), agent, size.batch, 0, size.updates)
    compiled, seconds = _compiled(many, state, agent, data)
    return Program(lambda: compiled(state, agent, data), seconds)


def unifloral(script: Any, algorithm: str, data: Transition, size: Size) -> Program:
    """unifloral's step in one scan, as between two of its evaluations."""
    steps = {"num_critic_updates_per_step": CRITIC_STEPS} if algorithm == "td3_bc" else {}
    args = script.Args(batch_size=size.batch, **steps)
    moments = data.obs.mean(axis=0), data.obs.std(axis=0)
    critic = script.DualQNetwork(*moments)
    if algorithm == "td3_bc":
        actor = script.DeterministicTanhActor(size.action_dim, *moments)
        of_obs, networks = {"actor": actor, "actor_target": actor}, (actor, critic)
    else:
        actor, value = script.TanhGaussianActor(size.action_dim, *moments), script.StateValueFunction(*moments)
        of_obs, networks = {"actor": actor, "value": value}, (actor, critic, value)
    key, obs, action = jax.random.PRNGKey(0), data.obs[0], data.action[0]
    states = {name: script.create_train_state(args, key, network, [obs]) for name, network in of_obs.items()}
    for name in ("dual_q", "dual_q_target"):
        states[name] = script.create_train_state(args, key, critic, [obs, action])
    start = (key, script.AgentTrainState(**states))
    named = {"obs": data.obs, "action": data.action, "reward": data.reward, "next_obs": data.next_obs}
    known = script.Transition(done=1.0 - data.discount, **named)

    # the transitions are an argument, as they become one in a scan that is called outside of a compiled function
    def many(carry: Any, known: Any) -> Any:
        step = script.make_train_step(args, *(network.apply for network in networks), known)
        return jax.lax.scan(step, carry, None, size.updates)

    compiled, seconds = _compiled(many, start, known)
    return Program(lambda: compiled(start, known), seconds)


def jax_corl(script: Any, algorithm: str, data: Transition, size: Size) -> Program:
    """JAX-CORL's loop in Python over calls of several updates each, without its logger.

    IQL without the layer normalisation of its value network. In TD3+BC that of the critics is not an option.
    """
    # config, class of the algorithm, function that makes its state, settings, critic steps of an update
    names = {
        "td3_bc": ("TD3BCConfig", "TD3BC", "create_td3bc_train_state", {"policy_freq": CRITIC_STEPS}, CRITIC_STEPS),
        "iql": ("IQLConfig", "IQL", "create_iql_train_state", {"layer_norm": False}, 1),
    }
    config_name, class_name, create_name, settings, steps = names[algorithm]
    config = getattr(script, config_name)(batch_size=size.batch, hidden_dims=size.hidden, **settings)
    per_call = config.n_jitted_updates // steps
    check(size.updates % per_call == 0, "updates", size.updates, f"a multiple of the {per_call} of a call of JAX-CORL")
    known = script.Transition(
        observations=data.obs, actions=data.action, rewards=data.reward, next_observations=data.next_obs,
        dones=1.0 - data.discount,
    )  # fmt: skip
    key = jax.random.PRNGKey(0)
    # numbers as arrays: the state that comes back then has the types of the one that goes in
    start = jax.tree.map(jnp.asarray, getattr(script, create_name)(key, data.obs[0], data.action[0], config))
    update = getattr(script, class_name)().update_n_times
    compiled, seconds = _compiled(update, start, known, key, config, static_argnums=3)

    def run() -> Any:
        state, rng = start, key
        for _ in range(size.updates // per_call):
            rng, drawn = jax.random.split(rng)
            state, _ = compiled(state, known, drawn)
        return state

    return Program(run, seconds)
