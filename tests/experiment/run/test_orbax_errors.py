"""Errors that libraries print as well are said once; others are printed as ever."""

import logging
import sys

import pytest

from jaxpgd.experiment.run.orbax_errors import unprinted_errors


def test_closed_loops_are_left_out_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: heard.append(str(error)))
    level = logging.getLogger("absl").level
    with pytest.raises(ValueError, match="full"), unprinted_errors():
        assert not logging.getLogger("absl").isEnabledFor(logging.ERROR)
        raise ValueError("full")
    assert logging.getLogger("absl").level == level
    for error in (RuntimeError("Event loop is closed"), RuntimeError("another"), ValueError("Event loop is closed")):
        sys.excepthook(type(error), error, None)
    assert heard == ["another", "Event loop is closed"]
