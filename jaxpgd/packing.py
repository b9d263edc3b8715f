"""Trajectories as normalised token arrays, by named slices: token = [obs, arctanh(action), reward, done] (PGD, appendix)."""

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from jaxpgd.types import Trajectory, Transition

ACTION_CLIP = 0.999  # arctanh is infinite at 1


@struct.dataclass
class TokenCodec:
    """Maps one Trajectory to tokens [T, D] of zero mean and unit variance per feature, and back. D = O + A + 2."""

    mean: Array  # [D]
    std: Array  # [D]
    obs_dim: int = struct.field(pytree_node=False)
    action_dim: int = struct.field(pytree_node=False)
    squashed: bool = struct.field(pytree_node=False, default=True)  # whether action entries are arctanh of actions

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
        raw = pack(trajectory.obs, trajectory.action, trajectory.reward, trajectory.discount)
        return (raw - self.mean) / self.std

    def encode_steps(self, obs: Array, action: Array) -> Array:
        """The leading entries [..., T, O + A] of tokens: normalised obs [..., T, O] and pre-tanh action [..., T, A]."""
        entries = slice(0, self.obs_dim + self.action_dim)
        raw = jnp.concatenate([obs, squash_inverse(action)], axis=-1)
        return (raw - self.mean[entries]) / self.std[entries]

    def observation(self, tokens: Array) -> Array:
        """Observations [..., T, O] of tokens."""
        return tokens[..., self.obs] * self.std[self.obs] + self.mean[self.obs]

    def pre_tanh(self, tokens: Array) -> Array:
        """Pre-tanh actions [..., T, A] of tokens."""
        return tokens[..., self.action] * self.std[self.action] + self.mean[self.action]

    def action_of(self, pre_tanh: Array) -> Array:
        """Actions [..., A] of pre-tanh actions; the same where the codec does not squash."""
        return jnp.tanh(pre_tanh) if self.squashed else pre_tanh

    def decode(self, tokens: Array) -> Trajectory:
        """Trajectory of tokens [..., T, D]. A done entry above one half is a terminal; what follows it is masked."""
        raw = tokens * self.std + self.mean
        discount = jnp.where(raw[..., self.done] > 0.5, 0.0, 1.0)
        return Trajectory(
            obs=raw[..., self.obs],
            action=self.action_of(raw[..., self.action]),
            reward=raw[..., self.reward],
            discount=discount,
            mask=usable_steps(discount),
        )


def pack(obs: Array, action: Array, reward: Array, discount: Array) -> Array:
    """Raw tokens [..., D] of steps: [obs, arctanh(clip(action)), reward, 1 - discount]."""
    return jnp.concatenate([obs, squash_inverse(action), reward[..., None], 1.0 - discount[..., None]], axis=-1)


def squash_inverse(action: Array) -> Array:
    """Pre-tanh actions [..., A], finite at the bounds."""
    return jnp.arctanh(jnp.clip(action, -ACTION_CLIP, ACTION_CLIP))


def usable_steps(discount: Array) -> Array:
    """Mask [..., T] of usable transitions of trajectories with these discounts (contract of `types.Trajectory`)."""
    alive = jnp.cumprod(discount, axis=-1)
    before = jnp.concatenate([jnp.ones_like(alive[..., :1]), alive[..., :-1]], axis=-1)
    last = jnp.arange(discount.shape[-1]) == discount.shape[-1] - 1
    return (before > 0) & (~last | (discount == 0))


def fit_codec(transitions: Transition, starts: np.ndarray, length: int, done_scale: float = 0.0) -> TokenCodec:
    """Codec whose statistics are those of the windows: each of M transitions counts as often as windows [W] cover it.

    Constant features get a standard deviation of 1. The terminal flag is divided by no less than `done_scale`: terminals are
    rare, and its own standard deviation would put them so many units away that a sampler decides about them at noise levels
    which training hardly visits.
    """
    size = transitions.reward.shape[0]
    steps = np.bincount(starts, minlength=size + 1) - np.bincount(starts + length, minlength=size + 1)
    weight = np.cumsum(steps)[:size].astype(np.float64)
    weight /= weight.sum()
    raw = np.asarray(pack(transitions.obs, transitions.action, transitions.reward, transitions.discount), np.float64)
    mean = weight @ raw
    std = np.sqrt(weight @ (raw - mean) ** 2)
    std = np.where(std < 1e-6 * np.maximum(1.0, np.abs(mean)), 1.0, std)
    std[-1] = max(std[-1], done_scale)
    return TokenCodec(
        mean=jnp.asarray(mean, jnp.float32),
        std=jnp.asarray(std, jnp.float32),
        obs_dim=transitions.obs.shape[-1],
        action_dim=transitions.action.shape[-1],
    )
