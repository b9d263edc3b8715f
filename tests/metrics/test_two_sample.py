"""The classifier two-sample test against Bayes' accuracy; features and returns of windows worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from jaxpgd.errors import InputError
from jaxpgd.metrics.two_sample import classifier_test, discounted_returns, window_features
from jaxpgd.types import Trajectory, valid_steps

KEY = jax.random.key(0)
ROWS, FEATURES = 600, 16  # the same in all tests: compiled once
DEVIATION = 0.5 / np.sqrt(2 * ROWS)  # of the accuracy of guesses


def normal(seed: int, rows: int = ROWS) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, FEATURES)).astype(np.float32)


def accuracy(x: np.ndarray, y: np.ndarray) -> float:
    return classifier_test(KEY, x, y)["classifier_accuracy"]


@pytest.mark.parametrize("rows", [ROWS, 2 * ROWS])  # of which as many are drawn as the other sample has
def test_samples_of_one_distribution_are_not_told_apart(rows: int) -> None:
    found = classifier_test(KEY, normal(0, rows), normal(1))
    assert abs(found["classifier_accuracy"] - 0.5) < 4 * DEVIATION
    assert 0.5 * DEVIATION < found["classifier_accuracy_se"] < 2 * DEVIATION


@pytest.mark.parametrize("distance", [1.5, 3.0])
def test_shifted_gaussians_are_told_apart_as_well_as_possible(distance: float) -> None:
    x, y = normal(0), normal(1)
    y[:, 0] += distance
    best = norm.cdf(distance / 2)
    deviation = np.sqrt(best * (1 - best) / (2 * ROWS))
    found = classifier_test(KEY, x, y)
    assert best - 0.05 < found["classifier_accuracy"] < best + 4 * deviation
    assert 0.5 * deviation < found["classifier_accuracy_se"] < 2 * deviation


def test_units_do_not_matter() -> None:
    x, y = normal(0), normal(1)
    y[:, 0] += 3.0
    units = np.geomspace(1e-4, 1e4, FEATURES, dtype=np.float32)
    moved = accuracy(x * units + 5 * units, y * units + 5 * units)
    assert moved == pytest.approx(accuracy(x, y), abs=0.02)


def test_rows_that_depend_on_each_other_are_in_one_block() -> None:
    """Of ten copies in a row none is tested by a network that saw another; scattered ones are known by heart."""
    x, y = np.repeat(normal(0, ROWS // 10), 10, axis=0), normal(1)
    scattered = accuracy(np.random.default_rng(2).permutation(x), y)
    assert accuracy(x, y) < 0.65 < scattered


@pytest.mark.parametrize(("x", "y", "folds"), [((9, 2), (9, 3), 5), ((9,), (9,), 5), ((4, 2), (9, 2), 5), ((9, 2), (9, 2), 2)])
def test_samples_that_do_not_fit_are_refused(x: tuple[int, ...], y: tuple[int, ...], folds: int) -> None:
    with pytest.raises(InputError, match=r"x, y|folds"):
        classifier_test(KEY, np.zeros(x), np.zeros(y), folds=folds)


def trajectory(discount: list[list[float]], mask: list[list[bool]] | None = None) -> Trajectory:
    """Observations 1, 2, 4, ..., actions 10 and rewards 100 everywhere."""
    shape = np.shape(discount)
    obs = np.broadcast_to(2.0 ** np.arange(shape[1]), shape)[..., None]
    valid = valid_steps(jnp.asarray(discount)) if mask is None else np.asarray(mask)
    return Trajectory(obs, np.full((*shape, 1), 10.0), np.full(shape, 100.0), np.asarray(discount), np.asarray(valid))


def test_what_comes_after_the_end_tells_nothing() -> None:
    cut = [[1.0, 1, 1], [1, 0, 1], [1, 1, 1]]
    found = window_features(trajectory(cut, mask=[[True, True, False], [True, True, False], [True, False, False]]))
    steps = found[:, :12].reshape(3, 3, 4)  # observation, action, reward, ended
    np.testing.assert_array_equal(steps[0], [[1, 10, 100, 0], [2, 10, 100, 0], [4, 10, 100, 0]])
    np.testing.assert_array_equal(steps[1], [[1, 10, 100, 0], [2, 10, 100, 1], [2, 0, 0, 1]])
    np.testing.assert_array_equal(steps[2], [[1, 10, 100, 0], [2, 10, 100, 0], [2, 0, 0, 1]])  # its last step is not valid
    np.testing.assert_array_equal(found[:, 12:], [[1, 2], [1, 0], [1, 0]])


def test_discounted_returns_end_with_the_terminal() -> None:
    np.testing.assert_allclose(discounted_returns(trajectory([[1.0, 1, 1], [1, 0, 1]]), 0.5), [175, 150])
