"""How much memory this process has taken so far."""

import platform

import jax

try:
    import resource
except ImportError:  # not on this system
    resource = None  # type: ignore[assignment]


def peak_memory() -> int | None:
    """Most bytes in use so far: of the first device where it tells, else of this process; None where neither does."""
    found = jax.local_devices()[0].memory_stats()
    if found and "peak_bytes_in_use" in found:
        return int(found["peak_bytes_in_use"])
    if resource is None:
        return None
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if platform.system() == "Darwin" else 1024)
