"""Flat files in D4RL layout: HDF5 (version 2) and .npz with the same keys."""

import dataclasses
import re
from pathlib import Path

import numpy as np

from jaxpgd.data.assemble import assemble
from jaxpgd.data.checks import check_keys, check_shapes, flags
from jaxpgd.data.d4rl import registration
from jaxpgd.data.dataset import Dataset, DatasetInfo
from jaxpgd.data.scores import D4RL, LOCAL_KEY, is_local_name
from jaxpgd.data.untrusted import open_hdf5, read_npz

KEYS = ("observations", "actions", "rewards", "terminals", "timeouts")
OPTIONAL_KEYS = ("next_observations", "action_low", "action_high", LOCAL_KEY)

# Gymnasium successors with the observations and actions of the D4RL environments: name, (O, A) -> id
_SUCCESSORS = {
    ("hopper", 11, 3): "Hopper-v5",
    ("halfcheetah", 17, 6): "HalfCheetah-v5",
    ("walker2d", 17, 6): "Walker2d-v5",
}


def load_flat(path: str | Path) -> Dataset:
    """Read `path` (.hdf5, .h5 or .npz): observations [M, O], actions [M, A], rewards, terminals, timeouts [M].

    - Episodes end where `terminals` or `timeouts` is set; steps after the last end form an episode that ends in a timeout.
    - `next_observations` [M, O] is used where present. Otherwise the next observation is that of the next step; the last step
      of an episode without a terminal is dropped, because its next observation is unknown (the step before it becomes the
      timeout), and a terminal step repeats its own observation, which nothing bootstraps from.
    - Action bounds are -1 and 1, or the optional `action_low` and `action_high` [A].
    - The environment follows from the file's name and the sizes of observations and actions, which have to fit it: D4RL's
      reference scores where the name is one of D4RL's (`d4rl.registration`), and, for Hopper, HalfCheetah and Walker2d, their
      Gymnasium successor. A name that ends in "-local" and the optional key `jaxpgd_local` mark data made locally.

    Raises InputError for unreadable files, missing keys, and whatever `assemble` refuses.
    """
    path = Path(path)
    name = str(path)
    raw = _read(path)
    check_keys(name, raw, KEYS)
    obs, action = _matrix(raw["observations"]), _matrix(raw["actions"])
    reward, terminal = _vector(raw["rewards"]), flags(name, "terminals", _vector(raw["terminals"]))
    timeout = flags(name, "timeouts", _vector(raw["timeouts"])) & ~terminal
    known = "next_observations" in raw
    next_obs = _matrix(raw["next_observations"]) if known else obs
    arrays = {"obs": obs, "action": action, "reward": reward, "next_obs": next_obs, "terminal": terminal, "timeout": timeout}
    check_shapes(name, arrays)
    timeout[-1] |= not terminal[-1]
    info = _info(path, raw, obs.shape[1], action.shape[1])
    if not known:
        arrays["next_obs"] = _shifted(obs, terminal)
        arrays = _drop_timeout_steps({**arrays, "timeout": timeout})
    else:
        arrays["timeout"] = timeout
    ends = np.flatnonzero(arrays["terminal"] | arrays["timeout"]) + 1
    return assemble(info, **arrays, offsets=np.concatenate([[0], ends]))


def _read(path: Path) -> dict[str, np.ndarray]:
    wanted = KEYS + OPTIONAL_KEYS
    if path.suffix == ".npz":
        return read_npz(path, wanted)[0]
    with open_hdf5(path, "data.name", str(path)) as file:
        return {key: array for key in wanted if (array := file.array(key)) is not None}


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
    # the step before a dropped one becomes the timeout, unless it belongs to the episode before
    moved = np.append(timeout[1:], False) & ~ends
    return {k: v[~timeout] for k, v in {**arrays, "timeout": moved}.items()}


def _info(path: Path, raw: dict[str, np.ndarray], obs_dim: int, action_dim: int) -> DatasetInfo:
    low = raw.get("action_low", -np.ones(action_dim))
    high = raw.get("action_high", np.ones(action_dim))
    info = DatasetInfo(
        name=str(path),
        source="npz" if path.suffix == ".npz" else "d4rl",
        action_low=tuple(float(x) for x in np.ravel(low)),
        action_high=tuple(float(x) for x in np.ravel(high)),
        local=is_local_name(path.name) or bool(np.any(raw.get(LOCAL_KEY, False))),
    )
    known = registration(path.stem)
    if known is not None and (obs_dim, action_dim) == (known.obs_dim, known.action_dim):
        info = dataclasses.replace(info, ref_min=known.ref_min, ref_max=known.ref_max, ref_source=D4RL)
    family = known.environment if known is not None else re.split(r"[-_]", path.stem.lower())[0]
    return dataclasses.replace(info, env_id=_SUCCESSORS.get((family, obs_dim, action_dim)))
