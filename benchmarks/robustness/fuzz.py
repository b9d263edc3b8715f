"""Hostile files: mutated configs, studies, datasets, checkpoints, actors and logs, each read as a user would have it read.

An input is accepted, refused with the error that bad input has to raise, or a failure: another exception, a dead process, no
answer within `PATIENCE` seconds, more memory than any of these files needs, or code that ran because a file named it. One input
again: `python -c "from benchmarks.robustness.fuzz import one; one('npz', 17)"`.
"""

import dataclasses
import io
import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

PATIENCE = 30.0  # seconds for one input
MEMORY = 32 * 2**30  # address space of a reader, most of which JAX reserves and does not use
CANARY = "executed"  # a file that only code from a hostile file would make
_STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 10**30, -(10**18), 1e308, float("nan"), float("inf"), "", "\x00", "../../../etc/passwd", "/etc/passwd",
    "x" * 10_000, [], {}, [[[]]], "os:system", {"a": {"b": []}}, "auto", 0.5, "1e999", ["a", 1, None], "nan",
)  # fmt: skip


class Payload:
    """Unpickling this makes the canary."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file: how a sound one is made, changed in its own terms, and read."""

    make: Callable[[Path], None]  # writes a sound input into a folder
    change: Callable[[random.Random, Path], None]  # changes it in place
    read: Callable[[Path], None]


def mutate_bytes(rng: random.Random, folder: Path) -> None:
    """Flip, cut, drop, repeat, insert or zero bytes of one file of the folder."""
    files = [f for f in sorted(folder.rglob("*")) if f.is_file() and f.stat().st_size > 0]
    file = rng.choice(files)
    content = bytearray(file.read_bytes())
    for _ in range(rng.choice((1, 1, 1, 2, 8, 64))):
        size = len(content)
        if size == 0:
            break
        a = rng.randrange(min(size, 4096) if rng.random() < 0.5 else size)  # headers matter more than their share
        b = min(size, a + rng.choice((1, 2, 4, 8, 64, 512)))
        match rng.randrange(7):
            case 0:
                content[a] ^= 1 << rng.randrange(8)
            case 1:
                content[a] = rng.randrange(256)
            case 2:
                del content[a:]
            case 3:
                del content[a:b]
            case 4:
                content[a:a] = content[a:b]
            case 5:
                content[a:a] = rng.randbytes(b - a)
            case _:
                content[a:b] = bytes(b - a) if rng.random() < 0.5 else b"\xff" * (b - a)
    file.write_bytes(bytes(content))


def strange(rng: random.Random) -> Any:
    """A value that nobody expects."""
    return rng.choice(_STRANGE) if rng.random() < 0.8 else rng.randrange(-(10**6), 10**6)


def change_json(rng: random.Random, file: Path) -> None:
    """Replace, drop or add entries of a JSON object, and of JSON texts inside of it."""
    content = json.loads(file.read_text())
    for _ in range(rng.choice((1, 1, 2, 4))):
        node: Any = content
        while True:
            key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
            inner = node[key]
            if isinstance(inner, str) and inner.startswith("{") and rng.random() < 0.6:
                held = json.loads(inner)
                if held:
                    held[rng.choice(list(held))] = strange(rng)
                node[key] = json.dumps(held)
                break
            if isinstance(inner, dict | list) and inner and rng.random() < 0.7:
                node = inner
                continue
            if isinstance(node, dict) and rng.random() < 0.25:
                del node[key]
                node.update({"new": strange(rng)} if rng.random() < 0.3 else {})
            else:
                node[key] = strange(rng)
            break
        if not content:
            break
    file.write_text(json.dumps(content))


# -- configs and studies ------------------------------------------------------------------------------------------------------


def _toml_value(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return {"inf": "inf", "nan": "nan"}.get(str(value), repr(value))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    return json.dumps(value)


def _change_toml(rng: random.Random, folder: Path) -> None:
    """Give settings strange values, rename them, repeat or drop lines."""
    file = next(folder.glob("*.toml"))
    lines = file.read_text().splitlines()
    for _ in range(rng.choice((1, 1, 2, 4))):
        i = rng.randrange(len(lines))
        name, sign, _ = lines[i].partition(" = ")
        match rng.randrange(6):
            case 0 | 1 | 2 if sign:
                lines[i] = f"{name} = {_toml_value(strange(rng))}"
            case 3 if sign:
                lines[i] = (
                    name[: rng.randrange(len(name) + 1)] + rng.choice(("", "x", ".", '"', "=", " ")) + lines[i][len(name) :]
                )
            case 4:
                del lines[i]
            case _:
                lines.insert(rng.randrange(len(lines) + 1), lines[i])
        if not lines:
            break
    file.write_text("\n".join(lines) + "\n")


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


# -- datasets -----------------------------------------------------------------------------------------------------------------


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


def _odd_array(rng: random.Random, array: np.ndarray) -> np.ndarray:
    """An array that does not fit."""
    match rng.randrange(9):
        case 0:
            return array[: rng.randrange(len(array) + 1)]
        case 1:
            return array[..., None]
        case 2:
            return array.astype(rng.choice(("S4", "U4", "c16", "f2", "i8", "u1", "M8[s]", ">f4", "O")))
        case 3:
            return np.where(np.arange(len(array)).reshape(-1, *[1] * (array.ndim - 1)) == 3, np.nan, array.astype(float))
        case 4:
            return array.astype(float) * 10.0 ** rng.randrange(-300, 300)
        case 5:
            return np.array(rng.random())
        case 6:
            return np.zeros((0, *array.shape[1:]), array.dtype)
        case 7:
            return np.zeros(len(array), [("a", "f4"), ("b", "S3")])
        case _:
            return np.broadcast_to(array[:1], array.shape)


def _huge(array: np.ndarray) -> bytes:
    """An npy file whose header promises far more than follows."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (10**7, 10**7)})
    return stream.getvalue() + array.tobytes()


def _change_npz(rng: random.Random, folder: Path) -> None:
    file = next(folder.glob("*.npz"))
    with np.load(file) as stored:
        arrays = dict(stored)
    key = rng.choice(list(arrays))
    kind = rng.randrange(5)
    if kind == 0:
        del arrays[key]
    elif kind in (1, 2):
        arrays[key] = _odd_array(rng, arrays[key])
    with zipfile.ZipFile(file, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, array in arrays.items():
            stream = io.BytesIO()
            np.lib.format.write_array(stream, np.asarray(array), allow_pickle=True)
            content = stream.getvalue()
            if name == key and kind == 3:
                content = _huge(array)
            if name == key and kind == 4:
                stream = io.BytesIO()
                header = {"descr": "|O", "fortran_order": False, "shape": (1,)}
                np.lib.format.write_array_header_1_0(stream, header)
                content = stream.getvalue() + pickle.dumps(Payload(str(folder / CANARY)))
            archive.writestr(rng.choice((f"{name}.npy", f"{name}.npy", f"../{name}.npy")), content)


def _change_hdf5(rng: random.Random, file: Path, paths: list[str]) -> None:
    """Replace one array by one that does not fit, that is not in the file, or that is far too large."""
    path = rng.choice(paths)
    with h5py.File(file, "a") as stored:
        array = np.asarray(stored[path])
        del stored[path]
        match rng.randrange(12):
            case 0:
                pass
            case 9:
                stored["elsewhere"] = h5py.ExternalLink("/etc/hostname", "/")
                stored[path] = h5py.SoftLink("/elsewhere/x")
            case 10:  # the same groups many times over
                inner: Any = stored.create_dataset("bottom", (0,), "f4")
                for depth in range(12):
                    outer = stored.create_group(f"level{depth}")
                    for name in range(10):
                        outer[f"x{name}"] = inner
                    inner = outer
                stored[path] = inner
            case 1:
                stored[path] = h5py.ExternalLink("/etc/hostname", "/x")
            case 2:
                stored[path] = h5py.SoftLink(rng.choice((f"/{path}", "/", "/nowhere")))
            case 3:
                stored.create_dataset(path, (2**40, 2**10), "f8", chunks=(1024, 1024))
            case 4:
                stored.create_dataset(path, array.shape, "f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])
            case 5:
                layout = h5py.VirtualLayout(array.shape, "f4")
                layout[...] = h5py.VirtualSource("/etc/passwd", "x", array.shape)
                stored.create_virtual_dataset(path, layout)
            case 6:
                stored.create_group(f"{path}/a/b")
                stored[f"{path}/a/b/again"] = stored[f"{path}/a"]
            case 7:
                stored.create_dataset(path, data=h5py.Empty("f4"))
            case 8:
                stored.create_dataset(path, (len(array) if array.ndim else 1,), h5py.string_dtype())
            case _:
                odd = _odd_array(rng, array)
                stored.create_dataset(path, data=odd if odd.dtype.kind not in "OUM" else array.astype("S4"))


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
            _change_hdf5(rng, data / "main_data.hdf5", [f"episode_{rng.randrange(4)}/{field}" for field in fields])
        case 1:  # what would run code, were it used
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


# -- what jaxpgd writes -------------------------------------------------------------------------------------------------------


def _state(chunks: int) -> dict[str, Any]:
    """A state after so many chunks, which no other number has."""
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
    for name, value in flatten(_state(found[1])).items():  # what was saved under that number, not the state before it
        if not np.array_equal(flatten(found[0])[name], value):
            raise AssertionError(f"{name} was restored with other values")


def _make_actor(folder: Path) -> None:
    rng, sizes = np.random.default_rng(0), ((3, 8), (8, 8), (8, 4))
    weights = {f"w{i}": rng.normal(size=size).astype(np.float32) for i, size in enumerate(sizes)}
    np.savez(folder / "actor.npz", **weights, **{f"b{i}": np.zeros(size[1], np.float32) for i, size in enumerate(sizes)})  # type: ignore[arg-type]


def _read_actor(folder: Path) -> None:
    from jaxpgd.simulators.behaviour import fitting_actor

    fitting_actor(folder / "actor.npz", 3, 2)


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
    "config": Kind(_make_config, _change_toml, _read_config),
    "study": Kind(_make_study, _change_toml, _read_study),
    "npz": Kind(_make_npz, _change_npz, _read_flat),
    "hdf5": Kind(_make_flat, lambda rng, folder: _change_hdf5(rng, next(folder.glob("*.hdf5")), list(_arrays())), _read_flat),
    "minari": Kind(_make_minari, _change_minari, _read_minari),
    "checkpoint": Kind(_make_checkpoint, _change_checkpoint, _read_checkpoint),
    "actor": Kind(_make_actor, _change_npz, _read_actor),
    "log": Kind(_make_log, _change_log, _read_log),
}


def one(name: str, number: int, seed: int = 0, sound: Path | None = None) -> str:
    """Make, mutate and read one input: "accepted", or "refused: message". Raises whatever else happens."""
    from jaxpgd.errors import InputError

    kind, rng = KINDS[name], random.Random(f"{seed} {name} {number}")
    with tempfile.TemporaryDirectory(prefix="jaxpgd-fuzz-") as path:
        folder = Path(path) / "input"
        if sound is None:
            folder.mkdir()
            kind.make(folder)
        else:
            shutil.copytree(sound, folder)
        (mutate_bytes if rng.random() < 0.5 else kind.change)(rng, folder)
        try:
            kind.read(folder)
            answer = "accepted"
        except InputError as error:
            answer = f"refused: {error}"
        if (folder / CANARY).exists():
            raise AssertionError("code that the file named was executed")
        return answer


def _serve(name: str, seed: int, first: int, count: int, answers: Any) -> None:
    """In a process of its own: read inputs `first` and following, telling what became of each."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.environ["JAX_PLATFORMS"] = "cpu"
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    with tempfile.TemporaryDirectory(prefix="jaxpgd-fuzz-") as path:
        sound = Path(path) / "sound"
        sound.mkdir()
        KINDS[name].make(sound)
        KINDS[name].read(sound)  # a sound input has to be accepted, or the mutated ones show nothing
        answers.send((first, "ready"))
        for number in range(first, count):
            try:
                answer = one(name, number, seed, sound)
            except Exception as error:
                answer = f"crash: {type(error).__name__}: {error}"
            answers.send((number, answer))


def fuzz(name: str, inputs: int, seed: int = 0) -> dict[str, Any]:
    """Read so many mutated inputs of a kind, in a process that is replaced when it dies or hangs."""
    context = multiprocessing.get_context("spawn")
    counts, failures, number = dict.fromkeys(("accepted", "refused", "crash", "hang"), 0), list[dict[str, Any]](), 0
    began, messages = time.monotonic(), set[str]()
    while number < inputs:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_serve, args=(name, seed, number, inputs, theirs), daemon=True)
        process.start()
        theirs.close()
        patience = 10 * PATIENCE  # the first answer includes imports
        while number < inputs:
            answer = "hang"
            if ours.poll(patience):
                try:
                    _, answer = ours.recv()
                except EOFError:
                    process.join()
                    answer = f"crash: the process died with exit status {process.exitcode}"
            patience = PATIENCE
            if answer == "ready":
                continue
            word = answer.partition(":")[0]
            counts[word] += 1
            messages |= {answer} if word == "refused" else set()
            if word in ("crash", "hang"):
                failures.append({"input": number, "what": answer[:500]})
            number += 1
            if word == "hang" or "process died" in answer:
                break
        process.kill()
        process.join()
        ours.close()
    return {"kind": name, "inputs": inputs, **counts, "different_messages": len(messages), "failures": failures,
            "seconds": time.monotonic() - began}  # fmt: skip


def run(inputs: int = 1000, seed: int = 0) -> dict[str, Any]:
    """All kinds; a table of inputs tried, accepted, refused with a clear error, crashes and hangs."""
    from benchmarks.timing import describe_device

    table = []
    for name in KINDS:
        table.append(fuzz(name, inputs, seed))
        print({k: v for k, v in table[-1].items() if k != "failures"}, *table[-1]["failures"][:5], file=sys.stderr, flush=True)
    return {"suite": "fuzz", "device": describe_device(), "table": table}
