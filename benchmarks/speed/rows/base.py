"""A row of the table: its work, computed from shapes without a device, and the program that it compiles and runs.

A program is built and compiled for the shapes of its arguments when its group's turn comes; the arguments are only created when
it is timed.
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

SHARE = 0.2  # share of the bound expected to be reached, before anything is measured


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the table: tokens of HalfCheetah, the published window, batches and networks."""

    window: int = 32
    obs_dim: int = 17
    action_dim: int = 6
    blocks: int = 3
    features: tuple[int, int] = (128, 1024)
    batches: tuple[int, int] = (32, 512)
    trajectories: int = 8192
    at_once: tuple[int, int] = (4096, 1024)  # at most so many trajectories per batch, by network
    transitions: int = 1_000_000
    batch: int = 256  # transitions of an agent's batch
    synthetic: int = 240  # of these
    hidden: tuple[int, ...] = (256, 256)
    seeds: tuple[int, ...] = (1, 8, 64, 256)
    matrix: int = 8192
    copied: int = 2**28  # numbers in the copied array
    most: int = 1024  # at most so many steps or updates per run
    baseline_trajectories: tuple[int, int] = (1024, 256)
    memory: float = 40e9  # bytes available to a row beside its parameters

    @property
    def token(self) -> int:
        """Number of entries of a token."""
        return self.obs_dim + self.action_dim + 2

    def layers(self, features: int, block: str = "residual") -> list[Layer]:
        """The matrix products of the denoiser."""
        return layers(features, self.blocks, self.window, self.token, block)

    def index(self, features: int) -> int:
        """Index of the network with that width."""
        return self.features.index(features)


REHEARSAL = Sizes(
    window=4, blocks=1, features=(8, 16), batches=(2, 4), trajectories=8, at_once=(8, 4), transitions=2000, hidden=(16, 16),
    batch=8, synthetic=6, seeds=(1, 2, 3, 4), matrix=256, copied=2**18, most=8, baseline_trajectories=(2, 2), memory=1e9,
)  # fmt: skip


Args = tuple[Any, ...]


def alike(call: Callable[..., Any], args: Args) -> Args:
    """One run; the next gets the same arguments."""
    jax.block_until_ready(call(*args))
    return args


def carry(call: Callable[..., Any], args: Args) -> Args:
    """One run; the next continues from its state, whose memory is donated."""
    state, *_ = jax.block_until_ready(call(*args))
    return (state, *args[1:])


@dataclasses.dataclass
class Program:
    """What a row compiles, `jitted(*args(), **static)`, and one run of it, `turn(call, args)`, which returns the next args.

    `looped`: a run calls the jitted function, as a Python loop does, instead of the compiled program. `single`: the program
    does one unit, and a run calls it once per unit. `after(args)` returns more fields once the row is timed.
    """

    jitted: Any
    args: Callable[[], Args]
    static: dict[str, Any] = dataclasses.field(default_factory=dict)
    turn: Callable[[Callable[..., Any], Args], Args] = alike
    looped: bool = False
    single: bool = False
    after: Callable[[Args], dict[str, Any]] | None = None

    def lower(self) -> Any:
        """The program, traced for the shapes of its arguments without creating them."""
        return self.jitted.lower(*jax.eval_shape(self.args), **self.static)

    def call(self, compiled: Any) -> Callable[..., Any]:
        """The function that a run calls."""
        return functools.partial(self.jitted, **self.static) if self.looped else compiled


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table. `work` is that of one unit; `build(n)` makes the program for `n` of `units`, a multiple of `part`."""

    name: str
    group: str
    unit: str
    work: Work
    units: int
    build: Callable[[int], Program]
    precision: str | None = None  # value of `jax.default_matmul_precision`; None: the default
    part: int = 0  # units per batch, if fewer batches may be measured; 0: all units are
    compiling: float = 20.0  # rough compilation time on an accelerator, in seconds
    baseline: str = ""  # the row that it is compared with
    single: str = ""  # the row of one seed
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    def context(self) -> Any:
        """Sets the matmul precision."""
        return contextlib.nullcontext() if self.precision is None else jax.default_matmul_precision(self.precision)

    @property
    def predicted(self) -> float:
        """Lower bound on the seconds of one unit on an H100, from shapes alone."""
        return self.work.bound(H100)[1]


def about(seconds: float, unit: float, least: int, most: int) -> int:
    """Number of units that take about `seconds` at the expected share of the bound: a power of two."""
    return max(least, min(most, 2 ** int(math.log2(max(1.0, seconds * SHARE / unit)))))


def weights(structure: Any) -> Any:
    """Pseudo-random parameters at the scale of a fresh network: a hash of indices, which compiles faster than initialisers."""

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
