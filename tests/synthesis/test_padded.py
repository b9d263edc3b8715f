"""Synthesizers of denoisers that were trained on padded windows: every trajectory ends, and nothing after its end is used."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from jax import Array

from jaxpgd.dataset import DatasetInfo
from jaxpgd.datasets import load
from jaxpgd.datasets.export import export_npz
from jaxpgd.diffusion.conditioning import Condition
from jaxpgd.diffusion.padding import WindowEnds
from jaxpgd.diffusion.single_step import EDMConfig
from jaxpgd.diffusion.solvers import SamplerConfig
from jaxpgd.envs.linear_gaussian import linear_policy
from jaxpgd.errors import InputError
from jaxpgd.guidance.kinds import GuidanceConfig
from jaxpgd.metrics.dynamics_error import action_log_likelihood, steps_taken, terminal_rate
from jaxpgd.synthesis.diffusion import DiffusionSynthesizer, TrajectoryDenoiser, make_synthesizer
from jaxpgd.synthesis.replay import init_replay, sample_synthetic
from jaxpgd.tokens import TokenCodec

T, COUNT = 6, 1024
CODEC = TokenCodec(
    mean=jnp.array([5.0, 0.0, -1.0, 0.0]), std=jnp.array([2.0, 0.01, 3.0, 0.1]), obs_dim=1, action_dim=1
)  # fmt: skip
POLICY = linear_policy([[0.0]], [0.01 * 1.5], 0.01 * 0.6)


@struct.dataclass
class Watching:
    """Independent unit Gaussians, each moved by what the last step shows: not at all unless it is padding."""

    def __call__(self, x: Array, sigma: Array) -> Array:
        return x / (1.0 + sigma**2)

    def given(self, x: Array, sigma: Array, condition: Condition) -> Array:
        moved = jnp.where(condition.known[-1, 0], jnp.sign(condition.value[-1, 3]), 0.0)
        mean = jnp.zeros_like(x).at[0, 0].set(moved)
        return condition.impose((x + sigma**2 * mean) / (1.0 + sigma**2))


# three of eight windows end in a terminal after 2 steps, one is cut after 4, the others are whole
SHARE = jnp.zeros((T, 2)).at[1, 1].set(3 / 8).at[3, 0].set(1 / 8).at[5, 0].set(1 / 2)
DENOISER = TrajectoryDenoiser(Watching(), CODEC, T, WindowEnds(SHARE))
SAMPLER = SamplerConfig("heun", steps=24, heun=EDMConfig(churn=0.0))
call = jax.jit(lambda key, synthesizer, policy: synthesizer(key, policy, jnp.zeros((COUNT, 1))))


def lengths_of(made: Any) -> np.ndarray:
    return np.asarray(steps_taken(made.trajectory).sum(-1))


def test_trajectories_end_as_training_windows_do() -> None:
    made = call(jax.random.key(0), make_synthesizer(DENOISER, SAMPLER), None)
    t, lengths = made.trajectory, lengths_of(made)
    for length, share in ((2, 3 / 8), (4, 1 / 8), (6, 1 / 2)):
        own = lengths == length
        assert abs(own.mean() - share) < 5 * np.sqrt(share * (1 - share) / COUNT)
        assert (np.asarray(t.mask)[own].sum(-1) == (2 if length == 2 else length - 1)).all()
        mean = {2: 1.0, 4: -1.0, 6: 0.0}[length]  # padding says whether it follows a terminal
        assert abs((np.asarray(t.obs)[own, 0, 0].mean() - 5) / 2 - mean) < 5 / np.sqrt(own.sum()) + 0.01
    assert terminal_rate(t) == (lengths == 2).mean() == float(made.info["terminal_rate"])
    assert not np.asarray(t.reward)[~steps_taken(t)].any()
    batch = sample_synthetic(jax.random.key(1), init_replay(t), 4096)
    assert (np.abs(np.asarray(batch.reward)) > 0).all()  # none of padding
    assert abs((np.asarray(batch.discount) == 0).mean() - (lengths == 2).sum() / np.asarray(t.mask).sum()) < 0.04


def test_exports_end_there_too(tmp_path: Path) -> None:
    made = call(jax.random.key(0), make_synthesizer(DENOISER, SAMPLER), None)
    info = DatasetInfo(name="hand", source="npz", action_low=(-1.0,), action_high=(1.0,))
    dataset = load(str(export_npz(made.trajectory, info, tmp_path / "x.npz")))
    lengths = lengths_of(made)
    assert dataset.lengths().tolist() == np.where(lengths == 2, 2, lengths - 1).tolist()
    assert (np.asarray(dataset.discount) == 0).sum() == (lengths == 2).sum()
    np.testing.assert_array_equal(dataset.reward, np.asarray(made.trajectory.reward)[np.asarray(made.trajectory.mask)])


@pytest.mark.parametrize("guidance", [GuidanceConfig(kind="reconstruction"), GuidanceConfig(kind="moment", target_ess=0.5)])
def test_guidance_moves_own_steps_alone(guidance: GuidanceConfig) -> None:
    made = call(jax.random.key(0), make_synthesizer(DENOISER, SAMPLER, guidance), POLICY)
    assert set(lengths_of(made)) == {2, 4, 6}
    taken = steps_taken(made.trajectory)
    actions = np.asarray(made.trajectory.action)[..., 0]
    assert actions[taken].mean() > 0.002 and not actions[~taken].any()
    mean = action_log_likelihood(POLICY, made.trajectory)[2]
    assert np.isfinite(mean).all() and np.isfinite(float(made.info["guidance_norm"].sum()))


def test_lengths_and_starts_of_ones_own() -> None:
    longer = call(jax.random.key(0), make_synthesizer(DENOISER, SAMPLER, length=8), None)
    assert set(lengths_of(longer)) == {2, 4, 8}
    begun = make_synthesizer(DENOISER, SAMPLER).starting()
    assert isinstance(begun, DiffusionSynthesizer)
    assert set(lengths_of(call(jax.random.key(0), begun, None))) == {T}
    whole = dataclasses.replace(DENOISER, ends=None)
    assert set(lengths_of(call(jax.random.key(0), make_synthesizer(whole, SAMPLER), None))) == {T}


def test_particles_of_one_length_are_refused() -> None:
    with pytest.raises(InputError, match=r"guidance.kind = 'smc': expected another kind where data.pad_short pads windows"):
        make_synthesizer(DENOISER, SAMPLER, GuidanceConfig(kind="smc"))
