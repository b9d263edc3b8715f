"""Training a trajectory denoiser: EDM loss on dataset windows, Adam with warm-up and cosine decay, averaged weights."""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import Array

from jaxpgd.dataset import Dataset
from jaxpgd.diffusion.conditioning import Condition, Conditions
from jaxpgd.diffusion.edm import EDMDenoise, edm_loss
from jaxpgd.diffusion.padding import padding, window_ends
from jaxpgd.errors import check
from jaxpgd.networks.temporal_unet import TemporalUNet
from jaxpgd.options import check_ranges, nonnegative, option, options, positive, share
from jaxpgd.parallel import DATA, SEEDS, shard
from jaxpgd.synthesis.diffusion import TrajectoryDenoiser
from jaxpgd.synthesis.dydiff import StateDenoiser, known_entries
from jaxpgd.tokens import Ends, TokenCodec, fit_codec
from jaxpgd.training.health import firsts, skipping
from jaxpgd.training.program import Program, fit, mean_metrics
from jaxpgd.types import Metrics, PyTree, Trajectory, Transition
from jaxpgd.windows import DataConfig, choose_windows, gather_padded, gather_window, own_steps


@options
class DenoiserConfig:
    """Network, EDM training distribution and optimiser (EDM table 1; PGD table of hyperparameters)."""

    features: int = positive(32, "channels of the first U-Net level; each further level has twice as many")
    blocks: int = positive(3, "levels of the U-Net, each at half the length of the one above")
    groups: int = positive(8, "groups of the group normalisation")
    norm: Literal["sequence", "step"] = option(
        "sequence", "group normalisation over the entire sequence, or over each time step alone, as PGD's code"
    )
    block: Literal["plain", "residual"] = option("residual", "residual blocks, or plain ones: the published network")
    compute: Literal["float32", "bfloat16"] = option(
        "float32", "precision of products and activations; parameters and statistics stay float32"
    )
    convolution: Literal["gathered", "primitive"] = option(
        "gathered", "how convolutions are computed, with the same result; gathered is faster on CPUs"
    )
    sigma_data: float = positive(
        1.0,
        "sigma_data of EDM, the standard deviation of the tokens (1 where they are standardised; EDM: 0.5)",
        low=1e-3,
        high=1e3,
    )
    p_mean: float = option(-1.2, "training noise levels: log sigma ~ Normal(p_mean, p_std^2) (EDM: -1.2)", low=-10.0, high=10.0)
    p_std: float = positive(1.2, "standard deviation of log sigma in training (EDM: 1.2)", high=3.0)
    p_high: float = share(0.0, "share of training noise levels drawn log-uniformly from [1, 80] instead; 0: none")
    steps: int = nonnegative(3000, "gradient steps, if epochs is 0")
    epochs: int = nonnegative(0, "passes over the training windows; 0: train for `steps` gradient steps")
    batch_size: int = positive(64, "training windows per gradient step")
    peak_lr: float = positive(2e-3, "learning rate of Adam at the end of the warm-up", low=1e-12, high=1.0)
    warmup_fraction: float = share(
        0.1, "share of all steps in which the learning rate rises to peak_lr; then it decays by a cosine"
    )
    initial_lr_fraction: float = share(0.1, "learning rate at step 0 as a share of peak_lr")
    ema: float = share(0.999, "decay of the averaged weights, which sampling uses; 0: the last weights")
    ema_every: int = positive(1, "gradient steps between two steps of the averaged weights")
    gradient_clip: float = nonnegative(0.0, "largest global norm of the gradient; 0: no clipping")
    validate_every: int = positive(500, "gradient steps between validation losses")
    validation_batches: int = positive(8, "batches that a validation loss averages over")


@struct.dataclass
class Windows:
    """What a denoiser trains on: transitions [M], the starts of training and validation windows, the token codec.

    `entries` are the leading token entries that it models (0: all of them), `known` [T, entries] those that it sees clean,
    `scaled` if it scales them as its input. `standard` is the codec that distances and errors are measured in, of unit
    variance; None: `codec` itself. Where windows are padded (`diffusion.padding`), `left` [M] are the steps from each
    transition to the end of its episode.
    """

    transitions: Transition  # [M]
    train: Array  # [W] int32
    validation: Array  # [V] int32
    codec: TokenCodec
    length: int = struct.field(pytree_node=False)
    known: Array | None = None
    entries: int = struct.field(pytree_node=False, default=0)
    standard: TokenCodec | None = None
    left: Array | None = None  # [M] int32; None: no window is padded
    scaled: bool = struct.field(pytree_node=False, default=False)

    @property
    def unit(self) -> TokenCodec:
        """The codec of unit variance."""
        return self.codec if self.standard is None else self.standard

    @property
    def dim(self) -> int:
        """Entries per token that are modelled."""
        return self.entries or self.codec.token_dim

    def ends(self, start: Array) -> Ends | None:
        """Where the windows at `start` [...] end; None where none is padded."""
        if self.left is None:
            return None
        steps = jnp.minimum(self.left[start], self.length)
        return Ends(steps=steps, terminal=jnp.asarray(self.transitions.discount)[start + steps - 1] == 0)

    def gather(self, start: Array) -> Trajectory:
        """The window [T] at `start` []."""
        ends = self.ends(start)
        if ends is None:
            return gather_window(self.transitions, start, self.length)
        return gather_padded(self.transitions, start, self.length, ends)

    def tokens(self, start: Array) -> Array:
        """Normalised tokens [T, dim] of the window at `start` []."""
        return self.codec.encode(self.gather(start))[:, : self.dim]

    def padding(self, start: Array) -> Condition | None:
        """What a denoiser sees of the window at `start` [] in place of padding; None where no window is padded."""
        ends = self.ends(start)
        return None if ends is None else padding(self.codec, ends, self.length, self.dim)


def prepare_windows(dataset: Dataset, config: DataConfig, *, seed: int = 0) -> Windows:
    """Choose windows, hold some episodes out, fit the codec to the training windows (host, once).

    Where held-out episodes have no window, validation uses the training windows. Raises InputError where no episode is as long
    as the window.
    """
    train, validation, _ = choose_windows(dataset, config, seed)
    validation = validation if len(validation) else train
    transitions = dataset.transitions()
    steps = own_steps(dataset, np.concatenate([train, validation]), config.window)
    left = np.repeat(dataset.offsets[1:], dataset.lengths()) - np.arange(dataset.size) if steps.min() < config.window else None
    fit = functools.partial(fit_codec, transitions, np.asarray(train), steps[: len(train)], config.done_scale)
    return Windows(
        transitions=transitions,
        train=jnp.asarray(train, jnp.int32),
        validation=jnp.asarray(validation, jnp.int32),
        codec=fit(config.normalisation),
        length=config.window,
        standard=None if config.normalisation == "standard" else fit("standard"),
        left=None if left is None else jnp.asarray(left, jnp.int32),
    )


def state_windows(windows: Windows, conditions: Conditions, *, scaled: bool = False) -> Windows:
    """The same windows for a denoiser of states given actions (DyDiff): [obs, action] entries.

    Conditions (first state, all actions) are seen clean in training, unless `conditions` is "noised": then all is denoised.
    `scaled`: with the network's input scaling.
    """
    codec = windows.codec
    known = None if conditions == "noised" else known_entries(codec, windows.length)
    return dataclasses.replace(windows, known=known, entries=codec.obs_dim + codec.action_dim, scaled=scaled)


@struct.dataclass
class DenoiserHypers:
    """Numeric settings of denoiser training; any may be traced or vmapped. Meanings as in `settings.DenoiserConfig`."""

    peak_lr: Array | float = 2e-3
    warmup_fraction: Array | float = 0.1
    initial_lr_fraction: Array | float = 0.1
    ema: Array | float = 0.999
    p_mean: Array | float = -1.2
    p_std: Array | float = 1.2
    p_high: Array | float = 0.0
    sigma_data: Array | float = 1.0


@struct.dataclass
class DenoiserState:
    """State of denoiser training. The number of steps is in it, so that trainings of any length share one compiled chunk."""

    params: PyTree
    ema_params: PyTree
    optimiser: optax.OptState
    hypers: DenoiserHypers
    step: Array
    total: Array  # [] int32, the steps of the whole training
    key: Array


def denoiser_hypers(config: DenoiserConfig) -> DenoiserHypers:
    """The numeric settings of a config section."""
    names = [f.name for f in dataclasses.fields(DenoiserHypers)]
    return DenoiserHypers(**{name: jnp.asarray(getattr(config, name), jnp.float32) for name in names})


def network(config: DenoiserConfig) -> TemporalUNet:
    """The U-Net of a config section."""
    dtype = None if config.compute == "float32" else jnp.bfloat16
    return TemporalUNet(config.features, config.blocks, config.groups, config.norm, config.block, dtype, config.convolution)


def total_steps(config: DenoiserConfig, windows: int) -> int:
    """Gradient steps: `steps`, or `epochs` passes over the windows, in whole chunks of `validate_every`."""
    steps = config.steps if config.epochs == 0 else -(-config.epochs * windows // config.batch_size)
    return -(-steps // config.validate_every) * config.validate_every


def learning_rate(step: Array, hypers: DenoiserHypers, steps: Array | int) -> Array:
    """Linear warm-up from `initial_lr_fraction * peak_lr` over `warmup_fraction` of the steps, then cosine decay to 0."""
    warmup = jnp.maximum(hypers.warmup_fraction * steps, 1.0)
    rise = hypers.initial_lr_fraction + (1.0 - hypers.initial_lr_fraction) * step / warmup
    progress = jnp.clip((step - warmup) / jnp.maximum(steps - warmup, 1.0), 0.0, 1.0)
    return hypers.peak_lr * jnp.where(step < warmup, rise, 0.5 * (1.0 + jnp.cos(jnp.pi * progress)))


def _optimiser(config: DenoiserConfig) -> optax.GradientTransformation:
    clip = [optax.clip_by_global_norm(config.gradient_clip)] if config.gradient_clip > 0 else []
    return optax.chain(*clip, optax.scale_by_adam())


def _denoise(params: PyTree, hypers: DenoiserHypers, config: DenoiserConfig, scaled: bool = False) -> EDMDenoise:
    return EDMDenoise(params, hypers.sigma_data, network(config), scaled)


def batch_loss(
    key: Array, params: PyTree, hypers: DenoiserHypers, windows: Windows, starts: Array, batch: int, config: DenoiserConfig
) -> Array:
    """Mean EDM loss [] of `batch` windows drawn with replacement from `starts` [W]."""
    key_draw, key_loss = jax.random.split(key)
    drawn = starts[jax.random.randint(key_draw, (batch,), 0, starts.shape[0])]
    drawn, keys = shard((drawn, jax.random.split(key_loss, batch)), SEEDS, DATA)
    x0, padded = jax.vmap(windows.tokens)(drawn), jax.vmap(windows.padding)(drawn)
    denoise, h = _denoise(params, hypers, config, windows.scaled), hypers

    def loss(key: Array, x0: Array, padded: Condition | None) -> Array:
        return edm_loss(key, denoise, x0, h.p_mean, h.p_std, p_high=h.p_high, known=windows.known, padding=padded)

    return jax.vmap(loss)(keys, x0, padded).mean()


def init_denoiser(key: Array, windows: Windows, hypers: DenoiserHypers, config: DenoiserConfig) -> DenoiserState:
    """Fresh state. The averaged weights are a copy: they must not share buffers that a jitted step donates."""
    key, key_init = jax.random.split(key)
    example = jnp.zeros((windows.length, windows.dim), jnp.float32)
    params = network(config).init(key_init, example, jnp.zeros((), jnp.float32))
    return DenoiserState(
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),
        optimiser=_optimiser(config).init(params),
        hypers=hypers,
        step=jnp.zeros((), jnp.int32),
        total=jnp.asarray(total_steps(config, windows.train.shape[0]), jnp.int32),
        key=key,
    )


def train_step(state: DenoiserState, windows: Windows, config: DenoiserConfig) -> tuple[DenoiserState, Metrics]:
    """One gradient step of `state.total` in all, on a batch drawn with the state's key; averaged weights included."""
    key, key_loss = jax.random.split(state.key)
    loss, gradient = jax.value_and_grad(batch_loss, argnums=1)(
        key_loss, state.params, state.hypers, windows, windows.train, config.batch_size, config
    )
    updates, optimiser = _optimiser(config).update(gradient, state.optimiser, state.params)
    lr = learning_rate(state.step, state.hypers, state.total)
    params = jax.tree.map(lambda p, u: p - lr * u, state.params, updates)
    ema = _averaged(state, params, config.ema_every)
    norm = optax.global_norm(gradient)
    metrics = {"loss": loss, "learning_rate": lr, "gradient_norm": norm}
    if config.gradient_clip > 0:
        metrics["clipped_gradients"] = (norm > config.gradient_clip).astype(jnp.float32)
    return state.replace(params=params, ema_params=ema, optimiser=optimiser, step=state.step + 1, key=key), metrics  # type: ignore[attr-defined]


def _averaged(state: DenoiserState, params: PyTree, every: int) -> PyTree:
    """The averaged weights after a step that made `params`, read and written every so many steps only."""
    decay = state.hypers.ema
    blend = lambda average: jax.tree.map(lambda a, b: decay * a + (1.0 - decay) * b, average, params)
    if every == 1:
        return blend(state.ema_params)
    return jax.lax.cond((state.step + 1) % every == 0, blend, lambda average: average, state.ema_params)


def validation_loss(state: DenoiserState, windows: Windows, config: DenoiserConfig) -> Array:
    """EDM loss [] of the averaged weights on held-out windows, at the same noise every time; no gradients."""
    keys = jax.random.split(jax.random.key(0), config.validation_batches)

    def one(key: Array) -> Array:
        return batch_loss(key, state.ema_params, state.hypers, windows, windows.validation, config.batch_size, config)

    return jax.lax.map(one, keys).mean()


def denoiser_program(
    windows: Windows, config: DenoiserConfig, hypers: DenoiserHypers | None = None, *, skip: bool = False
) -> Program[DenoiserState]:
    """Denoiser training in chunks of `validate_every` steps, each followed by a validation loss. Data: the Windows.

    `skip`: steps whose loss or gradient is not finite change nothing but the key, and are counted (`health.skipping`).
    """
    steps = total_steps(config, windows.train.shape[0])
    numbers = denoiser_hypers(config) if hypers is None else hypers

    def chunk(state: DenoiserState, data: Windows, index: Array) -> tuple[DenoiserState, Metrics]:
        def step(state: DenoiserState, _: None) -> tuple[DenoiserState, Metrics]:
            return train_step(state, data, config)

        def guarded(state: DenoiserState, x: None) -> tuple[DenoiserState, Metrics]:
            new, metrics = skipping(step)(state, x)
            return new.replace(key=jax.random.split(state.key)[0], step=state.step + 1), metrics

        state, metrics = jax.lax.scan(guarded if skip else step, state, None, length=config.validate_every)
        last = {"learning_rate": metrics["learning_rate"][-1], "validation_loss": validation_loss(state, data, config)}
        return state, {**mean_metrics(metrics), **last, **firsts(metrics)}

    return Program(
        init=lambda key, data: init_denoiser(key, data, numbers, config),
        chunk=chunk,
        chunks=steps // config.validate_every,
        steps_per_chunk=config.validate_every,
        quantities=lambda state: {"parameter": state.params, "average": state.ema_params, "optimiser": state.optimiser},
    )


def trained_denoiser(state: DenoiserState, windows: Windows, config: DenoiserConfig) -> TrajectoryDenoiser:
    """The denoiser of the averaged weights, with the ends of its training windows where some are padded."""
    found = windows.ends(windows.train)
    ends = None if found is None else window_ends(found, windows.length)
    return TrajectoryDenoiser(_denoise(state.ema_params, state.hypers, config), windows.codec, windows.length, ends)


def trained_state_denoiser(
    state: DenoiserState, windows: Windows, config: DenoiserConfig, conditions: Conditions
) -> StateDenoiser:
    """The state denoiser of the averaged weights, trained on `state_windows(windows, conditions)`."""
    denoise = _denoise(state.ema_params, state.hypers, config, windows.scaled)
    return StateDenoiser(denoise, windows.codec, windows.length, conditions)


def train_state_denoiser(
    key: Array,
    windows: Windows,
    hypers: DenoiserHypers | None = None,
    *,
    config: DenoiserConfig = DenoiserConfig(),
    conditions: Conditions = "clean",
    scaled: bool = False,
) -> tuple[StateDenoiser, Metrics]:
    """As `train_denoiser`, for states given the first state and all actions (DyDiff)."""
    chosen = state_windows(windows, conditions, scaled=scaled)
    state, metrics = fit(key, denoiser_program(chosen, config, hypers), chosen)
    return trained_state_denoiser(state, chosen, config, conditions), metrics


def train_denoiser(
    key: Array, windows: Windows, hypers: DenoiserHypers | None = None, *, config: DenoiserConfig = DenoiserConfig()
) -> tuple[TrajectoryDenoiser, Metrics]:
    """Train a denoiser from scratch: pure, so that it can be jitted and vmapped over keys and hypers.

    Returns the denoiser (averaged weights) and metrics per chunk [chunks]: loss, validation_loss, learning_rate, gradient_norm,
    and clipped_gradients (share of the steps) where gradients are clipped. Raises InputError.
    """
    check_denoiser(config)
    state, metrics = fit(key, denoiser_program(windows, config, hypers), windows)
    return trained_denoiser(state, windows, config), metrics


def check_denoiser(d: DenoiserConfig) -> None:
    """Check the settings that a denoiser is trained with. Raises InputError."""
    check_ranges(d, "denoiser.")
    check(d.steps > 0 or d.epochs > 0, "denoiser.steps", d.steps, "more than 0, or denoiser.epochs > 0")
    check(d.epochs > 0 or d.steps % d.validate_every == 0, "denoiser.steps", d.steps,
          f"a multiple of denoiser.validate_every = {d.validate_every}")  # fmt: skip
    check(d.features % d.groups == 0, "denoiser.groups", d.groups, f"a divisor of denoiser.features = {d.features}")
