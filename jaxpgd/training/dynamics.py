"""Training a world model: the members of the ensemble, the reward model and the terminal classifier, as one program.

Each epoch ends with a loss on held-out transitions. A network whose loss has not improved for `patience` epochs stops, and its
best parameters count (early stopping); the members of the ensemble run as one vmapped network, each with its own minibatches.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import Array

from jaxpgd.errors import check
from jaxpgd.networks.ensemble import GaussianRegressor, ScalarRegressor
from jaxpgd.options import nonnegative, option, options, positive, share
from jaxpgd.training.health import FIRST, SKIPPED, firsts, skipping
from jaxpgd.training.program import Program, fit
from jaxpgd.types import Metrics, PyTree, Transition
from jaxpgd.world_model.model import Scales, Terminates, WorldModel, fit_scales


@options
class DynamicsConfig:
    """One-step world model: ensemble, reward model, terminals (PETS, MBPO; DyDiff's table of hyperparameters)."""

    members: int = positive(7, "networks of the ensemble")
    elites: int = positive(5, "those with the least held-out error are used")
    hidden: tuple[int, ...] = option((200, 200, 200, 200), "widths of the hidden layers")
    reward_hidden: tuple[int, ...] = option((256, 256), "reward model and terminal classifier")
    lr: float = positive(1e-3, "learning rate", low=1e-12, high=1.0)
    weight_decay: float = nonnegative(5e-5, "weight decay of kernels", high=1.0)
    batch_size: int = positive(256, "batch size")
    holdout: float = share(0.1, "share of transitions held out")
    holdout_most: int = positive(10_000, "at most so many are held out")
    epochs: int = positive(100, "at most; early stopping ends sooner")
    steps_per_epoch: int = nonnegative(0, "gradient steps; 0: one pass over the training transitions")
    patience: int = positive(5, "epochs without improvement after which a network stops")
    termination: str = option("auto", 'a rule by name, "learned", or "auto": the environment\'s known rule')


_IMPROVEMENT = 0.01  # relative: a smaller one does not keep a network in training (as MBPO, arXiv 1906.08253)
_BOUND_WEIGHT = 0.01  # pulls the bounds of the log-variance together (PETS, appendix A.1)

Part = Literal["state", "reward", "terminal"]


@struct.dataclass
class DynamicsData:
    """Transitions [M], the indices of those that train and of those held out, and the scales of both."""

    transitions: Transition
    train: Array  # [.] int32
    held_out: Array  # [.] int32
    scales: Scales


def prepare_dynamics(transitions: Transition, config: DynamicsConfig, *, seed: int = 0) -> DynamicsData:
    """Hold some transitions out (host, once).

    Transitions that end an episode without moving are left out: files without next observations repeat the last one there, and
    a model would learn that nothing moves where episodes end. Raises InputError where no end is left for a classifier to learn.
    """
    chosen = informative(transitions, config)
    transitions = jax.tree.map(lambda x: x[chosen], transitions)
    size = transitions.reward.shape[0]
    held = min(max(1, round(config.holdout * size)), config.holdout_most, size - 1)
    order = np.random.default_rng(seed).permutation(size).astype(np.int32)
    device = jax.tree.map(jnp.asarray, transitions)
    return DynamicsData(device, jnp.asarray(order[held:]), jnp.asarray(order[:held]), fit_scales(device))


def informative(transitions: Transition, config: DynamicsConfig) -> np.ndarray:
    """Which of M transitions [M] tell where they lead.

    Raises InputError where these are fewer than two, one to train on and one held out, or where a classifier has no end to
    learn from.
    """
    ends = np.asarray(transitions.discount) == 0
    moved = (np.asarray(transitions.next_obs) != np.asarray(transitions.obs)).any(-1)
    check(
        config.termination != "learned" or not ends.any() or bool((ends & moved).any()), "dynamics.termination",
        config.termination, "a known rule", "No transition that ends an episode has its next observation in this dataset.",
    )  # fmt: skip
    found = moved | ~ends
    check(
        int(found.sum()) > 1, "transitions that tell where they lead", int(found.sum()),
        "at least 2, one that the world model is trained on and one held out",
    )  # fmt: skip
    return found


@struct.dataclass
class PartState:
    """State of one part: parameters with a leading axis of its members [E], the best seen, and what early stopping needs."""

    params: PyTree
    optimiser: PyTree
    best: PyTree
    best_loss: Array  # [E]
    stale: Array  # [E] epochs since the last improvement


@struct.dataclass
class DynamicsState:
    """State of the whole program."""

    state: PartState
    reward: PartState
    terminal: PartState | None
    key: Array


def networks(config: DynamicsConfig, obs_dim: int) -> tuple[GaussianRegressor, ScalarRegressor, ScalarRegressor]:
    """Networks of the state, reward and terminal models."""
    scalar = ScalarRegressor(config.reward_hidden)
    return GaussianRegressor(obs_dim, config.hidden), scalar, scalar


def gaussian_loss(network: Any, params: PyTree, x: Array, y: Array) -> tuple[Array, Array]:
    """Training loss [] (negative log-likelihood and the pull on the bounds) and squared error [] of one member on [B]."""
    mean, log_variance = network.apply(params, x)
    square = jnp.square(mean - y)
    bounds = params["params"]["max_log_variance"].sum() - params["params"]["min_log_variance"].sum()
    return (square * jnp.exp(-log_variance) + log_variance).mean() + _BOUND_WEIGHT * bounds, square.mean()


def squared_loss(network: Any, params: PyTree, x: Array, y: Array) -> tuple[Array, Array]:
    """Squared error [], twice."""
    loss = jnp.square(network.apply(params, x) - y).mean()
    return loss, loss


def logistic_loss(network: Any, params: PyTree, x: Array, y: Array) -> tuple[Array, Array]:
    """Cross-entropy [] of a logit, twice."""
    loss = optax.sigmoid_binary_cross_entropy(network.apply(params, x), y).mean()
    return loss, loss


@dataclasses.dataclass(frozen=True)
class _Learner:
    """What distinguishes the three parts. Structure only."""

    part: Part
    network: Any
    members: int
    loss: Callable[[Any, PyTree, Array, Array], tuple[Array, Array]]

    def pair(self, scales: Scales, batch: Transition) -> tuple[Array, Array]:
        """Inputs and targets of a batch."""
        if self.part == "terminal":
            return scales.terminal_inputs(batch.obs, batch.action, batch.next_obs), 1.0 - batch.discount
        target = scales.target_delta(batch) if self.part == "state" else scales.target_reward(batch)
        return scales.inputs(batch.obs, batch.action), target

    def init(self, key: Array, data: DynamicsData, config: DynamicsConfig) -> PartState:
        """Fresh parameters for every member; the best ones are a copy, since states are donated."""
        x, _ = self.pair(data.scales, jax.tree.map(lambda a: a[0], data.transitions))
        params = jax.vmap(lambda k: self.network.init(k, x))(jax.random.split(key, self.members))
        return PartState(
            params=params,
            optimiser=jax.vmap(_optimiser(config).init)(params),
            best=jax.tree.map(jnp.copy, params),
            best_loss=jnp.full(self.members, jnp.inf, jnp.float32),
            stale=jnp.zeros(self.members, jnp.int32),
        )

    def epoch(
        self, key: Array, state: PartState, data: DynamicsData, config: DynamicsConfig, steps: int, skip: bool
    ) -> tuple[PartState, Metrics]:
        """`steps` gradient steps for every member that is still in training, then the held-out losses."""
        step = lambda carry, k: self._step(k, carry, data, config, skip)
        before = (state.params, state.optimiser)
        (trained, optimiser), found = jax.lax.scan(step, before, jax.random.split(key, steps))
        losses = self._held_out(trained, data, config)
        better = losses < state.best_loss * (1.0 - _IMPROVEMENT)
        active = state.stale < config.patience
        take = better & active
        best = jax.tree.map(lambda new, old: _where(take, new, old), trained, state.best)
        state = PartState(
            params=jax.tree.map(lambda new, old: _where(active, new, old), trained, state.params),
            optimiser=jax.tree.map(lambda new, old: _where(active, new, old), optimiser, state.optimiser),
            best=best,
            best_loss=jnp.where(take, losses, state.best_loss),
            stale=jnp.where(take, 0, state.stale + 1),
        )
        counted = jax.tree.map(lambda x: jnp.where(active, x, 0.0), found)  # a network that has stopped is trained in vain
        named = {self._training(name): value for name, value in counted.items()}
        metrics = {**self._metrics(state), **firsts(named)}
        return state, {**metrics, SKIPPED: counted[SKIPPED].mean(0).max()} if skip else metrics

    def rest(self, state: PartState, steps: int, skip: bool) -> tuple[PartState, Metrics]:
        """An epoch in which nothing is left to train."""
        none = {FIRST + self._training(name): jnp.asarray(steps, jnp.int32) for name in ("loss", "gradient_norm")}
        metrics = {**self._metrics(state), **none}
        return state, {**metrics, SKIPPED: jnp.zeros((), jnp.float32)} if skip else metrics

    def _training(self, name: str) -> str:
        """The name of a metric of gradient steps, apart from the held-out loss."""
        return f"{self.part}_training_{name}"

    def _metrics(self, state: PartState) -> Metrics:
        return {f"{self.part}_loss": state.best_loss.mean(), f"{self.part}_stale": state.stale.min()}

    def _step(
        self, key: Array, carry: tuple[PyTree, PyTree], data: DynamicsData, config: DynamicsConfig, skip: bool
    ) -> tuple[tuple[PyTree, PyTree], Metrics]:
        """One gradient step of every member, and their losses and gradient norms [E]."""

        def one(carry: tuple[PyTree, PyTree], key: Array) -> tuple[tuple[PyTree, PyTree], Metrics]:
            params, optimiser = carry
            drawn = data.train[jax.random.randint(key, (config.batch_size,), 0, data.train.shape[0])]
            x, y = self.pair(data.scales, jax.tree.map(lambda a: a[drawn], data.transitions))
            loss, grads = jax.value_and_grad(lambda p: self.loss(self.network, p, x, y)[0])(params)
            updates, optimiser = _optimiser(config).update(grads, optimiser, params)
            return (optax.apply_updates(params, updates), optimiser), {"loss": loss, "gradient_norm": optax.global_norm(grads)}

        return jax.vmap(skipping(one) if skip else one)(carry, jax.random.split(key, self.members))

    def _held_out(self, params: PyTree, data: DynamicsData, config: DynamicsConfig) -> Array:
        x, y = self.pair(data.scales, jax.tree.map(lambda a: a[data.held_out], data.transitions))
        return jax.vmap(lambda p: self.loss(self.network, p, x, y)[1])(params)


def _where(keep: Array, new: Array, old: Array) -> Array:
    return jnp.where(keep.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def _optimiser(config: DynamicsConfig) -> optax.GradientTransformation:
    """Adam on the loss plus an L2 penalty of the weights (PETS), not of biases and bounds."""
    kernels = lambda params: jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
    return optax.chain(optax.add_decayed_weights(config.weight_decay, kernels), optax.adam(config.lr))


def _learners(config: DynamicsConfig, obs_dim: int, learned_terminal: bool) -> list[_Learner]:
    state, reward, terminal = networks(config, obs_dim)
    found = [
        _Learner("state", state, config.members, gaussian_loss),
        _Learner("reward", reward, 1, squared_loss),
    ]
    return [*found, _Learner("terminal", terminal, 1, logistic_loss)] if learned_terminal else found


def steps_per_epoch(config: DynamicsConfig, size: int) -> int:
    """Gradient steps per epoch: as set, or one pass over `size` training transitions."""
    return config.steps_per_epoch or -(-size // config.batch_size)


def dynamics_program(
    data: DynamicsData, config: DynamicsConfig, terminates: Terminates | None = None, *, skip: bool = False
) -> Program[DynamicsState]:
    """World-model training, one epoch of all parts per chunk. Data: the DynamicsData.

    Without a terminal rule `terminates` a classifier is trained as well. Parts that have stopped cost nothing.
    `skip`: steps whose loss or gradient is not finite change nothing and are counted (`health.skipping`).
    """
    learners = _learners(config, data.transitions.obs.shape[-1], terminates is None)
    steps = steps_per_epoch(config, data.train.shape[0])

    def init(key: Array, data: DynamicsData) -> DynamicsState:
        key, *keys = jax.random.split(key, 1 + len(learners))
        parts = {each.part: each.init(k, data, config) for each, k in zip(learners, keys, strict=True)}
        return DynamicsState(**{"terminal": None, **parts}, key=key)  # type: ignore[arg-type]

    def chunk(state: DynamicsState, data: DynamicsData, index: Array) -> tuple[DynamicsState, Metrics]:
        key, *keys = jax.random.split(state.key, 1 + len(learners))
        metrics, skipped = dict[str, Array](), jnp.zeros((), jnp.float32)
        for each, part_key in zip(learners, keys, strict=True):
            part = getattr(state, each.part)
            part, found = jax.lax.cond(
                (part.stale < config.patience).any(),
                lambda s, k=part_key, each=each: each.epoch(k, s, data, config, steps, skip),
                lambda s, each=each: each.rest(s, steps, skip),
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


def _quantities(state: DynamicsState) -> dict[str, PyTree]:
    parts = {"state": state.state, "reward": state.reward, "terminal": state.terminal}
    return {"parameter": {name: part.params for name, part in parts.items() if part is not None}}


def trained_dynamics(
    state: DynamicsState, data: DynamicsData, config: DynamicsConfig, terminates: Terminates | None = None
) -> WorldModel:
    """The world model of the best parameters; the `elites` members with the least held-out error are kept."""
    order = jnp.argsort(state.state.best_loss)[: config.elites]
    state_network, reward_network, terminal_network = networks(config, data.transitions.obs.shape[-1])
    first = lambda part: jax.tree.map(lambda p: p[0], part.best)
    return WorldModel(
        elites=jax.tree.map(lambda p: p[order], state.state.best),
        reward_params=first(state.reward),
        terminal_params=None if state.terminal is None else first(state.terminal),
        scales=data.scales,
        state_network=state_network,
        reward_network=reward_network,
        terminal_network=terminal_network,
        terminates=terminates,
    )


def train_dynamics(
    key: Array, data: DynamicsData, *, config: DynamicsConfig = DynamicsConfig(), terminates: Terminates | None = None
) -> tuple[WorldModel, Metrics]:
    """Train a world model from scratch: pure, so that it can be jitted.

    `terminates` maps next_obs [O] to whether the episode ends (`dynamics.termination`); None: a classifier is learned.
    Returns the model and metrics per epoch [epochs]: state_loss (mean squared error of the standardised change over members,
    held out), reward_loss, terminal_loss, and for each the least number of epochs without improvement (`..._stale`).
    """
    state, metrics = fit(key, dynamics_program(data, config, terminates), data)
    return trained_dynamics(state, data, config, terminates), metrics
