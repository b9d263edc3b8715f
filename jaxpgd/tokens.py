"""The codec between trajectories and normalised tokens, token = [obs, arctanh(action), reward, done].

PGD (arXiv 2404.06356, appendix) standardises tokens. DyDiff's code scales them to [-1, 1] by the limits of the data instead,
without arctanh.
"""

from typing import Any, Literal

import chex
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from jaxpgd.types import Trajectory, Transition, valid_steps

ACTION_CLIP = 0.999  # arctanh is infinite at 1
_CONSTANT = 1e-6  # a feature whose deviation is below this share of max(1, |mean|) is constant

Normalisation = Literal["standard", "limits"]


@struct.dataclass
class Ends:
    """Where padded trajectories of T steps end: after `steps` (1 to T) steps, in a terminal or a cut. The rest is padding."""

    steps: Array  # [...] int32
    terminal: Array  # [...] bool; ignored where `steps` is T

    def valid(self, length: int) -> Array:
        """Which of `length` = T steps [..., T] are not padding, bool."""
        return jnp.arange(length) < self.steps[..., None]


@struct.dataclass
class TokenCodec:
    """Maps trajectories to tokens [..., T, D], (raw - mean) / std per feature, and back. D = O + A + 2.

    `mean` and `std` are the data's mean and standard deviation, or the centre and half-width of its range.
    """

    mean: Array  # [D]
    std: Array  # [D]
    obs_dim: int = struct.field(pytree_node=False)
    action_dim: int = struct.field(pytree_node=False)
    squashed: bool = struct.field(pytree_node=False, default=True)  # action entries are arctanh(action)
    bounded: bool = struct.field(pytree_node=False, default=False)  # tokens are clipped to [-1, 1] before decoding

    @property
    def token_dim(self) -> int:
        """D."""
        return self.mean.shape[-1]

    @property
    def obs(self) -> slice:
        """Entries of a token that hold the observation."""
        return slice(0, self.obs_dim)

    @property
    def action(self) -> slice:
        """Entries of a token that hold the pre-tanh action."""
        return slice(self.obs_dim, self.obs_dim + self.action_dim)

    @property
    def reward(self) -> int:
        """Entry of a token that holds the reward."""
        return self.obs_dim + self.action_dim

    @property
    def done(self) -> int:
        """Entry of a token that is 1 at a terminal."""
        return self.obs_dim + self.action_dim + 1

    def encode(self, trajectory: Trajectory) -> Array:
        """Tokens [..., T, D] of a trajectory."""
        chex.assert_shape(trajectory.obs, (..., self.obs_dim))
        chex.assert_shape(trajectory.action, (..., self.action_dim))
        raw = pack(trajectory.obs, trajectory.action, trajectory.reward, trajectory.discount, squashed=self.squashed)
        return (raw - self.mean) / self.std

    def encode_steps(self, obs: Array, action: Array) -> Array:
        """The leading entries [..., T, O + A] of the tokens of obs [..., T, O] and action [..., T, A]."""
        chex.assert_shape(obs, (..., self.obs_dim))
        chex.assert_shape(action, (..., self.action_dim))
        entries = slice(0, self.obs_dim + self.action_dim)
        raw = jnp.concatenate([obs, squash_inverse(action) if self.squashed else action], axis=-1)
        return (raw - self.mean[entries]) / self.std[entries]

    def observation(self, tokens: Array) -> Array:
        """Observations [..., T, O] of tokens [..., T, D], or of their leading entries [..., T, O + A] (`encode_steps`)."""
        chex.assert_axis_dimension_gteq(tokens, -1, self.obs_dim)
        return self._within(tokens[..., self.obs]) * self.std[self.obs] + self.mean[self.obs]

    def pre_tanh(self, tokens: Array) -> Array:
        """Pre-tanh actions [..., T, A] of tokens [..., T, D]."""
        chex.assert_shape(tokens, (..., self.token_dim))
        return tokens[..., self.action] * self.std[self.action] + self.mean[self.action]

    def action_of(self, pre_tanh: Array) -> Array:
        """Actions [..., A] of pre-tanh actions. The identity if the codec does not squash."""
        return jnp.tanh(pre_tanh) if self.squashed else pre_tanh

    def decode(self, tokens: Array) -> Trajectory:
        """The trajectory of tokens [..., T, D]. A done entry above 0.5 is a terminal, and the steps after it are masked."""
        chex.assert_shape(tokens, (..., self.token_dim))
        raw = self._within(tokens) * self.std + self.mean
        discount = 1.0 - (raw[..., self.done] > 0.5).astype(raw.dtype)
        return Trajectory(
            obs=raw[..., self.obs],
            action=self.action_of(raw[..., self.action]),
            reward=raw[..., self.reward],
            discount=discount,
            mask=valid_steps(discount),
        )

    def _within(self, tokens: Array) -> Array:
        return jnp.clip(tokens, -1.0, 1.0) if self.bounded else tokens


def pack(obs: Array, action: Array, reward: Array, discount: Array, *, squashed: bool = True) -> Array:
    """Tokens before normalisation, [..., D], of obs [..., O], action [..., A], reward [...] and discount [...].

    [obs, arctanh(clip(action)), reward, 1 - discount], with the action itself unless `squashed`.
    """
    chex.assert_equal_shape([reward, discount])
    chex.assert_equal_shape_prefix([obs, action, reward], reward.ndim)
    entries = squash_inverse(action) if squashed else action
    return jnp.concatenate([obs, entries, reward[..., None], 1.0 - discount[..., None]], axis=-1)


def squash_inverse(action: Array) -> Array:
    """Pre-tanh actions [..., A]. Actions are clipped to +-0.999 first, so that the result is finite at the bounds."""
    return jnp.arctanh(jnp.clip(action, -ACTION_CLIP, ACTION_CLIP))


def saturated(action: Array) -> Array:
    """Which action entries [..., A] lie beyond the clip of `squash_inverse`, bool."""
    return jnp.abs(action) > ACTION_CLIP


def unit_if_constant(mean: Any, std: Any) -> Any:
    """Standard deviations [D], with 1 for features that are constant up to rounding. NumPy or JAX arrays."""
    xp = std.__array_namespace__()
    return xp.where(std < _CONSTANT * xp.maximum(1.0, xp.abs(mean)), 1.0, std)


def ended(trajectory: Trajectory, ends: Ends) -> Trajectory:
    """A trajectory [T] padded after `ends` (of this trajectory, []). Unchanged if it ends at its last step.

    Padding repeats the last observation, with action and reward 0. The last step before it is a terminal if `ends` says so.
    Otherwise it is not valid, like the last step of a window. The result has no `last_obs`.
    """
    chex.assert_rank([trajectory.obs, trajectory.action, trajectory.reward, ends.steps], [2, 2, 1, 0])
    length = trajectory.reward.shape[-1]
    valid, last = ends.valid(length), jnp.arange(length) == ends.steps - 1
    cut = ends.steps < length
    discount = jnp.where(cut & last, jnp.where(ends.terminal, 0.0, 1.0), jnp.where(valid, trajectory.discount, 1.0))
    return Trajectory(
        obs=trajectory.obs[jnp.minimum(jnp.arange(length), ends.steps - 1)],
        action=jnp.where(valid[:, None], trajectory.action, 0.0),
        reward=jnp.where(valid, trajectory.reward, 0.0),
        discount=discount,
        mask=valid_steps(discount) & valid & (~last | (discount == 0)),
    )


def fit_codec(
    transitions: Transition,
    starts: np.ndarray,
    length: int | np.ndarray,
    done_scale: float = 0.0,
    normalisation: Normalisation = "standard",
) -> TokenCodec:
    """The codec of M transitions, for windows at `starts` [W] of `length` steps each (an int, or [W] steps without padding).

    "standard": zero mean and unit variance over the windows, so that a transition counts as often as windows cover it.
    "limits": the smallest and largest value over all transitions map to -1 and 1, actions are not squashed, and decoding stays
    within the limits. Constant features are divided by 1. The done flag is divided by at least `done_scale`: terminals are
    rare, and its own standard deviation would place them so far away that a sampler decides on them at noise levels that
    training hardly visits.
    """
    chex.assert_rank(starts, 1)
    limits = normalisation == "limits"
    raw = pack(transitions.obs, transitions.action, transitions.reward, transitions.discount, squashed=not limits)
    mean, std = (_limits if limits else _moments)(np.asarray(raw, np.float64), starts, length)
    std = unit_if_constant(mean, std)
    std[-1] = max(std[-1], done_scale)
    return TokenCodec(
        mean=jnp.asarray(mean, jnp.float32),
        std=jnp.asarray(std, jnp.float32),
        obs_dim=transitions.obs.shape[-1],
        action_dim=transitions.action.shape[-1],
        squashed=not limits,
        bounded=limits,
    )


def _moments(raw: np.ndarray, starts: np.ndarray, length: int | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [D] of raw tokens [M, D], weighted by the number of windows that cover each."""
    size = len(raw)
    steps = np.bincount(starts, minlength=size + 1) - np.bincount(starts + length, minlength=size + 1)
    weight = np.cumsum(steps)[:size].astype(np.float64)
    weight /= weight.sum()
    mean = weight @ raw
    return mean, np.sqrt(weight @ (raw - mean) ** 2)


def _limits(raw: np.ndarray, starts: np.ndarray, length: int | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre and half-width [D] of the range of raw tokens [M, D]."""
    low, high = raw.min(axis=0), raw.max(axis=0)
    return (low + high) / 2, (high - low) / 2
