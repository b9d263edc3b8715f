"""Build: the objects that a config names, from data and trained models. Agent, synthesizer, where agents get their data."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxpgd.agents import make_agent
from jaxpgd.dataset import Dataset
from jaxpgd.experiment.config import Config
from jaxpgd.synthesis.diffusion import DiffusionSynthesizer, TrajectoryDenoiser, make_synthesizer
from jaxpgd.synthesis.dydiff import StateDenoiser, make_dydiff
from jaxpgd.synthesis.filters import make_filter
from jaxpgd.synthesis.world_model import make_world_model_synthesizer
from jaxpgd.training.experience import Experience
from jaxpgd.types import Agent, Synthesizer
from jaxpgd.world_model.model import WorldModel


@struct.dataclass
class Models:
    """What a run trains besides agents; None where no arm needs it."""

    denoiser: TrajectoryDenoiser | None = None
    world: WorldModel | None = None
    states: StateDenoiser | None = None


def build_agent(config: Config, dataset: Dataset) -> Agent:
    """The agent of a config for a dataset, with its observation statistics where it normalises."""
    section = getattr(config.agent, config.agent.kind)
    mean = std = None
    if config.agent.normalise_obs:
        obs = np.asarray(dataset.obs, np.float64)
        mean, std = jnp.asarray(obs.mean(0), jnp.float32), jnp.asarray(obs.std(0), jnp.float32)
    return make_agent(config.agent.kind, section, dataset.action_dim, obs_mean=mean, obs_std=std)


def build_synthesizer(config: Config, models: Models, *, guided: bool, steps: int = 0) -> DiffusionSynthesizer:
    """The synthesizer of a config that samples the denoiser; `steps` replaces the sampler's where it is above 0."""
    assert models.denoiser is not None
    sampler, own = dataclasses.replace(config.sampler, steps=steps or config.sampler.steps), config.synthesis
    guidance = config.guidance if guided else None
    return make_synthesizer(
        models.denoiser, sampler, guidance,
        consistency=own.consistency, model=models.world, length=own.length, unused="kept",
    )  # fmt: skip


def arm_synthesizer(config: Config, models: Models, arm: str) -> Synthesizer:
    """The synthesizer of any arm but `real`, from the models that it needs."""
    length = config.synthesis.length
    if arm in ("unguided", "guided"):
        return build_synthesizer(config, models, guided=arm == "guided")
    assert models.world is not None
    if arm == "world_model":
        return make_world_model_synthesizer(models.world, config.synthesis.world_model, length=length or config.data.window)
    assert models.states is not None
    return make_dydiff(models.world, models.states, config.synthesis.dydiff, config.sampler, length=length)


def build_experience(config: Config, dataset: Dataset, models: Models, arm: str, *, next_actions: bool = False) -> Experience:
    """Where the agents of an arm get their batches from; `next_actions`: as `Agent.next_actions`."""
    real = dataset.transitions(next_actions=next_actions)
    if arm == "real":
        return Experience(real)
    synthesizer = arm_synthesizer(config, models, arm)
    first = None
    if arm == "guided" and config.synthesis.first_unguided:
        first = arm_synthesizer(config, models, "unguided")
    return Experience(real, synthesizer, first, make_filter(config.synthesis.filter))
