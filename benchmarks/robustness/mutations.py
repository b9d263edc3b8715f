"""Mutations of sound files: bytes of any file, and changes in the terms of JSON, TOML, NumPy archives and HDF5."""

import io
import json
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

CANARY = "executed"  # a file that only code in a hostile input would create
_STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 10**30, -(10**18), 1e308, float("nan"), float("inf"), "", "\x00", "../../../etc/passwd", "/etc/passwd",
    "x" * 10_000, [], {}, [[[]]], "os:system", {"a": {"b": []}}, "auto", 0.5, "1e999", ["a", 1, None], "nan",
)  # fmt: skip


class Payload:
    """Unpickling an object of this class creates the canary."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


def mutate_bytes(rng: random.Random, folder: Path) -> None:
    """Flip, cut, drop, repeat, insert or zero bytes of one file in a folder."""
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
    """A value that no reader expects."""
    return rng.choice(_STRANGE) if rng.random() < 0.8 else rng.randrange(-(10**6), 10**6)


def change_json(rng: random.Random, file: Path) -> None:
    """Replace, drop or add entries of a JSON object, and of the JSON strings inside it."""
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


def change_toml(rng: random.Random, folder: Path) -> None:
    """Give settings of a TOML file strange values, rename them, repeat or drop lines."""
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


def _odd_array(rng: random.Random, array: np.ndarray) -> np.ndarray:
    """An array of another length, shape or type, or with other values, than `array`."""
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
    """An .npy file whose header promises far more data than follows."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (10**7, 10**7)})
    return stream.getvalue() + array.tobytes()


def change_npz(rng: random.Random, folder: Path) -> None:
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


def change_hdf5(rng: random.Random, file: Path, paths: list[str]) -> None:
    """Replace one array by one that does not fit, that lies in another file, or that is far too large."""
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
