"""Compiled programs: kept on disk for later commands on the same kind of machine, released where a process holds too many."""

import gc
import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import jax

MOST_BYTES = 2 * 1024**3  # the least used programs are dropped beyond this
_MAPPINGS, _MOST_MAPPINGS = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")


def keep_compiled_programs() -> Path | None:
    """Turn on JAX's persistent cache; returns its directory, or None where the environment has decided about it already.

    The directory is `$XDG_CACHE_HOME/jaxpgd` (default `~/.cache/jaxpgd`), with a folder per kind of processor, as home
    directories are shared between machines. JAX's own variables come first: `JAX_COMPILATION_CACHE_DIR` for another directory,
    `JAX_ENABLE_COMPILATION_CACHE=false` for none. A directory that cannot be made leaves things as they are.
    """
    settings: Any = jax.config
    if settings.jax_compilation_cache_dir or not settings.jax_enable_compilation_cache:
        return None
    home = os.environ.get("XDG_CACHE_HOME", "")
    try:
        root = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
        path = root / "jaxpgd" / f"compiled-{_processor()}"
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # the latter where there is no home
        return None
    if not os.access(path, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    return path


def release_compiled_programs() -> bool:
    """Release all programs in memory where they take half of the memory mappings that Linux allows a process (65,530).

    On CPU a program takes hundreds, and LLVM ends the process at the limit. What is used again is compiled again, or read from
    the cache on disk. Returns whether it did; never on systems without such a limit.
    """
    try:
        held, most = _MAPPINGS.read_bytes().count(b"\n"), int(_MOST_MAPPINGS.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return False
    if 2 * held < most:
        return False
    jax.clear_caches()
    gc.collect()  # executables that only cycles refer to
    return True


def _processor() -> str:
    """A name for what this processor can execute."""
    found = platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            lines = (line for line in file if line.startswith(("flags", "Features", "model name")))
            found += "".join(sorted(set(lines)))
    except OSError:
        found += platform.processor()
    return hashlib.sha256(found.encode()).hexdigest()[:12]
