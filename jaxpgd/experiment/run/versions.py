"""What a run was made with: versions of packages, the device, the commit of the source."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxpgd.experiment.precision import STATED, precision_of

_PACKAGES = ("jaxpgd", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "minari", "gymnasium", "mujoco")


def versions(*precisions: str) -> dict[str, str]:
    """Python, platform, device and package versions, the commit of the source; what settings of `matmul_precision` come to."""
    found = {"python": platform.python_version(), "platform": platform.platform(), "device": jax.devices()[0].device_kind}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    stated = {STATED: ", ".join(sorted({precision_of(each) for each in precisions}))} if precisions else {}
    return found | {"devices": str(len(jax.devices()))} | stated | {"source": _source()}


def _source() -> str:
    """The commit of the checkout that jaxpgd runs from, and how many of its files are changed; empty for an installed one."""
    here = Path(__file__).parent
    try:
        how: dict[str, Any] = {"capture_output": True, "encoding": "utf-8", "errors": "replace", "timeout": 10, "check": True}
        ask = lambda *words: str(subprocess.run(["git", "-C", str(here), *words], **how).stdout)
        if Path(ask("rev-parse", "--show-toplevel").strip()).resolve() != here.parents[2].resolve():
            return ""  # installed into some other project
        commit = ask("rev-parse", "HEAD").strip()
        changed = len(ask("status", "--porcelain", "--untracked-files=no").splitlines())
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit + (f", {changed} files changed" if changed else "")
