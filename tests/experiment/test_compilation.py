import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxpgd.experiment import compilation
from jaxpgd.experiment.compilation import keep_compiled_programs, release_compiled_programs

NAMES = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size", "jax_enable_compilation_cache")


@pytest.fixture
def without_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """JAX as it is where nobody chose a cache; the home of caches is returned."""
    before = {name: getattr(jax.config, name) for name in NAMES}
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_cache_lies_in_the_users_cache_by_processor(without_cache: Path) -> None:
    path = keep_compiled_programs()
    assert path is not None and path.parent == without_cache / "jaxpgd" and path.is_dir()
    assert jax.config.jax_compilation_cache_dir == str(path)
    assert jax.config.jax_compilation_cache_max_size > 0


def test_what_the_environment_says_comes_first(without_cache: Path) -> None:
    jax.config.update("jax_compilation_cache_dir", "elsewhere")
    assert keep_compiled_programs() is None
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", False)
    assert keep_compiled_programs() is None
    assert not without_cache.exists()


def test_a_home_that_cannot_be_written_is_no_error(without_cache: Path) -> None:
    without_cache.write_text("a file")
    assert keep_compiled_programs() is None
    assert jax.config.jax_compilation_cache_dir is None


PROGRAM = """
import jax, logging
from jaxpgd.experiment.compilation import keep_compiled_programs
keep_compiled_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
jax.jit(lambda x: x @ x + 1)(jax.numpy.ones((7, 7))).block_until_ready()
print("hit" if "/jax/compilation_cache/cache_hits" in hits else "miss")
"""


def test_a_second_process_reads_what_the_first_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    run = lambda: subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout.strip()
    assert [run(), run()] == ["miss", "hit"]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of memory mappings on this system")
def test_programs_are_released_where_a_process_nears_its_limit_of_mappings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A study in one process died of `LLVM ERROR: Unable to allocate section memory` in its twelfth cell."""
    double = jax.jit(lambda x: 2 * x)
    double(1.0)
    held, limit = Path("/proc/self/maps").read_bytes().count(b"\n"), tmp_path / "max_map_count"
    monkeypatch.setattr(compilation, "_MOST_MAPPINGS", limit)
    limit.write_text(f"{4 * held}\n")
    assert not release_compiled_programs() and double._cache_size() == 1
    limit.write_text(f"{held}\n")
    assert release_compiled_programs() and double._cache_size() == 0
    assert double(1.0) == 2.0


def test_systems_without_such_a_limit_keep_their_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compilation, "_MAPPINGS", tmp_path / "absent")
    assert not release_compiled_programs()
