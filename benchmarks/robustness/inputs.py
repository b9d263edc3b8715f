"""The kinds of input: how a sound one is made, how it is changed, and how jaxpgd reads it.

Readers import what they need when they run: the process that counts answers loads neither JAX nor jaxpgd.
"""

import dataclasses
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from benchmarks.robustness.mutations import CANARY, change_hdf5, change_json, change_npz, change_toml, mutate_bytes, strange


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of input: how a sound one is made, mutated in the terms of its format, and read."""

    make: Callable[[Path], None]  # writes a sound input into a folder
    change: Callable[[random.Random, Path], None]  # changes it in place
    read: Callable[[Path], None]


def _make_config(folder: Path) -> None:
    from jaxpgd.experiment.config import Config
    from jaxpgd.experiment.config_files import to_toml

    (folder / "config.toml").write_text(to_toml(Config()))


def _read_config(folder: Path) -> None:
    from jaxpgd.experiment.config_files import load_config
    from jaxpgd.experiment.sweep import read_sweep

    read_sweep(load_config(folder / "config.toml"))


def _make_study(folder: Path) -> None:
    from jaxpgd.experiment.studies.plan import study_text

    (folder / "study.toml").write_text(study_text("pgd-regimes"))


def _read_study(folder: Path) -> None:
    from jaxpgd.experiment.studies.plan import load_study

    load_study(str(folder / "study.toml"), "laptop")


def _arrays(steps: int = 40) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ends = np.arange(steps) % 10 == 9
    obs = rng.normal(size=(steps, 3)).astype(np.float32)
    return {
        "observations": obs, "rewards": rng.normal(size=steps).astype(np.float32),
        "actions": np.tanh(rng.normal(size=(steps, 2))).astype(np.float32), "timeouts": ends,
        "terminals": np.zeros(steps, bool),
        "next_observations": np.roll(obs, -1, axis=0),
    }  # fmt: skip


def _make_npz(folder: Path) -> None:
    np.savez(folder / "data.npz", **_arrays())  # type: ignore[arg-type]


def _make_flat(folder: Path) -> None:
    with h5py.File(folder / "hopper-medium-v2.hdf5", "w") as file:
        for key, array in _arrays().items():
            file[key] = array


def _read_flat(folder: Path) -> None:
    from jaxpgd.datasets import load

    for file in (*folder.glob("*.npz"), *folder.glob("*.hdf5")):
        load(str(file))


_ID = "fuzz/toy-v0"


def _make_minari(folder: Path) -> None:
    from gymnasium.envs.registration import EnvSpec

    data, arrays = folder / _ID / "data", _arrays()
    data.mkdir(parents=True)

    def box(n: int, bound: float) -> dict[str, Any]:
        return {"type": "Box", "dtype": "float32", "shape": [n], "low": [-bound] * n, "high": [bound] * n}

    spec = EnvSpec("Pendulum-v1", "gymnasium.envs.classic_control.pendulum:PendulumEnv", max_episode_steps=200)
    (data / "metadata.json").write_text(json.dumps({
        "total_episodes": 4, "total_steps": 40, "data_format": "hdf5", "dataset_id": _ID, "minari_version": "0.5.3",
        "observation_space": json.dumps(box(3, 8.0)), "action_space": json.dumps(box(1, 2.0)), "env_spec": spec.to_json(),
        "author": ["x"], "ref_min_score": 0.0, "ref_max_score": 1.0,
    }))  # fmt: skip
    with h5py.File(data / "main_data.hdf5", "w") as file:
        for episode in range(4):
            part = slice(10 * episode, 10 * episode + 10)
            group = file.create_group(f"episode_{episode}")
            group["observations"] = np.concatenate([arrays["observations"][part], np.zeros((1, 3), np.float32)])
            for name, key in (("actions", "actions"), ("rewards", "rewards"), ("terminations", "terminals"),
                              ("truncations", "timeouts")):  # fmt: skip
                group[name] = arrays[key][part, :1] if name == "actions" else arrays[key][part]


def _change_minari(rng: random.Random, folder: Path) -> None:
    data = folder / _ID / "data"
    match rng.randrange(4):
        case 0:
            fields = ("observations", "actions", "rewards", "terminations", "truncations")
            change_hdf5(rng, data / "main_data.hdf5", [f"episode_{rng.randrange(4)}/{field}" for field in fields])
        case 1:  # metadata that would run code if it were used
            metadata = json.loads((data / "metadata.json").read_text())
            command = f"touch {folder / CANARY}"
            evil = {"id": rng.choice(("Pendulum-v1", "Evil-v0", "os:Evil-v0")), "entry_point": "os:system", "kwargs": {
                "command": command}, "additional_wrappers": [], "max_episode_steps": 5}  # fmt: skip
            if rng.random() < 0.3:
                sound = json.loads(metadata["env_spec"])
                wrapper = {"name": "X", "entry_point": "os:system", "kwargs": {"command": command}}
                evil = {**sound, "additional_wrappers": [wrapper]}
            metadata[rng.choice(("env_spec", "env_spec", "eval_env_spec"))] = json.dumps(evil)
            for key in rng.choice(((), ("observation_space",), ("action_space", "observation_space"))):
                del metadata[key]
            (data / "metadata.json").write_text(json.dumps(metadata))
        case _:
            change_json(rng, data / "metadata.json")


def _read_minari(folder: Path) -> None:
    from jaxpgd.datasets import load
    from jaxpgd.simulators.environments import require_environment

    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    dataset = load(_ID)
    require_environment(dataset.info, dataset.obs_dim)


def _state(chunks: int) -> dict[str, Any]:
    """A training state after `chunks` chunks: every number of chunks gives another state."""
    import jax
    import jax.numpy as jnp

    return {
        "params": {"w": chunks + jnp.arange(12.0).reshape(3, 4), "b": jnp.zeros(4)},
        "step": jnp.asarray(chunks),
        "key": jax.random.key(chunks),
    }


def _make_checkpoint(folder: Path) -> None:
    from jaxpgd.experiment.run.checkpoints import CheckpointStore

    store = CheckpointStore(folder / "stage")
    store.save(1, _state(1))
    store.save(2, _state(2))


def _change_checkpoint(rng: random.Random, folder: Path) -> None:
    newest = folder / "stage" / "2"
    files = [f for f in sorted(newest.rglob("*")) if f.is_file()]
    match rng.randrange(4):
        case 0:
            rng.choice(files).unlink()
        case 1:
            file = rng.choice(files)
            file.write_bytes(rng.choice(files).read_bytes())
        case 2:
            change_json(rng, newest / rng.choice(("manifest.json", "_METADATA", "_CHECKPOINT_METADATA")))
        case _:
            mutate_bytes(rng, newest)


def _read_checkpoint(folder: Path) -> None:
    from jaxpgd.experiment.run.checkpoints import CheckpointStore, flatten

    found = CheckpointStore(folder / "stage").restore(_state(2))
    assert found is not None
    for name, value in flatten(_state(found[1])).items():  # the state saved under that number, not an earlier one
        if not np.array_equal(flatten(found[0])[name], value):
            raise AssertionError(f"{name} was restored with other values")


def _make_actor(folder: Path) -> None:
    rng, sizes = np.random.default_rng(0), ((3, 8), (8, 8), (8, 4))
    weights = {f"w{i}": rng.normal(size=size).astype(np.float32) for i, size in enumerate(sizes)}
    np.savez(folder / "actor.npz", **weights, **{f"b{i}": np.zeros(size[1], np.float32) for i, size in enumerate(sizes)})  # type: ignore[arg-type]


def _read_actor(folder: Path) -> None:
    from jaxpgd.simulators.stored_actor import actor_for

    actor_for(folder / "actor.npz", 3, 2)


def _make_log(folder: Path) -> None:
    from jaxpgd.experiment.run.logs import MetricsLog

    log = MetricsLog(folder / "metrics.jsonl")
    for chunk in range(20):
        log.write("denoiser", chunk + 1, {"step": chunk, "loss": np.array([0.5, np.nan])})


def _change_log(rng: random.Random, folder: Path) -> None:
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines()
    lines[rng.randrange(len(lines))] = rng.choice(("[]", "1", "null", '"x"', "{}", json.dumps({"stage": strange(rng)}),
                                                   json.dumps({"stage": "denoiser", "chunk": strange(rng)})))  # fmt: skip
    file.write_text("\n".join(lines) + rng.choice(("", "\n", '\n{"stage": "den')))


def _read_log(folder: Path) -> None:
    from jaxpgd.experiment.run.logs import MetricsLog

    log = MetricsLog(folder / "metrics.jsonl")
    log.rewind("denoiser", 5)
    log.write("denoiser", 6, {"loss": 1.0})
    assert log.read()[-1] == {"stage": "denoiser", "chunk": 6, "loss": 1.0}


KINDS: dict[str, Kind] = {
    "config": Kind(_make_config, change_toml, _read_config),
    "study": Kind(_make_study, change_toml, _read_study),
    "npz": Kind(_make_npz, change_npz, _read_flat),
    "hdf5": Kind(_make_flat, lambda rng, folder: change_hdf5(rng, next(folder.glob("*.hdf5")), list(_arrays())), _read_flat),
    "minari": Kind(_make_minari, _change_minari, _read_minari),
    "checkpoint": Kind(_make_checkpoint, _change_checkpoint, _read_checkpoint),
    "actor": Kind(_make_actor, change_npz, _read_actor),
    "log": Kind(_make_log, _change_log, _read_log),
}
