"""Agents of several sources of data, real and synthetic, trained as one program.

The networks of offline agents are so small that an accelerator spends most of an update on starting kernels: agents of three
sources then take about as long as those of one. Refreshes are made source by source, as they differ in what they cost.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.errors import check
from jaxpgd.parallel import SEEDS, map_seeds
from jaxpgd.synthesis.filters import Filter
from jaxpgd.synthesis.replay import Replay, SynthesisConfig, alike, no_replay
from jaxpgd.training.agent import AgentConfig, AgentState, Experience, init_agent, learn, make_schedule, quantities, refresh
from jaxpgd.training.program import Program
from jaxpgd.types import Agent, Metrics, PyTree, Synthesizer, Transition


@struct.dataclass
class Sources:
    """K sources that share their real transitions [M]; the fields of `Experience`, each [K]. At least one is synthetic."""

    real: Transition
    synthesizer: tuple[Synthesizer | None, ...]  # None: real data only
    first: tuple[Synthesizer | None, ...]
    filter: tuple[Filter, ...]

    def of(self, index: int) -> Experience:
        """One source."""
        return Experience(self.real, self.synthesizer[index], self.first[index], self.filter[index])


def join_sources(sources: Sequence[Experience]) -> Sources:
    """Sources as one; the real transitions are those of the first. Raises ValueError where none is synthetic."""
    if all(source.synthesizer is None for source in sources):
        raise ValueError("sources: expected at least one with a synthesizer")
    return Sources(
        real=sources[0].real,
        synthesizer=tuple(source.synthesizer for source in sources),
        first=tuple(source.first for source in sources),
        filter=tuple(source.filter for source in sources),
    )


def sources_program(
    agent: Agent, config: AgentConfig, synthesis: SynthesisConfig, names: tuple[str, ...], seeds: int, *, skip: bool = False
) -> Program[AgentState]:
    """Agent training as `agent_program`, for `seeds` agents of each of the sources called `names`. Data: the `Sources`.

    The state's leading axis is [sources * seeds], the seeds of a source together. Keys and draws are those of `agent_program`
    for one source alone: results differ from its own by rounding only. Agents of real data keep an empty replay.
    """
    schedule, count = make_schedule(config, synthesis), len(names)
    synthetic = round(synthesis.synthetic_ratio * config.batch_size)

    def init(key: Array, data: Sources) -> AgentState:
        keys = jax.random.split(key, seeds)

        def of_source(source: Experience) -> AgentState:
            found: AgentState = jax.vmap(lambda key: init_agent(key, source, agent, schedule), spmd_axis_name=SEEDS)(keys)
            return found

        return _joined([of_source(data.of(i)) for i in range(count)])

    def remade(states: AgentState, data: Sources) -> AgentState:
        def of_source(i: int) -> AgentState:
            part: AgentState = jax.tree.map(lambda x: x[i * seeds : (i + 1) * seeds], states)
            if data.synthesizer[i] is None:
                return part
            found: AgentState = map_seeds(lambda state: refresh(state, data.of(i), agent, schedule), part)
            return found

        return _joined([of_source(i) for i in range(count)])

    def chunk(states: AgentState, data: Sources, index: Array) -> tuple[AgentState, Metrics]:
        if schedule.refresh_chunks > 0:
            states = jax.lax.cond(schedule.due(index), lambda s: remade(s, data), lambda s: s, states)
        batch, updates = config.batch_size, schedule.chunk_updates

        def one(state: AgentState) -> tuple[AgentState, Metrics]:
            return learn(state, Experience(data.real), agent, batch, synthetic, updates, skip=skip, or_real=True)

        found: tuple[AgentState, Metrics] = map_seeds(one, states)
        return found

    return Program(
        init=init,
        chunk=chunk,
        chunks=schedule.chunks,
        steps_per_chunk=schedule.chunk_updates,
        seeds=count * seeds,
        groups=names,
        quantities=quantities,
    )


def _joined(states: list[AgentState]) -> AgentState:
    """States [S] of every source as one [K * S]: those without a replay get an empty one, and metrics they lack are 0."""
    replays = [state.replay for state in states if state.replay is not None]
    lengths = {replay.trajectory.reward.shape[-1] for replay in replays}
    known = any(replay.trajectory.last_obs is not None for replay in replays)  # rollouts beside whole trajectories
    same = lambda r: r.replace(trajectory=alike(r.trajectory, last_obs=known))
    check(len(lengths) == 1, "synthesis.length", sorted(lengths), "trajectories of one length from all sources of one program")
    made: dict[str, Array] = {name: value for state in states for name, value in (state.made or {}).items()}
    blank = lambda like: jax.tree.map(jnp.zeros_like, like)

    def whole(state: AgentState) -> AgentState:
        account = {name: (state.made or {}).get(name, blank(like)) for name, like in made.items()}
        kept: Replay | PyTree = no_replay(same(replays[0])) if state.replay is None else same(state.replay)
        return state.replace(replay=kept, made=account)  # type: ignore[attr-defined, no-any-return]

    joined: AgentState = jax.tree.map(lambda *parts: jnp.concatenate(parts), *map(whole, states))
    return joined
