"""One core per pytest-xdist worker, and one cache of compiled programs for all of them, set before JAX starts.

JAX processes that share their cores slow each other down; programs of equal shape, of which the tests run many, compile once.
"""

import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
if WORKER and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(WORKER.removeprefix("gw")) % len(cores)]})

if not WORKER:  # workers, and commands that tests start, find it in their environment
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxpgd-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around pytest-xdist's own, which reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None]:
    """Files stay on one worker, and so do all that look at the one finished run, which is then made once."""
    for item in items:
        shared = "finished" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("finished" if shared else str(item.path)))
    return (yield)


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
