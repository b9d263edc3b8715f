"""Experiments on top of the library: configs, run directories, stages, commands, studies, reports and the command line.

`Config` holds every setting with its default, and `load_config` reads one from TOML.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxpgd.experiment.config import Config
    from jaxpgd.experiment.config_files import load_config

_DEFINED_IN = {"Config": "jaxpgd.experiment.config", "load_config": "jaxpgd.experiment.config_files"}

__all__ = ["Config", "load_config"]


def __getattr__(name: str) -> Any:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_DEFINED_IN[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
