"""Agents of several sources of data, real and synthetic, trained as one program.

The networks of offline agents are so small that an accelerator spends most of an update on starting kernels, so that agents of
three sources take about as long as those of one. Each source has its own refresh, as their costs differ.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.errors import check
from jaxpgd.parallel import SEEDS, map_seeds
from jaxpgd.synthesis.filters import Filter
from jaxpgd.synthesis.replay import SynthesisConfig, alike, no_replay
from jaxpgd.training.agent import AgentConfig, AgentState, init_agent, learn, make_schedule, quantities, refresh
from jaxpgd.training.experience import Experience
from jaxpgd.training.program import Program
from jaxpgd.types import Agent, Metrics, Synthesizer, Transition


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
    agent: Agent[Any],
    config: AgentConfig,
    synthesis: SynthesisConfig,
    names: tuple[str, ...],
    seeds: int,
    *,
    skip: bool = False,
) -> Program[AgentState]:
    """Agent training as `agent_program`, for `seeds` agents of each of the sources `names`. Data: the `Sources`.

    The leading axis of the state is [sources * seeds], source by source. Keys and draws are those of `agent_program` for one
    source alone, so that results differ by rounding only. Agents of real data keep an empty replay.
    """
    schedule, count = make_schedule(config, synthesis), len(names)
    synthetic = round(synthesis.synthetic_ratio * config.batch_size)

    def init(key: Array, data: Sources) -> AgentState:
        keys = jax.random.split(key, seeds)

        def of_source(source: Experience) -> AgentState:
            found: AgentState = jax.vmap(lambda key: init_agent(key, source, agent, schedule), spmd_axis_name=SEEDS)(keys)
            return found

        return _joined([of_source(data.of(i)) for i in range(count)])

    def refreshed(states: AgentState, data: Sources) -> AgentState:
        def of_source(i: int) -> AgentState:
            part: AgentState = jax.tree.map(lambda x: x[i * seeds : (i + 1) * seeds], states)
            if data.synthesizer[i] is None:
                return part
            found: AgentState = map_seeds(lambda state: refresh(state, data.of(i), agent, schedule), part)
            return found

        return _joined([of_source(i) for i in range(count)])

    def chunk(states: AgentState, data: Sources, index: Array) -> tuple[AgentState, Metrics]:
        if schedule.refresh_chunks > 0:
            states = jax.lax.cond(schedule.due(index), lambda s: refreshed(s, data), lambda s: s, states)
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
    """The states [S] of K sources as one [K * S]; those without a replay get an empty one, and metrics that they lack are 0."""
    replays = [state.replay for state in states if state.replay is not None]
    lengths = {replay.trajectory.reward.shape[-1] for replay in replays}
    known = any(replay.trajectory.last_obs is not None for replay in replays)  # true of rollouts, not of denoised windows
    same = lambda r: dataclasses.replace(r, trajectory=alike(r.trajectory, last_obs=known))
    check(len(lengths) == 1, "synthesis.length", sorted(lengths), "trajectories of one length from all sources of one program")
    found: dict[str, Array] = {name: value for state in states for name, value in (state.refresh_metrics or {}).items()}

    def completed(state: AgentState) -> AgentState:
        metrics = {name: (state.refresh_metrics or {}).get(name, jnp.zeros_like(like)) for name, like in found.items()}
        replay = no_replay(same(replays[0])) if state.replay is None else same(state.replay)
        return dataclasses.replace(state, replay=replay, refresh_metrics=metrics)

    joined: AgentState = jax.tree.map(lambda *parts: jnp.concatenate(parts), *map(completed, states))
    return joined
