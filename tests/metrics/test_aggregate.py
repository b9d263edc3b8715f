"""Aggregates over tasks and seeds: hand-computed cases, intervals against theory, coverage."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from jaxpgd.errors import InputError
from jaxpgd.metrics.aggregate import Aggregate, aggregate, pooled_interquartile_mean

METRICS = ("mean", "median", "iqm", "optimality_gap")
HAND = {"a": np.array([1.0, 3.0]), "b": np.array([10.0, 10.0]), "c": np.array([0.0, 4.0])}


def numbers(result: Aggregate) -> np.ndarray:
    return np.array([dataclasses.astuple(getattr(result, name)) for name in METRICS])


def bounds(one):
    return np.array([one.low, one.high])


def test_aggregates_of_known_numbers():
    result = aggregate(HAND, gamma=5.0)
    # task means 2, 10, 2; pooled 0 1 3 4 10 10 without the outer ones; short of 5 by (4 + 2) / 2, 0 and (5 + 1) / 2
    np.testing.assert_allclose(numbers(result)[:, 0], [14 / 3, 2.0, 4.5, 2.0])
    assert result.runs == {"a": 2, "b": 2, "c": 2} and (result.unit, result.gamma) == ("seeds", 5.0)
    as_matrix = aggregate(np.stack(list(HAND.values()), axis=1), gamma=5.0)
    np.testing.assert_array_equal(numbers(as_matrix), numbers(result))
    assert list(as_matrix.runs) == ["0", "1", "2"]


def test_tasks_weigh_the_same_whatever_their_number_of_runs():
    # weights 1/4 and 1/8; a sixth is cut at each end: of 0 remains 2/24, of 4 5/24, of 5 nothing, of the others 3/24 each
    scores = {"a": np.array([4.0, 0.0]), "b": np.array([1.0, 5.0, 2.0, 3.0])}
    assert pooled_interquartile_mean(scores) == pytest.approx((3 * (1 + 2 + 3) + 5 * 4) / 16)
    result = aggregate(scores, gamma=3.0)
    np.testing.assert_allclose(numbers(result)[[0, 1, 3], 0], [2.375, 2.375, 3 - (1.5 + 2.25) / 2])


def test_pooled_interquartile_mean_is_the_trimmed_mean_for_any_equal_number_of_runs():
    rng = np.random.default_rng(0)
    for runs, tasks in ((1, 1), (1, 3), (3, 3), (5, 4), (7, 9)):
        table = rng.normal(size=(runs, tasks))
        np.testing.assert_allclose(pooled_interquartile_mean(table), stats.trim_mean(table, 0.25, axis=None), rtol=1e-10)


def test_the_interval_of_the_mean_is_that_of_the_normal_approximation():
    rng = np.random.default_rng(0)
    scores = {"a": rng.normal(10, 2, 300), "b": rng.normal(50, 5, 100), "c": rng.normal(0, 1, 500)}
    result = aggregate(scores, gamma=1000.0)
    error = np.sqrt(sum(v.var() / len(v) for v in scores.values())) / 3
    # 9999 resamples place a 2.5 % quantile within about 0.03 standard errors
    np.testing.assert_allclose(bounds(result.mean), result.mean.value + np.array([-1.96, 1.96]) * error, atol=0.1 * error)
    np.testing.assert_allclose(
        bounds(result.optimality_gap), 1000 - bounds(result.mean)[::-1], rtol=1e-9
    )  # all are short of it
    wide = aggregate(scores, gamma=0.0, confidence=0.99).mean
    np.testing.assert_allclose(bounds(wide), result.mean.value + np.array([-2.576, 2.576]) * error, atol=0.2 * error)


def test_the_interval_of_the_interquartile_mean_is_that_of_theory():
    values = np.random.default_rng(1).normal(size=2000)
    result = aggregate({"a": values}, gamma=0.0, resamples=2000).iqm
    # variance of the 25 % trimmed mean of normal samples: 1.195 / n; its estimate from 2000 values is off by a few per cent
    np.testing.assert_allclose(result.high - result.low, 2 * 1.96 * np.sqrt(1.195 / 2000), rtol=0.1)
    assert result.low < result.value < result.high


def test_tasks_are_kept_apart_when_resampling():
    result = aggregate({"easy": np.full(3, 90.0), "hard": np.full(3, 10.0)}, gamma=100.0)
    np.testing.assert_allclose(bounds(result.mean), 50.0)
    np.testing.assert_allclose(bounds(result.median), 50.0)
    np.testing.assert_allclose(bounds(result.optimality_gap), 50.0)


def test_two_runs_span_their_interval():
    np.testing.assert_allclose(bounds(aggregate({"a": np.array([1.0, 3.0])}, gamma=0.0).mean), [1.0, 3.0])


def test_one_run_of_a_task_leaves_no_interval():
    result = aggregate({"a": np.array([1.0, 3.0, 5.0]), "b": np.array([7.0])}, gamma=4.0)
    assert result.unit == "none" and result.mean.value == 5.0
    assert np.isnan(numbers(result)[:, 1:]).all() and np.isfinite(numbers(result)[:, 0]).all()


def test_shift_and_scale_carry_over():
    rng = np.random.default_rng(2)
    scores = {"a": rng.normal(size=6), "b": rng.normal(size=4)}
    moved = {name: 3 * values + 7 for name, values in scores.items()}
    base, other = numbers(aggregate(scores, gamma=0.5)), numbers(aggregate(moved, gamma=8.5))
    np.testing.assert_allclose(other[:3], 3 * base[:3] + 7, rtol=1e-9)
    np.testing.assert_allclose(other[3], 3 * base[3], rtol=1e-9)


def test_the_same_seed_gives_the_same_bounds():
    scores = {"a": np.random.default_rng(3).normal(size=8)}
    first, again, other = (aggregate(scores, gamma=0.0, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(numbers(first), numbers(again))
    assert (numbers(first)[:, 1:] != numbers(other)[:, 1:]).any()


def test_coverage_is_that_of_the_bootstrap_with_this_many_seeds():
    rng, tasks, runs, repeats = np.random.default_rng(4), 4, 20, 400
    hits = 0
    for _ in range(repeats):
        one = aggregate(rng.normal(size=(runs, tasks)), gamma=0.0, resamples=999).mean
        hits += one.low <= 0 <= one.high
    # its standard error lacks the factor sqrt(S / (S - 1)), and has tasks (S - 1) degrees of freedom
    expected = 1 - 2 * stats.t.sf(1.96 * np.sqrt((runs - 1) / runs), tasks * (runs - 1))
    assert abs(hits / repeats - expected) < 3 * np.sqrt(expected * (1 - expected) / repeats)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({}, "at least one task"),
        (np.zeros((0, 3)), "scores"),
        (np.zeros(3), "not empty"),
        ({"a": np.zeros(0)}, r"scores\['a'\]"),
        ({"a": np.zeros(2), "b": np.array([1.0, np.nan])}, r"scores\['b'\].*finite"),
        ({"a": np.zeros((3, 10))}, "Average the episodes"),
    ],
)
def test_bad_scores_are_refused(scores, message):
    with pytest.raises(InputError, match=message):
        aggregate(scores, gamma=1.0)


def test_bad_settings_are_refused():
    for field, value in (("confidence", 1.0), ("gamma", np.inf), ("resamples", 10)):
        with pytest.raises(InputError, match=field):
            aggregate(HAND, **({"gamma": 1.0} | {field: value}))
