"""Experience on the device: real transitions shared by all seeds, synthetic trajectories per seed, mixed batches of both."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.errors import check
from jaxpgd.guidance.consistency import ConsistencyConfig
from jaxpgd.options import nonnegative, option, options, positive, share
from jaxpgd.resampling import systematic
from jaxpgd.synthesis.dydiff import DyDiffConfig
from jaxpgd.synthesis.filters import FilterConfig
from jaxpgd.types import Trajectory, Transition
from jaxpgd.world_model.rollouts import RolloutConfig


@options
class SynthesisConfig:
    """How much synthetic data there is, and when it is refreshed. The regime sets interval and share."""

    regime: Literal["oneoff", "periodic", "continuous", "fifo"] = option(
        "periodic", "refreshes: none; all trajectories; the oldest share; that share, into a replay that fills up"
    )
    trajectories: int = positive(
        1024, "capacity of the replay in trajectories; the first refresh fills it, except in regime fifo"
    )
    interval: int = positive(1000, "agent updates between refreshes, in all regimes but oneoff")
    fraction: float = share(0.1, "share of the replay replaced by a refresh, oldest first, in regimes continuous and fifo")
    length: int = nonnegative(0, "steps per synthetic trajectory; 0: data.window")
    drop_last: bool = option(
        False, "never learn from a trajectory's last step, as PGD's code; false: learn from it where its end is known"
    )
    after_terminal: bool = option(False, "learn also from the steps after a generated terminal, as PGD's code")
    synthetic_ratio: float = share(0.9375, "share of each agent batch drawn from synthetic data (PGD: 240 of 256)")
    first_unguided: bool = option(True, "arm guided: sample the first refresh without guidance, as the policy is untrained")
    filter: FilterConfig = FilterConfig()
    consistency: ConsistencyConfig = ConsistencyConfig()
    world_model: RolloutConfig = RolloutConfig()
    dydiff: DyDiffConfig = DyDiffConfig()


@struct.dataclass
class Replay:
    """C synthetic trajectories in a ring: inserting replaces the oldest, so retention is capacity.

    Inserting C trajectories replaces everything (PGD); inserting fewer keeps the newest C (FIFO, DyDiff).
    """

    trajectory: Trajectory  # [C, T, ...]; with `last_obs` where the first insertion has it
    valid: Array  # [C * T] flat indices of valid steps; of these the first `count` are used
    count: Array  # [] number of valid steps
    position: Array  # [] row that the next insertion overwrites; -1: none ever will (`no_replay`)


def init_replay(trajectory: Trajectory, capacity: int | None = None) -> Replay:
    """A replay that holds N trajectories [N, T, ...]; `capacity` C >= N leaves room for more (default N)."""
    count = trajectory.reward.shape[0]
    room = count if capacity is None else capacity
    empty = jax.tree.map(lambda x: jnp.zeros((room, *x.shape[1:]), x.dtype), trajectory)  # a mask of zeros: no valid step
    valid, size = _valid(empty.mask)
    return insert(Replay(trajectory=empty, valid=valid, count=size, position=jnp.zeros((), jnp.int32)), trajectory)


def no_replay(like: Replay) -> Replay:
    """The placeholder for an agent without a replay in a program whose other agents [...] have one."""
    empty = jax.tree.map(jnp.zeros_like, like)
    return empty.replace(position=jnp.full_like(like.position, -1))  # type: ignore[attr-defined, no-any-return]


def _valid(mask: Array) -> tuple[Array, Array]:
    flat = mask.reshape(-1)
    return jnp.nonzero(flat, size=flat.size, fill_value=0)[0].astype(jnp.int32), flat.sum(dtype=jnp.int32)


def resample(key: Array, trajectory: Trajectory, log_weight: Array) -> Trajectory:
    """N unweighted trajectories from N weighted ones (systematic resampling; with equal weights, each of them once)."""
    index = systematic(key, log_weight)
    drawn: Trajectory = jax.tree.map(lambda x: x[index], trajectory)
    return drawn


def insert(replay: Replay, trajectory: Trajectory) -> Replay:
    """Overwrite the oldest N <= C rows with N trajectories [N, T, ...]."""
    capacity, count = replay.trajectory.reward.shape[0], trajectory.reward.shape[0]
    if count > capacity:
        raise ValueError(f"insert: {count} trajectories do not fit into a replay of {capacity}")
    rows = (replay.position + jnp.arange(count)) % capacity
    known = replay.trajectory.last_obs is not None
    stored = jax.tree.map(lambda old, new: old.at[rows].set(new), replay.trajectory, alike(trajectory, last_obs=known))
    valid, size = _valid(stored.mask)
    return Replay(trajectory=stored, valid=valid, count=size, position=(replay.position + count) % capacity)


def alike(trajectory: Trajectory, *, last_obs: bool) -> Trajectory:
    """The same trajectories with `last_obs` or without, so that one replay can hold those of several synthesizers.

    Where it was not known, it is the last observation, and the last step stays as invalid as it was.
    """
    if last_obs == (trajectory.last_obs is not None):
        return trajectory
    if last_obs:
        return trajectory.replace(last_obs=trajectory.obs[..., -1, :])  # type: ignore[attr-defined, no-any-return]
    last = jnp.arange(trajectory.mask.shape[-1]) == trajectory.mask.shape[-1] - 1
    mask = trajectory.mask & (~last | (trajectory.discount == 0))
    return trajectory.replace(mask=mask, last_obs=None)  # type: ignore[attr-defined, no-any-return]


def terminal_share(replay: Replay) -> Array:
    """Share [] of the stored trajectories that end in a terminal; rows not yet filled do not count."""
    stored = replay.trajectory
    filled = stored.mask.any(-1)
    return ((stored.discount == 0).any(-1) & filled).sum(dtype=jnp.float32) / jnp.maximum(filled.sum(dtype=jnp.int32), 1)


def sample_synthetic(key: Array, replay: Replay, batch: int) -> Transition:
    """`batch` valid transitions, uniformly and with replacement."""
    return _synthetic(replay, jax.random.randint(key, (batch,), 0, jnp.maximum(replay.count, 1)))


def _synthetic(replay: Replay, drawn: Array, *, next_actions: bool = False) -> Transition:
    """The valid transitions of numbers `drawn` [B], with the actions that follow them where `next_actions`."""
    length = replay.trajectory.reward.shape[1]
    row, step = jnp.divmod(replay.valid[drawn], length)
    steps = replay.trajectory
    # Without `last_obs` the last step is valid only at a terminal: no target depends on its next observation.
    following = steps.obs[row, jnp.minimum(step + 1, length - 1)]
    if steps.last_obs is not None:
        following = jnp.where((step == length - 1)[:, None], steps.last_obs[row], following)
    found = Transition(
        obs=steps.obs[row, step],
        action=steps.action[row, step],
        reward=steps.reward[row, step],
        discount=steps.discount[row, step],
        next_obs=following,
    )
    if not next_actions:
        return found
    next_action = steps.action[row, jnp.minimum(step + 1, length - 1)]
    return found.replace(next_action=next_action, has_next_action=step < length - 1)  # type: ignore[attr-defined, no-any-return]


def sample_real(key: Array, real: Transition, batch: int) -> Transition:
    """`batch` of M transitions, uniformly and with replacement (drawing without would sort the dataset)."""
    return _real(real, jax.random.randint(key, (batch,), 0, real.reward.shape[0]))


def _real(real: Transition, drawn: Array) -> Transition:
    batch: Transition = jax.tree.map(lambda x: x[drawn], real)
    return batch


@struct.dataclass
class Draw:
    """Which transitions make up a batch: numbers of real ones and of the replay's valid ones."""

    real: Array  # [B - S]
    synthetic: Array | None = None  # [S]; None: no replay
    instead: Array | None = None  # [S] real ones that stand in for synthetic ones where there are none


@jax.named_scope("draw_batch")
def draw_mixed(
    key: Array, real: Transition, replay: Replay | None, batch: int, synthetic: int, *, or_real: bool = False
) -> Draw:
    """The draw of a batch [batch] of which the last `synthetic` come from the replay and the others from real data.

    Separate from `take` so that many batches can be drawn at once, which is far cheaper than one by one. With
    `or_real` the batch of a replay without a valid step, or that is none (`no_replay`), is the one that would be drawn without
    a replay.
    """
    key_real, key_synthetic = jax.random.split(key)
    size = 0 if replay is None else synthetic
    drawn = jax.random.randint(key_real, (batch if or_real else batch - size,), 0, real.reward.shape[0])
    if replay is None or size == 0:
        return Draw(drawn)
    chosen = jax.random.randint(key_synthetic, (size,), 0, jnp.maximum(replay.count, 1))
    return Draw(drawn[: batch - size], chosen, drawn[batch - size :] if or_real else None)


@jax.named_scope("take_batch")
def take(draw: Draw, real: Transition, replay: Replay | None) -> Transition:
    """The batch of a draw. It has next actions where the real transitions do, in its synthetic part as well."""
    if draw.synthetic is None:
        return _real(real, draw.real)
    assert replay is not None
    synthetic = _synthetic(replay, draw.synthetic, next_actions=real.next_action is not None)
    if draw.instead is not None:
        held = replay.count > 0
        synthetic = jax.tree.map(lambda a, b: jnp.where(held, a, b), synthetic, _real(real, draw.instead))
    if draw.real.shape[0] == 0:
        return synthetic
    batch: Transition = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), _real(real, draw.real), synthetic)
    return batch


def sample_mixed(key: Array, real: Transition, replay: Replay | None, batch: int, synthetic: int) -> Transition:
    """A batch [batch] of which the last `synthetic` come from the replay and the others from real data."""
    return take(draw_mixed(key, real, replay, batch, synthetic), real, replay)


def check_share(synthesis: SynthesisConfig, batch: int) -> None:
    """Check that batches of so many hold synthetic transitions. Raises InputError."""
    ratio = synthesis.synthetic_ratio
    check(
        round(ratio * batch) > 0,
        "synthesis.synthetic_ratio",
        ratio,
        f"more than {0.5 / batch:g}, for one synthetic transition in agent.batch_size = {batch}",
        'For none choose arms = ["real"].',
    )
