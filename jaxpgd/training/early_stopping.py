"""Networks trained by epochs until their loss on held-out transitions has stopped improving.

Each epoch ends with a loss of the averaged weights on held-out transitions. A network whose loss has not improved for
`patience` epochs stops, and its best averaged weights are kept (early stopping). Members of an ensemble run as one vmapped
network, each with its own minibatches.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from jaxpgd.training.health import FIRST, SKIPPED, firsts, skipping
from jaxpgd.types import Metrics, PyTree, Transition
from jaxpgd.world_model.data import WorldModelData
from jaxpgd.world_model.scales import Scales

Trained = tuple[PyTree, PyTree, PyTree, Array]  # the first four fields of a `PartState`


class FitConfig(Protocol):
    """The options that training reads."""

    @property
    def lr(self) -> float: ...

    @property
    def ema(self) -> float: ...

    @property
    def weight_decay(self) -> float: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def patience(self) -> int: ...

    @property
    def steps_per_epoch(self) -> int: ...


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


@dataclasses.dataclass(frozen=True)
class Learner:
    """What distinguishes what is trained: network, members, losses, and the inputs and targets of a batch. Structure only.

    `part` names its metrics. `loss` gives the training loss [] and the held-out loss []. A relative improvement of the latter
    by less than `improvement` counts as none (0.01: MBPO, arXiv 1906.08253).
    """

    part: str
    network: Any
    members: int
    loss: Callable[[Any, PyTree, Array, Array], tuple[Array, Array]]
    examples: Callable[[Scales, Transition], tuple[Array, Array]]
    improvement: float = 0.01

    def init(self, key: Array, data: WorldModelData, config: FitConfig) -> PartState:
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

    def epoch_or_idle(
        self, key: Array, state: PartState, data: WorldModelData, config: FitConfig, steps: int, skip: bool
    ) -> tuple[PartState, Metrics]:
        """`epoch`, which costs nothing where all members have stopped."""
        found: tuple[PartState, Metrics] = jax.lax.cond(
            (state.stale < config.patience).any(),
            lambda s: self.epoch(key, s, data, config, steps, skip),
            lambda s: self.idle_epoch(s, steps, skip),
            state,
        )
        return found

    def epoch(
        self, key: Array, state: PartState, data: WorldModelData, config: FitConfig, steps: int, skip: bool
    ) -> tuple[PartState, Metrics]:
        """`steps` gradient steps for every member that is still in training, then the held-out losses."""
        step = lambda carry, k: self._step(k, carry, data, config, skip)
        before = (state.params, state.ema_params, state.optimiser, state.step)
        trained, found = jax.lax.scan(step, before, jax.random.split(key, steps))
        losses = self._held_out(trained[1], data)
        better = losses < state.best_loss * (1.0 - self.improvement)
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

    def _step(self, key: Array, carry: Trained, data: WorldModelData, config: FitConfig, skip: bool) -> tuple[Trained, Metrics]:
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


def _optimiser(config: FitConfig) -> optax.GradientTransformation:
    """Adam on the loss plus an L2 penalty of the kernels (PETS), not of biases and bounds."""
    kernels = lambda params: jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
    return optax.chain(optax.add_decayed_weights(config.weight_decay, kernels), optax.adam(config.lr))


def steps_per_epoch(config: FitConfig, size: int) -> int:
    """Gradient steps per epoch: as configured, or one pass over `size` training transitions."""
    return config.steps_per_epoch or -(-size // config.batch_size)
