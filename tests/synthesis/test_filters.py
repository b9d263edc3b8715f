"""Filters with answers computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpgd.synthesis.filters import Filter, FilterConfig, make_filter, returns
from jaxpgd.types import Trajectory


def trajectories(rewards, discount=None):
    rewards = jnp.asarray(rewards, jnp.float32)
    discount = jnp.ones_like(rewards) if discount is None else jnp.asarray(discount, jnp.float32)
    label = jnp.broadcast_to(jnp.arange(len(rewards), dtype=jnp.float32)[:, None, None], (*rewards.shape, 1))
    return Trajectory(obs=label, action=label, reward=rewards, discount=discount, mask=jnp.ones(rewards.shape, bool))


def kept(made):
    return sorted(np.asarray(made.obs[:, 0, 0]).astype(int))


def test_returns_stop_at_the_first_terminal():
    made = trajectories([[1, 2, 4], [1, 2, 4], [1, 2, 4]], [[1, 1, 1], [1, 0, 1], [0, 1, 0]])
    np.testing.assert_array_equal(returns(made), [7, 3, 1])


def test_returns_of_all_steps_count_what_comes_after_a_terminal():
    """As DyDiff's code, whose filter looks at no terminals: the middle trajectory is the best of these, or the worst."""
    made = trajectories([[1, 2, 4], [1, 0, 9], [2, 0, 0]], [[1, 1, 1], [1, 0, 1], [1, 1, 1]])
    np.testing.assert_array_equal(returns(made, "all"), [7, 10, 2])
    keep = lambda steps: kept(make_filter(FilterConfig(kind="hardmax", steps=steps))(jax.random.key(0), made, 2))
    assert (keep("all"), keep("valid")) == ([0, 1], [0, 2])


def test_hardmax_keeps_the_highest_returns():
    made = trajectories([[1.0], [5.0], [3.0], [4.0], [2.0]])
    assert kept(Filter(kind="hardmax", keep=0.6)(jax.random.key(0), made, 3)) == [1, 2, 3]


def test_softmax_draws_one_with_the_probabilities_of_a_softmax():
    values = np.array([0.0, 1.0, 3.0])
    z = (values - values.mean()) / values.std()
    expected = np.exp(z / 2.0) / np.exp(z / 2.0).sum()
    made, size = trajectories(values[:, None]), 4000
    draw = lambda key: Filter(temperature=2.0, kind="softmax")(key, made, 1).obs[0, 0, 0]
    drawn = np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(0), size)))
    for i in range(3):
        bound = 5 * np.sqrt(expected[i] * (1 - expected[i]) / size)
        assert np.mean(drawn == i) == pytest.approx(expected[i], abs=bound)


def test_uniform_weights_are_mixed_in():
    values, uniform = np.array([0.0, 1.0, 3.0]), 0.3
    z = (values - values.mean()) / values.std()
    expected = 0.7 * np.exp(z / 0.5) / np.exp(z / 0.5).sum() + uniform / 3
    made, size = trajectories(values[:, None]), 4000
    draw = lambda key: Filter(temperature=0.5, uniform=uniform, kind="softmax")(key, made, 1).obs[0, 0, 0]
    drawn = np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(0), size)))
    for i in range(3):
        bound = 5 * np.sqrt(expected[i] * (1 - expected[i]) / size)
        assert np.mean(drawn == i) == pytest.approx(expected[i], abs=bound)


@pytest.mark.parametrize(("uniform", "low", "high"), [(0.0, 0.6, 0.7), (1e-6, -0.1, 0.15)])
def test_dydiffs_softmax_is_nearly_a_uniform_draw(uniform: float, low: float, high: float) -> None:
    """Of 2048 normal returns the 1228 kept: uniform weights of 1e-6 take over after the best few (temperature 0.05)."""
    values = jax.random.normal(jax.random.key(0), (2048,))
    own = make_filter(FilterConfig(kind="softmax", uniform=uniform))
    scores = jax.vmap(lambda key: own.scores(key, values))(jax.random.split(jax.random.key(1), 20))
    _, index = jax.lax.top_k(scores, 1228)
    assert low < float(values[index].mean()) < high  # the standard error of a uniform draw's mean is below 0.01


def test_softmax_draws_a_pair_without_replacement():
    """P(pair {i, j}) = p_i p_j / (1 - p_i) + p_j p_i / (1 - p_j)."""
    values = np.array([0.0, 1.0, 3.0])
    z = (values - values.mean()) / values.std()
    p = np.exp(z) / np.exp(z).sum()
    made, size = trajectories(values[:, None]), 4000
    draw = lambda key: jnp.sort(Filter(temperature=1.0, kind="softmax")(key, made, 2).obs[:, 0, 0])
    drawn = np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(0), size)))
    assert (drawn[:, 0] < drawn[:, 1]).all()
    for i, j in ((0, 1), (0, 2), (1, 2)):
        expected = p[i] * p[j] * (1 / (1 - p[i]) + 1 / (1 - p[j]))
        bound = 5 * np.sqrt(expected * (1 - expected) / size)
        assert np.mean((drawn == [i, j]).all(1)) == pytest.approx(expected, abs=bound)


def test_a_cold_softmax_is_hardmax_and_equal_returns_do_no_harm():
    made = trajectories([[1.0], [5.0], [3.0], [4.0]])
    assert kept(Filter(temperature=1e-4, kind="softmax")(jax.random.key(1), made, 2)) == [1, 3]
    equal = Filter(temperature=0.05, kind="softmax")(jax.random.key(1), trajectories([[2.0]] * 4), 3)
    assert len(set(kept(equal))) == 3


@pytest.mark.parametrize("kind", ["hardmax", "softmax"])
def test_returns_that_are_not_numbers_come_last(kind):
    made = trajectories([[1.0], [np.nan], [3.0], [np.inf], [2.0]])
    for seed in range(5):
        assert kept(Filter(kind=kind, keep=0.6, temperature=1.0)(jax.random.key(seed), made, 3)) == [0, 2, 4]


def test_how_many_to_make():
    assert Filter().needed(10) == 10
    assert make_filter(FilterConfig(kind="softmax", keep=0.6)).needed(1229) == 2048  # DyDiff's published numbers
    assert kept(Filter()(jax.random.key(0), trajectories([[1.0], [2.0], [3.0]]), 2)) == [0, 1]
    with pytest.raises(ValueError, match="cannot keep 4 of 3"):
        Filter()(jax.random.key(0), trajectories([[1.0], [2.0], [3.0]]), 4)
