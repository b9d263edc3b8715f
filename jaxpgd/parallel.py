"""Work divided over devices and hosts, by JAX's own sharding: one mesh, whose axes say what is divided along them.

Functions mark what may be divided (`divided`, `map_batches`); it is divided where a mesh is in force (`jax.set_mesh`), and
nothing changes where there is none. Numbers do not depend on the mesh, but for rounding.
"""

import math
import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxpgd.errors import InputError, check

SEEDS, DATA = "seeds", "data"  # axes of the mesh: independent runs; examples of a batch, or trajectories

Tree = TypeVar("Tree")
Result = TypeVar("Result")


def device_mesh(seeds: int = 1, devices: Any = None) -> Mesh:
    """Mesh of all devices (or those given) for `seeds` independent runs: as many as divide both go along SEEDS, others along
    DATA."""
    devices = jax.devices() if devices is None else devices
    across = math.gcd(max(seeds, 1), len(devices))
    shape = (across, len(devices) // across)
    return jax.make_mesh(shape, (SEEDS, DATA), axis_types=(AxisType.Auto, AxisType.Auto), devices=devices)


def divided(tree: Tree, *axes: str) -> Tree:
    """`tree` with the leading axis of its arrays divided over the named axes of the mesh in force.

    Arrays whose leading axis they do not divide evenly stay as they are, and so does all where no mesh is in force.
    """
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    parts = math.prod(sizes.get(axis, 1) for axis in axes)
    if parts == 1:
        return tree
    spec = PartitionSpec(axes)
    return jax.tree.map(lambda x: x if x.shape[0] % parts else jax.lax.with_sharding_constraint(x, spec), tree)


def map_batches(fn: Callable[..., Any], xs: Any, batch_size: int) -> Any:
    """`fn` of each entry of the leading axis of xs [N, ...], `batch_size` entries at once, which DATA divides.

    As `jax.lax.map` with a batch size, whose batches no mesh would divide.
    """
    count = jax.tree.leaves(xs)[0].shape[0]
    size = min(batch_size, count)
    batch = lambda xs: jax.vmap(fn)(divided(xs, DATA))
    if size == count:
        return batch(xs)
    whole = count // size
    first = jax.tree.map(lambda x: x[: whole * size].reshape(whole, size, *x.shape[1:]), xs)
    out = jax.tree.map(lambda y: y.reshape(whole * size, *y.shape[2:]), jax.lax.map(batch, first))
    if count == whole * size:
        return out
    rest = batch(jax.tree.map(lambda x: x[whole * size :], xs))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), out, rest)


def map_seeds(fn: Callable[[Any], Any], states: Any) -> Any:
    """`fn` of each of the independent states [S], which SEEDS divides.

    All at once, but on CPU without such a division one after the other, in one program as well: their products fill the cores
    already, and together they do not fit its caches (a third slower at 8 seeds of 256-wide networks).
    """
    alone = dict(jax.sharding.get_abstract_mesh().shape).get(SEEDS, 1) == 1
    if alone and jax.default_backend() == "cpu":
        return jax.lax.map(fn, states)
    return jax.vmap(fn, spmd_axis_name=SEEDS)(states)


class Placement:
    """Where the parts of a training program live: states over the mesh's SEEDS if they have such an axis, the rest everywhere.

    With one device it changes nothing.
    """

    def __init__(self, seeds: int = 0, devices: Any = None):
        self.mesh = device_mesh(seeds, devices)
        self.one = self.mesh.size == 1
        self.everywhere = NamedSharding(self.mesh, PartitionSpec())
        self.states = NamedSharding(self.mesh, PartitionSpec(SEEDS)) if seeds else self.everywhere

    def share(self, tree: Tree) -> Tree:
        """A copy of `tree` on every device."""
        return tree if self.one else self._put(tree, self.everywhere)

    def place(self, state: Tree) -> Tree:
        """A state where a program's states live."""
        return state if self.one else self._put(state, self.states)

    def _put(self, tree: Tree, sharding: NamedSharding) -> Tree:
        if jax.process_count() == 1:
            return jax.device_put(tree, sharding)
        if all(not getattr(x, "is_fully_addressable", True) for x in jax.tree.leaves(tree)):
            moved: Tree = jax.jit(_same, out_shardings=sharding)(tree)
            return moved
        return jax.tree.map(lambda x: _spread(x, sharding), tree)

    def init(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """`fn(...) -> state`, compiled."""
        return self._compiled(fn, None if self.one else self.states)

    def step(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """`fn(state, ...) -> (state, metrics)`, compiled; the state's memory is used again, every host sees the metrics."""
        return self._compiled(fn, None if self.one else (self.states, self.everywhere), donate_argnums=0)

    def look(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """`fn(state) -> anything` that every host sees, compiled; the state stays."""
        return self._compiled(fn, None if self.one else self.everywhere)

    def _compiled(self, fn: Callable[..., Any], shardings: Any, **options: Any) -> Callable[..., Any]:
        jitted = jax.jit(fn, **options) if self.one else jax.jit(fn, out_shardings=shardings, **options)

        def call(*args: Any) -> Any:
            if self.one:
                return jitted(*args)
            with jax.set_mesh(self.mesh):
                return jitted(*args)

        def lower(*args: Any) -> Any:
            if self.one:
                return jitted.lower(*args)
            with jax.set_mesh(self.mesh):
                return jitted.lower(*args)

        call.lower = lower  # type: ignore[attr-defined]
        return call

    def collect(self, state: Tree) -> Tree:
        """The whole state on this host's first device, of use until the state is donated; every host must ask."""
        return state if self.one else jax.tree.map(_local, self.whole(state))

    def whole(self, state: Tree) -> Tree:
        """A state that this host can read as a whole, where it lies; every host must ask."""
        return state if jax.process_count() == 1 else self._put(state, self.everywhere)


def _same(tree: Tree) -> Tree:
    return tree


def _spread(x: Array, sharding: NamedSharding) -> Array:
    """An array that each host has alike, as one of all hosts with `sharding`."""
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_spread(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x))
    value = np.asarray(x)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _local(x: Array) -> Array:
    if x.is_fully_addressable:
        return jax.device_put(x, jax.local_devices()[0])
    return x.addressable_data(0)


def join_hosts() -> None:
    """Make this process one of several, before any other use of JAX.

    JAX finds out how many there are from SLURM, Open MPI, GKE or TPU. Elsewhere the environment says: JAX_COORDINATOR_ADDRESS
    (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    Raises InputError where neither does.
    """
    given = {name: os.environ.get(f"JAX_{name.upper()}") for name in ("num_processes", "process_id")}
    for name, value in given.items():
        check(value is None or value.isdigit(), f"JAX_{name.upper()}", value, "a whole number")
    numbers: dict[str, Any] = {name: None if value is None else int(value) for name, value in given.items()}
    try:
        jax.distributed.initialize(**numbers)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"--distributed: expected a cluster that JAX knows (SLURM, Open MPI, GKE, TPU), or the variables "
            f"JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID ({str(error).splitlines()[0]})."
        ) from error


_GIVEN = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES",
          "TPU_VISIBLE_DEVICES", "JAX_CUDA_VISIBLE_DEVICES", "JAX_NUM_CPU_DEVICES")  # fmt: skip  # which devices JAX takes


def require_devices() -> None:
    """Raise InputError where environment variables ask for a platform or for devices that are not there.

    By itself JAX computes on CPU where a device of `CUDA_VISIBLE_DEVICES` is missing, unless `JAX_PLATFORMS` names a platform.
    """
    given = {name: os.environ[name] for name in _GIVEN if os.environ.get(name)}
    try:
        devices = jax.local_devices()
    except Exception as error:  # of several types, by platform and by what is missing
        lines = str(error).strip().splitlines() or ["none was found"]
        named = ", ".join(f"{name} = {value!r}" for name, value in given.items()) or "JAX"
        raise InputError(f"{named}: expected a platform and devices that are there ({lines[0]}).") from error
    settings: Any = jax.config
    if (settings.jax_platforms or "").startswith("cpu"):
        return
    asked = _listed(given.get("CUDA_VISIBLE_DEVICES", ""))
    found = sum(device.platform in ("gpu", "cuda") for device in devices)
    alone = jax.process_count() == 1 and given.get("JAX_CUDA_VISIBLE_DEVICES", "all") == "all"  # others take a part of them
    missing = alone and found < len(asked)
    check(not missing, "CUDA_VISIBLE_DEVICES", given.get("CUDA_VISIBLE_DEVICES"), f"devices that JAX finds, which are {found}",
          "Name others, or JAX_PLATFORMS=cpu to compute on CPU.")  # fmt: skip


def _listed(value: str) -> list[str]:
    """The devices of CUDA_VISIBLE_DEVICES, whose list ends at -1 as CUDA reads it."""
    names = [name.strip() for name in value.split(",")]
    end = next((i for i, name in enumerate(names) if name in ("", "-1", "NoDevFiles", "void", "none")), len(names))
    return [] if names[:1] == ["all"] else names[:end]


def is_writer() -> bool:
    """Whether this process writes files: the first of all hosts."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Return when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def any_of_all(flag: bool) -> bool:
    """Whether any process says yes."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def together(what: str, step: Callable[[], Result]) -> Result:
    """The result of `step()`, which every process calls; where it raises in one of them, all raise."""
    try:
        result = step()
    except BaseException:
        any_of_all(True)
        raise
    check(not any_of_all(False), what, "failed", "success in every process", "The message of another process says why.")
    return result


def of_first(number: float) -> float:
    """The first process's number, for all of them."""
    if jax.process_count() == 1:
        return number
    return float(multihost_utils.broadcast_one_to_all(np.asarray(number)))


def check_alike(number: int, what: str) -> None:
    """Raise InputError unless every process has the same number."""
    if jax.process_count() > 1:
        found = np.ravel(multihost_utils.process_allgather(np.asarray(number))).tolist()
        check(len(set(found)) == 1, what, found, "the same for every process", "The run directory must be one that all share.")
