"""The in-memory form of every dataset: flat arrays of transitions, and where they come from."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from jaxpgd.types import Trajectory, Transition


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """Description of a dataset. Hashable, so that it can be a static argument of compiled functions."""

    name: str
    source: str  # "minari", "ogbench", "d4rl", "npz" or "builtin"
    action_low: tuple[float, ...]  # bounds of the environment's actions, per dimension
    action_high: tuple[float, ...]
    env_id: str | None = None  # Gymnasium id, or the name of a built-in environment
    env_spec: str | None = None  # Gymnasium EnvSpec as JSON, where stored
    obs_keys: tuple[str, ...] = ()  # paths of the entries of dict observations, in the order of concatenation
    obs_sizes: tuple[int, ...] = ()  # length of each entry
    ref_min: float | None = None  # return that scores 0
    ref_max: float | None = None  # return that scores 100
    ref_source: str | None = None  # origin of the reference returns: a name in `datasets.scores`
    eval_env_spec: str | None = None  # EnvSpec of the reference returns, if it differs from `env_spec`
    cut: int = 0  # episodes cut where rows do not follow each other, although no flag ends them
    whole: tuple[int, int] | None = None  # episodes and transitions of what this is a share of; None: it is all there is
    local: bool = False  # collected locally: scores are not comparable with published ones
    reward_scale: float = 1.0  # agents learn from scale * (reward + shift); `Dataset.reward` is as stored
    reward_shift: float = 0.0

    @property
    def rewards_as_stored(self) -> bool:
        """Whether agents learn from the stored rewards."""
        return self.reward_scale == 1.0 and self.reward_shift == 0.0


@struct.dataclass
class Dataset:
    """M transitions in episode order.

    `offsets[e]` is the index of the first step of episode e, and `offsets[E]` = M. Actions are rescaled from `info`'s bounds to
    [-1, 1]. `discount` is 0 at terminals. `timeout` marks steps after which an episode was cut without a terminal, so that
    value targets still bootstrap from `next_obs`.
    """

    obs: Array  # [M, O] float32
    action: Array  # [M, A] float32, in [-1, 1]
    reward: Array  # [M] float32, in the dataset's own units
    discount: Array  # [M] float32
    next_obs: Array  # [M, O] float32
    timeout: np.ndarray  # [M] bool, host
    offsets: np.ndarray  # [E + 1] int64, host
    info: DatasetInfo = struct.field(pytree_node=False)

    @property
    def size(self) -> int:
        """Number of transitions M."""
        return self.obs.shape[0]

    @property
    def episodes(self) -> int:
        """Number of episodes E."""
        return len(self.offsets) - 1

    @property
    def obs_dim(self) -> int:
        """O."""
        return self.obs.shape[-1]

    @property
    def action_dim(self) -> int:
        """A."""
        return self.action.shape[-1]

    def transitions(self, *, next_actions: bool = False) -> Transition:
        """All transitions [M], with rewards as learned from (`learned_reward`).

        With `next_actions` each also has the action of the step that follows it in its episode: the last step of an episode,
        be it a terminal or a timeout, has none.
        """
        reward = learned_reward(self.info, self.reward)
        found = Transition(obs=self.obs, action=self.action, reward=reward, discount=self.discount, next_obs=self.next_obs)
        if not next_actions:
            return found
        follows = np.ones(self.size, bool)
        follows[self.offsets[1:] - 1] = False
        following = np.minimum(np.arange(self.size) + 1, self.size - 1)
        return found.replace(next_action=self.action[following], has_next_action=follows)  # type: ignore[attr-defined, no-any-return]

    def returns(self) -> np.ndarray:
        """Undiscounted return of every episode [E], in the dataset's own units."""
        return np.add.reduceat(np.asarray(self.reward, np.float64), self.offsets[:-1])

    def lengths(self) -> np.ndarray:
        """Number of steps of every episode [E]."""
        return np.diff(self.offsets)

    def counts(self) -> str:
        """Episodes and transitions in words, of a share of a dataset with those of the whole."""
        if self.info.whole is None:
            return f"{self.episodes} episodes, {self.size} transitions"
        episodes, size = self.info.whole
        return f"{self.episodes} of {episodes} episodes, {self.size} of {size} transitions"


def to_env_action(info: DatasetInfo, action: np.ndarray) -> np.ndarray:
    """Map actions [..., A] from [-1, 1] to the environment's bounds."""
    low, high = np.asarray(info.action_low), np.asarray(info.action_high)
    return np.asarray(low + (np.clip(action, -1.0, 1.0) + 1.0) * (high - low) / 2.0)


def from_env_action(info: DatasetInfo, action: np.ndarray) -> np.ndarray:
    """Map actions [..., A] from the environment's bounds to [-1, 1]."""
    low, high = np.asarray(info.action_low), np.asarray(info.action_high)
    return np.asarray(2.0 * (action - low) / (high - low) - 1.0)


def learned_reward(info: DatasetInfo, reward: Array) -> Array:
    """Rewards [...] as learned from: scale * (reward + shift)."""
    return reward if info.rewards_as_stored else (reward + info.reward_shift) * info.reward_scale


def own_reward(info: DatasetInfo, reward: Array) -> Array:
    """The inverse of `learned_reward`, up to rounding: rewards [...] in the dataset's own units."""
    return reward if info.rewards_as_stored else reward / info.reward_scale - info.reward_shift


def in_own_units(info: DatasetInfo, trajectory: Trajectory) -> Trajectory:
    """A synthetic trajectory with rewards in the dataset's own units, in which everything is reported."""
    return dataclasses.replace(trajectory, reward=own_reward(info, trajectory.reward))


def in_learned_units(info: DatasetInfo, trajectory: Trajectory) -> Trajectory:
    """A true trajectory with rewards as learned from."""
    return dataclasses.replace(trajectory, reward=learned_reward(info, trajectory.reward))


def obs_slices(info: DatasetInfo) -> dict[str, slice]:
    """The slice of the flat observation [O] that holds each entry of a dict observation. Empty for plain observations."""
    ends = np.cumsum(info.obs_sizes, dtype=int)
    return {k: slice(int(e) - n, int(e)) for k, n, e in zip(info.obs_keys, info.obs_sizes, ends, strict=True)}


def state_entries(info: DatasetInfo) -> np.ndarray | None:
    """Indices of the observation entries that are the physical state: `observation` in goal environments. None means all."""
    part = obs_slices(info).get("observation")
    return None if part is None else np.arange(part.start, part.stop)


def to_device(dataset: Dataset) -> Dataset:
    """The same dataset with its numeric arrays on the default device."""
    arrays: dict[str, Any] = {
        f: jnp.asarray(getattr(dataset, f), jnp.float32) for f in ("obs", "action", "reward", "discount", "next_obs")
    }
    return dataclasses.replace(dataset, **arrays)
