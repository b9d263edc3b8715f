"""`load`: the entry point for every kind of dataset."""

import re
from pathlib import Path

from minari.storage import get_dataset_path

from jaxpgd.dataset import Dataset
from jaxpgd.datasets.d4rl import registration
from jaxpgd.datasets.flat_files import load_flat
from jaxpgd.datasets.fraction import fraction_of
from jaxpgd.datasets.minari_files import load_minari
from jaxpgd.datasets.ogbench_files import load_ogbench
from jaxpgd.datasets.ogbench_store import is_ogbench
from jaxpgd.datasets.point2d import point2d_dataset
from jaxpgd.datasets.rewards import with_learned_rewards
from jaxpgd.datasets.scores import is_local_name
from jaxpgd.datasets.untrusted import reading
from jaxpgd.envs.builtin import builtin_environment, is_builtin
from jaxpgd.errors import InputError, check

# Options of `DataConfig` that are arguments of `load`.
LOADED_BY = ("fraction", "fraction_seed", "clip_actions", "reward_scale", "reward_shift", "reward_normalisation")
_FLAT = (".hdf5", ".h5", ".npz")


def load(
    name: str,
    *,
    episodes: int = 1000,
    seed: int = 0,
    fraction: float = 1.0,
    fraction_seed: int = 0,
    clip_actions: bool = False,
    reward_scale: float = 1.0,
    reward_shift: float = 0.0,
    reward_normalisation: str = "none",
) -> Dataset:
    """The checked dataset `name`, with its arrays on the host (`dataset.to_device` moves them).

    `name` is one of:

    - "point2d", or "point2d-N" for episodes of N steps: built in, generated from `episodes` and `seed`;
    - the path of a D4RL .hdf5 or .h5 file, or of a .npz with the same keys (`flat_files.load_flat`);
    - "ogbench/" and the name of a single-task OGBench dataset (`ogbench_files.load_ogbench`). Names with "-singletask-" do not
      need the prefix;
    - a Minari id (`minari_files.load_minari`).

    With a `fraction` below 1 it is a share of the dataset, drawn with `fraction_seed` (`fraction.fraction_of`); normalised
    rewards are normalised over the share.

    `clip_actions` clips actions outside their bounds, which are refused otherwise. Agents learn from the rewards
    reward_scale * (reward + reward_shift): see `rewards.with_learned_rewards`. Raises InputError for other names and for data
    that fail a check.
    """
    if is_builtin(name):
        check(episodes > 0, "data.episodes", episodes, "a number above 0")
        dataset = point2d_dataset(episodes, seed, builtin_environment(name))
    else:
        with reading("data.name", name, "data in a known layout"):
            dataset = _load_file(name, clip_actions)
    dataset = fraction_of(dataset, fraction, fraction_seed)
    return with_learned_rewards(dataset, reward_scale, reward_shift, reward_normalisation)


def _load_file(name: str, clip_actions: bool) -> Dataset:
    if is_ogbench(name):
        return load_ogbench(name, clip_actions=clip_actions)
    path = Path(name).expanduser()
    if path.suffix in _FLAT:
        check(path.is_file(), "data.name", name, "an existing file", "Check the path.")
        return load_flat(path, clip_actions=clip_actions)
    if path.is_file():
        raise InputError(f"data.name = {name!r}: expected a file ending in {', '.join(_FLAT)}. Rename or convert it.")
    _refuse_d4rl_names(name)
    version = name.rpartition("-v")[2]
    check(
        "/" in name or ("-v" in name and version.isdigit()),
        "data.name",
        name,
        'a Minari id such as "mujoco/hopper/medium-v0", the path of a .hdf5, .h5 or .npz file, an OGBench name such as '
        '"ogbench/cube-single-play-singletask-v0", or "point2d"',
    )
    return load_minari(name, clip_actions=clip_actions)


def _refuse_d4rl_names(name: str) -> None:
    """Raise InputError for the bare name of a D4RL dataset: Minari does not have it, and would ask the network."""
    bare = Path(name).name if name.startswith(("/", ".", "~")) else re.sub("^d4rl[/:]", "", name, flags=re.IGNORECASE)
    known = None if is_local_name(bare) else registration(bare)
    check(
        known is None or (get_dataset_path(name) / "data").exists(),
        "data.name",
        name,
        f'the path of a D4RL file, such as "{"" if known is None else known.file}.hdf5"',
        "D4RL's datasets are not downloaded by name. Minari's, of the tasks' successors, have ids such as "
        "mujoco/hopper/medium-v0.",
    )
