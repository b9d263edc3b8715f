"""Checks of every dataset before use. Each failure names the field, the value and the remedy."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jaxpgd.errors import InputError, check

# Simulators and float32 storage leave actions outside the bounds by up to this share of their range. They are clipped.
ACTION_TOLERANCE = 1e-3
_KEYS_SHOWN = 20  # of a file, in messages


def check_keys(name: str, stored: Iterable[str], needed: Sequence[str], remedies: Mapping[str, str]) -> None:
    """Raise InputError naming the first key of `needed` that is not `stored`, the stored keys, and the remedy."""
    stored = sorted(stored)
    for key in needed:
        if key not in stored:
            more = len(stored) - _KEYS_SHOWN
            shown = stored[:_KEYS_SHOWN] + ([f"and {more:,} more"] if more > 0 else [])
            layout = f"D4RL's layout, with {', '.join(needed)}, but {key!r} is missing"
            check(False, f"keys of {name}", shown, layout, remedies.get(key, "Store the arrays under these names."))


def check_order(name: str, elsewhere: int, steps: int) -> None:
    """Raise InputError if more than half of `steps` lead `elsewhere` than to the next row: the rows are shuffled."""
    check(
        2 * elsewhere <= steps,
        f"next_observations of {name}",
        f"{elsewhere:,} of {steps:,} steps lead elsewhere than to the next row",
        "rows in the order in which they were collected",
        "Windows are made of rows that follow each other: store rows unshuffled, with timeouts 1 at the last row of each "
        "episode that no terminal ends.",
    )


def check_shapes(name: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise InputError unless flat arrays [M, ...] have one length M > 0; obs and action rank 2, the rest rank 1."""
    steps = len(arrays["action"])
    check(steps > 0, "data.name", name, "a dataset with at least one step", "It is empty.")
    for field, array in arrays.items():
        check(len(array) == steps, f"{field} of {name}", array.shape, f"{steps} steps, as action has")
        rank = 2 if field in ("obs", "action", "next_obs") else 1
        check(array.ndim == rank, f"{field} of {name}", array.shape, f"{rank} axes")
        check(0 not in array.shape, f"{field} of {name}", array.shape, "no empty axis")
    check(
        arrays["next_obs"].shape == arrays["obs"].shape,
        f"next_obs of {name}",
        arrays["next_obs"].shape,
        f"the shape of obs, {arrays['obs'].shape}",
    )


def check_finite(name: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise InputError naming the field, the number of NaN or infinite entries and the index of the first."""
    for field, array in arrays.items():
        bad = ~np.isfinite(array)
        if bad.any():
            first = tuple(int(i) for i in np.argwhere(bad)[0])
            raise InputError(
                f"{field} of {name} = {array[first]} at index {first}: expected finite numbers; {int(bad.sum())} of {bad.size} "
                "entries are NaN, infinite or beyond float32. Drop or repair those episodes."
            )


def flags(name: str, field: str, array: np.ndarray) -> np.ndarray:
    """Flags, 0 or 1 of any type, as booleans. Raises InputError naming the number of other entries and the first."""
    array = np.asarray(array)
    bad = np.asarray((array != 0) & (array != 1))
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InputError(
            f"{field} of {name} = {array[first]} at index {first}: expected 0 or 1; {int(bad.sum())} of {bad.size} entries are "
            "neither. A flag says that an episode ended with that step."
        )
    return array.astype(bool)


def check_bounds(name: str, low: np.ndarray, high: np.ndarray, action_dim: int) -> None:
    """Raise InputError unless action bounds [A] are finite and ordered."""
    check(low.shape == high.shape == (action_dim,), f"action bounds of {name}", low.shape, f"one per action, ({action_dim},)")
    finite = bool(np.isfinite(low).all() and np.isfinite(high).all())
    remedy = "Actions are rescaled to [-1, 1] from these bounds."
    check(
        finite and bool((low < high).all()),
        f"action bounds of {name}",
        (low.tolist(), high.tolist()),
        "finite, low < high",
        remedy,
    )


def check_actions(name: str, action: np.ndarray) -> None:
    """Raise InputError if an action [M, A], rescaled to [-1, 1], lies outside by more than the tolerance."""
    bad = np.abs(action) > 1.0 + 2.0 * ACTION_TOLERANCE
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InputError(
            f"action of {name} = {action[first]:.6g} at index {first} (rescaled by its bounds): expected [-1, 1]; "
            f"{int(bad.sum())} of {bad.size} entries are outside. Flat files say their bounds, [A] each, under action_low and "
            "action_high (-1 and 1 where they do not); correct them, or clip actions with data.clip_actions = true."
        )
