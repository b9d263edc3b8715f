"""Training windows of a state denoiser that is given innovations, and of one that is anchored on an ensemble."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from jaxpgd.diffusion.conditioning import Condition, Conditions
from jaxpgd.errors import check
from jaxpgd.synthesis.given import Conditioning, GivenAnchor, GivenInnovations
from jaxpgd.tokens import unit_if_constant
from jaxpgd.training.windows import Windows
from jaxpgd.world_model.behaviour import Behaviour
from jaxpgd.world_model.model import WorldModel
from jaxpgd.world_model.rollouts import anchor

_BATCH = 4096  # windows whose anchors are rolled out at once
_TRANSITIONS = 65_536  # of which innovations are taken at once
_MOST = 20_000  # windows that the scale of deviations is measured on
_LEAST = 20  # of them that go on to a step, for a scale of its own
_QUANTILE, _GAUSSIAN = 0.9, 1.6449  # of sizes of deviations, and of a unit Gaussian's
_FLOOR = 1e-4  # least scale, in standard deviations of the data


@struct.dataclass
class InnovationWindows(Windows):
    """Windows with the innovation of every transition and, for an anchored denoiser, the anchor of every window.

    `row` finds the anchor of a window by its start. In padding every entry is known and 0.
    """

    given: GivenInnovations | GivenAnchor | None = None  # never None
    e: Array | None = None  # [M, A], never None
    anchors: Array | None = None  # [R, T, O], of the windows of `train` and `validation`; None without an anchor
    row: Array | None = None  # [M] int32

    def innovations(self, start: Array) -> Array:
        """Innovations [T, A] of the window at `start` []; 0 in padding."""
        assert self.e is not None
        ends = self.ends(start)
        if ends is None:
            return jax.lax.dynamic_slice_in_dim(self.e, start, self.length)
        index = start + jnp.minimum(jnp.arange(self.length), ends.steps - 1)
        return jnp.where(ends.valid(self.length)[:, None], self.e[index], 0.0)

    def tokens(self, start: Array) -> Array:
        """Tokens [T, dim] of the window at `start` []."""
        assert self.given is not None
        s_hat = None if self.anchors is None or self.row is None else self._anchor(self.anchors, self.row[start])
        tokens, ends = self.given.encode(self.gather(start).obs, self.innovations(start), s_hat), self.ends(start)
        return tokens if ends is None else jnp.where(ends.valid(self.length)[:, None], tokens, 0.0)

    def _anchor(self, anchors: Array, row: Array) -> Array:
        """NaN where a start is not that of a window."""
        return jnp.where(row >= 0, anchors[row], jnp.nan)

    def padding(self, start: Array) -> Condition | None:
        """As `Windows.padding`."""
        ends = self.ends(start)
        if ends is None:
            return None
        value = jnp.zeros((self.length, self.dim), jnp.float32)
        return Condition(value, jnp.broadcast_to(~ends.valid(self.length)[:, None], value.shape))

    def of_states(self, conditions: Conditions, scaled: bool) -> Windows:
        """As `state_windows`. Raises InputError for noised conditions, which have no place for innovations."""
        assert self.given is not None
        check(conditions != "noised", "synthesis.dydiff.conditions", conditions,
              f"'clean' or 'churned' where synthesis.dydiff.conditioning is {self.given.kind!r}")  # fmt: skip
        return dataclasses.replace(self, known=self.given.known(self.length), entries=self.given.dim, scaled=scaled)


def innovation_windows(windows: Windows, behaviour: Behaviour, model: WorldModel | None = None) -> InnovationWindows:
    """The same windows for a denoiser of states given innovations and, with a `model`, its anchor ("anchored").

    The ensemble rolls the behaviour out along every window, in compiled batches on one device, once for all of training.
    Anchors take 4 R T O bytes for R windows of T steps: 1.4 GB for a million windows (stride 1, a million transitions) of 32
    steps of Hopper, 6.8 GB for 100 steps of HalfCheetah. Raises InputError where innovations are not finite.
    """
    t = windows.transitions
    e = _innovations(behaviour, jnp.asarray(t.obs), jnp.asarray(t.action))
    lost = int((~jnp.isfinite(e)).any(-1).sum())
    check(lost == 0, "innovations", f"{lost} of {len(e)} are not finite", "finite ones: the cloned behaviour has diverged",
          "Lower synthesis.dydiff.behaviour.lr.")  # fmt: skip
    own = GivenInnovations(windows.unit, behaviour, unit_if_constant(e.mean(0), e.std(0)))
    found = InnovationWindows(**vars(windows), given=own, e=e)
    return found if model is None else _anchored(found, own, model)


def abstract_windows(
    windows: Windows, conditioning: Conditioning, behaviour: Behaviour, model: WorldModel | None
) -> InnovationWindows:
    """`innovation_windows` without its numbers: shapes that tell how a trained state is stored.

    `behaviour` and `model` may be abstract as well.
    """
    rows, size, obs_dim = len(_starts(windows)), windows.transitions.reward.shape[0], windows.codec.obs_dim
    shape: Any = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    given: GivenInnovations | GivenAnchor = GivenInnovations(windows.unit, behaviour, shape(windows.codec.action_dim))
    found = InnovationWindows(**vars(windows), given=given, e=shape(size, windows.codec.action_dim))
    if conditioning == "innovations":
        return found
    assert model is not None and isinstance(given, GivenInnovations)
    steps = shape(windows.length, obs_dim)
    given = GivenAnchor(given, _for_anchors(model), steps, steps, shape())
    row: Any = jax.ShapeDtypeStruct((size,), jnp.int32)
    return dataclasses.replace(found, given=given, anchors=shape(rows, windows.length, obs_dim), row=row)


def _for_anchors(model: WorldModel) -> WorldModel:
    """What of a world model a checkpoint keeps with anchors, which are not cut."""
    return dataclasses.replace(model, disagreements=None)


def _starts(windows: Windows) -> np.ndarray:
    """The starts of all windows, each once."""
    return np.unique(np.concatenate([np.asarray(windows.train), np.asarray(windows.validation)]))


@jax.jit
def _innovations(behaviour: Behaviour, obs: Array, action: Array) -> Array:
    found: Array = jax.lax.map(lambda x: behaviour.innovation(*x), (obs, action), batch_size=_TRANSITIONS)
    return found


def _anchored(windows: InnovationWindows, own: GivenInnovations, model: WorldModel) -> InnovationWindows:
    starts, train = _starts(windows), np.asarray(windows.train)
    size = min(_BATCH, len(starts))
    batches = -(-len(starts) // size)
    weight = np.bincount(np.searchsorted(starts, train), minlength=len(starts)).astype(np.float32)
    pad = (0, batches * size - len(starts))
    batched = lambda x: jnp.asarray(np.pad(x, pad, mode="edge" if x is starts else "constant").reshape(batches, size))
    anchors, clipped = _roll_out(windows, own, model, batched(starts), batched(weight))
    anchors = anchors.reshape(batches * size, *anchors.shape[2:])  # the last rows may be those of no further window
    row = np.full(windows.transitions.reward.shape[0], -1, np.int32)
    row[starts] = np.arange(len(starts))
    chosen = train if len(train) <= _MOST else train[np.linspace(0, len(train) - 1, _MOST).astype(int)]
    centre, scale = _deviations(windows, anchors, jnp.asarray(row), jnp.asarray(chosen))
    given = GivenAnchor(own, _for_anchors(model), centre, scale, clipped)
    return dataclasses.replace(windows, given=given, anchors=anchors, row=jnp.asarray(row))


@jax.jit
def _roll_out(
    windows: InnovationWindows, own: GivenInnovations, model: WorldModel, starts: Array, weight: Array
) -> tuple[Array, Array]:
    """Anchors [K, B, T, O] of the windows at starts [K, B], and the share of entries that were clipped, windows weighted by
    [K, B]: 0 for those that fill the last batch."""

    def one(start: Array) -> tuple[Array, Array]:
        s_hat, _, clipped = anchor(model, own.behaviour, windows.gather(start).obs[0], windows.innovations(start))
        return s_hat, clipped

    def batch(total: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
        s_hat, clipped = jax.vmap(one)(x[0])
        return total + (clipped * x[1]).sum(), s_hat

    clipped, anchors = jax.lax.scan(batch, jnp.zeros((), jnp.float32), (starts, weight))
    return anchors, clipped / weight.sum()


@jax.jit
def _deviations(windows: InnovationWindows, anchors: Array, row: Array, starts: Array) -> tuple[Array, Array]:
    """Centre and scale [T, O] of the deviations of windows at `starts` from their anchors [R, T, O], by quantiles.

    Steps after the end of a window do not count; those that few windows reach have the scale of the step before.
    """

    def one(start: Array) -> Array:
        ends = windows.ends(start)
        valid = jnp.ones(windows.length, bool) if ends is None else ends.valid(windows.length)
        return jnp.where(valid[:, None], windows.gather(start).obs - anchors[row[start]], jnp.nan)

    found = jax.lax.map(one, starts, batch_size=_BATCH)
    reached = (~jnp.isnan(found)).sum(0)
    centre = jnp.nan_to_num(jnp.nanmedian(found, 0))
    sizes = jnp.nan_to_num(jnp.nanquantile(jnp.abs(found - centre), _QUANTILE, 0)) / _GAUSSIAN
    least = _FLOOR * windows.unit.std[windows.unit.obs]
    step = jnp.arange(windows.length)[:, None]
    known = jax.lax.cummax(jnp.where(reached >= jnp.minimum(_LEAST, len(starts)), step, 0))
    return centre, jnp.maximum(jnp.take_along_axis(sizes, known, 0), least)
