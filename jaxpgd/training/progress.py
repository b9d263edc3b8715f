"""Progress of a long stage: a bar in a terminal, a line now and then elsewhere; with rate and time left. One process tells."""

import sys
import time
from types import TracebackType

from rich.progress import BarColumn, Progress, TextColumn

from jaxpgd.parallel import is_writer


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class StageProgress:
    """Context manager around a loop of `total` steps; call `advance` after each chunk.

    The rate leaves the first chunk out as soon as there is a second, since it holds the compilation.
    """

    def __init__(self, label: str, total: int, unit: str, done: int = 0, every: float = 15.0):
        self.label, self.total, self.unit, self.start, self.every = label, total, unit, done, every
        self.done, self.began, self.printed = done, time.monotonic(), 0.0
        self.since = (done, self.began)  # where the rate counts from
        self.bar = (
            Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[status]}"))
            if sys.stdout.isatty() and is_writer()
            else None
        )

    def __enter__(self) -> "StageProgress":
        if self.bar is not None:
            self.bar.start()
            self.task = self.bar.add_task(self.label, total=self.total, completed=self.done, status="compiling")
        elif self.done < self.total and is_writer():
            count = "" if self.total == 1 else f"{self.done}/{self.total} {self.unit}, "
            print(f"{self.label}: {count}compiling", flush=True)
        return self

    def advance(self, steps: int, note: str = "") -> None:
        """Count `steps` more; `note` is shown beside rate and time left."""
        first = self.done == self.start
        self.done += steps
        now = time.monotonic()
        seconds = now - self.began
        rate = (self.done - self.since[0]) / max(now - self.since[1], 1e-9)
        self.since = (self.done, now) if first else self.since
        left = f", {rate:.3g}/s, {clock((self.total - self.done) / max(rate, 1e-9))} left"
        count = f"{self.done}/{self.total} {self.unit}"
        status = (f"done in {clock(seconds)}" if self.total == 1 else count + left) + (f", {note}" if note else "")
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, status=status)
        elif is_writer() and (seconds - self.printed >= self.every or self.done >= self.total):
            self.printed = seconds
            print(f"{self.label}: {status}", flush=True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()
