"""Training the behaviour's mean by least squares, stopped early on held-out transitions."""

import jax
from flax import struct
from jax import Array

from jaxpgd.training.early_stopping import Learner, PartState, steps_per_epoch
from jaxpgd.training.program import Program, fit
from jaxpgd.types import Metrics, Transition
from jaxpgd.world_model.behaviour import Behaviour, BehaviourConfig, behaviour_network, explained
from jaxpgd.world_model.data import WorldModelData
from jaxpgd.world_model.losses import squared_loss
from jaxpgd.world_model.scales import Scales

# Of the mean's loss the actions' noise is the larger part by far, and what is left of the mean is evidence about states.
_IMPROVEMENT = 1e-4


@struct.dataclass
class BehaviourState:
    """State of the program."""

    behaviour: PartState
    key: Array


def _examples(scales: Scales, batch: Transition) -> tuple[Array, Array]:
    return scales.obs.standardise(batch.obs), batch.action


def _learner(config: BehaviourConfig, action_dim: int) -> Learner:
    return Learner("behaviour", behaviour_network(config, action_dim), 1, squared_loss, _examples, _IMPROVEMENT)


def behaviour_program(data: WorldModelData, config: BehaviourConfig, *, skip: bool = False) -> Program[BehaviourState]:
    """Training of the behaviour's mean, one epoch per chunk. The program's data are the `WorldModelData` of a world model.

    `skip`: steps whose loss or gradient is not finite change nothing and are counted (`health.skipping`).
    """
    learner = _learner(config, data.transitions.action.shape[-1])
    steps = steps_per_epoch(config, data.train.shape[0])

    def init(key: Array, data: WorldModelData) -> BehaviourState:
        key, key_init = jax.random.split(key)
        return BehaviourState(learner.init(key_init, data, config), key)

    def chunk(state: BehaviourState, data: WorldModelData, index: Array) -> tuple[BehaviourState, Metrics]:
        key, key_epoch = jax.random.split(state.key)
        part, metrics = learner.epoch_or_idle(key_epoch, state.behaviour, data, config, steps, skip)
        return BehaviourState(part, key), metrics

    return Program(
        init=init,
        chunk=chunk,
        chunks=config.epochs,
        steps_per_chunk=1,
        updates_per_chunk=steps,
        quantities=lambda state: {"parameter": state.behaviour.params},
    )


def trained_behaviour(state: BehaviourState, data: WorldModelData, config: BehaviourConfig) -> Behaviour:
    """The behaviour of the best averaged weights, with what the state explains of its held-out innovations."""
    network = behaviour_network(config, data.transitions.action.shape[-1])
    params = jax.tree.map(lambda p: p[0], state.behaviour.best)
    held_out = jax.tree.map(lambda x: x[data.held_out], data.transitions)
    behaviour = Behaviour(params, data.scales.obs, held_out.action[0], held_out.action[0], network)
    e, x = behaviour.innovation(held_out.obs, held_out.action), data.scales.obs.standardise(held_out.obs)
    return behaviour.replace(explained=explained(x, e), explained_square=explained(x, e**2))  # type: ignore[no-any-return, attr-defined]


def train_behaviour(
    key: Array, data: WorldModelData, *, config: BehaviourConfig = BehaviourConfig()
) -> tuple[Behaviour, Metrics]:
    """Clone the behaviour's mean from scratch. A pure function, which can be jitted with `config` static.

    Returns the behaviour and metrics per epoch [epochs]: behaviour_loss (held-out squared error of the action) and the number
    of epochs without improvement (behaviour_stale).
    """
    state, metrics = fit(key, behaviour_program(data, config), data)
    return trained_behaviour(state, data, config), metrics
