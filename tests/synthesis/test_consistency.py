"""Synthesizers with a correction by the dynamics: every guidance, starts, seeds."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from jax import Array

from jaxpgd.diffusion.solvers import SamplerConfig
from jaxpgd.errors import InputError
from jaxpgd.guidance.consistency import ConsistencyConfig
from jaxpgd.guidance.kinds import GuidanceConfig
from jaxpgd.guidance.smc import SMCConfig
from jaxpgd.synthesis.diffusion import DiffusionSynthesizer, TrajectoryDenoiser, make_synthesizer
from jaxpgd.tokens import TokenCodec
from jaxpgd.types import Policy, Trajectory

OBS, ACTION, STEPS = 2, 1, 6
CODEC = TokenCodec(jnp.zeros(OBS + ACTION + 2), jnp.ones(OBS + ACTION + 2).at[-1].set(0.01), obs_dim=OBS, action_dim=ACTION)
A, B = jnp.asarray([[0.9, 0.2], [-0.1, 0.8]]), jnp.asarray([[0.3], [0.5]])


@struct.dataclass
class White:
    """The denoiser of unit Gaussian tokens, which know no dynamics."""

    def __call__(self, x: Array, sigma: Array) -> Array:
        return x / (1.0 + sigma**2)


@struct.dataclass
class Linear:
    """s' = A s + B a, exactly."""

    error: Array
    reward_error: Array = struct.field(default_factory=lambda: jnp.asarray(0.05))

    def reward(self, obs: Array, action: Array) -> Array:
        return obs.sum()

    def next_states(self, obs: Array, action: Array) -> tuple[Array, Array]:
        mean = (A @ obs + B @ action)[None]
        return mean, jnp.ones_like(mean)


POLICY = Policy(
    params=jnp.asarray([[0.5, -0.3]]),
    sample_fn=lambda K, key, obs: jnp.tanh(K @ obs),
    mode_fn=lambda K, obs: jnp.tanh(K @ obs),
    log_prob_fn=lambda K, obs, action, variance: -0.5 * (jnp.square(action - jnp.tanh(K @ obs)) / (0.25 + variance)).sum(),
)
MODEL = Linear(jnp.full(OBS, 0.05))
ON = ConsistencyConfig(kind="dynamics", sigma_max=100.0)
SAMPLER = SamplerConfig(steps=24, batch_size=64)


def make(kind: str, consistency: ConsistencyConfig | None) -> DiffusionSynthesizer:
    guidance = None if kind == "none" else GuidanceConfig(kind=kind, smc=SMCConfig(particles=64))  # type: ignore[arg-type]
    denoiser = TrajectoryDenoiser(White(), CODEC, STEPS)
    return make_synthesizer(denoiser, SAMPLER, guidance, consistency=consistency, model=MODEL)


def residual(trajectory: Trajectory) -> float:
    predicted = trajectory.obs[:, :-1] @ A.T + trajectory.action[:, :-1] @ B.T
    return float(jnp.sqrt(jnp.square(trajectory.obs[:, 1:] - predicted).mean()))


@pytest.mark.parametrize("kind", ["none", "published", "reconstruction", "moment", "smc"])
def test_corrected_trajectories_follow_the_model_with_every_guidance(kind: str) -> None:
    sampled = jax.jit(lambda s, key: s(key, None if kind == "none" else POLICY, jnp.zeros((64, OBS))).trajectory)
    plain, corrected = (sampled(make(kind, own), jax.random.key(0)) for own in (None, ON))
    left = 0.25 if kind == "published" else 0.1  # the published guidance moves actions after each correction
    assert residual(plain) > 0.5 and residual(corrected) < left * residual(plain)
    assert 0.3 < float(corrected.obs.std()) < 1.5  # and they are no collapsed ones
    wrong = lambda trajectory: float(jnp.square(trajectory.reward - trajectory.obs.sum(-1)).mean())
    assert wrong(plain) > 0.5 and wrong(corrected) < 0.1 * wrong(plain)


def test_trajectories_from_given_starts_stay_there() -> None:
    start = jax.random.normal(jax.random.key(1), (16, OBS))
    found = make("moment", ON).starting()(jax.random.key(2), POLICY, start).trajectory
    np.testing.assert_allclose(found.obs[:, 0], start, atol=1e-6)
    assert residual(found) < 0.2


def test_seeds_with_policies_of_their_own_are_as_one_by_one() -> None:
    synthesizer, keys = make("moment", ON), jax.random.split(jax.random.key(3), 2)
    policies = jax.tree.map(lambda x: jnp.stack([x, -x]), POLICY)
    one: Any = jax.jit(lambda key, policy: synthesizer(key, policy, jnp.zeros((4, OBS))).trajectory.obs)
    together = jax.jit(jax.vmap(lambda key, policy: synthesizer(key, policy, jnp.zeros((4, OBS))).trajectory.obs))(
        keys, policies
    )
    for i in range(2):
        alone = one(keys[i], jax.tree.map(lambda x, i=i: x[i], policies))
        np.testing.assert_allclose(together[i], alone, atol=2e-4)


def test_a_correction_needs_its_model() -> None:
    denoiser = TrajectoryDenoiser(White(), CODEC, STEPS)
    with pytest.raises(InputError, match="model = None: expected a one-step model"):
        make_synthesizer(denoiser, SAMPLER, consistency=ON)
    with pytest.raises(InputError, match="length = 1: expected at least 2 steps"):
        make_synthesizer(denoiser, SAMPLER, consistency=ON, model=MODEL, length=1)
