"""What a row is: its work by its shapes, which needs no device, and the program that it compiles and runs.

Programs are made when their turn comes and compiled for the shapes of their arguments, which are made when they are timed.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from benchmarks.speed.bounds import H100, Layer, Work, layers

SHARE = 0.2  # of a bound that is expected before anything is measured


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the table: HalfCheetah's tokens, the published window, batches and networks."""

    window: int = 32
    obs_dim: int = 17
    action_dim: int = 6
    blocks: int = 3
    features: tuple[int, int] = (128, 1024)
    batches: tuple[int, int] = (32, 512)
    trajectories: int = 8192
    at_once: tuple[int, int] = (4096, 1024)  # trajectories of a batch at most, by network
    transitions: int = 1_000_000
    batch: int = 256  # of an agent
    synthetic: int = 240  # of it
    hidden: tuple[int, ...] = (256, 256)
    seeds: tuple[int, ...] = (1, 8, 64, 256)
    matrix: int = 8192
    copied: int = 2**28  # numbers
    most: int = 1024  # steps or updates of a run at most
    baseline_trajectories: tuple[int, int] = (1024, 256)
    memory: float = 40e9  # bytes that a row may take beside its parameters

    @property
    def token(self) -> int:
        """Entries of a token."""
        return self.obs_dim + self.action_dim + 2

    def layers(self, features: int, block: str = "residual") -> list[Layer]:
        """Of the denoiser."""
        return layers(features, self.blocks, self.window, self.token, block)

    def index(self, features: int) -> int:
        """Which of the two networks it is."""
        return self.features.index(features)


REHEARSAL = Sizes(
    window=4, blocks=1, features=(8, 16), batches=(2, 4), trajectories=8, at_once=(8, 4), transitions=2000, hidden=(16, 16),
    batch=8, synthetic=6, seeds=(1, 2, 3, 4), matrix=256, copied=2**18, most=8, baseline_trajectories=(2, 2), memory=1e9,
)  # fmt: skip


Args = tuple[Any, ...]


def alike(call: Callable[..., Any], args: Args) -> Args:
    """One run; the next is given the same."""
    jax.block_until_ready(call(*args))
    return args


def carry(call: Callable[..., Any], args: Args) -> Args:
    """One run; the next continues with its state, whose memory it may use again."""
    state, *_ = jax.block_until_ready(call(*args))
    return (state, *args[1:])


@dataclasses.dataclass
class Program:
    """What a row compiles, `jitted(*args(), **static)`, and one run of it: `turn(call, args)`, which returns the next's args.

    `looped`: a run calls the jitted function itself, as a Python loop does, and not what was compiled of it. `single`: the
    program does one unit, and a run calls it for each.
    `after(args)` says more once it is timed.
    """

    jitted: Any
    args: Callable[[], Args]
    static: dict[str, Any] = dataclasses.field(default_factory=dict)
    turn: Callable[[Callable[..., Any], Args], Args] = alike
    looped: bool = False
    single: bool = False
    after: Callable[[Args], dict[str, Any]] | None = None

    def lower(self) -> Any:
        """Traced for the shapes of its arguments, none of which is made."""
        return self.jitted.lower(*jax.eval_shape(self.args), **self.static)

    def call(self, compiled: Any) -> Callable[..., Any]:
        """What a run calls."""
        return functools.partial(self.jitted, **self.static) if self.looped else compiled


@dataclasses.dataclass(frozen=True)
class Row:
    """A row: `work` is that of one unit. `build(units)` makes its program for so many of its `units`, whole `parts` of them."""

    name: str
    group: str
    unit: str
    work: Work
    units: int
    build: Callable[[int], Program]
    precision: str | None = None  # of `jax.default_matmul_precision`; None: the default
    part: int = 0  # units of a batch, fewer of which may be measured; 0: all are
    compiling: float = 20.0  # seconds on an accelerator, roughly
    baseline: str = ""  # the row that it is held against
    single: str = ""  # the row of one seed
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    def context(self) -> Any:
        """Sets the precision."""
        return contextlib.nullcontext() if self.precision is None else jax.default_matmul_precision(self.precision)

    @property
    def predicted(self) -> float:
        """Seconds of one unit on an H100 at least, from shapes alone."""
        return self.work.bound(H100)[1]


def about(seconds: float, unit: float, least: int, most: int) -> int:
    """How many units take so many seconds at the share that is expected: a power of two."""
    return max(least, min(most, 2 ** int(math.log2(max(1.0, seconds * SHARE / unit)))))


def weights(structure: Any) -> Any:
    """Parameters of a network by its shapes: numbers that look random, of a fresh network's size, made by little code."""

    def fill(path: Any, leaf: Any) -> Array:
        name = str(getattr(path[-1], "key", path[-1]))
        if name in ("bias", "scale"):
            return jnp.full(leaf.shape, float(name == "scale"), leaf.dtype)
        index = [jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) for axis in range(leaf.ndim)]
        bits = sum(
            (i * jnp.uint32(m) for i, m in zip(index, (2654435761, 2246822519, 3266489917), strict=False)), jnp.uint32(1)
        )
        for shift, factor in ((15, 739982445), (12, 695872825)):
            bits = (bits ^ (bits >> shift)) * jnp.uint32(factor)
        uniform = (bits >> 8).astype(jnp.float32) / 2**23 - 1.0
        return (uniform * math.sqrt(3.0 / leaf.shape[-1])).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, structure)
