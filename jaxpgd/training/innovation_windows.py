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
from jaxpgd.parallel import DATA, shard
from jaxpgd.synthesis.given import Conditioning, GivenAnchor, GivenInnovations
from jaxpgd.tokens import unit_if_constant
from jaxpgd.training.windows import Windows
from jaxpgd.world_model.behaviour import Behaviour
from jaxpgd.world_model.model import WorldModel

_BATCH = 4096  # windows whose anchors are rolled out at once


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
        s_hat = None if self.anchors is None or self.row is None else self.anchors[self.row[start]]
        tokens, ends = self.given.encode(self.gather(start).obs, self.innovations(start), s_hat), self.ends(start)
        return tokens if ends is None else jnp.where(ends.valid(self.length)[:, None], tokens, 0.0)

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

    The ensemble rolls the behaviour out along every window, in compiled batches, once for all of training. Anchors take
    4 R T O bytes for R windows of T steps: 1.4 GB for a million windows (stride 1, a million transitions) of 32 steps of
    Hopper, 6.8 GB for 100 steps of HalfCheetah. Raises InputError where innovations are not finite.
    """
    t = windows.transitions
    e = jax.jit(behaviour.innovation)(jnp.asarray(t.obs), jnp.asarray(t.action))
    lost = int((~jnp.isfinite(e)).any(-1).sum())
    check(lost == 0, "innovations", f"{lost} of {len(e)} are not finite", "finite ones: the cloned behaviour has diverged",
          "Lower synthesis.dydiff.behaviour.lr.")  # fmt: skip
    own = GivenInnovations(windows.unit, behaviour, unit_if_constant(e.mean(0), e.std(0)))
    found = InnovationWindows(**vars(windows), given=own, e=e)
    return found if model is None else _anchored(found, own, model)


def abstract_windows(
    windows: Windows, conditioning: Conditioning, behaviour: Behaviour, model: WorldModel | None
) -> InnovationWindows:
    """`innovation_windows` without its numbers: of these shapes, which tell how a trained state is stored.

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
    given = GivenAnchor(given, model, steps, steps, shape())
    row: Any = jax.ShapeDtypeStruct((size,), jnp.int32)
    return dataclasses.replace(found, given=given, anchors=shape(rows, windows.length, obs_dim), row=row)


def _starts(windows: Windows) -> np.ndarray:
    """The starts of all windows, each once."""
    return np.unique(np.concatenate([np.asarray(windows.train), np.asarray(windows.validation)]))


def _anchored(windows: InnovationWindows, own: GivenInnovations, model: WorldModel) -> InnovationWindows:
    starts = _starts(windows)
    size = min(_BATCH, len(starts))
    batches = -(-len(starts) // size)
    weight = np.bincount(np.searchsorted(starts, np.asarray(windows.train)), minlength=len(starts)).astype(np.float32)
    pad = (0, batches * size - len(starts))
    batched = lambda x: jnp.asarray(np.pad(x, pad, mode="edge" if x is starts else "constant").reshape(batches, size))
    anchors, centre, scale, clipped = _roll_out(windows, own, model, batched(starts), batched(weight))
    row = np.zeros(windows.transitions.reward.shape[0], np.int32)
    row[starts] = np.arange(len(starts))
    given = GivenAnchor(own, model, centre, unit_if_constant(centre, scale), clipped)
    anchors = anchors.reshape(batches * size, *anchors.shape[2:])[: len(starts)]
    return dataclasses.replace(windows, given=given, anchors=anchors, row=jnp.asarray(row))


@jax.jit
def _roll_out(
    windows: InnovationWindows, own: GivenInnovations, model: WorldModel, starts: Array, weight: Array
) -> tuple[Array, Array, Array, Array]:
    """Anchors [K, B, T, O] of the windows at starts [K, B]; mean and standard deviation [T, O] of deviations from them, windows
    weighted by [K, B] and padding left out; and the share of entries that were clipped."""
    shape = (windows.length, own.codec.obs_dim)
    zeros = lambda *sizes: jnp.zeros(sizes, jnp.float32)
    bare = GivenAnchor(own, model, zeros(*shape), jnp.ones(shape, jnp.float32), zeros())

    def one(start: Array) -> tuple[Array, Array, Array, Array]:
        obs, ends = windows.gather(start).obs, windows.ends(start)
        s_hat, clipped = bare.anchor(obs[0], windows.innovations(start))
        valid = jnp.ones(windows.length, bool) if ends is None else ends.valid(windows.length)
        return s_hat, obs - s_hat, valid.astype(jnp.float32), clipped

    def batch(total: tuple[Array, Array, Array, Array], x: tuple[Array, Array]) -> tuple[Any, Array]:
        s_hat, deviation, valid, clipped = jax.vmap(one)(shard(x[0], DATA))
        counts = valid[..., None] * x[1][:, None, None]  # [B, T, 1]
        found = (counts.sum(0), (counts * deviation).sum(0), (counts * deviation**2).sum(0), (clipped * x[1]).sum())
        return jax.tree.map(jnp.add, total, found), s_hat

    nothing = (zeros(shape[0], 1), zeros(*shape), zeros(*shape), zeros())
    (count, first, second, clipped), anchors = jax.lax.scan(batch, nothing, (starts, weight))
    count = jnp.maximum(count, 1.0)  # of steps that are padding in every window
    mean = first / count
    return anchors, mean, jnp.sqrt(jnp.maximum(second / count - mean**2, 0.0)), clipped / weight.sum()
