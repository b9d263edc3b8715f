import numpy as np
import pytest

from jaxpgd.data.dataset import DatasetInfo
from jaxpgd.data.scores import d4rl_reference, normalized_score

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
