"""Windows of episodes that are shorter: steps after their end are known to the denoiser, and weigh nothing.

A window of T steps over an episode of fewer has own steps and, after them, padding. The denoiser sees the padding as it sees
conditions (`constraints`): without noise, the same in training and in sampling. What it shows is where the episode ended and
how: every entry is 0, the middle of normalised tokens, but for the terminal flag, which is 1 after a terminal and -1 where the
episode was cut (a timeout, a horizon, the end of the data). So a cut episode teaches nothing of what would have followed, and a
terminal is told apart from it. The denoiser models own steps given the end; ends are drawn as often as the training windows
have them, which together is the distribution of the windows.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.diffusion.conditioning import Condition
from jaxpgd.tokens import Ends, TokenCodec

_AFTER_TERMINAL, _AFTER_CUT = 1.0, -1.0  # terminal flag of padding, before it is normalised


def padding(codec: TokenCodec, ends: Ends, length: int, entries: int = 0) -> Condition:
    """The padding of a window [T = `length`, D] that ends at `ends`, of which nothing is known where it has no padding.

    `entries`: of tokens without the last ones, such as a state denoiser's, the number that is left.
    """
    flag = (jnp.where(ends.terminal, _AFTER_TERMINAL, _AFTER_CUT) - codec.mean[codec.done]) / codec.std[codec.done]
    value = jnp.zeros((length, codec.token_dim), codec.mean.dtype).at[:, codec.done].set(flag)[:, : entries or codec.token_dim]
    return Condition(value, jnp.broadcast_to(~ends.own(length)[:, None], value.shape))


@struct.dataclass
class WindowEnds:
    """How often training windows of T steps have so many own steps and end in a terminal, as [T, 2] shares."""

    share: Array  # [T, 2]; steps 1 ... T, without and with a terminal at the last own one

    def draw(self, key: Array, count: int, length: int) -> Ends:
        """`count` ends of trajectories of `length` steps: a window without padding ends with the trajectory, others where they
        did, or with it."""
        trained = self.share.shape[0]
        drawn = jax.random.categorical(key, jnp.log(self.share).reshape(-1), shape=(count,))
        steps, terminal = drawn // 2 + 1, drawn % 2 == 1
        steps = jnp.where(steps == trained, length, jnp.minimum(steps, length))
        return Ends(steps=steps.astype(jnp.int32), terminal=terminal)


def window_ends(ends: Ends, length: int) -> WindowEnds:
    """The shares of the ends [W] of windows of `length` steps."""
    counts = jnp.zeros((length, 2), jnp.int32).at[ends.steps - 1, ends.terminal.astype(jnp.int32)].add(1)
    return WindowEnds(counts.astype(jnp.float32) / ends.steps.shape[0])
