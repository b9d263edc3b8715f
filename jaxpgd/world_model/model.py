"""A learned one-step model of an environment: an ensemble for the next state, a reward model, and a rule for terminals."""

from collections.abc import Callable
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.networks.mlp import Norm
from jaxpgd.options import nonnegative, option, options, positive, share
from jaxpgd.types import PyTree
from jaxpgd.world_model.networks import GaussianRegressor, ScalarRegressor
from jaxpgd.world_model.scales import Scales

Terminates = Callable[[Array], Array]  # next_obs [O] -> [] bool


@options
class WorldModelConfig:
    """One-step world model: ensemble, reward model, terminals (PETS, MBPO; DyDiff's table of hyperparameters)."""

    members: int = positive(7, "networks of the ensemble (MBPO, DyDiff: 7)")
    elites: int = positive(5, "members used in rollouts: those of least held-out error (MBPO, DyDiff: 5)")
    hidden: tuple[int, ...] = option((200, 200, 200, 200), "widths of the hidden layers of the ensemble's networks")
    norm: Norm = option("none", 'normalisation in the hidden layers of the ensemble\'s networks: none, or "layer" (NEUBAY)')
    reward_hidden: tuple[int, ...] = option((256, 256), "widths of the hidden layers of reward model and terminal classifier")
    lr: float = positive(2e-3, "learning rate of Adam (MBPO: 1e-3; DyDiff: 1e-4)", low=1e-12, high=1.0)
    beta: float = share(
        0.5, "power of the variance that weighs the loss of each predicted entry (beta-NLL); 0: the Gaussian likelihood (PETS)"
    )
    ema: float = share(0.999, "decay of the averaged weights, which predict; 0: the weights themselves (PETS)")
    weight_decay: float = nonnegative(5e-5, "factor of the L2 penalty of all kernels; 0: none", high=1.0)
    batch_size: int = positive(256, "transitions per gradient step of each network")
    holdout_by: Literal["episodes", "transitions"] = option(
        "episodes", "early stopping on whole episodes, those of data.validation_fraction, or on single transitions (DyDiff)"
    )
    holdout: float = share(
        0.1, "share of the transitions held out (DyDiff: 0.2), or of the episodes where data.validation_fraction is 0"
    )
    holdout_most: int = positive(10_000, "largest number of transitions that held-out losses are measured on (DyDiff: 5000)")
    epochs: int = positive(100, "largest number of epochs; early stopping ends training sooner")
    steps_per_epoch: int = nonnegative(0, "gradient steps per epoch; 0: one pass over the training transitions")
    patience: int = positive(5, "epochs without improvement of 1 % after which a network stops training")
    termination: str = option(
        "auto",
        'when episodes end: "auto", the environment\'s known rule; "learned", a classifier; or a rule by name ("hopper")',
    )


def networks(config: WorldModelConfig, obs_dim: int) -> tuple[GaussianRegressor, ScalarRegressor, ScalarRegressor]:
    """Networks of the state, reward and terminal models."""
    scalar = ScalarRegressor(config.reward_hidden)
    return GaussianRegressor(obs_dim, config.hidden, config.norm), scalar, scalar


@struct.dataclass
class WorldModel:
    """K elite state models, a reward model and a terminal rule or classifier, as data: parameters are leaves.

    State models are PETS's probabilistic networks (arXiv 1805.12114, section 4) that predict the change of the observation;
    reward and terminal have models of their own, as in DyDiff (arXiv 2405.19189).
    """

    elites: PyTree  # parameters, leading axis K
    reward_params: PyTree
    terminal_params: PyTree  # None where `terminates` is a known rule
    scales: Scales
    error: Array  # [O] root mean square error of the elites' mean prediction on held-out transitions, in units of observations
    reward_error: Array  # [] the same of the reward model, in units of rewards
    state_network: GaussianRegressor = struct.field(pytree_node=False)
    reward_network: ScalarRegressor = struct.field(pytree_node=False)
    terminal_network: ScalarRegressor = struct.field(pytree_node=False)
    terminates: Terminates | None = struct.field(pytree_node=False, default=None)
    disagreements: Array | None = None  # [H] of the elites on held-out transitions, ascending (`truncation`); None: not known

    @property
    def members(self) -> int:
        """K, the number of elites."""
        return int(jax.tree.leaves(self.elites)[0].shape[0])

    def next_states(self, obs: Array, action: Array) -> tuple[Array, Array]:
        """Means and standard deviations [K, O] of the next observation, at obs [O], action [A].

        Elite k says s' ~ N(s + mean_k(s, a), std_k(s, a)^2), in units of the observations.
        """
        chex.assert_rank([obs, action], 1)
        x = self.scales.inputs(obs, action)
        apply: Any = self.state_network.apply
        mean, log_variance = jax.vmap(apply, in_axes=(0, None))(self.elites, x)
        std = jnp.exp(0.5 * log_variance) * self.scales.delta.std
        return obs + self.scales.delta.restore(mean), std

    def reward(self, obs: Array, action: Array) -> Array:
        """Expected reward r(s, a) [] at obs [O], action [A]: DyDiff's reward model."""
        chex.assert_rank([obs, action], 1)
        apply: Any = self.reward_network.apply
        z: Array = apply(self.reward_params, self.scales.inputs(obs, action))
        return z * self.scales.reward.std[0] + self.scales.reward.mean[0]

    def discount(self, obs: Array, action: Array, next_obs: Array) -> Array:
        """0 where the step ends the episode, else 1; [] at obs [O], action [A], next_obs [O].

        DyDiff's terminal model: the environment's known rule, or a classifier that gives terminals a probability above 1/2.
        """
        chex.assert_rank([obs, action, next_obs], 1)
        if self.terminates is not None:
            return 1.0 - self.terminates(next_obs).astype(jnp.float32)
        apply: Any = self.terminal_network.apply
        logit: Array = apply(self.terminal_params, self.scales.terminal_inputs(obs, action, next_obs))
        return (logit <= 0).astype(jnp.float32)

    def clip_obs(self, obs: Array) -> Array:
        """obs [..., O] clipped to the data's range, widened by its width on both sides: long rollouts stay finite."""
        s = self.scales.obs
        return jnp.clip(obs, 2 * s.low - s.high, 2 * s.high - s.low)
