"""Training DyDiff's denoiser of states: as any denoiser, and what it is conditioned on is kept with its weights."""

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.diffusion.conditioning import Conditions
from jaxpgd.synthesis.dydiff import StateDenoiser
from jaxpgd.synthesis.given import GivenAnchor, GivenInnovations
from jaxpgd.training.denoiser import DenoiserConfig, DenoiserState, check_alone, denoiser_program, edm_denoise
from jaxpgd.training.innovation_windows import InnovationWindows
from jaxpgd.training.program import Program, fit
from jaxpgd.training.windows import Windows, state_windows
from jaxpgd.types import Metrics


@struct.dataclass
class GivenState:
    """State of the training of a denoiser that is given innovations: with the behaviour, ensemble and scales of its tokens."""

    denoiser: DenoiserState
    given: GivenInnovations | GivenAnchor


StateDenoiserState = DenoiserState | GivenState


def state_denoiser_program(
    windows: Windows, config: DenoiserConfig, *, skip: bool = False
) -> Program[DenoiserState] | Program[GivenState]:
    """`denoiser_program` on `state_windows`; where they have innovations, a checkpoint holds what they are made with."""
    plain = denoiser_program(windows, config, skip=skip)
    if not isinstance(windows, InnovationWindows):
        return plain

    def init(key: Array, data: InnovationWindows) -> GivenState:
        assert data.given is not None
        return GivenState(plain.init(key, data), jax.tree.map(jnp.copy, data.given))  # a state's buffers are donated

    def chunk(state: GivenState, data: InnovationWindows, index: Array) -> tuple[GivenState, Metrics]:
        denoiser, metrics = plain.chunk(state.denoiser, data, index)
        return GivenState(denoiser, state.given), metrics

    return Program(
        init=init,  # type: ignore[arg-type]
        chunk=chunk,  # type: ignore[arg-type]
        chunks=plain.chunks,
        steps_per_chunk=plain.steps_per_chunk,
        quantities=lambda state: plain.quantities(state.denoiser),
    )


def trained_state_denoiser(state: StateDenoiserState, windows: Windows, conditions: Conditions) -> StateDenoiser:
    """The state denoiser with the averaged weights, trained on `windows` = `state_windows(...)` with these `conditions`."""
    own, given = (state.denoiser, state.given) if isinstance(state, GivenState) else (state, None)
    denoise = edm_denoise(own.ema_params, own.hypers, windows)
    return StateDenoiser(denoise, windows.codec, windows.length, conditions, given)


def train_state_denoiser(
    key: Array,
    windows: Windows,
    config: DenoiserConfig = DenoiserConfig(),
    *,
    conditions: Conditions = "clean",
    scaled: bool = False,
) -> tuple[StateDenoiser, Metrics]:
    """As `train_denoiser`, for states given the first state and all actions (DyDiff).

    With `innovation_windows` they are given innovations instead, or innovations and the anchor.
    """
    check_alone(config)
    chosen = state_windows(windows, conditions, scaled=scaled)
    state, metrics = fit(key, state_denoiser_program(chosen, config), chosen)  # type: ignore[misc]
    return trained_state_denoiser(state, chosen, conditions), metrics
