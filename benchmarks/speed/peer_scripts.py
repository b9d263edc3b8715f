"""Finds the peers' training scripts where the user keeps them, and loads them as they are.

The scripts of a peer import loggers, command lines and simulators that no update uses. Where those are not installed, empty
modules stand in for them while a script loads. Everything that an update computes with (JAX, Flax, Optax, Distrax) is real.
"""

import contextlib
import dataclasses
import importlib.util
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from jaxpgd.errors import check


@dataclasses.dataclass(frozen=True)
class Peer:
    """Another implementation: its name, the command's option for its checkout, and its scripts by algorithm."""

    name: str
    option: str
    scripts: dict[str, str]


UNIFLORAL = Peer("unifloral", "--unifloral", {"td3_bc": "algorithms/td3_bc.py", "iql": "algorithms/iql.py"})
JAX_CORL = Peer("JAX-CORL", "--jax-corl", {"td3_bc": "algos/td3bc.py", "iql": "algos/iql.py"})
UNUSED = ("d4rl", "gym", "omegaconf", "pydantic", "tqdm", "tyro", "wandb")  # no update computes with these


def find(peer: Peer, algorithm: str, given: Path | None) -> Path | None:
    """The peer's script in its checkout `given`, or without one where Python looks for modules. None: there is none.

    Raises InputError where `given` is not a checkout of the peer.
    """
    if given is not None:
        some = any((given / script).is_file() for script in peer.scripts.values())
        check(some, peer.option, str(given), f"a checkout of {peer.name}, with {' or '.join(peer.scripts.values())}")
    candidates = [root / peer.scripts[algorithm] for root in (_places() if given is None else [given])]
    return next((path for path in candidates if path.is_file()), None)


def _places() -> list[Path]:
    """Where Python looks for modules."""
    return [Path(entry) for entry in sys.path]


def load(path: Path) -> Any:
    """The script as a module, not run as a program. Raises whatever the script raises."""
    name = f"peer_{path.parent.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _surroundings(path):
        sys.modules[name] = module  # where dataclasses look up the module of a class
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _surroundings(path: Path) -> Iterator[None]:
    """Stand-ins, no arguments of ours to parse, and what a script changes outside itself (`XLA_FLAGS`, caches) undone."""
    added = {name: _stand_in(name) for name in UNUSED if not _installed(name)}
    with (
        mock.patch.object(sys, "argv", [str(path)]),
        mock.patch.object(sys, "dont_write_bytecode", True),
        mock.patch.dict(os.environ),
    ):
        sys.modules.update(added)
        try:
            yield
        finally:
            for name in added:
                del sys.modules[name]


def _installed(name: str) -> bool:
    return name in sys.modules or importlib.util.find_spec(name) is not None


class _StandIn(types.ModuleType):
    """A module whose every attribute is an empty class: enough for annotations and for names that are never called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Settings:
    """Settings with defaults, in place of pydantic's `BaseModel`: keyword arguments over the attributes of a class."""

    def __init__(self, **given: Any) -> None:
        self.__dict__.update(given)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.__dict__})"


class _NoSettings:
    """In place of `OmegaConf`: a command line without settings."""

    from_cli = staticmethod(dict)


def _stand_in(name: str) -> types.ModuleType:
    module = _StandIn(name)
    module.__dict__.update({"pydantic": {"BaseModel": _Settings}, "omegaconf": {"OmegaConf": _NoSettings}}.get(name, {}))
    return module
