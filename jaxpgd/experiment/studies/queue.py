"""The parts of a study that are left to measure, where several processes share its folder."""

import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from jaxpgd.errors import InputError
from jaxpgd.experiment.run import lock
from jaxpgd.experiment.run.lock import HeldElsewhere, RunLock
from jaxpgd.experiment.studies.cell import Cell


def label(part: Iterable[Cell]) -> str:
    """The labels of cells that are measured together."""
    return "; ".join(cell.label for cell in part)


class Queue:
    """The index and the cells of every part, into which no other process writes until the next is asked for.

    Parts that another process measures, or that are put off, come last, when they are free or at the deadline.
    """

    def __init__(self, parts: Sequence[Sequence[Cell]], root: Path, deadline: float) -> None:
        self._parts, self._root, self._deadline = deque(enumerate(parts)), root, deadline
        self._told, self._in_vain = set[tuple[int, str]](), 0  # parts one after the other that were put off

    def __iter__(self) -> Iterator[tuple[int, Sequence[Cell]]]:
        while self._parts:
            index, part = self._parts.popleft()
            with claimed(part, self._root) as other:
                if not other or time.monotonic() > self._deadline:
                    waiting = len(self._parts)
                    yield index, part
                    if len(self._parts) == waiting:  # it was not put off
                        self._in_vain = 0
                else:
                    self.put_off(index, part, f"is being measured by process {other}")
            if self._in_vain and self._in_vain >= len(self._parts):
                time.sleep(lock.SECONDS)
                self._in_vain = 0

    def put_off(self, index: int, part: Sequence[Cell], why: str) -> None:
        """The part comes again after the others."""
        if (index, why) not in self._told:
            print(f"{label(part)}: {why}", file=sys.stderr, flush=True)
        self._told.add((index, why))
        self._parts.append((index, part))
        self._in_vain += 1


@contextmanager
def claimed(group: Sequence[Cell], root: Path) -> Iterator[str]:
    """The process that writes into one of these cells' folders; where there is none, none does until the end of the `with`.

    Folders that cannot be written are left to the measurement, which reports them.
    """
    with ExitStack() as held:
        holder = ""
        try:
            for cell in group:
                (root / cell.name).mkdir(parents=True, exist_ok=True)
                claim = RunLock(root / cell.name)
                claim.take()
                held.callback(claim.release)
        except HeldElsewhere as error:
            holder = error.holder
            held.close()
        except (InputError, OSError):
            pass
        yield holder
