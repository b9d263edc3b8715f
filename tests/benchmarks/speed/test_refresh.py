"""The suites `refresh` and `end_to_end` at sizes that take a moment."""

import pytest

from benchmarks.speed import agents, end_to_end, refresh

REFRESH = refresh.Size(
    trajectories=4, baseline_trajectories=2, features=8, published_features=8, blocks=1, window=8, repeats=2, baseline_steps=2,
    methods=(refresh.METHODS[0],),
)  # fmt: skip


AGENTS = agents.Size(
    transitions=500, obs_dim=17, action_dim=6, batch=8, synthetic=6, trajectories=16, window=4, seeds=2, hidden=(8,), updates=4,
    baseline_updates=2, repeats=2,
)  # fmt: skip


@pytest.mark.slow
def test_a_refresh_for_another_policy_compiles_nothing():
    rows = {row["method"]: row for row in refresh.run(REFRESH)["rows"]}
    ours = rows["dpmpp_2m_sde 32"]
    assert ours["compiled_again"] == 0
    assert ours["ratio"] == pytest.approx(ours["rate"] / rows["published, unguided"]["rate"])


@pytest.mark.slow
def test_the_loop_with_refreshes_compiles_once_and_predicts_the_protocol():
    size = end_to_end.Size(
        updates=4, trajectories=4, transitions=500, repeats=2, protocol_features=8, protocol_batch=2, sampling=REFRESH,
        updating=AGENTS,
    )  # fmt: skip
    rows = {row["method"]: row for row in end_to_end.run(size)["rows"]}
    assert rows["dpmpp_2m_sde 32"]["compiled"] == 1
    assert set(rows) == {"published, unguided", "published, nudged", "dpmpp_2m_sde 32"}


def test_the_protocol_is_updates_and_forward_passes():
    found = end_to_end.protocol(updates_rate=100.0, evaluation=1e-5, passes=32)
    assert found["updates_minutes"] == pytest.approx(1e6 / 100 / 60)
    assert found["refreshes_minutes"] == pytest.approx(100 * 8192 * 32 * 1e-5 / 60)
    assert found["minutes"] == pytest.approx(found["updates_minutes"] + found["refreshes_minutes"])
