"""OGBench datasets (Park et al., arXiv 2410.20092): its files, with the rewards of one task."""

import difflib
import importlib
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from jaxpgd.dataset import Dataset, DatasetInfo
from jaxpgd.datasets.assemble import assemble
from jaxpgd.datasets.checks import flags
from jaxpgd.datasets.ogbench_store import PREFIX, find_file, import_ogbench, parse_name
from jaxpgd.datasets.scores import OGBENCH
from jaxpgd.datasets.untrusted import read_npz
from jaxpgd.errors import InputError, check

_KEYS = ("observations", "actions", "terminals")
_STATE_KEYS = ("qpos", "button_states")  # the states from which the rewards of a task are computed

Arrays = dict[str, np.ndarray]
Environment = gymnasium.Env[Any, Any]


def load_ogbench(name: str, *, clip_actions: bool = False) -> Dataset:
    """Read `ogbench/ENV-TYPE-singletask[-taskN]-vK[-val]`, such as `ogbench/antmaze-large-navigate-singletask-task1-v0`.

    `ENV-TYPE-vK.npz` (`-val`: the validation split) is read from the folder OGBENCH_DATA_DIR (default `~/.ogbench/data`), or
    downloaded there by the package `ogbench`. Without `-taskN` the task is the environment's default.

    A file holds trajectories one after the other, T + 1 rows for T transitions. `terminals` marks the last row of each, whose
    action leads nowhere. It ends the recording, not the task, and is a timeout here.
    Files hold no rewards. `ogbench.relabel_utils` computes the rewards and masks of the task from the states *before* the
    actions, as OGBench's single-task environments do since version 1.2. If the task is done in that state, both are 0.
    Otherwise the mask is 1, and the reward is -1 in mazes and minus the number of unfinished parts in cube, scene and puzzle.
    A mask of 0 is a terminal. Trajectories that continue after it are split, into single steps while the task stays done.
    Scores are success rates. Raises InputError for names without a task, pixels, a missing package or file, and invalid values.
    """
    env_id, file_name = parse_name(name)
    import_ogbench(f"data.name = {name!r}")
    env = _environment(name, env_id)
    try:
        table, next_obs, timeout = _transitions(name, _read(name, find_file(name, file_name)))
        for key, space in (("observations", env.observation_space), ("actions", env.action_space)):
            shape = table[key].shape[1:]
            check(shape == space.shape, f"{key} of {name}", shape, f"{space.shape}, as {env_id} has")
        reward, done = _relabel(name, env_id, env, table)
        info = _info(name, env)
    finally:
        env.close()
    offsets = np.concatenate([[0], np.flatnonzero(timeout) + 1])
    obs, action = table["observations"], table["actions"]
    return assemble(info, obs, action, reward, next_obs, done, timeout, offsets, clip_actions=clip_actions)


def _environment(name: str, env_id: str) -> Environment:
    try:
        return gymnasium.make(env_id)
    except gymnasium.error.Error as error:
        known = [key for key in gymnasium.registry if "singletask" in key]
        near = difflib.get_close_matches(env_id, known, n=3, cutoff=0.6)
        hint = f" Near ones: {', '.join(near)}." if near else ""
        raise InputError(f"data.name = {name!r}: expected a task of OGBench, but it has no {env_id!r}.{hint}") from error


def _read(name: str, path: Path) -> Arrays:
    raw, stored = read_npz(path, (*_KEYS, *_STATE_KEYS))
    missing = [key for key in _KEYS if key not in raw]
    check(not missing, f"keys of {path}", stored, f"those of OGBench, with {', '.join(missing)}")
    rows = len(raw["actions"])
    for key, array in raw.items():
        rank = 1 if key == "terminals" else 2
        check(array.ndim == rank and len(array) == rows, f"{key} of {name}", array.shape, f"{rank} axes and {rows} rows")
    return raw


def _transitions(name: str, raw: Arrays) -> tuple[Arrays, np.ndarray, np.ndarray]:
    """The M rows that start a transition, their next observations [M, O], and whether the recording ends there [M]."""
    last = flags(name, "terminals", raw["terminals"])
    last[-1:] = True
    start = np.flatnonzero(~last)
    check(len(start) > 0, "data.name", name, "a dataset with at least one transition", "It has none.")
    return {key: array[start] for key, array in raw.items()}, raw["observations"][start + 1], last[start + 1]


def _relabel(name: str, env_id: str, env: Environment, table: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """OGBench's rewards [M] of the task, and whether it is done in the state before the step [M]."""
    states = {key: table[key] for key in _STATE_KEYS if key in table}
    stored = sorted(states)
    try:
        importlib.import_module("ogbench.relabel_utils").relabel_dataset(env_id, env, states)
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(
            f"data.name = {name!r}: expected the states of {env_id}, from which its rewards are computed, under "
            f"{' and '.join(_STATE_KEYS)}; the file has {stored} ({type(error).__name__}: {error})."
        ) from error
    return states["rewards"], states["masks"] == 0


def _info(name: str, env: Environment) -> DatasetInfo:
    space, spec = env.action_space, env.spec
    assert isinstance(space, gymnasium.spaces.Box) and spec is not None
    return DatasetInfo(
        name=PREFIX + name.removeprefix(PREFIX),
        source="ogbench",
        action_low=tuple(float(x) for x in space.low.ravel()),
        action_high=tuple(float(x) for x in space.high.ravel()),
        env_id=spec.id,
        env_spec=spec.to_json(),
        ref_source=OGBENCH,
    )
