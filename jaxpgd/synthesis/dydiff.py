"""DyDiff (arXiv 2405.19189): a diffusion model of states given actions, iterated so that it follows the learning policy."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.diffusion.conditioning import Condition, Conditions, attach
from jaxpgd.diffusion.solvers import SamplerConfig
from jaxpgd.errors import check
from jaxpgd.options import nonnegative, option, options, share
from jaxpgd.synthesis.acting import Actions, acting
from jaxpgd.synthesis.sampling import Sampling, make_sampling, map_starts, summary
from jaxpgd.tokens import TokenCodec, usable_steps
from jaxpgd.types import Denoise, Policy, Synthesis, Trajectory
from jaxpgd.world_model.model import Imagination, WorldModel


@options
class DyDiffConfig:
    """Iterated state diffusion under the policy's actions (DyDiff, arXiv 2405.19189)."""

    iterations: int = nonnegative(2, "M; 0: the first rollout alone")
    mix: float = share(0.5, "weight of the previous states against the sampled ones")
    window: int = nonnegative(0, "steps per training window, and of trajectories; 0: data.window")
    conditions: Literal["clean", "churned", "noised"] = option("clean", "how the network sees first state and actions")
    scaled_conditions: bool = option(
        False, "scaled down with the noised sample, as published; false: legible at every noise level"
    )
    actions: Literal["sampled", "mode"] = option("sampled", "of the policy")
    sampled: bool = option(False, "first rollout: draw from the ensemble's Gaussian instead of its mean")
    elite: Literal["step", "trajectory"] = option("step", "first rollout: a member drawn at every step, or once per trajectory")


@struct.dataclass
class StateDenoiser:
    """A denoiser of the [obs, action] entries of tokens whose conditions are the first observation and all actions."""

    denoise: Denoise
    codec: TokenCodec
    length: int = struct.field(pytree_node=False)  # T of training
    conditions: Conditions = struct.field(pytree_node=False, default="clean")

    def condition(self, start: Array, action: Array) -> Condition:
        """The known entries for a first observation [O] and actions [T, A]."""
        obs = jnp.broadcast_to(start, (action.shape[0], start.shape[0]))
        value = self.codec.encode_steps(obs, action)
        return Condition(value, known_entries(self.codec, action.shape[0]))


def known_entries(codec: TokenCodec, length: int) -> Array:
    """The conditions among state tokens [T, O + A], bool: all actions, and the first observation."""
    is_action = jnp.arange(codec.obs_dim + codec.action_dim) >= codec.obs_dim
    first = jnp.arange(length) == 0
    return is_action[None, :] | first[:, None]


@struct.dataclass
class DyDiffSynthesizer:
    """Rolls the policy out in the one-step model, then corrects the states with the diffusion model `iterations` times.

    Each iteration samples states under the clamped first state and actions, mixes them with the previous states
    (`mix` of the previous, `1 - mix` of the new), and lets the policy act again at the result. Rewards and terminals
    are the world model's. The policy's random numbers are drawn once per step and used in every iteration, so that the
    states belong to the actions beside them, not to other draws of the policy.
    """

    model: WorldModel
    denoiser: StateDenoiser
    imagination: Imagination  # the first rollout; its length is that of the trajectories
    sampling: Sampling
    mix: Array | float
    iterations: int = struct.field(pytree_node=False)
    actions: Actions = struct.field(pytree_node=False, default="sampled")

    def sample_states(self, key: Array, start: Array, action: Array) -> Array:
        """States [T, O] of the diffusion model from start [O] under actions [T, A]."""
        condition = self.denoiser.condition(start, action)
        denoise, clamp = attach(self.denoiser.conditions, self.denoiser.denoise, condition)
        x, _ = self.sampling.draw(key, denoise, condition.value.shape, before_step=clamp, after_stage=clamp)
        return self.denoiser.codec.observation(x).at[0].set(start)

    def refine(self, key: Array, action_keys: Array, policy: Policy, obs: Array, action: Array) -> tuple[Array, Array]:
        """One iteration: states [T, O] and actions [T, A] -> better states, and the policy's actions there."""
        made = self.sample_states(key, obs[0], action)
        obs = self.mix * obs + (1.0 - self.mix) * made
        return obs, jax.vmap(policy.sample)(action_keys, obs)

    def complete(self, obs: Array, action: Array) -> Trajectory:
        """The trajectory of states [T, O] and actions [T, A], with the world model's rewards and terminals."""
        reward = jax.vmap(self.model.reward)(obs, action)
        discount = jax.vmap(self.model.discount)(obs[:-1], action[:-1], obs[1:])
        discount = jnp.append(discount, 1.0)  # where the last step leads is no state of the diffusion model: it is masked
        return Trajectory(obs=obs, action=action, reward=reward, discount=discount, mask=usable_steps(discount))

    def one(self, key: Array, policy: Policy, start: Array) -> Trajectory:
        """One trajectory [T] from start [O]."""
        key, key_rollout, key_actions = jax.random.split(key, 3)
        action_keys = jax.random.split(key_actions, self.imagination.length)
        first = self.imagination.rollout(key_rollout, self.model, policy, start, action_keys)
        obs, action = first.obs, first.action
        if self.iterations == 0:
            return first

        def step(carry: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], None]:
            return self.refine(key, action_keys, policy, *carry), None

        (obs, action), _ = jax.lax.scan(step, (obs, action), jax.random.split(key, self.iterations))
        return self.complete(obs, action)

    def __call__(self, key: Array, policy: Policy, start: Array) -> Synthesis:
        """start [N, O] -> N trajectories that begin there, weights zero."""
        policy = acting(policy, self.actions)
        trajectory = map_starts(lambda key, obs: self.one(key, policy, obs), key, start, self.sampling.batch_size)
        return Synthesis(trajectory=trajectory, log_weight=jnp.zeros(start.shape[0], jnp.float32), info=summary(trajectory))


def make_dydiff(
    model: WorldModel,
    denoiser: StateDenoiser,
    config: DyDiffConfig | None = None,
    sampler: SamplerConfig | None = None,
    *,
    length: int = 0,
) -> DyDiffSynthesizer:
    """DyDiff from a trained world model and state denoiser; `length` steps per trajectory (0: as in training).

    Without a config conditions are shown as the denoiser says. Raises InputError for conditions that it was not trained for:
    "clean" and "churned" share their training, "noised" has its own.
    """
    config = config or DyDiffConfig(conditions=denoiser.conditions)
    fit = ("noised",) if denoiser.conditions == "noised" else ("clean", "churned")
    check(config.conditions in fit, "synthesis.dydiff.conditions", config.conditions, f"{' or '.join(fit)}, as in training")
    length = length or denoiser.length
    shape = (length, denoiser.codec.obs_dim + denoiser.codec.action_dim)
    return DyDiffSynthesizer(
        model=model,
        denoiser=dataclasses.replace(denoiser, conditions=config.conditions),
        imagination=Imagination(elite=config.elite, sampled=config.sampled, length=length),
        sampling=make_sampling(sampler or SamplerConfig(), denoiser.denoise, shape, guided=False),
        mix=jnp.asarray(config.mix, jnp.float32),
        iterations=config.iterations,
        actions=config.actions,
    )
