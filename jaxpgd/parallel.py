"""Arrays sharded over devices, and agreement between hosts, with JAX's own sharding.

One mesh has two axes: independent runs (SEEDS) and examples of a batch (DATA). Functions mark what may be sharded (`shard`,
`map_batches`, `map_seeds`). The marks apply under a mesh (`jax.set_mesh`) and are no-ops without one. Results do not depend
on the mesh, up to rounding.
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

SEEDS, DATA = "seeds", "data"  # axes of the mesh: independent runs; examples or trajectories of a batch

Tree = TypeVar("Tree")
Result = TypeVar("Result")


def device_mesh(seeds: int = 1, devices: Any = None) -> Mesh:
    """Mesh of all devices, or of those given, with axes (SEEDS, DATA).

    SEEDS has gcd(`seeds`, number of devices) devices, so that every device holds the same number of runs; DATA has the rest.
    """
    devices = jax.devices() if devices is None else devices
    across = math.gcd(max(seeds, 1), len(devices))
    shape = (across, len(devices) // across)
    return jax.make_mesh(shape, (SEEDS, DATA), axis_types=(AxisType.Auto, AxisType.Auto), devices=devices)


def shard(tree: Tree, *axes: str) -> Tree:
    """`tree` with the leading axis of every array sharded over the named axes of the current mesh.

    An array stays as it is if its leading axis does not split evenly. Without a mesh, nothing changes.
    """
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    parts = math.prod(sizes.get(axis, 1) for axis in axes)
    if parts == 1:
        return tree
    spec = PartitionSpec(axes)
    sharded: Tree = jax.tree.map(lambda x: x if x.shape[0] % parts else jax.lax.with_sharding_constraint(x, spec), tree)
    return sharded


def map_batches(fn: Callable[..., Any], xs: Any, batch_size: int) -> Any:
    """`fn` mapped over the leading axis of xs [N, ...], `batch_size` entries at a time, each batch sharded over DATA.

    `jax.lax.map` with a batch size does the same without sharding its batches.
    """
    count = jax.tree.leaves(xs)[0].shape[0]
    size = min(batch_size, count)
    batch = lambda xs: jax.vmap(fn)(shard(xs, DATA))
    if size == count:
        return batch(xs)
    batches = count // size
    full = jax.tree.map(lambda x: x[: batches * size].reshape(batches, size, *x.shape[1:]), xs)
    out = jax.tree.map(lambda y: y.reshape(batches * size, *y.shape[2:]), jax.lax.map(batch, full))
    if count == batches * size:
        return out
    rest = batch(jax.tree.map(lambda x: x[batches * size :], xs))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), out, rest)


def map_seeds(fn: Callable[[Any], Any], states: Any) -> Any:
    """`fn` mapped over independent states [S, ...], sharded over SEEDS.

    The states are vmapped, except on CPU without sharding, where one compiled program loops over them: a single state keeps
    all cores busy, and several do not fit the caches (vmap is a third slower at 8 seeds of networks 256 wide).
    """
    unsharded = dict(jax.sharding.get_abstract_mesh().shape).get(SEEDS, 1) == 1
    if unsharded and jax.default_backend() == "cpu":
        return jax.lax.map(fn, states)
    return jax.vmap(fn, spmd_axis_name=SEEDS)(states)


class Placement:
    """How a training program is placed on devices: states sharded over SEEDS if they have that axis, all else replicated.

    With one device, nothing changes.
    """

    def __init__(self, seeds: int = 0, devices: Any = None):
        self.mesh = device_mesh(seeds, devices)
        self.one = self.mesh.size == 1
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        self.sharded = NamedSharding(self.mesh, PartitionSpec(SEEDS)) if seeds else self.replicated

    def replicate(self, tree: Tree) -> Tree:
        """A copy of `tree` on every device."""
        return tree if self.one else self._put(tree, self.replicated)

    def shard(self, state: Tree) -> Tree:
        """A state of the program, sharded over SEEDS (replicated if the program has no seeds axis)."""
        return state if self.one else self._put(state, self.sharded)

    def _put(self, tree: Tree, sharding: NamedSharding) -> Tree:
        placed: Tree
        if jax.process_count() == 1:
            placed = jax.device_put(tree, sharding)
        elif all(not getattr(x, "is_fully_addressable", True) for x in jax.tree.leaves(tree)):
            placed = jax.jit(_identity, out_shardings=sharding)(tree)
        else:
            placed = jax.tree.map(lambda x: _shard_across_hosts(x, sharding), tree)
        return placed

    def init(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Compile `fn(...) -> state`."""
        return self._compiled(fn, None if self.one else self.sharded)

    def step(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Compile `fn(state, ...) -> (state, metrics)`. The state is donated; the metrics are replicated."""
        return self._compiled(fn, None if self.one else (self.sharded, self.replicated), donate_argnums=0)

    def read(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Compile `fn(state) -> result`. The result is replicated, and the state is not donated."""
        return self._compiled(fn, None if self.one else self.replicated)

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

    def gather(self, state: Tree) -> Tree:
        """The complete state on this host's first device, valid until the state is donated. Every host must call this."""
        return state if self.one else jax.tree.map(_local, self.fully_addressable(state))

    def fully_addressable(self, state: Tree) -> Tree:
        """The state in a form that this host can read completely, on the devices it is on. Every host must call this."""
        return state if jax.process_count() == 1 else self._put(state, self.replicated)


def _identity(tree: Tree) -> Tree:
    return tree


def _shard_across_hosts(x: Array, sharding: NamedSharding) -> Array:
    """The global array with `sharding` of a value that every host holds."""
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = _shard_across_hosts(jax.random.key_data(x), sharding)
        keys: Array = jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        return keys
    value = np.asarray(x)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _local(x: Array) -> Array:
    if x.is_fully_addressable:
        local: Array = jax.device_put(x, jax.local_devices()[0])
        return local
    return x.addressable_data(0)


def join_hosts() -> None:
    """Initialize JAX for several processes. Call this before any other use of JAX.

    JAX detects SLURM, Open MPI, GKE and TPU clusters. Elsewhere, set JAX_COORDINATOR_ADDRESS (host:port of process 0),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID. Raises InputError if neither is given.
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


# The environment variables that select the devices which JAX uses.
_DEVICE_VARIABLES = (
    "JAX_PLATFORMS",
    "JAX_PLATFORM_NAME",
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "TPU_VISIBLE_DEVICES",
    "JAX_CUDA_VISIBLE_DEVICES",
    "JAX_NUM_CPU_DEVICES",
)


def require_devices() -> None:
    """Raise InputError if environment variables request a platform or devices that are missing.

    JAX silently falls back to CPU if a device in `CUDA_VISIBLE_DEVICES` is missing, unless `JAX_PLATFORMS` names a platform.
    """
    given = {name: os.environ[name] for name in _DEVICE_VARIABLES if os.environ.get(name)}
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
    alone = (
        jax.process_count() == 1 and given.get("JAX_CUDA_VISIBLE_DEVICES", "all") == "all"
    )  # otherwise other processes hold some of them
    missing = alone and found < len(asked)
    check(not missing, "CUDA_VISIBLE_DEVICES", given.get("CUDA_VISIBLE_DEVICES"), f"devices that JAX finds, which are {found}",
          "Name others, or JAX_PLATFORMS=cpu to compute on CPU.")  # fmt: skip


def _listed(value: str) -> list[str]:
    """Devices named in CUDA_VISIBLE_DEVICES. CUDA ignores everything from the first -1 on."""
    names = [name.strip() for name in value.split(",")]
    end = next((i for i, name in enumerate(names) if name in ("", "-1", "NoDevFiles", "void", "none")), len(names))
    return [] if names[:1] == ["all"] else names[:end]


def is_writer() -> bool:
    """Whether this process writes files. Only process 0 does."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until every process has reached this point."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def any_process(flag: bool) -> bool:
    """Whether `flag` is true in any process."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def collectively(what: str, step: Callable[[], Result]) -> Result:
    """The result of `step()`, called in every process. If it raises in one of them, every process raises."""
    try:
        result = step()
    except BaseException:
        any_process(True)
        raise
    check(not any_process(False), what, "failed", "success in every process", "The message of another process says why.")
    return result


def broadcast(number: float) -> float:
    """The number held by process 0, returned in every process."""
    if jax.process_count() == 1:
        return number
    return float(multihost_utils.broadcast_one_to_all(np.asarray(number)))


def check_same_across_hosts(number: int, what: str) -> None:
    """Raise InputError unless every process holds the same number."""
    if jax.process_count() > 1:
        found = np.ravel(multihost_utils.process_allgather(np.asarray(number))).tolist()
        check(len(set(found)) == 1, what, found, "the same for every process", "The run directory must be one that all share.")
