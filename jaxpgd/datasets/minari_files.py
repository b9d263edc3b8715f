"""Minari datasets: found locally or downloaded, and read episode by episode directly from their HDF5 file."""

import difflib
import importlib.util
import logging
import os
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
from minari.storage import get_dataset_path

from jaxpgd.dataset import Dataset, DatasetInfo
from jaxpgd.datasets.assemble import assemble
from jaxpgd.datasets.checks import check_finite, flags
from jaxpgd.datasets.env_specs import spec_from_json
from jaxpgd.datasets.nested import check_flat, leaves, obs_order
from jaxpgd.datasets.scores import LOCAL, LOCAL_KEY, MINARI, REFERENCE_KEY, is_local_name
from jaxpgd.datasets.untrusted import Budget, open_hdf5, read_json, reading
from jaxpgd.errors import InputError, check

_FIELDS = ("observations", "actions", "rewards", "terminations", "truncations")
_MOST_EPISODES = 10**7  # Minari lists episode numbers before it opens the file


def load_minari(name: str, *, clip_actions: bool = False) -> Dataset:
    """Read the Minari dataset `name` from the folder MINARI_DATASETS_PATH, or download it.

    Episodes store one observation more than actions, so that every step has its next observation. Dict observations, also
    nested ones (kitchen's goals are dicts of sub-tasks), are concatenated in the order of `nested.obs_order`; their paths and
    sizes are in `info.obs_keys` and `info.obs_sizes`. An episode without a termination ends in a timeout.

    Reference returns are those of the metadata, if any. D4RL's table belongs to other environments and other data, even for ids
    that begin with "D4RL/". If the dataset stores an evaluation environment (antmaze and pointmaze, with fixed start and goal),
    the references were measured there, and `info.eval_env_spec` keeps it for `evaluate`.

    Continuing goal tasks that resample goals (PointMaze) store the *old* goal in the observation that a success leads to, and
    the new goal one step later. The reward thus belongs to the goal in `next_obs`, and the goal changes without an action.

    Raises InputError for datasets that cannot be found or read, for spaces other than a flat Box or a Dict of flat Boxes, and
    for invalid values.
    """
    dataset = _open(name)
    keys = obs_order(dataset.spec.observation_space)
    check_flat(name, dataset.spec.observation_space, keys)
    space = dataset.spec.action_space
    check(isinstance(space, gymnasium.spaces.Box), f"action space of {name}", space, "a Box", "Only continuous actions work.")
    assert isinstance(space, gymnasium.spaces.Box)
    episodes = list(_episodes(dataset, name))
    check(len(episodes) > 0, "data.name", name, "a dataset with at least one episode", "It is empty.")
    return _assemble_episodes(_info(dataset, name, keys, episodes[0], space), keys, episodes, clip_actions)


def _open(name: str) -> minari.MinariDataset:
    data = get_dataset_path(name) / "data"
    check(".." not in Path(name).parts, "data.name", name, "a Minari id, without ..")
    if not data.exists():
        _download(name)
    metadata = _checked_metadata(name, data)
    with reading("data.name", name, f"a readable Minari dataset at {data}", _remedy(name, metadata)):
        return minari.load_dataset(name)


def _remedy(name: str, metadata: Mapping[str, Any]) -> str:
    """Advice for files that cannot be read: a new download only if a download may have damaged them."""
    version = metadata.get("minari_version")
    if version is not None and version not in minari.supported_dataset_versions:
        return f"Read it with another version of minari: it was written by {version}."
    if metadata.get("data_format", "hdf5") != "hdf5" and importlib.util.find_spec("pyarrow") is None:
        return ""  # Minari's own message says what to install
    return (
        ""
        if is_local_name(name) or metadata.get(LOCAL_KEY)
        else "If it was downloaded, delete that folder and it will be again."
    )


def _checked_metadata(name: str, data: Path) -> dict[str, Any]:
    """Check what Minari trusts: the code that a spec names, and the number of episodes."""
    metadata = read_json(data / "metadata.json", "data.name", name, _remedy(name, {}))
    field = f"metadata of {name}"
    formats = ("hdf5", "arrow", "parquet")
    check(metadata.get("data_format", "hdf5") in formats, field, metadata.get("data_format"), f"one of {', '.join(formats)}")
    spec = metadata.get("env_spec")
    if spec is not None and not {"observation_space", "action_space"} <= metadata.keys():
        check(isinstance(spec, str), field, spec, "an env_spec as JSON text")
        spec_from_json(str(spec), name)
    for key in ("total_episodes", "total_steps"):
        count = metadata.get(key)
        fine = isinstance(count, int | float) and not isinstance(count, bool) and 0 <= count <= _MOST_EPISODES
        check(fine, f"{key} of {name}", count, f"a number up to {_MOST_EPISODES:,}")
    return metadata


def _download(name: str) -> None:
    local = sorted(minari.list_local_datasets())
    near = difflib.get_close_matches(name, local, n=3, cutoff=0.5)
    there = "which is there" if len(near) == 1 else "which are there"
    others = f"There are {', '.join(local[:5])}{' and others' * (len(local) > 5)}." if local else "There are no local datasets."
    known = f"Did you mean {' or '.join(near)}, {there}?" if near else others
    with_version = re.fullmatch(r".+-v\d+", name) is not None
    check(with_version, "data.name", name, "a Minari id with its version, such as mujoco/hopper/medium-v0", known)
    try:
        import huggingface_hub.utils.logging as hub  # sets its log level on import

        hub.set_verbosity(logging.CRITICAL)  # its retries would repeat the error below
        _require_network()
        minari.download_dataset(name)
        check((get_dataset_path(name) / "data").exists(), "data.name", name, "a dataset that can be downloaded")
    except Exception as error:  # no network, unknown name, incompatible version: each has its own class
        reason = (str(error).splitlines() or [""])[0][:200]
        raise InputError(  # without its cause, which is pages of networking code
            f"data.name = {name!r}: expected a Minari dataset under {get_dataset_path()} or one that can be downloaded "
            f"({type(error).__name__}: {reason}). {known} MINARI_DATASETS_PATH names the folder that is searched."
        ) from None


def _require_network() -> None:
    """Raise OSError if the host of Minari's datasets has no address. The client would retry for 25 seconds."""
    if not os.environ.get("MINARI_REMOTE", "hf://").startswith("hf://") or urllib.request.getproxies():
        return
    from huggingface_hub.constants import ENDPOINT

    url = urllib.parse.urlsplit(ENDPOINT)
    try:
        socket.getaddrinfo(url.hostname, url.port or url.scheme)
    except OSError as error:
        raise OSError(f"no network: {url.hostname} is not found ({error.strerror or error})") from None


def _episodes(dataset: minari.MinariDataset, name: str) -> Iterator[dict[str, Any]]:
    """Arrays of each episode. Reading the HDF5 file directly, without infos, is faster for many short episodes."""
    path = Path(dataset.storage.data_path) / "main_data.hdf5"
    if not path.exists():
        budget = Budget(name)
        with reading("data.name", name, "complete Minari files", _remedy(name, dataset.storage.metadata)):
            for episode in dataset.iterate_episodes():
                found = {field: getattr(episode, field) for field in _FIELDS}
                for field, value in leaves(found).items():
                    budget.take(field, np.shape(value), np.asarray(value).dtype)
                yield found
        return
    with open_hdf5(path, "data.name", name, _remedy(name, dataset.storage.metadata)) as file:
        for index in dataset.episode_indices:
            yield {field: file.tree(f"episode_{index}/{field}") for field in _FIELDS}


def _info(
    dataset: minari.MinariDataset, name: str, keys: tuple[str, ...], episode: Mapping[str, Any], space: gymnasium.spaces.Box
) -> DatasetInfo:
    metadata = dataset.storage.metadata
    low, high = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    known = low is not None and high is not None
    spec, eval_spec = dataset.spec.env_spec, metadata.get("eval_env_spec")
    local = is_local_name(name) or bool(metadata.get(LOCAL_KEY))
    source = metadata.get(REFERENCE_KEY, (LOCAL if local else MINARI) if known else None)
    return DatasetInfo(
        name=name,
        source="minari",
        action_low=tuple(float(x) for x in space.low.ravel()),
        action_high=tuple(float(x) for x in space.high.ravel()),
        env_id=spec.id if spec is not None else None,
        env_spec=spec.to_json() if spec is not None else None,
        obs_keys=keys,
        obs_sizes=_sizes(name, episode["observations"], keys),
        ref_min=float(low) if known else None,
        ref_max=float(high) if known else None,
        ref_source=None if source is None else str(source),
        eval_env_spec=None if eval_spec is None else str(eval_spec),
        local=local,
    )


def _sizes(name: str, obs: Any, keys: tuple[str, ...]) -> tuple[int, ...]:
    parts = leaves(obs) if keys else {}
    check(set(keys) <= set(parts), f"observations of {name}", sorted(parts), f"those of its space, {sorted(keys)}")
    return tuple(int(np.prod(parts[key].shape[1:])) for key in keys)


def _assemble_episodes(info: DatasetInfo, keys: tuple[str, ...], episodes: list[dict[str, Any]], clip_actions: bool) -> Dataset:
    observations = [_flat_obs(e["observations"], keys) for e in episodes]
    actions = [np.asarray(e["actions"]).reshape(len(e["actions"]), -1) for e in episodes]
    for index, (obs, action) in enumerate(zip(observations, actions, strict=True)):
        field = f"observations of episode {index} of {info.name}"
        check(len(obs) == len(action) + 1, field, len(obs), f"{len(action) + 1}, one more than its actions")
        check_finite(f"{info.name}, episode {index}", {"obs": obs[-1:]})
    lengths = np.array([len(a) for a in actions])
    terminal = flags(info.name, "terminations", np.concatenate([np.asarray(e["terminations"]) for e in episodes]))
    flags(info.name, "truncations", np.concatenate([np.asarray(e["truncations"]) for e in episodes]))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ends = offsets[1:][lengths > 0] - 1
    timeout = np.isin(np.arange(len(terminal)), ends)  # a truncation flag inside an episode is ignored
    return assemble(
        info,
        obs=np.concatenate([o[:-1] for o in observations]),
        action=np.concatenate(actions),
        reward=np.concatenate([np.asarray(e["rewards"]) for e in episodes]),
        next_obs=np.concatenate([o[1:] for o in observations]),
        terminal=terminal,
        timeout=timeout,
        offsets=np.unique(offsets),
        clip_actions=clip_actions,
    )


def _flat_obs(obs: Any, keys: tuple[str, ...]) -> np.ndarray:
    entries = leaves(obs) if keys else {}
    parts = [entries[key] for key in keys] if keys else [obs]
    return np.concatenate([np.asarray(p, np.float64).reshape(len(p), -1) for p in parts], axis=1)
