"""Reports and figures: drawn with Agg, also where MPLBACKEND names a backend that matplotlib refuses to start with."""

import importlib
import os
import sys
from typing import Any


def _import_matplotlib(named: str) -> None:
    """Import matplotlib before anything else does: with Agg where it has no backend `named`, as by a notebook's kernel."""
    del os.environ["MPLBACKEND"]
    try:
        matplotlib: Any = importlib.import_module("matplotlib")
    finally:
        os.environ["MPLBACKEND"] = named
    try:
        matplotlib.rcParams["backend"] = named
    except ValueError:
        matplotlib.rcParams["backend"] = "agg"


if os.environ.get("MPLBACKEND") and "matplotlib" not in sys.modules:
    _import_matplotlib(os.environ["MPLBACKEND"])
