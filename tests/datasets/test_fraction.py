"""A share of a dataset: whole episodes, nested, in order, and the only data that anything sees."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpgd.dataset import Dataset, DatasetInfo
from jaxpgd.datasets import load
from jaxpgd.datasets.assemble import assemble
from jaxpgd.datasets.describe import describe, format_description
from jaxpgd.datasets.fraction import fraction_of
from jaxpgd.errors import InputError
from jaxpgd.experiment.config_files import load_config
from jaxpgd.experiment.stages.model_source import DECIDED_BY
from jaxpgd.experiment.stages.prepare import prepare
from jaxpgd.experiment.studies.identity import settings_of
from jaxpgd.windows import choose_windows

FRACTIONS = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0)


def of_lengths(lengths: Any) -> Dataset:
    """Episode e has e as its only observation and reward; it ends in a terminal where e is even, else in a timeout."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    episode = np.repeat(np.arange(len(lengths)), lengths)
    last = np.isin(np.arange(offsets[-1]), offsets[1:] - 1)
    x = episode[:, None] * 1.0
    info = DatasetInfo(name="hand", source="npz", action_low=(-1.0,), action_high=(1.0,))
    return assemble(info, x, x * 0, episode * 1.0, x, last & (episode % 2 == 0), last & (episode % 2 == 1), offsets)


MIXED = of_lengths(np.random.default_rng(0).geometric(0.02, 400))  # of very different lengths, as in replay data


def episodes_of(data: Dataset) -> list[int]:
    return np.asarray(data.obs)[data.offsets[:-1], 0].astype(int).tolist()


def test_episodes_are_whole_and_in_order() -> None:
    for fraction in FRACTIONS:
        share, kept = (found := fraction_of(MIXED, fraction)), episodes_of(found)
        assert kept == sorted(set(kept))
        assert share.lengths().tolist() == MIXED.lengths()[kept].tolist()
        steps = np.isin(np.asarray(MIXED.obs)[:, 0], kept)
        for name in ("obs", "action", "reward", "discount", "next_obs", "timeout"):
            np.testing.assert_array_equal(getattr(share, name), getattr(MIXED, name)[steps])


def test_fractions_are_of_the_transitions_and_nested() -> None:
    before: set[int] = set()
    for fraction in FRACTIONS:
        share = fraction_of(MIXED, fraction)
        assert fraction * MIXED.size <= share.size < fraction * MIXED.size + MIXED.lengths().max()
        assert before < set(episodes_of(share))
        before = set(episodes_of(share))


def test_counts_of_equal_episodes_are_exact() -> None:
    equal = of_lengths([10] * 100)
    counts = [fraction_of(equal, fraction).episodes for fraction in (1e-9, 0.01, 0.05, 0.07, 0.1, 0.29, 0.5, 0.991)]
    assert counts == [1, 1, 5, 7, 10, 29, 50, 100]
    assert fraction_of(equal, 0.29).counts() == "29 of 100 episodes, 290 of 1000 transitions"
    assert equal.counts() == "100 episodes, 1000 transitions"


def test_another_seed_is_another_draw() -> None:
    one, again, other = (episodes_of(fraction_of(MIXED, 0.2, seed)) for seed in (0, 0, 1))
    assert one == again and len(set(one) & set(other)) < len(one) / 2


def test_all_of_it_is_the_dataset_itself() -> None:
    assert fraction_of(MIXED, 1.0, seed=3) is MIXED
    twice = fraction_of(fraction_of(MIXED, 0.5), 0.5)
    assert twice.info.whole == (400, MIXED.size)


def test_rewards_are_normalised_over_the_share() -> None:
    own: dict[str, Any] = {"episodes": 40, "reward_normalisation": "return_range"}
    whole, share = load("point2d", **own), load("point2d", fraction=0.25, **own)
    span = float(np.ptp(share.returns()))
    assert share.episodes == 10 and share.info.reward_scale == pytest.approx(1000 / span)
    assert share.info.reward_scale > whole.info.reward_scale


def test_a_run_sees_the_share_alone() -> None:
    """Windows of training and validation, and the statistics of tokens, are those of a dataset that never had the rest."""
    data = {"episodes": 80, "window": 8, "validation_fraction": 0.25}
    prepared = prepare(load_config(None, {"seed": 5, "data": data | {"fraction": 0.1}}))
    whole = load("point2d", episodes=80, seed=5)
    share = fraction_of(whole, 0.1)
    np.testing.assert_array_equal(prepared.dataset.obs, share.obs)
    assert prepared.dataset.episodes == 8 and prepared.windows.transitions.obs.shape[0] == 8 * 16
    config = load_config(None, {"data": data}).data
    train, validation, episodes = choose_windows(share, config, 5)
    assert len(episodes) == 6 and len(validation) == 2 * 9
    np.testing.assert_array_equal(prepared.windows.train, train)
    np.testing.assert_array_equal(prepared.windows.validation, validation)
    rows = (np.asarray(share.obs)[train[:, None] + np.arange(8)]).reshape(-1, 2)
    np.testing.assert_allclose(prepared.windows.codec.mean[:2], rows.mean(axis=0), rtol=1e-4)


def test_the_draw_does_not_depend_on_the_seed_of_the_run(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "hand.npz",
        observations=MIXED.obs, actions=MIXED.action, rewards=MIXED.reward, next_observations=MIXED.next_obs,
        terminals=np.asarray(MIXED.discount) == 0, timeouts=MIXED.timeout,
    )  # fmt: skip
    name = str(tmp_path / "hand.npz")
    assert episodes_of(load(name, fraction=0.1, seed=0)) == episodes_of(load(name, fraction=0.1, seed=9))
    assert episodes_of(load(name, fraction=0.1)) == episodes_of(fraction_of(MIXED, 0.1))  # a file as a dataset in memory
    assert episodes_of(load(name, fraction=0.1, fraction_seed=1)) == episodes_of(fraction_of(MIXED, 0.1, 1))


def test_the_summary_names_the_share_and_the_whole() -> None:
    share = fraction_of(MIXED, 0.1)
    text = format_description(describe(share, window=2, fraction=0.1))
    assert f"{share.episodes:,} of 400\n" in text and f"{share.size:,} of {MIXED.size:,} (observation" in text
    assert " of 400" not in format_description(describe(MIXED, window=2))
    cut = dataclasses.replace(share, info=dataclasses.replace(share.info, cut=3))
    assert "3 of the whole dataset's timeouts are cuts" in format_description(describe(cut, window=2))


def test_models_depend_on_it_and_keys_of_before_stay() -> None:
    assert {"data.fraction", "data.fraction_seed"} <= set(DECIDED_BY["world-model"])
    assert not {"fraction", "fraction_seed"} & set(settings_of(load_config(None))["data"])
    assert settings_of(load_config(None, {"data": {"fraction": 0.1}}))["data"]["fraction"] == 0.1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"fraction": 0.0}, r"data.fraction = 0.0: expected a number above 0"),
        ({"fraction": 1.5}, r"data.fraction = 1.5: expected a number from 0 to 1"),
        ({"fraction": -0.5}, r"data.fraction = -0.5: expected a number above 0"),
        ({"fraction": 0.5, "fraction_seed": -1}, r"data.fraction_seed = -1: expected a number not below 0"),
        ({"fraction_seed": 1}, r"data.fraction_seed = 1: expected its default 0, as it counts only where data.fract"),
    ],
)
def test_what_is_no_share_is_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(None, {"data": data})


def test_what_is_no_share_is_refused_in_python() -> None:
    for fraction in (0.0, 1.5, float("nan")):
        with pytest.raises(InputError, match=r"data.fraction = .*: expected a number above 0 and at most 1"):
            load("point2d", episodes=4, fraction=fraction)


def test_a_share_without_a_training_window_is_named() -> None:
    data = of_lengths([3] * 99 + [40])
    config = load_config(None, {"data": {"window": 16}}).data
    choose_windows(data, dataclasses.replace(config, validation_fraction=0.0))
    small = dataclasses.replace(config, fraction=0.05)
    share = fraction_of(data, 0.05)
    want = f"data.fraction = 0.05: expected a share with a training window in it; this one is {share.counts()}. data.window"
    with pytest.raises(InputError) as error:
        choose_windows(share, small)
    assert str(error.value).startswith(want) and "\n" not in str(error.value)
