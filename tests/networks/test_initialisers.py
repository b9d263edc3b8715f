import jax
import numpy as np
import pytest

from jaxpgd.networks.initialisers import fan_in_uniform, lecun_normal

OURS = {"lecun_normal": lecun_normal, "fan_in_uniform": fan_in_uniform}
JAX = {
    "lecun_normal": jax.nn.initializers.lecun_normal(),
    "fan_in_uniform": jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
}


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("shape", [(23, 256), (256, 1), (7, 5)], ids=str)
def test_the_kernels_are_those_of_jax(name: str, shape: tuple[int, int]) -> None:
    key = jax.random.key(4)
    np.testing.assert_array_equal(OURS[name](key, shape), JAX[name](key, shape))


def test_their_spreads_are_those_of_the_papers() -> None:
    """1/inputs, and a third of it within +-1/sqrt(inputs), to 5 standard errors of a variance (relative, at most sqrt(2/n))."""
    inputs, features = 64, 4000
    bound = 5 * (2 / (inputs * features)) ** 0.5
    normal, uniform = (np.asarray(init(jax.random.key(0), (inputs, features))) for init in (lecun_normal, fan_in_uniform))
    np.testing.assert_allclose([normal.var() * inputs, 3 * uniform.var() * inputs], 1.0, rtol=bound)
    assert abs(uniform).max() <= inputs**-0.5
