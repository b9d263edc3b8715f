"""Orbax and TensorStore print the errors that they raise as well: pages of tracebacks before the one message of jaxpgd."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

Hook = Callable[[type[BaseException], BaseException, TracebackType | None], object]


@contextmanager
def unprinted_errors() -> Iterator[None]:
    """Let what is inside raise its errors without printing them."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL)
    if not isinstance(sys.excepthook, _WithoutClosedLoops):
        sys.excepthook = _WithoutClosedLoops(sys.excepthook)  # stays installed: such callbacks come at the very end
    try:
        yield
    finally:
        log.setLevel(level)


class _WithoutClosedLoops:
    """An exception hook that skips callbacks of reads and writes whose event loop has ended, as they come after a failure."""

    def __init__(self, before: Hook):
        self.before = before

    def __call__(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not (kind is RuntimeError and str(error) == "Event loop is closed"):
            self.before(kind, error, trace)
