"""The error that bad input raises, which names field, value, expectation and remedy; and that of diverged training."""

import errno

# what the system says of itself and not of the file that it was asked for
NOT_DAMAGE = {errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.ENOSPC}


class InputError(ValueError):
    """Something the user gave cannot be used. The command line prints it without a traceback and exits with 2."""


class DivergenceError(RuntimeError):
    """Training met a number that is not finite. The command line prints it without a traceback and exits with 1."""


class DeviceMemoryError(RuntimeError):
    """There is not enough memory. The command line prints it without a traceback and exits with 1."""


class EnvironmentFailure(RuntimeError):
    """An environment raised an exception or gave no number. The command line prints it without a traceback and exits with 1."""


class StorageError(RuntimeError):
    """A file cannot be written. The command line prints it without a traceback and exits with 1."""


def check(condition: bool, field: str, value: object, expected: str, remedy: str = "") -> None:
    """Raise InputError naming `field`, its `value` and what was `expected`, unless `condition` holds."""
    if not condition:
        raise InputError(f"{field} = {value!r}: expected {expected}." + (f" {remedy}" if remedy else ""))
