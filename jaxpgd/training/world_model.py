"""Training a world model: the members of the ensemble, the reward model and the terminal classifier, as one program.

Each part stops early, on its loss on held-out transitions (`early_stopping`).
"""

import functools

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.training.early_stopping import Learner, PartState, steps_per_epoch
from jaxpgd.training.health import SKIPPED
from jaxpgd.training.program import Program, fit
from jaxpgd.types import Metrics, PyTree, Transition
from jaxpgd.world_model.data import WorldModelData
from jaxpgd.world_model.losses import gaussian_loss, logistic_loss, squared_loss
from jaxpgd.world_model.model import Terminates, WorldModel, WorldModelConfig, networks
from jaxpgd.world_model.scales import Scales
from jaxpgd.world_model.truncation import disagreement


@struct.dataclass
class WorldModelState:
    """State of the program: one `PartState` for each part."""

    state: PartState
    reward: PartState
    terminal: PartState | None  # None where the terminal rule is known
    key: Array


def _learners(config: WorldModelConfig, obs_dim: int, learned_terminal: bool) -> list[Learner]:
    state, reward, terminal = networks(config, obs_dim)
    found = [
        Learner("state", state, config.members, functools.partial(gaussian_loss, beta=config.beta), _state_examples),
        Learner("reward", reward, 1, squared_loss, _reward_examples),
    ]
    last = Learner("terminal", terminal, 1, logistic_loss, _terminal_examples)
    return [*found, last] if learned_terminal else found


def _state_examples(scales: Scales, batch: Transition) -> tuple[Array, Array]:
    return scales.inputs(batch.obs, batch.action), scales.target_delta(batch)


def _reward_examples(scales: Scales, batch: Transition) -> tuple[Array, Array]:
    return scales.inputs(batch.obs, batch.action), scales.target_reward(batch)


def _terminal_examples(scales: Scales, batch: Transition) -> tuple[Array, Array]:
    return scales.terminal_inputs(batch.obs, batch.action, batch.next_obs), 1.0 - batch.discount


def world_model_program(
    data: WorldModelData, config: WorldModelConfig, terminates: Terminates | None = None, *, skip: bool = False
) -> Program[WorldModelState]:
    """World-model training, one epoch of all parts per chunk. The program's data are the `WorldModelData`.

    Without a terminal rule `terminates` a classifier is trained as well. Parts that have stopped cost nothing.
    `skip`: steps whose loss or gradient is not finite change nothing and are counted (`health.skipping`).
    """
    learners = _learners(config, data.transitions.obs.shape[-1], terminates is None)
    steps = steps_per_epoch(config, data.train.shape[0])

    def init(key: Array, data: WorldModelData) -> WorldModelState:
        key, *keys = jax.random.split(key, 1 + len(learners))
        parts = {each.part: each.init(k, data, config) for each, k in zip(learners, keys, strict=True)}
        return WorldModelState(**{"terminal": None, **parts}, key=key)  # type: ignore[arg-type]

    def chunk(state: WorldModelState, data: WorldModelData, index: Array) -> tuple[WorldModelState, Metrics]:
        key, *keys = jax.random.split(state.key, 1 + len(learners))
        metrics, skipped = dict[str, Array](), jnp.zeros((), jnp.float32)
        for each, part_key in zip(learners, keys, strict=True):
            part, found = each.epoch_or_idle(part_key, getattr(state, each.part), data, config, steps, skip)
            state = state.replace(**{each.part: part})  # type: ignore[attr-defined]
            skipped = jnp.maximum(skipped, found.pop(SKIPPED, 0.0))
            metrics |= found
        metrics |= {SKIPPED: skipped} if skip else {}
        return state.replace(key=key), metrics  # type: ignore[attr-defined]

    return Program(
        init=init, chunk=chunk, chunks=config.epochs, steps_per_chunk=1, updates_per_chunk=steps, quantities=_quantities
    )


def _quantities(state: WorldModelState) -> dict[str, PyTree]:
    parts = {"state": state.state, "reward": state.reward, "terminal": state.terminal}
    return {"parameter": {name: part.params for name, part in parts.items() if part is not None}}


def held_out_measures(
    learners: list[Learner], elites: PyTree, reward_params: PyTree, data: WorldModelData
) -> tuple[Array, Array, Array]:
    """Root mean square errors on H held-out transitions, in the data's units, and how far the elites disagree there.

    Errors are those of the mean prediction of the elites [K] for the next observation, [O], and of the reward model, [].
    Disagreements [H] ascend (`truncation.disagreement`).
    """
    held_out = jax.tree.map(lambda a: a[data.held_out], data.transitions)
    state, reward, *_ = learners
    x, y = state.examples(data.scales, held_out)
    means = jax.lax.map(lambda params: state.network.apply(params, x)[0], elites)
    apart = jnp.sort(disagreement(means * data.scales.delta.std, data.scales.obs.std))
    x, z = reward.examples(data.scales, held_out)
    rms = lambda error: jnp.sqrt(jnp.square(error).mean(0))
    error = rms(means.mean(0) - y) * data.scales.delta.std
    return error, rms(reward.network.apply(reward_params, x) - z) * data.scales.reward.std[0], apart


def trained_world_model(
    state: WorldModelState, data: WorldModelData, config: WorldModelConfig, terminates: Terminates | None = None
) -> WorldModel:
    """The world model of the best parameters, with the `config.elites` members of least held-out error."""
    order = jnp.argsort(state.state.best_loss)[: config.elites]
    state_network, reward_network, terminal_network = networks(config, data.transitions.obs.shape[-1])
    first = lambda part: jax.tree.map(lambda p: p[0], part.best)
    elites, reward_params = jax.tree.map(lambda p: p[order], state.state.best), first(state.reward)
    learners = _learners(config, data.transitions.obs.shape[-1], terminates is None)
    error, reward_error, disagreements = held_out_measures(learners, elites, reward_params, data)
    return WorldModel(
        elites=elites,
        reward_params=reward_params,
        terminal_params=None if state.terminal is None else first(state.terminal),
        scales=data.scales,
        error=error,
        reward_error=reward_error,
        state_network=state_network,
        reward_network=reward_network,
        terminal_network=terminal_network,
        terminates=terminates,
        disagreements=disagreements,
    )


def train_world_model(
    key: Array, data: WorldModelData, *, config: WorldModelConfig = WorldModelConfig(), terminates: Terminates | None = None
) -> tuple[WorldModel, Metrics]:
    """Train a world model from scratch. A pure function, which can be jitted with `config` and `terminates` static.

    `terminates` maps next_obs [O] to whether the episode ends (`world_model.termination`); None: a classifier is learned.
    Returns the model and metrics per epoch [epochs]: state_loss (mean squared error of the standardised change over members,
    held out), reward_loss, terminal_loss, and for each the least number of epochs without improvement (`..._stale`).
    """
    state, metrics = fit(key, world_model_program(data, config, terminates), data)
    return trained_world_model(state, data, config, terminates), metrics
