from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from jaxpgd.datasets import load
from jaxpgd.diffusion.solvers import SamplerConfig
from jaxpgd.synthesis import memory
from jaxpgd.synthesis.diffusion import make_synthesizer, synthesize
from jaxpgd.training.denoiser import DenoiserConfig, init_denoiser, trained_denoiser
from jaxpgd.training.windows import prepare_windows
from jaxpgd.windows import DataConfig


@pytest.fixture(scope="module")
def denoisers() -> Any:
    """Untrained denoisers by features."""
    windows = prepare_windows(load("point2d", episodes=4), DataConfig(window=8))

    def make(features: int) -> Any:
        config = DenoiserConfig(features=features, blocks=1)
        return trained_denoiser(init_denoiser(jax.random.key(0), windows, config), windows)

    return {features: make(features) for features in (8, 64)}


def test_memory_of_a_trajectory_grows_with_the_network_and_with_gradients(denoisers: Any) -> None:
    shape = (8, denoisers[8].codec.token_dim)
    plain = {f: memory.bytes_per_trajectory(d.denoise, shape, guided=False) for f, d in denoisers.items()}
    assert plain[8] >= 4 * shape[0] * shape[1]  # the result, at least
    assert plain[64] > 2 * plain[8]
    assert memory.bytes_per_trajectory(denoisers[64].denoise, shape, guided=True) > plain[64]


def test_memory_of_a_correction_counts_and_it_is_not_differentiated(denoisers: Any) -> None:
    @jax.custom_jvp
    def correct(x0: Array, sigma: Array) -> Array:
        products = jnp.sort(jnp.outer(x0, x0), axis=0)  # which have to be somewhere
        return x0 + sigma * products.sum()

    correct.defjvp(lambda *_: pytest.fail("differentiated"))  # type: ignore[no-untyped-call]
    denoise, shape = denoisers[8].denoise, (8, denoisers[8].codec.token_dim)
    for guided in (False, True):
        plain = memory.bytes_per_trajectory(denoise, shape, guided=guided)
        corrected = memory.bytes_per_trajectory(denoise, shape, guided=guided, correct=jax.tree_util.Partial(correct))
        assert plain is not None and corrected is not None and corrected > plain


def test_a_batch_is_the_largest_power_of_two_that_half_of_the_free_memory_holds(
    denoisers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Device:
        platform = "gpu"

        def memory_stats(self) -> dict[str, int]:
            return {"bytes_limit": 3000, "bytes_in_use": 1000}

    monkeypatch.setattr(memory.jax, "local_devices", lambda: [Device()])
    for needed, expected in ((10.0, 64), (15.0, 64), (16.0, 32), (1e9, 8), (1e-9, 8192)):  # 1000 bytes are to be used
        monkeypatch.setattr(memory, "bytes_per_trajectory", lambda *_, needed=needed, **__: needed)
        assert memory.largest_batch_that_fits(denoisers[8].denoise, (8, 7), guided=False) == expected
    monkeypatch.setattr(memory, "bytes_per_trajectory", lambda *_, **__: 10.0)
    assert memory.largest_batch_that_fits(denoisers[8].denoise, (8, 7), guided=False, agents=4) == 16
    monkeypatch.setattr(memory, "bytes_per_trajectory", lambda *_, **__: None)
    assert memory.largest_batch_that_fits(denoisers[8].denoise, (8, 7), guided=False) == 512  # nothing is known


def test_trajectories_do_not_depend_on_how_many_are_sampled_at_once(denoisers: Any) -> None:
    made = []
    for batch in (0, 2, 3):
        synthesizer = make_synthesizer(denoisers[8], SamplerConfig("euler", steps=3, batch_size=batch))
        assert synthesizer.sampling.batch_size == (batch or memory.HOST_BATCH)
        made.append(synthesize(jax.random.key(0), synthesizer, count=5).obs)
    for other in made[1:]:
        np.testing.assert_allclose(other, made[0], rtol=1e-4, atol=1e-4)
    assert np.isfinite(made[0]).all() and jnp.std(made[0]) > 0
