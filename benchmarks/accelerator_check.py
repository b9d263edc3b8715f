"""`python -m benchmarks.accelerator_check [--rehearse]`: whether JAX computes on an accelerator; if not, one line, exit code 2.

`--rehearse` takes any device, and imports every module of jaxpgd and benchmarks to see that all comes from the checkout, the
wheels installed for it and the environment: what another folder happens to hold is absent on the machine rehearsed for.
"""

import importlib
import os
import pkgutil
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path


def device() -> tuple[str, str]:
    """Platform of the first device once it has computed something, and a line about it."""
    import jax
    import numpy

    first = jax.devices()[0]
    if float(jax.numpy.arange(4.0).sum()) != 6:
        raise RuntimeError(f"{first} does not add up 0 to 3")
    python = ".".join(map(str, sys.version_info[:3]))
    return first.platform, f"{first.device_kind}; Python {python}, jax {jax.__version__}, numpy {numpy.__version__}"


def import_all() -> None:
    """Import every module of the two packages."""
    for name in ("jaxpgd", "benchmarks"):
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)


def strangers() -> list[str]:
    """Imported modules of another folder than Python's own, the environment's, and those that PYTHONPATH names."""
    named = [Path(folder).resolve() for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    named += [Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib")]
    own = Path(sysconfig.get_path("stdlib")).resolve()
    files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items()) if name != "__main__"}
    paths = {name: Path(file).resolve() for name, file in files.items() if file}
    known = lambda path: (
        any(path.is_relative_to(folder) for folder in named)
        or (path.is_relative_to(own) and not {"site-packages", "dist-packages"} & set(path.parts))
    )
    return sorted(name for name, path in paths.items() if not known(path))


def main(argv: Sequence[str] | None = None) -> None:
    """Print the device, or one line that says what is wrong."""
    rehearse = "--rehearse" in (sys.argv[1:] if argv is None else argv)
    try:
        platform, line = device()
        if rehearse:
            import_all()
    except Exception as error:  # whatever it is, nothing can be run
        sys.exit(_wrong(f"{type(error).__name__}: {error}"))
    if platform == "cpu" and not rehearse:
        sys.exit(_wrong("no accelerator: JAX finds the processor alone. Without one: --rehearse"))
    if rehearse and (found := strangers()):
        sys.exit(_wrong(f"imported from elsewhere: {', '.join(found[:5])}"))
    print(line)


def _wrong(what: str) -> int:
    print(f"error: {' '.join(what.split())[:400]}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
