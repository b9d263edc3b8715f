import numpy as np
import pytest

from jaxpgd.data.dataset import DatasetInfo
from jaxpgd.data.scores import (
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
        ("maze2d-umaze-v1", (23.85, 161.86)),
        ("maze2d-umaze-sparse-v1", (23.85, 161.86)),
        ("maze2d_umaze_dense-v1", (68.537689, 193.66285642381482)),
        ("antmaze-large-diverse-v2", (0.0, 1.0)),
        ("bullet-hopper-medium-v0", None),
        ("mydata", None),
        ("", None),
    ],
)
def test_table(name: str, expected: tuple[float, float] | None) -> None:
    assert d4rl_reference(name) == expected


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
