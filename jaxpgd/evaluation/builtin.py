"""jaxpgd's own environments by the name that a dataset gives them."""

from typing import Any

from jaxpgd.data.dataset import DatasetInfo
from jaxpgd.errors import InputError


def builtin_environment(info: DatasetInfo) -> Any:
    """The JAX environment of a built-in dataset. Raises InputError for other names."""
    if info.env_id == "point2d":
        from jaxpgd.envs.point2d import Point2D

        return Point2D()
    raise InputError(f"env_id = {info.env_id!r}: expected a built-in environment (point2d).")
