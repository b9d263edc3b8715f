import errno
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxpgd.errors import InputError, StorageError
from jaxpgd.experiment.run.checkpoints import (
    MANIFEST,
    CheckpointStore,
    DamagedCheckpoint,
    _hash,
    checksum,
    flatten,
    load_tree,
    read_manifest,
    save_tree,
    unflatten,
)  # fmt: skip


def tree(scale: float = 1.0, size: int = 3) -> dict[str, Any]:
    return {
        "params": {"kernel": scale * jnp.arange(2.0 * size).reshape(2, size), "bias": jnp.asarray(0.1)},
        "optimiser": (jnp.asarray(7), [jnp.array([True, False])]),
        "key": jax.random.key(5),
        "seeds": jax.random.split(jax.random.key(6), 2),
    }


def same(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    ours, theirs = flatten(a), flatten(b)
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_round_trip_with_random_keys(tmp_path: Path) -> None:
    save_tree(tmp_path / "one", tree())
    found = load_tree(tmp_path / "one", jax.eval_shape(tree))
    same(found, tree())
    np.testing.assert_array_equal(jax.random.normal(found["seeds"][1]), jax.random.normal(tree()["seeds"][1]))
    save_tree(tmp_path / "one", tree(2.0))  # writing again replaces
    same(load_tree(tmp_path / "one", tree()), tree(2.0))


def test_another_shape_or_entry_is_refused(tmp_path: Path) -> None:
    values = flatten(tree())
    with pytest.raises(InputError, match=r"checkpoint = 'here': entry 'params/kernel' has shape \(2, 3\), expected \(2, 4\)"):
        unflatten(tree(size=4), values, "here")
    with pytest.raises(InputError, match="entry 'extra' is missing"):
        unflatten({**tree(), "extra": jnp.zeros(1)}, values, "here")
    with pytest.raises(InputError, match="entry 'key' is not expected"):
        unflatten({k: v for k, v in tree().items() if k != "key"}, values, "here")
    with pytest.raises(InputError, match="entry 'key' has shape"):
        unflatten(tree(), {**values, "key": np.zeros(5, np.uint32)}, "here")
    save_tree(tmp_path / "one", tree())
    with pytest.raises(InputError, match=r"one.*params/kernel.*settings"):
        load_tree(tmp_path / "one", tree(size=4))


def test_truncated_and_missing_files_name_the_path(tmp_path: Path) -> None:
    save_tree(tmp_path / "one", tree())
    biggest = max((p for p in (tmp_path / "one").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = biggest.read_bytes()
    biggest.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"checkpoint = .*one.*damaged or incomplete.*The checkpoint before it"):
        load_tree(tmp_path / "one", tree())
    for file in (p for p in (tmp_path / "one").rglob("*") if p.is_file()):
        file.write_bytes(b"")
    with pytest.raises(InputError, match="damaged or incomplete"):
        load_tree(tmp_path / "one", tree())
    with pytest.raises(InputError, match=r"nothing.*expected a checkpoint directory, found none"):
        load_tree(tmp_path / "nothing", tree())


def test_store_keeps_the_newest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "stage", keep=2)
    assert store.saved() == [] and store.restore(tree()) is None
    for chunks in (0, 2, 10):
        store.save(chunks, tree(float(chunks)))
    assert store.saved() == [2, 10]  # by number, not by name
    found = store.restore(jax.eval_shape(tree))
    assert found is not None and found[1] == 10
    same(found[0], tree(10.0))
    for left in ("12.writing", "12.writing.orbax-checkpoint-tmp"):  # what a killed writer leaves
        (tmp_path / "stage" / left).mkdir()
    assert store.saved() == [2, 10]
    store.save(11, tree())
    assert sorted(p.name for p in (tmp_path / "stage").iterdir()) == ["10", "11"]


def test_checksums_tell_changed_bytes_types_and_shapes() -> None:
    x = np.arange(6.0)
    assert checksum(x) == checksum(x.copy()) == checksum(np.arange(12.0)[::2] / 2)
    others = [np.arange(6.0).reshape(2, 3), np.arange(6), np.nextafter(x, 9)]
    assert len({checksum(y) for y in [x, *others]}) == 4


def test_a_wrong_checksum_is_damage(tmp_path: Path) -> None:
    save_tree(tmp_path / "one", tree())
    stored = tmp_path / "one" / MANIFEST
    content = read_manifest(tmp_path / "one")
    content["entries"]["params/bias"]["sha256"] = "0" * 64
    stored.write_text(json.dumps({**content, "sha256": _hash(content)}))
    with pytest.raises(DamagedCheckpoint, match=r"damaged or incomplete \(checksum of entry 'params/bias' does not match"):
        load_tree(tmp_path / "one", tree())
    stored.write_text(stored.read_text().replace("params/bias", "params/bios"))  # other settings only where it is intact
    with pytest.raises(DamagedCheckpoint, match=r"checksum of manifest.json does not match"):
        load_tree(tmp_path / "one", tree())
    stored.unlink()
    with pytest.raises(DamagedCheckpoint, match="damaged or incomplete"):
        load_tree(tmp_path / "one", tree())


def test_arrays_that_are_not_those_of_the_manifest_are_not_read(tmp_path: Path) -> None:
    save_tree(tmp_path / "one", tree())
    save_tree(tmp_path / "huge", {**tree(), "params": {"kernel": jnp.zeros((2, 4)), "bias": jnp.zeros(())}})
    (tmp_path / "huge" / MANIFEST).write_text((tmp_path / "one" / MANIFEST).read_text())
    with pytest.raises(DamagedCheckpoint, match="its arrays are not those that were written"):
        load_tree(tmp_path / "huge", tree())


def test_the_best_is_kept_besides_the_newest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "stage", keep=2)
    assert store.best() is None
    for chunks, score in ((0, None), (1, -3.0), (2, -1.0), (3, -2.0), (4, -5.0), (5, -1.5)):
        store.save(chunks, tree(float(chunks)), score)
    assert store.saved() == [2, 4, 5] and store.best() == 2
    found = store.restore_best(tree())
    assert found is not None and found[1] == 2
    same(found[0], tree(2.0))
    store.save(6, tree(6.0), -1.0)  # as good: the newer one
    assert store.best() == 6 and store.saved() == [5, 6]
    plain = CheckpointStore(tmp_path / "plain")
    plain.save(3, tree(3.0))
    found = plain.restore_best(tree())
    assert found is not None and found[1] == 3


def test_what_is_run_again_is_set_aside(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "stage", keep=3)
    for chunks in (1, 2, 3):
        store.save(chunks, tree(float(chunks)))
    store.set_aside(1)
    assert store.saved() == [1] and (tmp_path / "stage" / "3.damaged").is_dir()


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = CheckpointStore(tmp_path / "stage")
    for chunks in (3, 5):
        store.save(chunks, tree(float(chunks)))
    for file in (p for p in (tmp_path / "stage" / "5").rglob("*") if p.is_file() and p.name != MANIFEST):
        content = bytearray(file.read_bytes())
        content[len(content) // 2 :] = b""
        file.write_bytes(bytes(content))
    found = store.restore(tree())
    assert found is not None and found[1] == 3
    same(found[0], tree(3.0))
    assert "stage/5" in capsys.readouterr().err and store.saved() == [3, 5]  # nothing is lost by reading
    store.save(5, tree(5.0))  # as a resumed stage does
    found = store.restore(tree())
    assert found is not None and found[1] == 5
    for file in (p for p in (tmp_path / "stage").rglob("*") if p.is_file()):
        file.write_bytes(b"")
    with pytest.raises(InputError, match=r"checkpoints = .*every one is damaged. Delete this directory"):
        store.restore(tree())
    store.save(6, tree())
    with pytest.raises(InputError, match="other settings"):  # not damage
        store.restore(tree(size=4))


def test_what_the_system_lacks_is_not_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path / "stage")
    store.save(1, tree())

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(ocp.StandardCheckpointer, "restore", refuse)
    with pytest.raises(OSError, match="too many open files"):
        store.restore(tree())


def test_what_a_killed_replacement_moved_aside_comes_back(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(5, tree())
    (tmp_path / "5").rename(tmp_path / "5.old.writing")  # between the two renames of a replacement
    assert store.saved() == []
    store.recover()
    assert store.saved() == [5]
    (tmp_path / "5").rename(tmp_path / "5.old.writing")
    store.save(6, tree(2.0))
    assert store.saved() == [5, 6] and sorted(p.name for p in tmp_path.iterdir()) == ["5", "6"]
    same(load_tree(tmp_path / "5", tree()), tree())


def test_a_checkpoint_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tree(tmp_path / "one", tree())
    rename = Path.rename

    def full(self: Path, target: Path) -> Path:
        if self.name == "one.writing":
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(StorageError, match=r"one: cannot be written, no space left on its disk"):
        save_tree(tmp_path / "one", tree(2.0))
    assert [p.name for p in tmp_path.iterdir()] == ["one"]
    same(load_tree(tmp_path / "one", tree()), tree())
