"""`metrics.jsonl`: one JSON object per line, each with its stage and chunk; optionally mirrored to Weights & Biases."""

import importlib
import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpgd.errors import InputError
from jaxpgd.files import sync, write_text, writing
from jaxpgd.parallel import collectively, is_writer


def plain(value: Any) -> Any:
    """Arrays as numbers and lists, ready for JSON. JSON has no NaN and no infinities: they become null (see `numbers`)."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return plain(np.asarray(value).tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


_ABSENT = ("score", "successes", "length", "peak_memory_bytes")  # null where there is none, not where it is not a number


def numbers(value: Any, name: str = "") -> Any:
    """The inverse of `plain`: null is NaN, except under names whose value may be absent. Older files hold NaN themselves."""
    if isinstance(value, dict):
        return {k: numbers(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [numbers(v) for v in value]
    return math.nan if value is None and name not in _ABSENT else value


class MetricsReader:
    """The rows of `path`, read only."""

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """All complete lines; one cut short by a crash is left out."""
        if not self.path.exists():
            return []
        rows = []
        for line in self.path.read_bytes().splitlines():
            try:
                row = numbers(json.loads(line))
            except ValueError:  # UnicodeDecodeError is one as well
                continue
            if isinstance(row, dict):
                rows.append(row)
        return rows


class MetricsLog(MetricsReader):
    """Appends to `path`. Lines of chunks that a resumed stage runs again are dropped first."""

    def __init__(self, path: Path, project: str = "", name: str = ""):
        super().__init__(path)
        self.project, self.name = project, name
        self.wandb: Any = None  # begun by `start`: reading a run begins nothing

    def start(self) -> None:
        """Begin the mirror, if there is to be one, before what is logged is computed. Every process calls it, the first logs.

        Raises InputError where Weights & Biases refuses: no key, no network, a mode that it does not know.
        """
        if self.project and self.wandb is None:
            collectively("Weights & Biases", lambda: self._begin() if is_writer() else None)

    def _begin(self) -> None:
        require_wandb(self.project)
        try:
            self.wandb = importlib.import_module("wandb").init(project=self.project, name=self.name)
        except Exception as error:  # it has many kinds, and so has what it calls
            raise InputError(
                f"wandb_project = {self.project!r}: expected Weights & Biases to start ({_one_line(error)}). "
                "WANDB_MODE=offline keeps the log on this machine, WANDB_MODE=disabled and an empty wandb_project do without."
            ) from error

    def rewind(self, stage: str, chunks: int) -> None:
        """Keep only the first `chunks` chunks of `stage`; other stages stay. Of several processes the first writes."""
        if not is_writer():
            return
        before = lambda chunk: isinstance(chunk, int) and chunk <= chunks
        rows = [r for r in self.read() if r.get("stage") != stage or before(r.get("chunk"))]
        text = "".join(json.dumps(plain(r), allow_nan=False) + "\n" for r in rows)
        write_text(self.path, text)

    def sync(self) -> None:
        """Have all lines on disk. Raises StorageError."""
        if self.path.exists():
            with writing(self.path):
                sync(self.path)

    def write(self, stage: str, chunk: int, values: dict[str, Any]) -> None:
        """Append one line, of several processes the first. Values may be arrays; seeds are lists."""
        if not is_writer():
            return
        row = {"stage": stage, "chunk": chunk, **plain(values)}
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        if self.wandb is not None:
            shown = {k: v for k, v in numbers(row).items() if isinstance(v, int | float | list)}
            self._mirror({f"{stage}/{k}": float(np.mean(v)) for k, v in shown.items()})

    def _mirror(self, flat: dict[str, float]) -> None:
        """Pass numbers on. What fails in the middle of a run ends the mirror, not the run."""
        try:
            self.wandb.log(flat)
        except Exception as error:
            text = f"warning: Weights & Biases is not logged to any more ({_one_line(error)}); all of it is in {self.path}"
            print(text, file=sys.stderr, flush=True)
            self.wandb, self.project = None, ""


def require_wandb(project: str) -> None:
    """Raise InputError where a project is named and the package is missing.

    A folder called `wandb`, as the package itself leaves in the working directory, is found as a package without a file.
    """
    found = importlib.util.find_spec("wandb") if project else None
    if project and (found is None or found.origin is None):
        raise InputError(
            f"wandb_project = {project!r}: expected the package wandb to be installed. "
            'Install it with: pip install "jaxpgd[wandb]".'
        )


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
