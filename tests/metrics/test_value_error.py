"""Errors of values against returns that are sums of geometric series."""

import numpy as np

from jaxpgd.metrics.value_error import value_error


def series(gamma: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return (1 - gamma[:, None] ** lengths) / (1 - gamma[:, None])


def test_the_error_is_that_of_the_values_in_own_units() -> None:
    gamma, lengths = np.array([0.9, 0.5]), np.array([[3, 100], [2, 4]])
    reward, offset = 2.0, np.array([[1.0, 2.0], [-3.0, 1.0]])
    cut = np.array([[False, True], [False, False]])
    discounted = reward * series(gamma, lengths)
    exact = lambda scale, shift: scale * (reward + shift) * series(gamma, lengths)
    for scale, shift in ((1.0, 0.0), (0.1, 0.0), (4.0, -0.5)):
        found = value_error(exact(scale, shift) + scale * offset, discounted, lengths, cut, gamma, scale=scale, shift=shift)
        np.testing.assert_allclose(found, [1.5, -1.0], atol=1e-9)


def test_without_discounting_every_step_counts() -> None:
    lengths = np.array([[3, 5]])
    found = value_error(2.0 * lengths + 1.0, 3.0 * lengths, lengths, np.zeros((1, 2), bool), np.ones(1), shift=-1.0)
    np.testing.assert_allclose(found, [1.0])


def test_a_tail_that_counts_is_unknown() -> None:
    gamma, lengths = np.array([0.99, 0.99, 0.99]), np.array([[1000, 50], [1000, 50], [459, 459]])
    cut = np.array([[True, False], [True, True], [True, True]])  # 0.99^50 = 0.6, 0.99^459 = 0.0099
    found = value_error(np.ones((3, 2)), np.zeros((3, 2)), lengths, cut, gamma)
    np.testing.assert_array_equal(found, [1.0, np.nan, 1.0])
