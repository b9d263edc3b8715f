from collections import Counter

import numpy as np
import pytest

from jaxpgd.dataset import DatasetInfo
from jaxpgd.datasets.d4rl import REGISTRATIONS, plain_name
from jaxpgd.datasets.scores import (
    BUILTIN,
    D4RL,
    LOCAL,
    MINARI,
    OGBENCH,
    d4rl_reference,
    is_local_name,
    mean_score,
    normalized_score,
    score_column,
)
from jaxpgd.errors import InputError

INFO = {"name": "x", "source": "npz", "action_low": (-1.0,), "action_high": (1.0,)}


def test_reference_returns_score_0_and_100() -> None:
    info = DatasetInfo(**INFO, ref_min=-10.0, ref_max=30.0, ref_source="D4RL table")
    score, label = normalized_score(info, np.array([-10.0, 10.0, 30.0]))
    np.testing.assert_allclose(score, [0, 50, 100])
    assert "D4RL table" in label
    assert normalized_score(DatasetInfo(**INFO), np.zeros(2))[0] is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hopper-medium-replay-v2", (-20.272305, 3234.3)),
        ("halfcheetah_expert-local", (-280.178953, 12135.0)),
        ("hopper_medium_replay-local", (-20.272305, 3234.3)),
        ("maze2d-umaze-v1", (23.85, 161.86)),
        ("maze2d-umaze-sparse-v1", (23.85, 161.86)),
        ("maze2d_umaze_dense-v1", (68.537689, 193.66285642381482)),
        ("maze2d-umaze-sparse", (0.94, 62.6)),
        ("maze2d-umaze-local", None),  # of version 0 or 1
        ("maze2d-eval-umaze-sparse-v1", (36.63, 141.4)),
        ("maze2d-eval-large-dense-v1", (56.95455, 326.09647655082637)),
        ("antmaze-large-diverse-v2", (0.0, 1.0)),
        ("Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse", (0.0, 1.0)),
        ("Ant_maze_hardest-maze_noisy_multistart_True_multigoal_True_sparse_fixed", (0.0, 1.0)),
        ("mini_kitchen_microwave_kettle_light_slider-v0", (0.0, 4.0)),
        ("walker_mixed", (1.629008, 4592.3)),
        ("pen-v0_demos_clipped", (96.262799, 3076.8331017826877)),
        ("door-human-longhorizon-v1", (-56.512833, 2880.5693087298737)),
        ("bullet-hopper-medium-v0", None),
        ("hopper_mine", None),
        ("hopper-medium-v3", None),
        ("ant_colony", None),
        ("kitchen_sink-v0", None),
        ("mydata", None),
        ("", None),
    ],
)
def test_references_by_name(name: str, expected: tuple[float, float] | None) -> None:
    assert d4rl_reference(name) == expected


# return of a random policy and of an expert by the beginning of a dataset's name; those of mazes in the table below
FAMILIES = {
    "hopper": (-20.272305, 3234.3),
    "halfcheetah": (-280.178953, 12135.0),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
    "antmaze": (0.0, 1.0),
    "pen": (96.262799, 3076.8331017826877),
    "hammer": (-274.856578, 12794.134825156867),
    "door": (-56.512833, 2880.5693087298737),
    "relocate": (-6.425911, 4233.877797728884),
    "kitchen": (0.0, 4.0),
}
MAZES = {
    "maze2d-open-sparse": (0.01, 20.66), "maze2d-open-dense": (11.17817, 27.166538620695782),
    "maze2d-umaze-sparse": (0.94, 62.6), "maze2d-umaze-dense": (23.249793, 81.78995240126592),
    "maze2d-medium-sparse": (5.77, 85.14), "maze2d-medium-dense": (19.47762, 96.03474232952358),
    "maze2d-large-sparse": (4.83, 191.99), "maze2d-large-dense": (27.38831, 215.09965671563742),
    "maze2d-umaze-sparse-v1": (23.85, 161.86), "maze2d-umaze-dense-v1": (68.537689, 193.66285642381482),
    "maze2d-medium-sparse-v1": (13.13, 277.39), "maze2d-medium-dense-v1": (44.264742, 297.4552547777125),
    "maze2d-large-sparse-v1": (6.7, 273.99), "maze2d-large-dense-v1": (30.569041, 303.4857382709002),
    "maze2d-eval-umaze-sparse-v1": (36.63, 141.4), "maze2d-eval-umaze-dense-v1": (56.95455, 178.21373133248397),
    "maze2d-eval-medium-sparse-v1": (13.07, 204.93), "maze2d-eval-medium-dense-v1": (42.28578, 235.5658957482388),
    "maze2d-eval-large-sparse-v1": (16.4, 302.22), "maze2d-eval-large-dense-v1": (56.95455, 326.09647655082637),
}  # fmt: skip


def test_every_name_and_file_of_the_table() -> None:
    """Every registration is found by its name, its file and either spelling, and has the numbers that D4RL publishes."""
    meant: dict[str, set[tuple[object, ...]]] = {}
    for row in REGISTRATIONS:
        expected = MAZES[row.file] if row.name.startswith("maze2d") else FAMILIES[row.name.split("-")[0]]
        for name in (row.name, row.file, row.name.replace("-", "_"), row.file.upper()):
            assert d4rl_reference(name) == expected, name
            meant.setdefault(plain_name(name), set()).add(row[2:])
    assert all(len(rows) == 1 for rows in meant.values())  # no name means two things
    families = Counter(row.name.split("-")[0] for row in REGISTRATIONS)
    assert families == {
        **dict.fromkeys(("hopper", "halfcheetah", "walker2d"), 6 + 12), "ant": 7 + 12, "antmaze": 12 + 6 + 8,
        "maze2d": len(MAZES), **dict.fromkeys(("pen", "hammer", "door", "relocate"), 8), "kitchen": 3,
    }  # fmt: skip


def measured(source: str | None, **changes: object) -> DatasetInfo:
    references = {} if source in (None, OGBENCH) else {"ref_min": 0.0, "ref_max": 10.0}
    return DatasetInfo(**{**INFO, **references, "ref_source": source, **changes})


def test_no_two_families_share_a_column() -> None:
    published = [score_column(measured(source)) for source in (D4RL, MINARI, OGBENCH, BUILTIN, None, "another table")]
    local = [score_column(measured(source, local=True)) for source in (LOCAL, D4RL, MINARI, OGBENCH)]
    assert published[:3] == ["score (D4RL)", "score (Minari)", "success rate % (OGBench)"] and local[0] == "score (local)"
    assert len({*published, *local}) == len(published) + len(local)
    assert score_column(measured(None, name="a")) != score_column(measured(None, name="b"))


def test_means_are_taken_within_a_column_only() -> None:
    ours, theirs = measured(MINARI, name="a"), measured(D4RL, name="b")
    assert mean_score([(ours, [10.0, 20.0]), (measured(MINARI, name="c"), 5.0)]) == (10.0, "score (Minari)")
    for other in (theirs, measured(MINARI, name="b", local=True), measured(OGBENCH, name="b"), measured(None, name="b")):
        with pytest.raises(InputError, match="different scales"):
            mean_score([(ours, 1.0), (other, 2.0)])
    with pytest.raises(InputError, match="different scales"):  # even where their names are the same
        mean_score([(measured(D4RL), 1.0), (measured(MINARI), 2.0)])
    with pytest.raises(InputError, match="at least one dataset"):
        mean_score([])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mujoco/hopper/medium-local-v0", True),
        ("hopper_medium_replay-local.hdf5", True),
        ("some-local-folder/hopper_medium-v2.hdf5", False),
        ("mujoco/hopper/localised-v0", False),
    ],
)
def test_names_that_say_local(name: str, expected: bool) -> None:
    assert is_local_name(name) == expected
