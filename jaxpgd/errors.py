"""The one error that bad input raises: it names the field, the value, what was expected and the remedy."""


class InputError(ValueError):
    """Something the user gave cannot be used. The command line prints it without a traceback and exits with 2."""


def check(condition: bool, field: str, value: object, expected: str, remedy: str = "") -> None:
    """Raise InputError naming `field`, its `value` and what was `expected`, unless `condition` holds."""
    if not condition:
        raise InputError(f"{field} = {value!r}: expected {expected}." + (f" {remedy}" if remedy else ""))
