"""Distances between samples against closed forms."""

import jax
import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from jaxpgd.errors import InputError
from jaxpgd.metrics.distances import coverage, sliced_wasserstein

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("order", [1, 2])
def test_one_dimension_is_exact(order):
    x, y = np.array([[0.0], [1.0], [5.0]]), np.array([[1.0], [2.0], [6.0]])
    assert sliced_wasserstein(KEY, x, y, order=order, projections=4) == pytest.approx(1.0)
    assert sliced_wasserstein(KEY, x, x[::-1], order=order, projections=4) == pytest.approx(0.0, abs=1e-7)


def test_unequal_sizes_and_weights_agree_with_scipy():
    x, y, wx, wy = RNG.normal(size=(37, 1)), RNG.normal(size=(23, 1)) + 0.5, RNG.uniform(size=37), RNG.uniform(size=23)
    got = sliced_wasserstein(KEY, x, y, projections=1, x_weights=wx, y_weights=wy)
    assert got == pytest.approx(wasserstein_distance(x[:, 0], y[:, 0], wx, wy), rel=1e-5)
    assert sliced_wasserstein(KEY, x, y, projections=1) == pytest.approx(wasserstein_distance(x[:, 0], y[:, 0]), rel=1e-5)


@pytest.mark.parametrize("order", [1, 2])
def test_integer_weights_are_repeated_rows(order):
    x, y, count = RNG.normal(size=(20, 3)), RNG.normal(size=(10, 3)), RNG.integers(0, 4, 10)
    weighted = sliced_wasserstein(KEY, x, y, y_weights=count, order=order)
    assert weighted == pytest.approx(sliced_wasserstein(KEY, x, np.repeat(y, count, axis=0), order=order), rel=1e-5)


def test_a_shift_by_d_measures_d_over_root_f_in_order_two():
    x = RNG.normal(size=(50, 16))
    shift = np.zeros(16)
    shift[3] = 4.0
    # E (u . shift)^2 = |shift|^2 / F; relative spread over 2000 directions sqrt(2 / 2000) = 3 %, halved by the root
    assert sliced_wasserstein(KEY, x, x + shift, order=2, projections=2000) == pytest.approx(1.0, rel=0.06)


def test_a_wider_gaussian_is_told_from_a_fair_one():
    x, y, wide = RNG.normal(size=(500, 8)), RNG.normal(size=(500, 8)), 1.5 * RNG.normal(size=(500, 8))
    assert sliced_wasserstein(KEY, x, wide) > 3 * sliced_wasserstein(KEY, x, y)


def test_bad_samples_are_refused():
    x = np.zeros((4, 2))
    for arguments, options in (
        ((x, np.zeros((4, 3))), {}),
        ((x, x[:0]), {}),
        ((x, x), {"order": 3}),
        ((x, x), {"y_weights": -np.ones(4)}),
    ):
        with pytest.raises(InputError):
            sliced_wasserstein(KEY, *arguments, **options)
    with pytest.raises(InputError, match="k = 5"):
        coverage(KEY, x, x)


def test_coverage_of_an_equal_sample_is_one_minus_two_to_the_minus_k():
    real, fake = RNG.normal(size=(1500, 3)), RNG.normal(size=(1500, 3))
    result = coverage(KEY, real, fake, k=3)
    # Naeem et al.: 1 - 2^-3 for large samples; a share of 1500 dependent balls: bound at several binomial standard errors
    assert result["coverage"] == pytest.approx(0.875, abs=0.04)
    assert result["density"] == pytest.approx(1.0, abs=0.1)


def test_coverage_falls_with_lost_modes_and_density_off_the_data():
    real = np.concatenate([RNG.normal(size=(300, 2)), RNG.normal(size=(300, 2)) + 50.0])
    one_mode = RNG.normal(size=(600, 2))
    assert coverage(KEY, real, one_mode)["coverage"] == pytest.approx(0.5, abs=0.05)
    assert coverage(KEY, real, one_mode + 1000.0) == {"density": 0.0, "coverage": 0.0}


def test_both_sides_are_thinned_to_one_size():
    real, fake = RNG.normal(size=(3000, 2)), RNG.normal(size=(400, 2))
    assert coverage(KEY, real, fake, k=2, limit=200)["coverage"] == pytest.approx(0.75, abs=0.12)
