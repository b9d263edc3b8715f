import jax
import numpy as np
import pytest

from jaxpgd import draws

SHAPES = [(), (5,), (2, 256, 6), (3, 1, 4, 2), (0, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_numbers_are_those_of_jax(shape: tuple[int, ...]) -> None:
    key = jax.random.key(3)
    np.testing.assert_array_equal(draws.normal(key, shape), jax.random.normal(key, shape))
    np.testing.assert_array_equal(draws.uniform(key, shape, -1.0, 2.0), jax.random.uniform(key, shape, minval=-1.0, maxval=2.0))
    np.testing.assert_array_equal(draws.truncated_normal(key, shape), jax.random.truncated_normal(key, -2, 2, shape))


def test_they_are_those_of_jax_for_keys_of_a_batch_and_in_half_precision() -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    ours = jax.vmap(lambda key: draws.normal(key, (4, 5), np.float16))(keys)
    theirs = jax.vmap(lambda key: jax.random.normal(key, (4, 5), np.float16))(keys)
    np.testing.assert_array_equal(ours, theirs)


def test_a_draw_of_several_axes_is_compiled_as_one() -> None:
    """Every integer of the random generator's rounds is in an array of one axis."""
    text = jax.jit(lambda key: draws.normal(key, (2, 256, 6))).lower(jax.random.key(0)).as_text()
    assert "tensor<3072xui32>" in text and "tensor<2x256x6xui32>" not in text
