"""`python -m benchmarks.accelerator_check [--rehearse]`: check that JAX computes on an accelerator; if not, exit with code 2.

`--rehearse` accepts any device. It imports every module of jaxpgd and benchmarks and checks that all imports come from the
checkout, the installed wheels or the environment: packages in any other folder would be missing on the machine rehearsed for.
"""

import importlib
import os
import pkgutil
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path


def device() -> tuple[str, str]:
    """Compute something on the first device; returns its platform and a line that describes it."""
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


def foreign_modules() -> list[str]:
    """Imported modules that lie neither in the standard library, nor in the environment, nor on PYTHONPATH."""
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
    """Print the device, or one line with the error."""
    rehearse = "--rehearse" in (sys.argv[1:] if argv is None else argv)
    try:
        platform, line = device()
        if rehearse:
            import_all()
    except Exception as error:  # any error means that nothing can run
        sys.exit(_wrong(f"{type(error).__name__}: {error}"))
    if platform == "cpu" and not rehearse:
        sys.exit(_wrong("no accelerator: JAX finds the processor alone. Without one: --rehearse"))
    if rehearse and (found := foreign_modules()):
        sys.exit(_wrong(f"imported from elsewhere: {', '.join(found[:5])}"))
    print(line)


def _wrong(what: str) -> int:
    print(f"error: {' '.join(what.split())[:400]}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
