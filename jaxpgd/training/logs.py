"""`metrics.jsonl`: one JSON object per line, each with its stage and chunk; optionally mirrored to Weights & Biases."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpgd.errors import InputError
from jaxpgd.files import sync, write_text, writing
from jaxpgd.parallel import is_writer


def plain(value: Any) -> Any:
    """Arrays as numbers and lists, ready for JSON."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return np.asarray(value).tolist()
    return value


class MetricsLog:
    """Appends to `path`. Lines of chunks that a resumed stage runs again are dropped first."""

    def __init__(self, path: Path, wandb_project: str = "", name: str = ""):
        self.path, self.project, self.name = path, wandb_project, name
        self.wandb: Any = None  # started by the first line written: reading a run starts nothing

    def read(self) -> list[dict[str, Any]]:
        """All complete lines; one cut short by a crash is left out."""
        if not self.path.exists():
            return []
        rows = []
        for line in self.path.read_bytes().splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # UnicodeDecodeError is one as well
                continue
            if isinstance(row, dict):
                rows.append(row)
        return rows

    def rewind(self, stage: str, chunks: int) -> None:
        """Keep only the first `chunks` chunks of `stage`; other stages stay. Of several processes the first writes."""
        if not is_writer():
            return
        before = lambda chunk: isinstance(chunk, int) and chunk <= chunks
        rows = [r for r in self.read() if r.get("stage") != stage or before(r.get("chunk"))]
        text = "".join(json.dumps(r) + "\n" for r in rows)
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
            file.write(json.dumps(row) + "\n")
        if self.project:
            self.wandb = self.wandb or _start_wandb(self.project, self.name)
            flat = {f"{stage}/{k}": float(np.mean(v)) for k, v in row.items() if isinstance(v, int | float | list)}
            self.wandb.log(flat)


def require_wandb(project: str) -> None:
    """Raise InputError where a project is named and the package is missing."""
    if project and importlib.util.find_spec("wandb") is None:
        raise InputError(
            f"wandb_project = {project!r}: expected the package wandb to be installed. "
            'Install it with: pip install "jaxpgd[wandb]".'
        )


def _start_wandb(project: str, name: str) -> Any:
    import wandb  # type: ignore[import-not-found,unused-ignore]

    return wandb.init(project=project, name=name)
