"""Signals that end a run: the stage saves its state at the end of the chunk, then leaves."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interruption:
    """Context manager that turns the first SIGINT or SIGTERM into a request to stop; a second one acts as it always did.

    Signals reach the main thread only: elsewhere nothing is changed, and nothing is requested.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested: int | None = None  # the signal's number
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            handled = [n for n in self.SIGNALS if signal.getsignal(n) not in (signal.SIG_IGN, None)]
            self._before = {number: signal.signal(number, self._request) for number in handled}
        return self

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = number
        self._restore()
        text = f"{signal.Signals(number).name}: saving at the end of this chunk; send it again to stop at once\n"
        os.write(2, text.encode())  # print may be in the middle of a line

    def leave(self) -> None:
        """Raise what the signal asks for: KeyboardInterrupt for SIGINT, SystemExit (143) for SIGTERM."""
        if self.requested == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()
