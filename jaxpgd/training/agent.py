"""Training an agent on real data, or on unguided or policy-guided synthetic data that is refreshed as it learns.

Regimes differ in how many trajectories a refresh replaces (the whole replay, or a fraction) and in how often it does.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.agents.bc import BCConfig
from jaxpgd.agents.cql import CQLConfig
from jaxpgd.agents.diffusion_ql import DiffusionQLConfig
from jaxpgd.agents.iql import IQLConfig
from jaxpgd.agents.rebrac import ReBRACConfig
from jaxpgd.agents.td3_bc import TD3BCConfig
from jaxpgd.errors import check
from jaxpgd.options import check_ranges, option, options, positive
from jaxpgd.synthesis.replay import (
    Draw,
    Replay,
    SynthesisConfig,
    check_share,
    draw_mixed,
    init_replay,
    insert,
    take,
    terminal_share,
)  # fmt: skip
from jaxpgd.training.experience import Experience, learned_from, synthesize
from jaxpgd.training.health import first_of_blocks, firsts, skipping
from jaxpgd.training.program import Program, fit, mean_metrics
from jaxpgd.types import Agent, Metrics, PyTree, Transition


@options
class AgentConfig:
    """The offline-RL algorithm and its training length. Only the section of the chosen kind is used."""

    kind: Literal["td3_bc", "iql", "bc", "cql", "diffusion_ql", "rebrac"] = option(
        "td3_bc", "offline-RL algorithm; the settings of its section are used"
    )
    updates: int = positive(2000, "gradient updates of the agent")
    batch_size: int = positive(256, "transitions per batch, real and synthetic together")
    updates_per_chunk: int = positive(500, "updates per compiled call; logs and checkpoints are written between calls")
    normalise_obs: bool = option(True, "standardise observations by the dataset's mean and standard deviation")
    td3_bc: TD3BCConfig = TD3BCConfig()
    iql: IQLConfig = IQLConfig()
    bc: BCConfig = BCConfig()
    cql: CQLConfig = CQLConfig()
    diffusion_ql: DiffusionQLConfig = DiffusionQLConfig()
    rebrac: ReBRACConfig = ReBRACConfig()


_BLOCK = 512  # updates whose random numbers are drawn at once, at most
_NO_WIDTH = 1e-6  # a range of rewards narrower than this counts as one value


@struct.dataclass
class AgentState:
    """State of agent training: the agent's own state, the replay, the key, and the metrics of the last refresh."""

    agent: PyTree
    replay: Replay | None
    key: Array
    refresh_metrics: Metrics | None = None  # None: there is no synthetic data
    coefficient: Array | None = None  # of guidance; None: the synthesizer's own


@struct.dataclass
class Schedule:
    """A regime in numbers. All static."""

    chunk_updates: int = struct.field(pytree_node=False)
    chunks: int = struct.field(pytree_node=False)
    capacity: int = struct.field(pytree_node=False)  # trajectories in the replay
    refresh_chunks: int = struct.field(pytree_node=False)  # chunks between refreshes; 0: never
    refresh_count: int = struct.field(pytree_node=False)  # trajectories per refresh
    first_count: int = struct.field(pytree_node=False)  # trajectories before the first update
    drop_last: bool = struct.field(pytree_node=False, default=False)  # of every trajectory
    after_terminal: bool = struct.field(pytree_node=False, default=False)  # steps there are learned from as well

    def due(self, index: Array | int) -> Array | bool:
        """Whether a refresh comes before the updates of chunk `index`."""
        if self.refresh_chunks == 0:
            return False
        return (index > 0) & (index % self.refresh_chunks == 0)


def make_schedule(config: AgentConfig, synthesis: SynthesisConfig) -> Schedule:
    """Regimes as numbers: `oneoff` never refreshes, `periodic` replaces all, `continuous` the oldest fraction.

    `fifo` is `continuous` with a replay that starts with one refresh's worth and fills up.
    """
    every = 0 if synthesis.regime == "oneoff" else synthesis.interval // config.updates_per_chunk
    share = synthesis.fraction if synthesis.regime in ("continuous", "fifo") else 1.0
    count = max(1, round(share * synthesis.trajectories))
    return Schedule(
        chunk_updates=config.updates_per_chunk,
        chunks=config.updates // config.updates_per_chunk,
        capacity=synthesis.trajectories,
        refresh_chunks=every,
        refresh_count=count,
        first_count=count if synthesis.regime == "fifo" else synthesis.trajectories,
        drop_last=synthesis.drop_last,
        after_terminal=synthesis.after_terminal,
    )


def init_agent(
    key: Array,
    data: Experience,
    agent: Agent[Any],
    schedule: Schedule,
    hypers: PyTree = None,
    coefficient: Array | None = None,
) -> AgentState:
    """A new agent, and a filled replay where there is a synthesizer, guided by `coefficient` [] where that is given."""
    known = data.real.next_action is not None and data.real.has_next_action is not None
    check(
        known or not agent.next_actions,
        "real.next_action",
        None,
        f"the actions that follow, which {agent.name} needs",
        "Use dataset.transitions(next_actions=True).",
    )
    empty = data.synthesizer is not None and data.synthesizer.may_be_empty
    check(not (empty and schedule.after_terminal), "synthesis.after_terminal", True,
          "false where rollouts are cut: what follows is not to be learned from")  # fmt: skip
    key, key_agent, key_replay = jax.random.split(key, 3)
    example = jax.tree.map(lambda x: x[0], data.real)
    state = agent.init(key_agent, example, hypers)
    replay = metrics = None
    first = data.synthesizer if data.first is None else data.first
    if first is not None:
        trajectory, metrics = synthesize(key_replay, first, agent.policy(state), data, schedule.first_count, coefficient)
        trajectory = learned_from(trajectory, drop_last=schedule.drop_last, after_terminal=schedule.after_terminal)
        replay = init_replay(trajectory, schedule.capacity)
    return AgentState(agent=state, replay=replay, key=key, refresh_metrics=metrics, coefficient=coefficient)


def refresh(state: AgentState, data: Experience, agent: Agent[Any], schedule: Schedule) -> AgentState:
    """Replace the oldest trajectories of the replay by new ones for the current policy."""
    assert data.synthesizer is not None and state.replay is not None
    key, key_refresh = jax.random.split(state.key)
    policy, count = agent.policy(state.agent), schedule.refresh_count
    trajectory, metrics = synthesize(key_refresh, data.synthesizer, policy, data, count, state.coefficient)
    trajectory = learned_from(trajectory, drop_last=schedule.drop_last, after_terminal=schedule.after_terminal)
    return dataclasses.replace(state, replay=insert(state.replay, trajectory), key=key, refresh_metrics=metrics)


def update_many(
    state: AgentState,
    data: Experience,
    agent: Agent[Any],
    batch: int,
    synthetic: int,
    updates: int,
    *,
    skip: bool = False,
    or_real: bool = False,
) -> tuple[AgentState, Metrics]:
    """`updates` agent updates in one scan, each on new batches [batch] of which `synthetic` entries are synthetic.

    `skip`: updates whose loss or gradient is not finite change nothing and are counted (`health.skipping`). `or_real`: entries
    are real where there is no replay, or no valid step in it (`replay.draw_mixed`).
    The random numbers of a block of updates are drawn at once: one by one they take a tenth of an update's time on CPU.
    """
    block = max(size for size in range(1, min(updates, _BLOCK) + 1) if updates % size == 0)
    block = block if 8 * block >= min(updates, _BLOCK) else updates  # a number of updates without such divisors

    def draw(keys: Array) -> tuple[Array, Draw]:
        # keys on one axis: random numbers of several compile slowly (jaxpgd.draws)
        key_batch, key_update = jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)
        each = jax.vmap(lambda key: jax.random.split(key, agent.batches))(key_batch)
        each = each.reshape(-1, *each.shape[2:])
        drawn = jax.vmap(lambda k: draw_mixed(k, data.real, state.replay, batch, synthetic, or_real=or_real))(each)
        return key_update, jax.tree.map(lambda x: x.reshape(keys.shape[0], agent.batches, *x.shape[1:]), drawn)

    def step(inner: PyTree, drawn: tuple[Array, Draw]) -> tuple[PyTree, Metrics]:
        key, draws = drawn
        batches = jax.vmap(lambda d: take(d, data.real, state.replay))(draws)
        return agent.update(key, inner, batches)

    def many(inner: PyTree, key: Array) -> tuple[PyTree, tuple[Metrics, Metrics]]:
        drawn = draw(jax.random.split(key, block))
        inner, metrics = jax.lax.scan(skipping(step) if skip else step, inner, drawn)
        return inner, (mean_metrics(metrics), firsts(metrics))

    key, key_blocks = jax.random.split(state.key)
    inner, (metrics, first) = jax.lax.scan(many, state.agent, jax.random.split(key_blocks, updates // block))
    first = {name: first_of_blocks(index, block) for name, index in first.items()}
    return dataclasses.replace(state, agent=inner, key=key), {**mean_metrics(metrics), **first}


def _gamma(state: PyTree) -> Array | None:
    """The discount factor of an agent's state, which may differ by seed; None for agents without one."""
    return getattr(getattr(getattr(state, "inner", state), "hypers", None), "gamma", None)


def value_excess(real: Transition, gamma: Array | float, value: Array) -> Array:
    """How far [] a mean value lies outside the range that the rewards [M] of the data allow, in widths of that range.

    0 inside the range, which is from min(r, 0) / (1 - gamma) to max(r, 0) / (1 - gamma) over rewards r: a constant reward for
    ever, or an episode that ends at once. 0 as well without discounting (gamma 1), and where all rewards are 0: the range then
    has no width, and a sound critic is as far from 0 as its initial weights are.
    """
    horizon = 1.0 / jnp.maximum(1.0 - gamma, 1e-9)
    low, high = horizon * jnp.minimum(real.reward.min(), 0.0), horizon * jnp.maximum(real.reward.max(), 0.0)
    excess = jnp.maximum(jnp.maximum(value - high, low - value), 0.0) / jnp.maximum(high - low, 1e-9)
    return jnp.where((jnp.asarray(gamma) < 1.0) & (high - low > _NO_WIDTH), excess, 0.0)


def learn(
    state: AgentState,
    data: Experience,
    agent: Agent[Any],
    batch: int,
    synthetic: int,
    updates: int,
    *,
    skip: bool = False,
    or_real: bool = False,
) -> tuple[AgentState, Metrics]:
    """`update_many` with everything that a chunk logs: `value_excess`, and metrics of the replay and of the last refresh."""
    state, metrics = update_many(state, data, agent, batch, synthetic, updates, skip=skip, or_real=or_real)
    gamma = _gamma(state.agent)
    if gamma is not None and "target_mean" in metrics:
        metrics["value_excess"] = value_excess(data.real, gamma, metrics["target_mean"])
    if state.replay is not None:
        mask, reward = state.replay.trajectory.mask, state.replay.trajectory.reward
        metrics |= {
            "synthetic_transitions": state.replay.count,
            "synthetic_reward": jnp.where(mask, reward, 0.0).sum() / jnp.maximum(mask.sum(dtype=jnp.int32), 1),
            "synthetic_terminal_rate": terminal_share(state.replay),
        }
        metrics |= {f"synthetic_{name}": value for name, value in (state.refresh_metrics or {}).items()}
    return state, metrics


def agent_program(
    agent: Agent[Any],
    config: AgentConfig,
    synthesis: SynthesisConfig,
    hypers: PyTree = None,
    coefficient: Array | None = None,
    *,
    skip: bool = False,
) -> Program[AgentState]:
    """Agent training in chunks of `updates_per_chunk`. A refresh that is due comes before the chunk's updates.

    `coefficient` [] replaces that of the synthesizer's guidance; like `hypers` it may be traced. `skip`: as in `update_many`.
    """
    schedule = make_schedule(config, synthesis)
    synthetic = round(synthesis.synthetic_ratio * config.batch_size)

    def chunk(state: AgentState, data: Experience, index: Array) -> tuple[AgentState, Metrics]:
        has_replay = data.synthesizer is not None
        if has_replay and schedule.refresh_chunks > 0:
            state = jax.lax.cond(schedule.due(index), lambda s: refresh(s, data, agent, schedule), lambda s: s, state)
        share = synthetic if has_replay else 0
        or_real = data.synthesizer is not None and data.synthesizer.may_be_empty
        return learn(state, data, agent, config.batch_size, share, schedule.chunk_updates, skip=skip, or_real=or_real)

    return Program(
        init=lambda key, data: init_agent(key, data, agent, schedule, hypers, coefficient),
        chunk=chunk,
        chunks=schedule.chunks,
        steps_per_chunk=schedule.chunk_updates,
        quantities=quantities,
    )


def quantities(state: AgentState) -> dict[str, PyTree]:
    """The parts of a state that must be finite: `Program.quantities`."""
    samples = {} if state.replay is None else {"sample": state.replay.trajectory}
    return {**samples, "parameter": state.agent}


def train_agent(
    key: Array,
    data: Experience,
    hypers: PyTree = None,
    *,
    agent: Agent[Any],
    config: AgentConfig = AgentConfig(),
    synthesis: SynthesisConfig = SynthesisConfig(),
) -> tuple[PyTree, Metrics]:
    """Train one agent from scratch: pure, so that it can be jitted and vmapped over keys and hypers.

    Returns the agent's state (`agent.policy(state)` is its policy) and metrics per chunk, [chunks]. Observations are taken as
    they are: `agents.normalise_observations` makes an agent that standardises them, as `jaxpgd run` does. Raises InputError.
    """
    check_training(config, None if data.synthesizer is None else synthesis)
    data = dataclasses.replace(data, real=jax.tree.map(jnp.asarray, data.real))  # those of a dataset are on the host
    state, metrics = fit(key, agent_program(agent, config, synthesis, hypers), data)
    return state.agent, metrics


def check_training(agent: AgentConfig, synthesis: SynthesisConfig | None) -> None:
    """Check the settings that an agent is trained with; without `synthesis` it has real data alone. Raises InputError."""
    check_ranges(agent, "agent.")
    lengths = {"agent.updates": agent.updates}
    if synthesis is not None:
        check_ranges(synthesis, "synthesis.")
        check_share(synthesis, agent.batch_size)
        lengths |= {"synthesis.interval": synthesis.interval} if synthesis.regime != "oneoff" else {}
    chunk = agent.updates_per_chunk
    for name, value in lengths.items():
        check(value % chunk == 0, name, value, f"a multiple of agent.updates_per_chunk = {chunk}")
