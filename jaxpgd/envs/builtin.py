"""Built-in environments by id: "point2d", or "point2d-100" for episodes of 100 steps."""

import re

from jaxpgd.envs.point2d import Point2D
from jaxpgd.errors import InputError

_POINT2D = re.compile(r"point2d(?:-([1-9]\d{0,5}))?")


def is_builtin(env_id: str | None) -> bool:
    """Whether an id names a built-in JAX environment."""
    return _POINT2D.fullmatch(env_id or "") is not None


def builtin_environment(env_id: str | None) -> Point2D:
    """The built-in environment of an id. Raises InputError for other ids."""
    match = _POINT2D.fullmatch(env_id or "")
    if match is None:
        raise InputError(f'env_id = {env_id!r}: expected a built-in environment: "point2d", or "point2d-N" for N steps.')
    return Point2D() if match[1] is None else Point2D(horizon=int(match[1]))
