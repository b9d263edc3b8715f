"""How tests share a machine: a core per pytest-xdist worker, one cache of compiled programs, files whole and long ones first.

Python's garbage collector runs seldom: with the many objects of JAX's programs it took a seventh of the time.

All is set before JAX starts. JAX processes that share their cores slow each other down; programs of equal shape, of which the
tests run many, compile once.
"""

import gc
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

gc.set_threshold(100_000, 20, 20)

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
if WORKER and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(WORKER.removeprefix("gw")) % len(cores)]})

FINISHED = ("commands/test_run.py", "commands/test_data_collect.py", "commands/test_pareto.py", "stages/test_load.py",
            "stages/test_choose_coefficient.py", "run/test_distributed_run.py")  # fmt: skip
LONG = ("experiment", "synthesis", "training", "agents", "test_notebooks.py")
# of XLA's two ways to make kernels for the CPU the one that compiles in a third of the time, and in one part, as there is one
# core; one day these flags may be gone
SOONER = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def _is_known(flag: str) -> bool:
    """XLA ends a process that names a flag which it does not know."""
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    return subprocess.run(command, env=os.environ | {"XLA_FLAGS": flag}, capture_output=True, check=False).returncode == 0


# a program that compiles faster than this is quicker to compile again than to keep
if not WORKER:  # workers, and commands that tests start, find it in their environment
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxpgd-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"
    os.environ["JAX_INCLUDE_FULL_TRACEBACKS_IN_LOCATIONS"] = "false"  # of each operation, a fourteenth of the time
    if "XLA_FLAGS" not in os.environ and _is_known(SOONER):
        os.environ["XLA_FLAGS"] = SOONER


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file stays on one worker, and so do the files that look at the one finished run: what they share is made once."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "the finished run" if file.endswith(FINISHED) else file

    config.option.loadscopereorder = False
    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first, so that no worker is left with one at the end."""
    items.sort(key=lambda item: not any(part in item.path.parts for part in LONG))


def pytest_sessionstart(session: pytest.Session) -> None:
    """What test files compute while they are imported is compiled as in tests: another way to compile rounds otherwise."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests are compilation for the most part, and much of that is optimising what runs for a moment.

    The mark `optimised` is for those that run long enough to gain by it.
    """
    import jax

    jax.config.update("jax_disable_most_optimizations", item.get_closest_marker("optimised") is None)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Drop the cache when the last process that uses it ends."""
    if not WORKER:
        shutil.rmtree(Path(os.environ["JAX_COMPILATION_CACHE_DIR"]), ignore_errors=True)
