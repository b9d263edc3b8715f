"""Progress of a long stage: a bar in a terminal, a line now and then elsewhere; with rate and time left. One process tells."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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

    The rate leaves the first chunk out as soon as there is a second, since it holds the compilation. Without a terminal there
    is a line at most `every` so many seconds; of a loop that is `brief` no line says that it begins, and none that it ends
    unless another came before. Within another such loop the bar stands below that one's.
    """

    _open: list["StageProgress"] = []  # noqa: RUF012  # those with a bar, the outermost first

    def __init__(self, label: str, total: int, unit: str, done: int = 0, every: float = 15.0, *, brief: bool = False):
        self.label, self.total, self.unit, self.start, self.every, self.brief = label, total, unit, done, every, brief
        self.done, self.began, self.printed = done, time.monotonic(), 0.0
        self.since = (done, self.began)  # where the rate counts from
        self.bar = None
        if sys.stdout.isatty() and is_writer():
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[status]}"))
            self.bar = self._open[0].bar if self._open else Progress(*columns)

    def __enter__(self) -> "StageProgress":
        if self.bar is not None:
            if not self._open:
                self.bar.start()
            self._open.append(self)
            self.task = self.bar.add_task(self.label, total=self.total, completed=self.done, status="compiling")
        elif self.done < self.total and is_writer() and not self.brief:
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
        elif is_writer() and (seconds - self.printed >= self.every or (self.done >= self.total and self._tells_end())):
            self.printed = seconds
            print(f"{self.label}: {status}", flush=True)

    def _tells_end(self) -> bool:
        return self.printed > 0 or not self.brief

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar is None:
            return
        self._open.remove(self)
        if self._open:
            self.bar.remove_task(self.task)
        else:
            self.bar.stop()


@contextmanager
def evaluation_progress(label: str, every: float = 15.0) -> Iterator[Callable[[int, int, int, int], None]]:
    """What `evaluate` calls after each step of its episodes: the step, the most there are, episodes that ended, and all."""
    with ExitStack() as stack:
        open_now: list[StageProgress] = []

        def tell(step: int, most: int, ended: int, episodes: int) -> None:
            if not open_now or step <= open_now[0].done:  # of an evaluation that begins, or begins again
                stack.close()
                open_now[:] = [stack.enter_context(StageProgress(label, most, "steps", every=every, brief=True))]
            open_now[0].advance(step - open_now[0].done, f"{ended}/{episodes} episodes ended")

        yield tell
