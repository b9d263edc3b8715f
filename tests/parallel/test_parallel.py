import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpgd.parallel import (
    DATA,
    SEEDS,
    Placement,
    any_process,
    barrier,
    broadcast,
    check_same_across_hosts,
    collectively,
    device_mesh,
    is_writer,
    map_batches,
    shard,
)  # fmt: skip

PROGRAM = Path(__file__).with_name("losses.py")


def start(devices: int, *arguments: str) -> subprocess.Popen[str]:
    """The program with so many emulated devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    found: dict[str, Any] = json.loads(out.split("RESULT", 1)[1])
    return found


def apart(found: dict[str, Any], name: str) -> np.ndarray:
    """Relative difference per chunk between all devices and one."""
    one, every = (np.asarray(found[f"{name}_{which}"]) for which in ("one", "all"))
    assert np.isfinite(one).all() and len(set(one.ravel().tolist())) > 1
    return np.abs(every - one) / np.abs(one)


def agrees(found: dict[str, Any]) -> None:
    """Float32: 1e-5 within the first ten steps, 1e-3 at a hundred."""
    assert found["devices"] == 8
    assert (found["seed_rows"], found["batch_rows"]) == (1, 2)  # 2 seeds and a batch of 16 are really sharded
    difference = apart(found, "denoiser")
    assert difference[0] <= 1e-5 and difference.max() <= 1e-3
    assert apart(found, "agent").max() <= 1e-3
    np.testing.assert_array_equal(found["mapped"], 2.0 * np.arange(20.0))


@pytest.mark.slow
def test_eight_devices_give_what_one_gives() -> None:
    agrees(result(start(8, "single")))


@pytest.mark.slow
def test_in_double_precision_to_rounding() -> None:
    assert apart(result(start(8, "double")), "denoiser").max() <= 1e-9


@pytest.mark.slow
def test_two_processes_of_four_devices_give_what_one_device_gives() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    processes = [start(4, "single", str(i), "2", port) for i in range(2)]
    found = [result(process) for process in processes]
    for each in found:
        assert each["processes"] == 2
        agrees(each)
    assert found[0] == found[1]


@pytest.mark.parametrize("seeds, shape", [(0, (1, 8)), (1, (1, 8)), (3, (1, 8)), (4, (4, 2)), (6, (2, 4)), (16, (8, 1))])
def test_seeds_take_as_many_devices_as_divide_both(seeds: int, shape: tuple[int, int], monkeypatch: Any) -> None:
    monkeypatch.setattr(jax, "make_mesh", lambda shape, names, **rest: (shape, names))
    assert device_mesh(seeds, range(8)) == (shape, (SEEDS, DATA))


def test_without_a_mesh_nothing_is_sharded() -> None:
    x = jnp.ones((4, 2))
    assert shard(x, DATA) is x
    placement = Placement(seeds=2, devices=jax.devices()[:1])
    assert placement.replicate(x) is x and placement.shard(x) is x and placement.gather(x) is x


@pytest.mark.parametrize("count, batch", [(7, 3), (6, 3), (2, 5), (1, 1)])
def test_batches_are_mapped_in_order(count: int, batch: int) -> None:
    xs = {"a": jnp.arange(float(count)), "b": jnp.arange(2.0 * count).reshape(count, 2)}
    found = map_batches(lambda x: x["a"] + x["b"].sum(), xs, batch)
    np.testing.assert_allclose(found, np.arange(count) + np.arange(2.0 * count).reshape(count, 2).sum(-1))


def test_a_process_alone_writes_and_waits_for_nobody() -> None:
    assert is_writer() and any_process(True) and not any_process(False)
    barrier("nobody")
    assert collectively("a step", lambda: 3) == 3 and broadcast(0.5) == 0.5
    check_same_across_hosts(1, "a number")
    with pytest.raises(KeyError):
        collectively("a step", lambda: {}["absent"])
