"""How agents are trained: the programs of all seeds and settings, and their data, as pure functions. Nothing trains here."""

import dataclasses
from typing import TypeVar, cast

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.agents import replace_hypers
from jaxpgd.dataset import DatasetInfo, own_reward
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.run.seeds import over_seeds
from jaxpgd.experiment.stages.build import Models, build_agent, build_experience
from jaxpgd.experiment.stages.model_programs import Training
from jaxpgd.experiment.stages.prepare import Prepared, stage_key
from jaxpgd.experiment.sweep import COEFFICIENT, read_sweep
from jaxpgd.training.agent import AgentState, agent_program
from jaxpgd.training.program import Program
from jaxpgd.training.sources import Sources, join_sources, sources_program
from jaxpgd.types import Agent, Metrics, Policy, PyTree, Value

JOINT = "agents"  # the stage that trains the agents of all arms as one program
ByAgent = TypeVar("ByAgent")  # a pytree with a leading axis of agents


@struct.dataclass
class Learned:
    """What agents have learned, each with a leading axis of agents: their policies and, where they have critics, values."""

    policy: Policy
    value: Value | None


def agent_training(config: Config, prepared: Prepared, models: Models, arm: str) -> Training[Learned]:
    """Of the agents of an arm: every seed of every setting, [settings * seeds], the seeds of a setting together."""
    agent = build_agent(config, prepared.dataset)
    data = build_experience(config, prepared.dataset, models, arm, next_actions=agent.next_actions)
    return _training(config, prepared, f"agent-{arm}", agent, population(config, agent, arm), data)


def joint_training(config: Config, prepared: Prepared, models: Models) -> Training[Learned]:
    """Of the agents of all arms, as one program: [arms * seeds]."""
    agent = build_agent(config, prepared.dataset)
    return _training(config, prepared, JOINT, agent, joint_program(config, agent), joint_data(config, prepared, models, agent))


def _training(
    config: Config, prepared: Prepared, stage: str, agent: Agent, program: Program[AgentState], data: PyTree
) -> Training[Learned]:
    key = stage_key(config, "agent")  # the same for all arms: seed i starts from the same agent in each
    trained = lambda state: jax.vmap(lambda own: Learned(agent.policy(own), agent.value(own)))(state.agent)
    return Training(stage, in_reported_units(program, prepared.dataset.info), data, key, trained)


def population(config: Config, agent: Agent, arm: str) -> Program[AgentState]:
    """The training program of every seed of every setting that the config sweeps over, as far as they concern an arm."""
    settings = read_sweep(config, arm).settings
    names = list(settings[0])
    skip = config.health.skip_updates > 0
    columns = {name: jnp.asarray([setting[name] for setting in settings], jnp.float32) for name in names}

    def make(setting: dict[str, Array]) -> Program[AgentState]:
        own = {name.partition(".")[2]: value for name, value in setting.items() if name != COEFFICIENT}
        hypers = replace_hypers(agent.hypers, **own) if own else None
        return agent_program(agent, config.agent, config.synthesis, hypers, setting.get(COEFFICIENT), skip=skip)

    return over_seeds(make, columns, len(settings), config.seeds)


def joint_program(config: Config, agent: Agent) -> Program[AgentState]:
    """The training program of every seed of every arm."""
    skip = config.health.skip_updates > 0
    return sources_program(agent, config.agent, config.synthesis, config.arms, config.seeds, skip=skip)


def joint_data(config: Config, prepared: Prepared, models: Models, agent: Agent) -> Sources:
    """What `joint_program` trains on."""
    build = lambda arm: build_experience(config, prepared.dataset, models, arm, next_actions=agent.next_actions)
    return join_sources([build(arm) for arm in config.arms])


def by_arm(config: Config, agents: ByAgent) -> dict[str, ByAgent]:
    """What agents [arms * seeds] of one program for all arms have, as [seeds] by arm."""
    return dict(zip(config.arms, _parts(agents, config.seeds, len(config.arms)), strict=True))


def by_setting(config: Config, arm: str, agents: ByAgent) -> dict[str, ByAgent]:
    """What agents [settings * seeds] of an arm have, as [seeds] by row of results: the arm, or the arm with a setting."""
    sweep = read_sweep(config, arm)
    parts = _parts(agents, config.seeds, len(sweep.settings))
    return {", ".join(filter(None, (arm, sweep.label(i)))): part for i, part in enumerate(parts)}


def _parts(agents: ByAgent, seeds: int, count: int) -> list[ByAgent]:
    """`count` parts of [seeds] each."""
    part = lambda i: jax.tree.map(lambda x: x[i * seeds : (i + 1) * seeds], agents)
    return [cast(ByAgent, part(i)) for i in range(count)]


def in_reported_units(program: Program[AgentState], info: DatasetInfo) -> Program[AgentState]:
    """The same program, whose metrics tell the mean synthetic reward in the dataset's own units; 0 where there is none."""
    if info.rewards_as_stored:
        return program

    def chunk(state: AgentState, data: PyTree, index: Array) -> tuple[AgentState, Metrics]:
        state, metrics = program.chunk(state, data, index)
        if "synthetic_reward" in metrics:
            own = own_reward(info, metrics["synthetic_reward"])
            metrics = metrics | {"synthetic_reward": jnp.where(metrics["synthetic_transitions"] > 0, own, 0.0)}
        return state, metrics

    return dataclasses.replace(program, chunk=chunk)
