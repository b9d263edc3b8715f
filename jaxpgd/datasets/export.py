"""Synthetic trajectories as datasets for other libraries: Minari folders and flat files in D4RL layout.

Both exports keep the steps of each trajectory up to its first terminal. Without a terminal, a rollout (with
`Trajectory.last_obs`) gives T + 1 observations and T transitions. Other trajectories lack the observation after their last
step: without a terminal they are truncated to T observations and T - 1 transitions, and after a terminal the last observation
is repeated.
"""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from minari.data_collector import EpisodeBuffer

from jaxpgd.dataset import DatasetInfo, own_reward, to_env_action
from jaxpgd.datasets.env_specs import spec_from_json
from jaxpgd.datasets.minari_writer import free_target, new_dataset
from jaxpgd.datasets.nested import nest
from jaxpgd.datasets.scores import LOCAL_KEY, REFERENCE_KEY
from jaxpgd.errors import check
from jaxpgd.files import new_file
from jaxpgd.types import Trajectory

Episode = dict[str, Any]


def export_minari(
    trajectory: Trajectory,
    info: DatasetInfo,
    dataset_id: str,
    directory: str | Path,
    *,
    description: str = "",
    author: str = "",
    author_email: str = "",
    algorithm_name: str = "jaxpgd",
    code_permalink: str = "",
) -> Path:
    """Write [N, T] trajectories as the Minari dataset `dataset_id` under `directory`; returns its folder.

    `minari.load_dataset(dataset_id)` reads it with MINARI_DATASETS_PATH set to `directory`. Actions are in `info`'s bounds and
    rewards in its own units. (Nested) dict observations are restored from `info.obs_keys`. Arrays are float32. The environments
    and references of `info` are stored, and the dataset is marked as local. Raises InputError if the target exists, the id is
    invalid, or there is nothing to write.
    """
    target = free_target(directory, dataset_id)
    buffers = [_buffer(index, episode, info) for index, episode in enumerate(_episodes(trajectory, info))]
    spaces = _spaces(trajectory, info)
    spec = spec_from_json(info.env_spec, info.name) if info.env_spec else None
    with new_dataset(directory, dataset_id, *spaces, spec) as writer:
        writer.metadata = {
            "description": description, "algorithm_name": algorithm_name, "code_permalink": code_permalink, "author": {author},
            "author_email": {author_email}, LOCAL_KEY: True,
        }  # fmt: skip
        known = {REFERENCE_KEY: info.ref_source, "eval_env_spec": info.eval_env_spec}
        writer.metadata |= {key: value for key, value in known.items() if value is not None}
        if info.ref_min is not None and info.ref_max is not None:
            writer.metadata |= {"ref_min_score": float(info.ref_min), "ref_max_score": float(info.ref_max)}
        for buffer in buffers:
            writer.add(buffer)
    return target


def export_npz(trajectory: Trajectory, info: DatasetInfo, path: str | Path) -> Path:
    """Write [N, T] trajectories as a flat .npz in D4RL layout, float32, with the action bounds; returns its path.

    Actions are in those bounds, rewards in `info`'s own units. Raises InputError if `path` exists or does not end
    in .npz, or if there is nothing to write.
    """
    path = Path(path).expanduser()
    check(path.suffix == ".npz", "path", str(path), "a name ending in .npz")
    check(not path.exists(), "path", str(path), "no existing file", "Choose another name.")
    episodes = _episodes(trajectory, info)
    join = lambda key: np.concatenate([e[key] for e in episodes])
    marked: dict[str, Any] = {LOCAL_KEY: np.array(True)}
    with new_file(path) as file:
        np.savez(
            file,
            observations=np.concatenate([e["observations"][:-1] for e in episodes]),
            actions=join("actions"),
            rewards=join("rewards"),
            next_observations=np.concatenate([e["observations"][1:] for e in episodes]),
            terminals=join("terminations"),
            timeouts=join("truncations"),
            action_low=np.asarray(info.action_low, np.float32),
            action_high=np.asarray(info.action_high, np.float32),
            **marked,
        )
    return path


def _episodes(trajectory: Trajectory, info: DatasetInfo) -> list[Episode]:
    obs = np.asarray(trajectory.obs, np.float32)
    check(obs.ndim == 3, "trajectory.obs", obs.shape, "shape [N, T, O]")
    low, high = np.asarray(info.action_low, np.float32), np.asarray(info.action_high, np.float32)
    # clipped again in float32, in which rounding may leave the bounds
    action = np.clip(to_env_action(info, np.asarray(trajectory.action)).astype(np.float32), low, high)
    reward = np.asarray(own_reward(info, np.asarray(trajectory.reward, np.float32)))  # type: ignore[arg-type]
    ended, valid = np.asarray(trajectory.discount) == 0, np.asarray(trajectory.mask, bool)
    known = trajectory.last_obs is not None
    if known:
        obs = np.append(obs, np.asarray(trajectory.last_obs, np.float32)[:, None], axis=1)
    episodes = []
    for n in range(len(obs)):
        terminal = bool(ended[n].any())
        steps = int(ended[n].argmax()) + 1 if terminal else min(int(valid[n].sum()), obs.shape[1] - 1)
        if steps == 0:
            continue
        flags = np.arange(steps) == steps - 1
        repeated = terminal and not known
        seen = np.concatenate([obs[n, :steps], obs[n, steps - 1 : steps]]) if repeated else obs[n, : steps + 1]
        episodes.append({
            "observations": seen, "actions": action[n, :steps], "rewards": reward[n, :steps],
            "terminations": flags & terminal, "truncations": flags & (not terminal),
        })  # fmt: skip
    check(len(episodes) > 0, "trajectory", obs.shape, "at least one trajectory of two steps, or with a terminal")
    return episodes


def _buffer(index: int, episode: Episode, info: DatasetInfo) -> EpisodeBuffer:
    return EpisodeBuffer(
        id=index,
        observations=_split_obs(episode["observations"], info),
        actions=episode["actions"],
        rewards=episode["rewards"],
        terminations=episode["terminations"],
        truncations=episode["truncations"],
    )


def _split_obs(obs: np.ndarray, info: DatasetInfo) -> Any:
    if not info.obs_keys:
        return obs
    parts = np.split(obs, np.cumsum(info.obs_sizes)[:-1], axis=-1)
    return nest(info.obs_keys, parts)


def _spaces(trajectory: Trajectory, info: DatasetInfo) -> tuple[gymnasium.Space[Any], gymnasium.spaces.Box]:
    low, high = np.asarray(info.action_low, np.float32), np.asarray(info.action_high, np.float32)
    boxes = [
        gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        for size in (info.obs_sizes if info.obs_keys else (trajectory.obs.shape[-1],))
    ]
    observation = _dict_space(nest(info.obs_keys, boxes)) if info.obs_keys else boxes[0]
    return observation, gymnasium.spaces.Box(low, high, dtype=np.float32)


def _dict_space(tree: dict[str, Any]) -> gymnasium.spaces.Dict:
    return gymnasium.spaces.Dict({k: _dict_space(v) if isinstance(v, dict) else v for k, v in tree.items()})
