"""Flat files in D4RL layout: HDF5 (version 2) and .npz with the same keys."""

import dataclasses
import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxpgd.dataset import Dataset, DatasetInfo
from jaxpgd.datasets.assemble import assemble
from jaxpgd.datasets.checks import check_keys, check_order, check_shapes, flags
from jaxpgd.datasets.d4rl import environment_id, registration
from jaxpgd.datasets.scores import D4RL, LOCAL_KEY, is_local_name
from jaxpgd.datasets.untrusted import open_hdf5, read_npz

KEYS = ("observations", "actions", "rewards", "terminals", "timeouts")
OPTIONAL_KEYS = ("next_observations", "action_low", "action_high", LOCAL_KEY)

_REMEDIES = {
    "timeouts": "timeouts is 1 at the last row of every episode that no terminal ends, and 0 elsewhere. With next_observations "
    "it may be missing: episodes then end where those do not lead to the next row."
}
# A next observation equals the next row within this share of each entry's standard deviation, plus the rounding of storage.
_SAME, _ROUNDING = 1e-3, 1e-6
_BLOCK = 2**14  # rows compared at a time

# Environments of files with other names than D4RL's: (first word, O, A) -> id.
_SUCCESSORS = {
    ("hopper", 11, 3): "Hopper-v5",
    ("halfcheetah", 17, 6): "HalfCheetah-v5",
    ("walker2d", 17, 6): "Walker2d-v5",
}


def load_flat(path: str | Path, *, clip_actions: bool = False) -> Dataset:
    """Read `path` (.hdf5, .h5 or .npz): observations [M, O], actions [M, A], rewards, terminals, timeouts [M].

    - Episodes end where `terminals` or `timeouts` is set. Steps after the last end form an episode that ends in a timeout.
    - With `next_observations` [M, O], an episode is also cut, as by a timeout, after each step that does not lead to the next
      row. Such cuts are counted in `info.cut`, with a warning, and `timeouts` may be missing.
    - Without `next_observations`, the next observation is that of the next row. The last step of an episode without a terminal
      is dropped, because its next observation is unknown, and the step before it becomes the timeout. A terminal step repeats
      its own observation, from which no target bootstraps.
    - Action bounds are -1 and 1, or the optional `action_low` and `action_high` [A].
    - The environment follows from the file's name, if the sizes of observations and actions fit it: D4RL's task and reference
      scores for the names of D4RL (`d4rl.registration`, `d4rl.environment_id`); otherwise Gymnasium's newest Hopper,
      HalfCheetah or Walker2d for names that start with one of these. A name ending in "-local" or the optional key
      `jaxpgd_local` marks data collected locally.

    Raises InputError for unreadable files, missing keys, shuffled rows, and everything that `assemble` refuses.
    """
    path = Path(path)
    name = str(path)
    raw, stored = _read(path)
    known = "next_observations" in stored
    check_keys(name, stored, KEYS[:-1] if known else KEYS, _REMEDIES)
    arrays = _arrays(name, raw)
    check_shapes(name, arrays)
    info = _info(path, raw, arrays["obs"], arrays["action"].shape[1])
    terminal, timeout = arrays["terminal"], arrays["timeout"]
    if known:
        cut = _leads_elsewhere(arrays["obs"], arrays["next_obs"], terminal | timeout)
        check_order(name, int(cut.sum()), int((~(terminal | timeout))[:-1].sum()))
        timeout |= cut
        info = dataclasses.replace(info, cut=int(cut.sum()))
        _warn_cut(name, info.cut)
    timeout[-1] |= not terminal[-1]
    if not known:
        arrays["next_obs"] = _shifted(arrays["obs"], terminal)
        arrays = _drop_timeout_steps(arrays)
    ends = np.flatnonzero(arrays["terminal"] | arrays["timeout"]) + 1
    return assemble(info, **arrays, offsets=np.concatenate([[0], ends]), clip_actions=clip_actions)


def _read(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays that are used, and the names of all that are stored."""
    wanted = KEYS + OPTIONAL_KEYS
    if path.suffix == ".npz":
        return read_npz(path, wanted)
    with open_hdf5(path, "data.name", str(path)) as file:
        found = {key: array for key in wanted if (array := file.array(key)) is not None}
        return found, sorted({*found, *(key for key in file.keys() if key not in wanted)})


def _arrays(name: str, raw: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arguments of `assemble`. If there are no next observations, the observations stand in for them."""
    obs, terminal = _matrix(raw["observations"]), flags(name, "terminals", _vector(raw["terminals"]))
    given = flags(name, "timeouts", _vector(raw["timeouts"])) if "timeouts" in raw else np.zeros_like(terminal)
    next_obs = _matrix(raw["next_observations"]) if "next_observations" in raw else obs
    return {
        "obs": obs, "action": _matrix(raw["actions"]), "reward": _vector(raw["rewards"]), "next_obs": next_obs,
        "terminal": terminal, "timeout": given & ~terminal,
    }  # fmt: skip


def _leads_elsewhere(obs: np.ndarray, next_obs: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Which steps [M], among those that no flag ends, have another next observation than the next row."""
    found = np.zeros(len(obs), bool)
    rounding = max([_ROUNDING, *(float(np.finfo(x.dtype).eps) for x in (obs, next_obs) if x.dtype.kind == "f")])
    with np.errstate(over="ignore", invalid="ignore"):  # values that are not finite are refused later, by name
        mean, same = obs.mean(0, dtype=np.float64), np.zeros(obs.shape[1])
        for part in _blocks(len(obs)):
            same += np.square(obs[part] - mean).sum(0)
        same = _SAME * np.sqrt(same / len(obs))
        for part in _blocks(len(obs) - 1):
            here = obs[part.start + 1 : part.stop + 1].astype(np.float64)
            found[part] = (np.abs(next_obs[part] - here) > same + rounding * np.abs(here)).any(1)
    return np.asarray(found & ~ends)


def _blocks(rows: int) -> Iterator[slice]:
    """Blocks of rows whose copies in double precision are small."""
    return (slice(start, min(start + _BLOCK, rows)) for start in range(0, rows, _BLOCK))


@functools.cache
def _warn_cut(name: str, count: int) -> None:
    """Warn once per process."""
    if count:
        print(f"warning: {name}: {count:,} episodes are cut where next_observations does not lead to the next row, though "
              "neither terminals nor timeouts end them there", file=sys.stderr, flush=True)  # fmt: skip


def _matrix(array: np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    return array[:, None] if array.ndim == 1 else array


def _vector(array: np.ndarray) -> np.ndarray:
    array = np.array(array)
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array


def _shifted(obs: np.ndarray, terminal: np.ndarray) -> np.ndarray:
    shifted = np.concatenate([obs[1:], obs[-1:]])
    return np.where(terminal[:, None], obs, shifted)


def _drop_timeout_steps(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    timeout = arrays["timeout"]
    ends = arrays["terminal"] | timeout
    # the step before a dropped one becomes the timeout, unless it belongs to the previous episode
    moved = np.append(timeout[1:], False) & ~ends
    return {k: v[~timeout] for k, v in {**arrays, "timeout": moved}.items()}


def _info(path: Path, raw: dict[str, np.ndarray], obs: np.ndarray, action_dim: int) -> DatasetInfo:
    low = raw.get("action_low", -np.ones(action_dim))
    high = raw.get("action_high", np.ones(action_dim))
    sizes = obs.shape[1], action_dim
    info = DatasetInfo(
        name=str(path),
        source="npz" if path.suffix == ".npz" else "d4rl",
        action_low=tuple(float(x) for x in np.ravel(low)),
        action_high=tuple(float(x) for x in np.ravel(high)),
        local=is_local_name(path.name) or bool(np.any(raw.get(LOCAL_KEY, False))),
    )
    known = registration(path.stem)
    if known is None:
        return dataclasses.replace(info, env_id=_SUCCESSORS.get((re.split(r"[-_]", path.stem.lower())[0], *sizes)))
    if sizes != (known.obs_dim, known.action_dim):
        return info
    found = dataclasses.replace(info, ref_min=known.ref_min, ref_max=known.ref_max, ref_source=D4RL)
    return dataclasses.replace(found, env_id=environment_id(known, obs))
