"""Padding of windows that are longer than their episode: the denoiser knows it, and it has no weight in the loss.

A window of T steps over a shorter episode has valid steps and, after them, padding. The denoiser sees padding as it sees
conditions (`diffusion.conditioning`): without noise, in training and in sampling. Padding shows where the episode ended and
how. Every entry is 0, the centre of normalised tokens, except for the terminal flag: 1 after a terminal, and -1 where the
episode was cut (a timeout, a horizon, the end of the data). So the model learns nothing about what would have followed a cut,
and can tell it from a terminal. The denoiser models valid steps given the end of the window. Ends are drawn with their
frequency among the training windows, so that samples have the distribution of these windows.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.diffusion.conditioning import Condition
from jaxpgd.tokens import Ends, TokenCodec

_AFTER_TERMINAL, _AFTER_CUT = 1.0, -1.0  # terminal flag of padding, before it is normalised


def padding(codec: TokenCodec, ends: Ends, length: int, entries: int = 0) -> Condition:
    """The padding of a window [T = `length`, D] that ends at `ends`, as a condition on the steps after the end alone.

    `entries`: the number of entries of tokens that lack the last ones, such as a state denoiser's; 0: all.
    """
    flag = (jnp.where(ends.terminal, _AFTER_TERMINAL, _AFTER_CUT) - codec.mean[codec.done]) / codec.std[codec.done]
    value = jnp.zeros((length, codec.token_dim), codec.mean.dtype).at[:, codec.done].set(flag)[:, : entries or codec.token_dim]
    return Condition(value, jnp.broadcast_to(~ends.valid(length)[:, None], value.shape))


@struct.dataclass
class WindowEnds:
    """Shares [T, 2] of the training windows of T steps by their number of valid steps and by whether they end in a terminal."""

    share: Array  # [T, 2]; valid steps 1 ... T, without and with a terminal at the last one

    def draw(self, key: Array, count: int, length: int) -> Ends:
        """`count` ends of trajectories of `length` steps. A window without padding ends with the trajectory; others end where
        they did, or with the trajectory if it is shorter."""
        trained = self.share.shape[0]
        drawn = jax.random.categorical(key, jnp.log(self.share).reshape(-1), shape=(count,))
        steps, terminal = drawn // 2 + 1, drawn % 2 == 1
        steps = jnp.where(steps == trained, length, jnp.minimum(steps, length))
        return Ends(steps=steps.astype(jnp.int32), terminal=terminal)


def window_ends(ends: Ends, length: int) -> WindowEnds:
    """The shares of the ends [W] of windows of `length` steps."""
    counts = jnp.zeros((length, 2), jnp.int32).at[ends.steps - 1, ends.terminal.astype(jnp.int32)].add(1)
    return WindowEnds(counts.astype(jnp.float32) / ends.steps.shape[0])
