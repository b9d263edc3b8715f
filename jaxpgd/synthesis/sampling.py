"""What the synthesizers share: a solver with its noise levels, trajectories in batches, and metrics of them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd import draws
from jaxpgd.diffusion.edm import karras_sigmas
from jaxpgd.diffusion.sampling import Solver, sample
from jaxpgd.diffusion.solvers import SamplerConfig, make_solver
from jaxpgd.parallel import map_batches
from jaxpgd.synthesis.memory import Correct, largest_batch_that_fits
from jaxpgd.tokens import saturated
from jaxpgd.types import Denoise, Hook, Metrics, PyTree, Trajectory


@struct.dataclass
class Sampling:
    """A solver with its noise levels: how a denoiser is turned into samples."""

    sigmas: Array  # [n + 1]
    solver: Solver
    batch_size: int = struct.field(pytree_node=False)  # trajectories sampled at once

    def draw(
        self,
        key: Array,
        denoise: Denoise,
        shape: tuple[int, ...],
        *,
        before_step: Hook | None = None,
        after_stage: Hook | None = None,
    ) -> tuple[Array, Metrics]:
        """One sample of `shape` [T, D] from noise, and what it cost: {"nfe": [], "forward_equivalents": []}."""
        key_noise, key_sampler = jax.random.split(key)
        x = self.sigmas[0] * draws.normal(key_noise, shape, self.sigmas.dtype)
        return sample(key_sampler, denoise, x, self.sigmas, self.solver, before_step=before_step, after_stage=after_stage)

    def cost(self, denoise: Denoise) -> Array:
        """Forward-equivalents [] of one sample; `denoise` only has to count them, whatever the shape of x."""
        _, info = self.draw(jax.random.key(0), denoise, (1, 1))
        return info["forward_equivalents"]


def make_sampling(
    config: SamplerConfig, denoise: Denoise, shape: tuple[int, int], *, guided: bool, correct: Correct | None = None
) -> Sampling:
    """The sampler of a config section, its numbers as leaves, for tokens of `shape` [T, D] and a denoiser, or one guided by its
    gradient; `correct` changes what it denoises."""
    return Sampling(
        sigmas=karras_sigmas(config.steps, config.sigma_min, config.sigma_max, config.rho),
        solver=make_solver(config),
        batch_size=config.batch_size or largest_batch_that_fits(denoise, shape, guided=guided, correct=correct),
    )


def map_starts(one: Callable[[Array, PyTree], PyTree], key: Array, start: PyTree, batch_size: int) -> PyTree:
    """`one(key, start [O])` for each of the start observations [N, O], or trees [N] of more, `batch_size` of them at once."""
    count = jax.tree.leaves(start)[0].shape[0]
    return map_batches(lambda x: one(*x), (jax.random.split(key, count), start), batch_size)


def summary(trajectory: Trajectory, valid: Array | None = None) -> Metrics:
    """What all synthesizers report of trajectories [N, T]: shares of terminals, and of saturated actions in `valid` steps."""
    where = None if valid is None else jnp.broadcast_to(valid[..., None], trajectory.action.shape)
    return {
        "terminal_rate": (trajectory.discount == 0).any(-1).mean(dtype=jnp.float32),
        "saturated_actions": saturated(trajectory.action).mean(dtype=jnp.float32, where=where),
    }
