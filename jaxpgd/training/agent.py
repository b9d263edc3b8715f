"""Training an agent on real, unguided or policy-guided experience that is made anew as it learns.

The regimes are one axis: how many trajectories a refresh makes (all of the replay, or a fraction) and how often.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.agents.bc import BCConfig
from jaxpgd.agents.cql import CQLConfig
from jaxpgd.agents.diffusion_ql import DiffusionQLConfig
from jaxpgd.agents.iql import IQLConfig
from jaxpgd.agents.td3_bc import TD3BCConfig
from jaxpgd.errors import check
from jaxpgd.options import check_ranges, option, options, positive
from jaxpgd.resampling import effective_sample_size
from jaxpgd.synthesis.filters import Filter
from jaxpgd.synthesis.replay import (
    Draw,
    Replay,
    SynthesisConfig,
    check_share,
    draw_mixed,
    init_replay,
    insert,
    resample,
    sample_real,
    take,
    terminal_share,
)  # fmt: skip
from jaxpgd.tokens import saturated
from jaxpgd.training.health import first_of_blocks, firsts, skipping
from jaxpgd.training.program import Program, fit, mean_metrics
from jaxpgd.types import Agent, Metrics, Policy, PyTree, Synthesizer, Trajectory, Transition, until_terminal


@options
class AgentConfig:
    """The offline-RL algorithm and its training length. Only the section of the chosen kind is used."""

    kind: Literal["td3_bc", "iql", "bc", "cql", "diffusion_ql"] = option(
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


_SCORED = 512  # trajectories of a generation whose likelihood is looked at
_BLOCK = 512  # updates whose random numbers are drawn at once, at most
_NO_WIDTH = 1e-6  # values within so little are all the same
_PROFILE = ("profile_sigma", "guidance_norm", "score_norm")  # how strong guidance was, by noise level


@struct.dataclass
class Experience:
    """Where batches come from: real transitions [M], and a synthesizer for the synthetic part (None: real only).

    `first` makes the first content of the replay, before any update; None: the synthesizer itself. `filter` chooses among
    what is made.
    """

    real: Transition
    synthesizer: Synthesizer | None = None
    first: Synthesizer | None = None
    filter: Filter = Filter()


@struct.dataclass
class AgentState:
    """State of agent training: the agent's own, its replay, its key, the account of the last generation."""

    agent: PyTree
    replay: Replay | None
    key: Array
    made: Metrics | None = None
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


def learned_from(trajectory: Trajectory, *, drop_last: bool, after_terminal: bool) -> Trajectory:
    """Trajectories [N, T] whose mask holds the steps that agents learn from.

    With `after_terminal` they are all whose next observation is known or does not matter; `drop_last` leaves the last one out.
    PGD's released code does both.
    """
    mask, last = trajectory.mask, jnp.arange(trajectory.mask.shape[-1]) == trajectory.mask.shape[-1] - 1
    if after_terminal:
        known = ~last if trajectory.last_obs is None else jnp.ones_like(last)
        mask = known | (trajectory.discount == 0)
    return dataclasses.replace(trajectory, mask=mask & ~last if drop_last else mask)


def _synthesize(
    key: Array, synthesizer: Synthesizer, policy: Policy, data: Experience, count: int, coefficient: Array | None
) -> tuple[Trajectory, Metrics]:
    if coefficient is not None and synthesizer.guided:
        synthesizer = synthesizer.with_coefficient(coefficient)
    key_start, key_sample, key_resample = jax.random.split(key, 3)
    start = sample_real(key_start, data.real, data.filter.needed(count))
    made = synthesizer(key_sample, policy, start.obs)
    trajectory = resample(key_resample, made.trajectory, made.log_weight)
    account = _account(policy, start, trajectory, made.log_weight)
    account["coefficient"] = jnp.asarray(made.info.get("coefficient", 0.0), jnp.float32)
    levels = 0 if data.synthesizer is None else data.synthesizer.profile_levels
    if levels > 0:  # an unguided first refresh has no strength
        account |= {name: made.info.get(name, jnp.zeros(levels, jnp.float32)) for name in _PROFILE}
    return data.filter(jax.random.fold_in(key_resample, 1), trajectory, count), account


def _account(policy: Policy, real: Transition, made: Trajectory, log_weight: Array) -> Metrics:
    """What a generation is like, before any filter, each []: `ess` of its weights as a share (1: none were needed), share of
    `clipped_actions`, and the policy's log-likelihood per action, of the dataset (`data_log_likelihood`) and of what was made
    (`log_likelihood`; both left out for policies without a density)."""
    real, scored = jax.tree.map(lambda x: x[:_SCORED], (real, made))
    account = {
        "ess": effective_sample_size(log_weight) / log_weight.shape[0],
        "clipped_actions": saturated(made.action).mean(dtype=jnp.float32),
    }
    if policy.log_prob_fn is None:
        return account
    log_prob = jax.vmap(policy.log_prob)
    before = log_prob(real.obs, real.action).mean()
    counted = until_terminal(scored.discount)
    after = jnp.where(counted, jax.vmap(log_prob)(scored.obs, scored.action), 0.0).sum() / counted.sum()
    return account | {"data_log_likelihood": before, "log_likelihood": after}


def init_agent(
    key: Array,
    data: Experience,
    agent: Agent,
    schedule: Schedule,
    hypers: PyTree = None,
    coefficient: Array | None = None,
) -> AgentState:
    """Fresh agent, and a full replay where there is a synthesizer, which is guided by `coefficient` [] where it is given."""
    key, key_agent, key_replay = jax.random.split(key, 3)
    example = jax.tree.map(lambda x: x[0], data.real)
    state = agent.init(key_agent, example, hypers)
    replay = account = None
    first = data.synthesizer if data.first is None else data.first
    if first is not None:
        trajectory, account = _synthesize(key_replay, first, agent.policy(state), data, schedule.first_count, coefficient)
        trajectory = learned_from(trajectory, drop_last=schedule.drop_last, after_terminal=schedule.after_terminal)
        replay = init_replay(trajectory, schedule.capacity)
    return AgentState(agent=state, replay=replay, key=key, made=account, coefficient=coefficient)


def refresh(state: AgentState, data: Experience, agent: Agent, schedule: Schedule) -> AgentState:
    """Replace the oldest trajectories of the replay by new ones for the present policy."""
    assert data.synthesizer is not None and state.replay is not None
    key, key_refresh = jax.random.split(state.key)
    policy = agent.policy(state.agent)
    made, account = _synthesize(key_refresh, data.synthesizer, policy, data, schedule.refresh_count, state.coefficient)
    made = learned_from(made, drop_last=schedule.drop_last, after_terminal=schedule.after_terminal)
    return state.replace(replay=insert(state.replay, made), key=key, made=account)  # type: ignore[attr-defined]


def update_many(
    state: AgentState,
    data: Experience,
    agent: Agent,
    batch: int,
    synthetic: int,
    updates: int,
    *,
    skip: bool = False,
    or_real: bool = False,
) -> tuple[AgentState, Metrics]:
    """`updates` agent updates in one scan, each on fresh batches of which `synthetic` entries are synthetic.

    `skip`: updates whose loss or gradient is not finite change nothing and are counted (`health.skipping`). `or_real`: entries
    are real where there is no replay (`replay.draw_mixed`).
    Random numbers of a block of updates are drawn at once: one by one they take a tenth of an update's time on CPU.
    """
    block = max(size for size in range(1, min(updates, _BLOCK) + 1) if updates % size == 0)
    block = block if 8 * block >= min(updates, _BLOCK) else updates  # a number of updates without such divisors

    def draw(key: Array) -> tuple[Array, Draw]:
        key_batch, key_update = jax.random.split(key)
        keys = jax.random.split(key_batch, agent.batches)
        return key_update, jax.vmap(lambda k: draw_mixed(k, data.real, state.replay, batch, synthetic, or_real=or_real))(keys)

    def step(inner: PyTree, drawn: tuple[Array, Draw]) -> tuple[PyTree, Metrics]:
        key, draws = drawn
        batches = jax.vmap(lambda d: take(d, data.real, state.replay))(draws)
        return agent.update(key, inner, batches)

    def many(inner: PyTree, key: Array) -> tuple[PyTree, tuple[Metrics, Metrics]]:
        drawn = jax.vmap(draw)(jax.random.split(key, block))
        inner, metrics = jax.lax.scan(skipping(step) if skip else step, inner, drawn)
        return inner, (mean_metrics(metrics), firsts(metrics))

    key, key_blocks = jax.random.split(state.key)
    inner, (metrics, first) = jax.lax.scan(many, state.agent, jax.random.split(key_blocks, updates // block))
    first = {name: first_of_blocks(index, block) for name, index in first.items()}
    return state.replace(agent=inner, key=key), {**mean_metrics(metrics), **first}  # type: ignore[attr-defined]


def _gamma(state: PyTree) -> Array | None:
    """The discount that an agent's state was made with, which is a seed's own; None for agents without one."""
    return getattr(getattr(getattr(state, "inner", state), "hypers", None), "gamma", None)


def value_excess(real: Transition, gamma: Array | float, value: Array) -> Array:
    """How far [] a mean value is outside what the rewards [M] of the data allow, in widths of that range; 0: inside.

    Rewards of at most r for ever are worth r / (1 - gamma); episodes that end are worth less, down or up to 0. Without
    discounting (gamma 1) anything is allowed. Rewards that are all 0 span nothing to measure by: 0, since a sound critic is
    then as far from 0 as its initial weights leave it. A constant reward spans what lies between 0 and r / (1 - gamma).
    """
    horizon = 1.0 / jnp.maximum(1.0 - gamma, 1e-9)
    low, high = horizon * jnp.minimum(real.reward.min(), 0.0), horizon * jnp.maximum(real.reward.max(), 0.0)
    excess = jnp.maximum(jnp.maximum(value - high, low - value), 0.0) / jnp.maximum(high - low, 1e-9)
    return jnp.where((jnp.asarray(gamma) < 1.0) & (high - low > _NO_WIDTH), excess, 0.0)


def learn(
    state: AgentState,
    data: Experience,
    agent: Agent,
    batch: int,
    synthetic: int,
    updates: int,
    *,
    skip: bool = False,
    or_real: bool = False,
) -> tuple[AgentState, Metrics]:
    """`update_many` with everything that a chunk logs: values against what rewards allow, and what the replay holds."""
    state, metrics = update_many(state, data, agent, batch, synthetic, updates, skip=skip, or_real=or_real)
    gamma = _gamma(state.agent)
    if gamma is not None and "target_mean" in metrics:
        metrics["value_excess"] = value_excess(data.real, gamma, metrics["target_mean"])
    if state.replay is not None:
        made = state.replay.trajectory
        metrics |= {
            "synthetic_transitions": state.replay.count,
            "synthetic_reward": jnp.where(made.mask, made.reward, 0.0).sum() / jnp.maximum(made.mask.sum(dtype=jnp.int32), 1),
            "synthetic_terminal_rate": terminal_share(state.replay),
        }
        metrics |= {f"synthetic_{name}": value for name, value in (state.made or {}).items()}
    return state, metrics


def agent_program(
    agent: Agent,
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
        return learn(state, data, agent, config.batch_size, share, schedule.chunk_updates, skip=skip)

    return Program(
        init=lambda key, data: init_agent(key, data, agent, schedule, hypers, coefficient),
        chunk=chunk,
        chunks=schedule.chunks,
        steps_per_chunk=schedule.chunk_updates,
        quantities=quantities,
    )


def quantities(state: AgentState) -> dict[str, PyTree]:
    """What of a state has to be finite: `Program.quantities`."""
    made = {} if state.replay is None else {"sample": state.replay.trajectory}
    return {**made, "parameter": state.agent}


def train_agent(
    key: Array,
    data: Experience,
    hypers: PyTree = None,
    *,
    agent: Agent,
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
