"""Raw arrays in episode order to a checked `Dataset`: rescaled actions, discounts, episode offsets."""

from typing import Any

import numpy as np

from jaxpgd.dataset import Dataset, DatasetInfo, from_env_action
from jaxpgd.datasets.checks import check_actions, check_bounds, check_finite, check_shapes, flags


def assemble(
    info: DatasetInfo,
    obs: np.ndarray,
    action: np.ndarray,
    reward: np.ndarray,
    next_obs: np.ndarray,
    terminal: np.ndarray,
    timeout: np.ndarray,
    offsets: np.ndarray,
    *,
    clip_actions: bool = False,
) -> Dataset:
    """A float32 `Dataset` on the host from M steps in episode order.

    obs, next_obs [M, O]; action [M, A] in `info`'s bounds (up to 0.1 % of their range outside, which is clipped); reward,
    terminal, timeout [M]; offsets [E + 1]. A terminal inside an episode ends it. A step with both flags is a terminal. Raises
    InputError for empty arrays, shapes that disagree, NaN and infinities, flags other than 0 and 1, and actions outside the
    bounds unless `clip_actions`.
    """
    arrays = {"obs": obs, "action": action, "reward": reward, "next_obs": next_obs, "terminal": terminal, "timeout": timeout}
    check_shapes(info.name, arrays)
    check_bounds(info.name, np.asarray(info.action_low), np.asarray(info.action_high), action.shape[1])
    with np.errstate(over="ignore"):  # values beyond float32 become infinite and are refused below
        numbers = {k: np.ascontiguousarray(arrays[k], np.float32) for k in ("obs", "reward", "next_obs")}
    check_finite(info.name, {**numbers, "action": np.asarray(action)})
    scaled = from_env_action(info, np.asarray(action, np.float64))
    if not clip_actions:
        check_actions(info.name, scaled)
    terminal, timeout = flags(info.name, "terminal", terminal), flags(info.name, "timeout", timeout)
    fields: dict[str, Any] = {
        **numbers,
        "action": np.clip(scaled, -1.0, 1.0).astype(np.float32),
        "discount": 1.0 - terminal.astype(np.float32),
    }
    return Dataset(
        **fields,
        timeout=timeout & ~terminal,
        offsets=_split_at_terminals(np.asarray(offsets, np.int64), terminal),
        info=info,
    )


def _split_at_terminals(offsets: np.ndarray, terminal: np.ndarray) -> np.ndarray:
    return np.union1d(offsets, np.flatnonzero(terminal) + 1).astype(np.int64)
