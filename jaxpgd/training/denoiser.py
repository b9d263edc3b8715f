"""Training a trajectory denoiser: EDM loss on dataset windows, Muon or Adam with warm-up and cosine decay, averaged weights."""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from jaxpgd.diffusion.conditioning import Condition
from jaxpgd.diffusion.edm import EDMDenoise, edm_loss
from jaxpgd.diffusion.padding import window_ends
from jaxpgd.errors import check
from jaxpgd.networks.temporal_unet import TemporalUNet
from jaxpgd.options import as_arrays, check_ranges, nonnegative, option, options, positive, share
from jaxpgd.parallel import DATA, SEEDS, shard
from jaxpgd.synthesis.diffusion import TrajectoryDenoiser
from jaxpgd.training.health import firsts, skipping
from jaxpgd.training.optimisers import muon_beside_adam, power_average_decay
from jaxpgd.training.program import Program, fit, mean_metrics
from jaxpgd.training.windows import Windows
from jaxpgd.types import Metrics, PyTree


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
    optimiser: Literal["adam", "muon"] = option(
        "muon", "Muon for matrices of the U-Net's blocks and Adam for the rest, or Adam"
    )
    muon_levels: int = positive(
        2,
        "U-Net levels whose matrices Muon steps (of the next those with a side no longer); each costs four times the last",
    )
    peak_lr: float = positive(4e-3, "learning rate at the end of the warm-up", low=1e-12, high=1.0)
    warmup_fraction: float = share(
        0.1, "share of all steps in which the learning rate rises to peak_lr; then it decays by a cosine"
    )
    initial_lr_fraction: float = share(0.1, "learning rate at step 0 as a share of peak_lr")
    ema_width: float = share(
        0.05,
        "sampling uses averaged weights: the standard deviation of the average over time, as a share of the steps so far; "
        "0: constant decay `ema`",
        high=0.28,
    )
    ema: float = share(0.999, "decay of the averaged weights where ema_width is 0; 0: the last weights")
    ema_every: int = positive(1, "gradient steps between two steps of the averaged weights")
    gradient_clip: float = nonnegative(0.0, "largest global norm of the gradient; 0: no clipping", static=True)
    validate_every: int = positive(500, "gradient steps between validation losses")
    validation_batches: int = positive(8, "batches that a validation loss averages over")


@struct.dataclass
class DenoiserState:
    """State of denoiser training. It holds the number of steps, so that trainings of any length share one compiled chunk."""

    params: PyTree
    ema_params: PyTree
    optimiser: optax.OptState
    hypers: DenoiserConfig  # real numbers as arrays []
    step: Array
    total: Array  # [] int32, the steps of the whole training
    key: Array


def network(config: DenoiserConfig) -> TemporalUNet:
    """The U-Net of a config section."""
    dtype = None if config.compute == "float32" else jnp.bfloat16
    return TemporalUNet(config.features, config.blocks, config.groups, config.norm, config.block, dtype, config.convolution)


def total_steps(config: DenoiserConfig, windows: int) -> int:
    """Gradient steps: `steps`, or `epochs` passes over the windows, in whole chunks of `validate_every`."""
    steps = config.steps if config.epochs == 0 else -(-config.epochs * windows // config.batch_size)
    return -(-steps // config.validate_every) * config.validate_every


def learning_rate(step: Array, config: DenoiserConfig, steps: Array | int) -> Array:
    """Linear warm-up from `initial_lr_fraction * peak_lr` over `warmup_fraction` of the steps, then cosine decay to 0.

    Not `optax.warmup_cosine_decay_schedule`, whose numbers of steps cannot be traced.
    """
    warmup = jnp.maximum(config.warmup_fraction * steps, 1.0)
    rise = config.initial_lr_fraction + (1.0 - config.initial_lr_fraction) * step / warmup
    progress = jnp.clip((step - warmup) / jnp.maximum(steps - warmup, 1.0), 0.0, 1.0)
    return config.peak_lr * jnp.where(step < warmup, rise, 0.5 * (1.0 + jnp.cos(jnp.pi * progress)))


def _optimiser(config: DenoiserConfig) -> optax.GradientTransformation:
    clip = [optax.clip_by_global_norm(config.gradient_clip)] if config.gradient_clip > 0 else []
    side = config.features * 2 ** (config.muon_levels - 1)
    return optax.chain(*clip, optax.scale_by_adam() if config.optimiser == "adam" else muon_beside_adam(side))


def edm_denoise(params: PyTree, config: DenoiserConfig, windows: Windows) -> EDMDenoise:
    """The Denoise of a network with these parameters for tokens of `windows`."""
    return EDMDenoise(params, config.sigma_data, network(config), windows.scaled)


def batch_loss(key: Array, params: PyTree, config: DenoiserConfig, windows: Windows, starts: Array) -> Array:
    """The EDM loss L(D; sigma) [] (EDM, equations 2 and 8) at log sigma ~ Normal(p_mean, p_std).

    Its weight is lambda(sigma) = 1 / c_out(sigma)^2 (EDM, table 1). Mean over `batch_size` windows that are drawn with
    replacement from `starts` [W].
    """
    key_draw, key_loss = jax.random.split(key)
    with jax.named_scope("draw_batch"):
        drawn = starts[jax.random.randint(key_draw, (config.batch_size,), 0, starts.shape[0])]
        drawn, keys = shard((drawn, jax.random.split(key_loss, config.batch_size)), SEEDS, DATA)
    with jax.named_scope("take_batch"):
        x0, padded = jax.vmap(windows.tokens)(drawn), jax.vmap(windows.padding)(drawn)
    chex.assert_shape(x0, (config.batch_size, windows.length, windows.dim))
    denoise, c = edm_denoise(params, config, windows), config

    def loss(key: Array, x0: Array, padded: Condition | None) -> Array:
        return edm_loss(key, denoise, x0, c.p_mean, c.p_std, p_high=c.p_high, known=windows.known, padding=padded)

    return jax.vmap(loss)(keys, x0, padded).mean()


def init_denoiser(key: Array, windows: Windows, config: DenoiserConfig) -> DenoiserState:
    """Fresh state. The averaged weights are a copy: they must not share buffers that a jitted step donates."""
    key, key_init = jax.random.split(key)
    example = jnp.zeros((windows.length, windows.dim), jnp.float32)
    params = network(config).init(key_init, example, jnp.zeros((), jnp.float32))
    return DenoiserState(
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),
        optimiser=_optimiser(config).init(params),
        hypers=as_arrays(config),
        step=jnp.zeros((), jnp.int32),
        total=jnp.asarray(total_steps(config, windows.train.shape[0]), jnp.int32),
        key=key,
    )


def train_step(state: DenoiserState, windows: Windows) -> tuple[DenoiserState, Metrics]:
    """One of the `state.total` gradient steps, on a batch drawn with the state's key, and the step of the averaged weights."""
    key, key_loss = jax.random.split(state.key)
    config = state.hypers
    loss, gradient = jax.value_and_grad(batch_loss, argnums=1)(key_loss, state.params, config, windows, windows.train)
    lr = learning_rate(state.step, config, state.total)
    with jax.named_scope("optimiser"):
        updates, optimiser = _optimiser(config).update(gradient, state.optimiser, state.params)
        params = jax.tree.map(lambda p, u: p - lr * u, state.params, updates)
    with jax.named_scope("gradient_norm"):
        norm = optax.global_norm(gradient)
    metrics = {"loss": loss, "learning_rate": lr, "gradient_norm": norm}
    if config.gradient_clip > 0:
        metrics["clipped_gradients"] = (norm > config.gradient_clip).astype(jnp.float32)
    new = DenoiserState(params, _averaged(state, params), optimiser, config, state.step + 1, state.total, key)
    return new, metrics


@jax.named_scope("averaged_weights")
def _averaged(state: DenoiserState, params: PyTree) -> PyTree:
    """The averaged weights after the step to `params`; they are read and written every `ema_every` steps only."""
    config, every = state.hypers, state.hypers.ema_every
    power = power_average_decay((state.step + 1) // every, config.ema_width)
    decay = jnp.where(config.ema_width > 0, power, config.ema)
    # not optax.incremental_update: it rounds otherwise
    blend = lambda average: jax.tree.map(lambda a, b: decay * a + (1.0 - decay) * b, average, params)
    if every == 1:
        return blend(state.ema_params)
    return jax.lax.cond((state.step + 1) % every == 0, blend, lambda average: average, state.ema_params)


def validation_loss(state: DenoiserState, windows: Windows) -> Array:
    """EDM loss [] of the averaged weights on held-out windows, with the same noise every time."""
    keys = jax.random.split(jax.random.key(0), state.hypers.validation_batches)
    loss = lambda key: batch_loss(key, state.ema_params, state.hypers, windows, windows.validation)
    losses: Array = jax.lax.map(loss, keys)
    return losses.mean()


def denoiser_program(windows: Windows, config: DenoiserConfig, *, skip: bool = False) -> Program[DenoiserState]:
    """Denoiser training in chunks of `validate_every` steps, each followed by a validation loss. Data: the Windows.

    `skip`: steps whose loss or gradient is not finite change nothing but the key, and are counted (`health.skipping`).
    """
    steps = total_steps(config, windows.train.shape[0])

    def chunk(state: DenoiserState, data: Windows, index: Array) -> tuple[DenoiserState, Metrics]:
        def step(state: DenoiserState, _: None) -> tuple[DenoiserState, Metrics]:
            return train_step(state, data)

        def guarded(state: DenoiserState, x: None) -> tuple[DenoiserState, Metrics]:
            new, metrics = skipping(step)(state, x)
            return new.replace(key=jax.random.split(state.key)[0], step=state.step + 1), metrics

        state, metrics = jax.lax.scan(guarded if skip else step, state, None, length=config.validate_every)
        last = {"learning_rate": metrics["learning_rate"][-1], "validation_loss": validation_loss(state, data)}
        return state, {**mean_metrics(metrics), **last, **firsts(metrics)}

    return Program(
        init=lambda key, data: init_denoiser(key, data, config),
        chunk=chunk,
        chunks=steps // config.validate_every,
        steps_per_chunk=config.validate_every,
        quantities=lambda state: {"parameter": state.params, "average": state.ema_params, "optimiser": state.optimiser},
    )


def trained_denoiser(state: DenoiserState, windows: Windows) -> TrajectoryDenoiser:
    """The denoiser with the averaged weights, and the distribution of window lengths where windows are padded."""
    found = windows.ends(windows.train)
    ends = None if found is None else window_ends(found, windows.length)
    return TrajectoryDenoiser(edm_denoise(state.ema_params, state.hypers, windows), windows.codec, windows.length, ends)


def train_denoiser(
    key: Array, windows: Windows, config: DenoiserConfig = DenoiserConfig()
) -> tuple[TrajectoryDenoiser, Metrics]:
    """Train a denoiser from scratch: pure, so that it can be jitted, and vmapped over keys and the real numbers of `config`.

    Returns the denoiser (averaged weights) and metrics per chunk [chunks]: loss, validation_loss, learning_rate, gradient_norm,
    and clipped_gradients (share of the steps) where gradients are clipped. Raises InputError.
    """
    check_alone(config)
    state, metrics = fit(key, denoiser_program(windows, config), windows)
    return trained_denoiser(state, windows), metrics


def check_alone(config: DenoiserConfig) -> None:
    """Check settings that no file and no command line shares with other choices: each has an effect. Raises InputError."""
    check_denoiser(config)
    default = DenoiserConfig()

    def counts(name: str, where: bool, text: str) -> None:
        value, own = getattr(config, name), getattr(default, name)
        check(where or value == own, f"denoiser.{name}", value, f"its default {own}, as it counts only where {text}")

    counts("steps", config.epochs == 0, "denoiser.epochs is 0")
    counts("muon_levels", config.optimiser == "muon", "denoiser.optimiser is 'muon'")
    if not isinstance(config.ema, Array) and not isinstance(config.ema_width, Array):  # which may be traced
        counts("ema", config.ema_width == 0, "denoiser.ema_width is 0")


def check_denoiser(d: DenoiserConfig) -> None:
    """Check the settings that a denoiser is trained with. Raises InputError."""
    check_ranges(d, "denoiser.")
    check(d.steps > 0 or d.epochs > 0, "denoiser.steps", d.steps, "more than 0, or denoiser.epochs > 0")
    check(d.epochs > 0 or d.steps % d.validate_every == 0, "denoiser.steps", d.steps,
          f"a multiple of denoiser.validate_every = {d.validate_every}")  # fmt: skip
    check(d.features % d.groups == 0, "denoiser.groups", d.groups, f"a divisor of denoiser.features = {d.features}")
