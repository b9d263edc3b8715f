"""The windows that a denoiser trains on: chosen, split into training and validation, and turned into tokens."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from jaxpgd.dataset import Dataset
from jaxpgd.diffusion.conditioning import Condition, Conditions
from jaxpgd.diffusion.padding import padding
from jaxpgd.synthesis.given import known_entries
from jaxpgd.tokens import Ends, TokenCodec, fit_codec
from jaxpgd.types import Trajectory, Transition
from jaxpgd.windows import DataConfig, choose_windows, gather_padded, gather_window, window_lengths


@struct.dataclass
class Windows:
    """The training data of a denoiser: transitions [M], the starts of training and validation windows, the token codec.

    The denoiser models the first `entries` entries of a token (0: all of them). It sees the entries `known` [T, entries]
    without noise, multiplied by the input scaling of its network if `scaled`. Distances and errors are measured in tokens of
    the codec `standard`, of unit variance (None: `codec`). Where windows are padded (`diffusion.padding`), `left` [M] is the
    number of steps from each transition to the end of its episode.
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
        """Number of token entries that the denoiser models."""
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
        """The condition that replaces padding in the window at `start` []; None where no window is padded."""
        ends = self.ends(start)
        return None if ends is None else padding(self.codec, ends, self.length, self.dim)

    def of_states(self, conditions: Conditions, scaled: bool) -> "Windows":
        """As `state_windows`."""
        known = None if conditions == "noised" else known_entries(self.codec, self.length)
        return dataclasses.replace(self, known=known, entries=self.codec.obs_dim + self.codec.action_dim, scaled=scaled)


def prepare_windows(dataset: Dataset, config: DataConfig, *, seed: int = 0) -> Windows:
    """Choose windows, hold some episodes out for validation, and fit the codec to the training windows, on the host.

    If the held-out episodes have no window, validation uses the training windows. Raises InputError where no episode is as
    long as the window.
    """
    train, validation, _ = choose_windows(dataset, config, seed)
    validation = validation if len(validation) else train
    transitions = dataset.transitions()
    steps = window_lengths(dataset, np.concatenate([train, validation]), config.window)
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
    """The same windows for a denoiser of states given actions (DyDiff, arXiv 2405.19189): [obs, action] entries.

    It sees its conditions (first state, all actions) without noise in training, unless `conditions` is "noised": then it
    denoises every entry. `scaled`: conditions are multiplied by the input scaling of the network. `innovation_windows` become
    those of a denoiser of states given innovations.
    """
    return windows.of_states(conditions, scaled)
