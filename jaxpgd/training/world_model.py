"""Training a world model: the members of the ensemble, the reward model and the terminal classifier, as one program.

Each epoch ends with a loss of the averaged weights on held-out transitions. A network whose loss has not improved for
`patience` epochs stops, and its best averaged weights are kept (early stopping). The ensemble's members run as one vmapped
network, each with its own minibatches.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from jaxpgd.training.health import FIRST, SKIPPED, firsts, skipping
from jaxpgd.training.program import Program, fit
from jaxpgd.types import Metrics, PyTree, Transition
from jaxpgd.world_model.data import WorldModelData
from jaxpgd.world_model.losses import gaussian_loss, logistic_loss, squared_loss
from jaxpgd.world_model.model import Terminates, WorldModel, WorldModelConfig, networks
from jaxpgd.world_model.scales import Scales

_IMPROVEMENT = 0.01  # relative: a smaller one does not keep a network in training (as MBPO, arXiv 1906.08253)

Part = Literal["state", "reward", "terminal"]
Trained = tuple[PyTree, PyTree, PyTree, Array]  # the first four fields of a `PartState`


@struct.dataclass
class PartState:
    """State of one part, with a leading axis of its members [E]: parameters, the best average so far, counters."""

    params: PyTree
    ema_params: PyTree
    optimiser: PyTree
    step: Array  # [E] gradient steps
    best: PyTree
    best_loss: Array  # [E]
    stale: Array  # [E] epochs since the last improvement


@struct.dataclass
class WorldModelState:
    """State of the program: one `PartState` for each part."""

    state: PartState
    reward: PartState
    terminal: PartState | None  # None where the terminal rule is known
    key: Array


@dataclasses.dataclass(frozen=True)
class _Learner:
    """What distinguishes the three parts: their networks, members and losses. Structure only."""

    part: Part
    network: Any
    members: int
    loss: Callable[[Any, PyTree, Array, Array], tuple[Array, Array]]

    def examples(self, scales: Scales, batch: Transition) -> tuple[Array, Array]:
        """Inputs and targets of a batch."""
        if self.part == "terminal":
            return scales.terminal_inputs(batch.obs, batch.action, batch.next_obs), 1.0 - batch.discount
        target = scales.target_delta(batch) if self.part == "state" else scales.target_reward(batch)
        return scales.inputs(batch.obs, batch.action), target

    def init(self, key: Array, data: WorldModelData, config: WorldModelConfig) -> PartState:
        """Fresh parameters for every member; the best ones are a copy, since states are donated."""
        x, _ = self.examples(data.scales, jax.tree.map(lambda a: a[0], data.transitions))
        params = jax.vmap(lambda k: self.network.init(k, x))(jax.random.split(key, self.members))
        return PartState(
            params=params,
            ema_params=jax.tree.map(jnp.copy, params),
            optimiser=jax.vmap(_optimiser(config).init)(params),
            step=jnp.zeros(self.members, jnp.int32),
            best=jax.tree.map(jnp.copy, params),
            best_loss=jnp.full(self.members, jnp.inf, jnp.float32),
            stale=jnp.zeros(self.members, jnp.int32),
        )

    def epoch(
        self, key: Array, state: PartState, data: WorldModelData, config: WorldModelConfig, steps: int, skip: bool
    ) -> tuple[PartState, Metrics]:
        """`steps` gradient steps for every member that is still in training, then the held-out losses."""
        step = lambda carry, k: self._step(k, carry, data, config, skip)
        before = (state.params, state.ema_params, state.optimiser, state.step)
        trained, found = jax.lax.scan(step, before, jax.random.split(key, steps))
        losses = self._held_out(trained[1], data)
        better = losses < state.best_loss * (1.0 - _IMPROVEMENT)
        active = state.stale < config.patience
        take = better & active
        best = jax.tree.map(lambda new, old: _where(take, new, old), trained[1], state.best)
        params, ema_params, optimiser, taken = jax.tree.map(lambda new, old: _where(active, new, old), trained, before)
        state = PartState(
            params=params,
            ema_params=ema_params,
            optimiser=optimiser,
            step=taken,
            best=best,
            best_loss=jnp.where(take, losses, state.best_loss),
            stale=jnp.where(take, 0, state.stale + 1),
        )
        of_active = jax.tree.map(lambda x: jnp.where(active, x, 0.0), found)  # steps of a stopped network are discarded
        named = {self._training(name): value for name, value in of_active.items()}
        metrics = {**self._metrics(state), **firsts(named)}
        return state, {**metrics, SKIPPED: of_active[SKIPPED].mean(0).max()} if skip else metrics

    def idle_epoch(self, state: PartState, steps: int, skip: bool) -> tuple[PartState, Metrics]:
        """An epoch after all members have stopped: the state as it was, with the same metrics as `epoch`."""
        none = {FIRST + self._training(name): jnp.asarray(steps, jnp.int32) for name in ("loss", "gradient_norm")}
        metrics = {**self._metrics(state), **none}
        return state, {**metrics, SKIPPED: jnp.zeros((), jnp.float32)} if skip else metrics

    def _training(self, name: str) -> str:
        """The name of a metric of gradient steps, apart from the held-out loss."""
        return f"{self.part}_training_{name}"

    def _metrics(self, state: PartState) -> Metrics:
        return {f"{self.part}_loss": state.best_loss.mean(), f"{self.part}_stale": state.stale.min()}

    def _step(
        self, key: Array, carry: Trained, data: WorldModelData, config: WorldModelConfig, skip: bool
    ) -> tuple[Trained, Metrics]:
        """One gradient step of every member, and their losses and gradient norms [E]."""

        def one(carry: Trained, key: Array) -> tuple[Trained, Metrics]:
            params, ema_params, optimiser, step = carry
            drawn = data.train[jax.random.randint(key, (config.batch_size,), 0, data.train.shape[0])]
            x, y = self.examples(data.scales, jax.tree.map(lambda a: a[drawn], data.transitions))
            loss, grads = jax.value_and_grad(lambda p: self.loss(self.network, p, x, y)[0])(params)
            updates, optimiser = _optimiser(config).update(grads, optimiser, params)
            params = optax.apply_updates(params, updates)
            decay = jnp.minimum(config.ema, (1.0 + step) / (10.0 + step))  # the first steps forget where they came from sooner
            ema_params = jax.tree.map(lambda a, p: p + decay * (a - p), ema_params, params)
            metrics = {"loss": loss, "gradient_norm": optax.global_norm(grads)}
            return (params, ema_params, optimiser, step + 1), metrics

        return jax.vmap(skipping(one) if skip else one)(carry, jax.random.split(key, self.members))

    def _held_out(self, params: PyTree, data: WorldModelData) -> Array:
        x, y = self.examples(data.scales, jax.tree.map(lambda a: a[data.held_out], data.transitions))
        return jax.vmap(lambda p: self.loss(self.network, p, x, y)[1])(params)


def _where(keep: Array, new: Array, old: Array) -> Array:
    return jnp.where(keep.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def _optimiser(config: WorldModelConfig) -> optax.GradientTransformation:
    """Adam on the loss plus an L2 penalty of the kernels (PETS), not of biases and bounds."""
    kernels = lambda params: jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
    return optax.chain(optax.add_decayed_weights(config.weight_decay, kernels), optax.adam(config.lr))


def _learners(config: WorldModelConfig, obs_dim: int, learned_terminal: bool) -> list[_Learner]:
    state, reward, terminal = networks(config, obs_dim)
    found = [
        _Learner("state", state, config.members, functools.partial(gaussian_loss, beta=config.beta)),
        _Learner("reward", reward, 1, squared_loss),
    ]
    return [*found, _Learner("terminal", terminal, 1, logistic_loss)] if learned_terminal else found


def steps_per_epoch(config: WorldModelConfig, size: int) -> int:
    """Gradient steps per epoch: as configured, or one pass over `size` training transitions."""
    return config.steps_per_epoch or -(-size // config.batch_size)


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
            part = getattr(state, each.part)
            part, found = jax.lax.cond(
                (part.stale < config.patience).any(),
                lambda s, k=part_key, each=each: each.epoch(k, s, data, config, steps, skip),
                lambda s, each=each: each.idle_epoch(s, steps, skip),
                part,
            )
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


def held_out_error(
    learners: list[_Learner], elites: PyTree, reward_params: PyTree, data: WorldModelData
) -> tuple[Array, Array]:
    """Root mean square errors on held-out transitions, in the data's units.

    Of the mean prediction of the elites [K] for the next observation, [O], and of the reward model, [].
    """
    held_out = jax.tree.map(lambda a: a[data.held_out], data.transitions)
    state, reward, *_ = learners
    x, y = state.examples(data.scales, held_out)
    mean = jax.lax.map(lambda params: state.network.apply(params, x)[0], elites).mean(0)
    x, z = reward.examples(data.scales, held_out)
    rms = lambda error: jnp.sqrt(jnp.square(error).mean(0))
    error = rms(mean - y) * data.scales.delta.std
    return error, rms(reward.network.apply(reward_params, x) - z) * data.scales.reward.std[0]


def trained_world_model(
    state: WorldModelState, data: WorldModelData, config: WorldModelConfig, terminates: Terminates | None = None
) -> WorldModel:
    """The world model of the best parameters, with the `config.elites` members of least held-out error."""
    order = jnp.argsort(state.state.best_loss)[: config.elites]
    state_network, reward_network, terminal_network = networks(config, data.transitions.obs.shape[-1])
    first = lambda part: jax.tree.map(lambda p: p[0], part.best)
    elites, reward_params = jax.tree.map(lambda p: p[order], state.state.best), first(state.reward)
    learners = _learners(config, data.transitions.obs.shape[-1], terminates is None)
    error, reward_error = held_out_error(learners, elites, reward_params, data)
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
