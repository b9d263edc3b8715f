"""Errors that users see. Bad input raises `InputError`, which names field, value, expectation and remedy."""

import errno

# errno values that are about the system, not about the file that was requested
NOT_DAMAGE = {errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.ENOSPC}


class InputError(ValueError):
    """Input that cannot be used. The command line prints it without a traceback and exits with 2."""


class DivergenceError(RuntimeError):
    """Training produced a number that is not finite. The command line prints it without a traceback and exits with 1."""


class DeviceMemoryError(RuntimeError):
    """The device has too little memory. The command line prints it without a traceback and exits with 1."""


class EnvironmentFailure(RuntimeError):
    """An environment raised an exception or returned no number. Printed without a traceback; the command line exits with 1."""


class StorageError(RuntimeError):
    """A file cannot be written. The command line prints it without a traceback and exits with 1."""


def check(condition: bool, field: str, value: object, expected: str, remedy: str = "") -> None:
    """Raise InputError with `field`, its `value`, what was `expected` and the `remedy`, unless `condition` holds."""
    if not condition:
        raise InputError(f"{field} = {value!r}: expected {expected}." + (f" {remedy}" if remedy else ""))
