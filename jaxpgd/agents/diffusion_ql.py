"""Diffusion-QL (Wang et al., arXiv 2208.06193): the policy is a diffusion model of actions, trained to have high Q.

One update, in this order, on one batch:
1. critics, with targets r + gamma * discount * min_i Q'_i(s', a'), a' sampled from the averaged actor (with `max_q_backup` N
   above 1: each critic's largest value of N such actions);
2. actor: the noise-prediction loss minus `eta` times a normalised Q, of actions sampled through the chain, or of the data's
   actions noised and denoised in one step (EDP, arXiv 2305.20081);
3. the averaged actor, every `ema_every` updates from `ema_start` on; target critics move by `polyak`.
"""

import functools
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import Array

from jaxpgd import draws
from jaxpgd.agents import common
from jaxpgd.agents.action_diffusion import ActionDenoise, chain, key_of, noise_error
from jaxpgd.diffusion.edm import vp_sigmas
from jaxpgd.errors import check
from jaxpgd.networks.activations import mish
from jaxpgd.networks.actor_critic import CriticEnsemble, DiffusionActor
from jaxpgd.options import nonnegative, option, options, positive, share, structure
from jaxpgd.types import Agent, Metrics, Policy, PyTree, Transition


@options
class DiffusionQLConfig:
    """Diffusion-QL (arXiv 2208.06193) with its paper's settings."""

    lr: float = positive(3e-4, "learning rate of the actor", low=1e-12, high=1.0)
    critic_lr: float = positive(3e-4, "learning rate of the critics", low=1e-12, high=1.0)
    decay_updates: float = nonnegative(
        0.0,
        "updates in which the learning rates fall to 0 by a cosine (published: all, in code 50 times all); 0: none",
        high=1e9,
    )
    max_q_backup: int = positive(
        1, "next actions sampled per target, which takes the largest Q (published: 10 on most of antmaze)"
    )
    gamma: float = share(0.99, "discount factor")
    polyak: float = share(0.005, "step of the target critics: target <- target + polyak * (online - target)")
    eta: float = nonnegative(1.0, "weight of Q against behaviour cloning in the actor's loss; 0: behaviour cloning alone")
    steps: int = positive(5, "denoising steps of the policy's diffusion chain (published: 5)")
    beta_min: float = positive(
        0.1, "noise schedule: log abar(t) = -(beta_min t + (beta_max - beta_min) t^2 / 2), t from 0 to 1", high=50.0
    )
    beta_max: float = positive(10.0, "largest rate of the noise schedule, at t = 1 (published: 10)", high=50.0)
    ema: float = share(0.995, "decay of the averaged actor, which acts in the critics' targets (published: 0.995)")
    ema_every: int = positive(5, "updates between two steps of the averaged actor (published: 5)")
    ema_start: float = nonnegative(
        0.0, "updates before which the average keeps its initial weights (authors' code, DyDiff: 1000)"
    )
    gradient_clip: float = nonnegative(5.0, "largest global norm of the actor's and of the critics' gradients; 0: no clipping")
    candidates: int = positive(50, "actions sampled in evaluation, of which one is taken (published: 50)")
    choice: Literal["softmax", "best", "centre"] = option(
        "softmax", "action in evaluation: drawn by a softmax of Q, of highest Q, or the chain without noise"
    )
    time_features: int = option(16, "sinusoidal features of the diffusion step; an even number above 2 (published: 16)")
    adam_eps: float = nonnegative(1e-8, "epsilon of Adam (PyTorch's default: 1e-8)", low=1e-12, high=1.0)
    policy_std: float = positive(
        0.5,
        "standard deviation of the Gaussian around the chain without noise that guidance uses as the policy",
        low=1e-3,
        high=1e3,
    )
    own_score: bool = option(
        False, "guide with the diffusion policy's own score, instead of that of a Gaussian around its chain"
    )
    action_reconstruction: Literal["chain", "one_step"] = option(
        "chain", "actions in the actor's Q term: sampled by the chain, or the data's, noised and denoised in one step"
    )
    hidden: tuple[int, ...] = option((256, 256, 256), "widths of the actor's hidden layers")
    critic_hidden: tuple[int, ...] = option((), "widths of the critics' hidden layers; empty: those of the actor")
    critic_activation: Literal["mish", "relu"] = option("mish", "activation function of the critics (DyDiff: relu)")


_Q_FLOOR = 1e-8  # keeps the weight of Q finite where every value is exactly 0


@struct.dataclass
class DiffusionQLState:
    """Parameters, the averaged actor, the target critics, optimiser states, the number of updates done and hyperparameters."""

    actor: PyTree
    critic: PyTree  # stacked, leading axis 2
    ema_actor: PyTree
    target_critic: PyTree
    actor_opt: PyTree
    critic_opt: PyTree
    updates: Array  # []
    hypers: DiffusionQLConfig  # real numbers as arrays []


@struct.dataclass
class DiffusionQLPolicyParams:
    """Leaves of a Diffusion-QL policy."""

    actor: PyTree
    critic: PyTree  # the target critics, which choose among candidates
    hypers: DiffusionQLConfig


class _DiffusionQL(common.TwinCritics):
    """The structure of one agent. One instance per structure (see `_structure`): its methods then compare equal."""

    def __init__(self, action_dim: int, options: DiffusionQLConfig) -> None:
        self.action_dim, self.options = action_dim, options
        activation = mish if options.critic_activation == "mish" else nn.relu
        # Any: flax types `apply` as more than modules return
        self.actor: Any = DiffusionActor(action_dim, options.hidden, options.time_features)
        self.critics: Any = CriticEnsemble(2, options.critic_hidden or options.hidden, activation=activation)

    def init(self, key: Array, hypers: DiffusionQLConfig, example: Transition) -> DiffusionQLState:
        common.check_example(example, self.action_dim)
        actor_key, critic_key = jax.random.split(key)
        actor = self.actor.init(actor_key, example.action, jnp.zeros((), jnp.float32), example.obs)
        critic = self.critics.init(critic_key, example.obs, example.action)
        return DiffusionQLState(
            actor=actor,
            critic=critic,
            ema_actor=common.copy(actor),
            target_critic=common.copy(critic),
            actor_opt=common.adam_init(actor),
            critic_opt=common.adam_init(critic),
            updates=jnp.zeros((), jnp.int32),
            hypers=common.numbers(hypers, self.options),
        )

    def update(self, key: Array, state: DiffusionQLState, batch: Transition) -> tuple[DiffusionQLState, Metrics]:
        common.check_batch(batch, 1, self.action_dim)
        h, batch = state.hypers, jax.tree.map(lambda x: x[0], batch)
        key_target, key_actor = jax.random.split(key)
        decay = common.cosine_decay(state.updates, h.decay_updates)
        targets = self.targets(key_target, state, batch)
        critic_loss, grads = jax.value_and_grad(self.critic_loss)(state.critic, batch, targets)
        norms = {"critic_gradient_norm": common.norm(grads)}
        grads = common.clip_by_norm(grads, h.gradient_clip)
        critic, critic_opt = common.adam_step(grads, state.critic_opt, state.critic, h.critic_lr * decay, h.adam_eps)

        actor_grad = jax.value_and_grad(self.actor_loss, argnums=1, has_aux=True)
        (actor_loss, metrics), grads = actor_grad(key_actor, state.actor, critic, batch, h)
        norms["actor_gradient_norm"] = common.norm(grads)
        grads = common.clip_by_norm(grads, h.gradient_clip)
        actor, actor_opt = common.adam_step(grads, state.actor_opt, state.actor, h.lr * decay, h.adam_eps)

        updates = state.updates + 1
        rate = jnp.where((updates % self.options.ema_every == 0) & (updates >= h.ema_start), 1.0 - h.ema, 0.0)
        ema_actor = common.polyak(state.ema_actor, actor, rate)
        target_critic = common.polyak(state.target_critic, critic, h.polyak)
        metrics |= {"critic_loss": critic_loss, "actor_loss": actor_loss, "target_mean": targets.mean()}
        clipped = [(h.gradient_clip > 0) & (value > h.gradient_clip) for value in norms.values()]
        metrics |= norms | {"clipped_gradients": jnp.stack(clipped).mean(dtype=jnp.float32)}
        return DiffusionQLState(actor, critic, ema_actor, target_critic, actor_opt, critic_opt, updates, h), metrics

    def targets(self, key: Array, state: DiffusionQLState, batch: Transition) -> Array:
        """Targets y = r + gamma * discount * min_i max_a' Q'_i(s', a'), [B], over critics i and `max_q_backup` actions a'.

        a' are drawn from the averaged actor. Each critic takes the largest of its own values, then the smallest of the critics
        counts (Diffusion-QL, equation 4; its appendix on max-Q backups).
        """
        actions = self.options.max_q_backup
        next_obs = jnp.repeat(batch.next_obs, actions, axis=0)
        action = self.draw(key, state.ema_actor, state.hypers, next_obs)
        q = self.critics.apply(state.target_critic, next_obs, action)
        q_min: Array = q.reshape(2, -1, actions).max(axis=-1).min(axis=0)
        return batch.reward + state.hypers.gamma * batch.discount * q_min

    def critic_loss(self, params: PyTree, batch: Transition, y: Array) -> Array:
        """(y - Q_i(s, a))^2 (Diffusion-QL, equation 4), averaged over the batch [B] and summed over the critics i."""
        return common.squared_error(self.critics.apply(params, batch.obs, batch.action), y)

    def actor_loss(
        self, key: Array, params: PyTree, critic: PyTree, batch: Transition, h: DiffusionQLConfig
    ) -> tuple[Array, Metrics]:
        """L_d - eta * mean Q_i(s, a0) / mean |Q_j(s, a0)| (Diffusion-QL, equation 3), i one critic at random, j the other.

        a0 is sampled, or the action that L_d (`noise_error`) has denoised, kept in [-1, 1]. Means over the batch [B]; no
        gradient through the normaliser.
        """
        key_cloning, key_draw, key_pick = jax.random.split(key, 3)
        denoised, sigma = self.denoised(key_cloning, params, batch, h)
        cloning = noise_error(denoised, batch.action, sigma)
        if self.options.action_reconstruction == "chain":
            action = self.draw(key_draw, params, h, batch.obs)
        else:
            action = jnp.clip(denoised, -1.0, 1.0)
        chex.assert_equal_shape([action, batch.action])
        q = self.critics.apply(critic, batch.obs, action)
        pick = jax.random.bernoulli(key_pick).astype(int)
        scale = jax.lax.stop_gradient(jnp.abs(q[1 - pick]).mean())
        gain = q[pick].mean() / jnp.maximum(scale, _Q_FLOOR)
        return cloning - h.eta * gain, {"bc_loss": cloning, "q_gain": gain, "q_mean": q.mean()}

    def denoised(self, key: Array, params: PyTree, batch: Transition, h: DiffusionQLConfig) -> tuple[Array, Array]:
        """The batch's actions [B, A] after noise and one step of denoising, and the noise levels [B], uniform over steps."""
        key_step, key_noise = jax.random.split(key)
        sigma = jax.random.choice(key_step, self.sigmas(h)[:-1], batch.reward.shape)

        def one(key: Array, obs: Array, action: Array, sigma: Array) -> Array:
            noised = action + sigma * draws.normal(key, action.shape, action.dtype)
            return self.denoise(params, h, obs, clip=False)(noised, sigma)

        return jax.vmap(one)(jax.random.split(key_noise, sigma.shape[0]), batch.obs, batch.action, sigma), sigma

    def cloning_loss(self, key: Array, params: PyTree, batch: Transition, h: DiffusionQLConfig) -> Array:
        """L_d [] (Diffusion-QL, equation 2) at a step of the schedule drawn for every example of the batch [B]."""
        denoised, sigma = self.denoised(key, params, batch, h)
        return noise_error(denoised, batch.action, sigma)

    def sigmas(self, h: DiffusionQLConfig) -> Array:
        """Noise levels [steps + 1] of the chain, decreasing, the last 0."""
        return vp_sigmas(self.options.steps, h.beta_min, h.beta_max)

    def denoise(self, actor: PyTree, h: DiffusionQLConfig, obs: Array, *, clip: bool) -> ActionDenoise:
        return ActionDenoise(actor, obs, h.beta_min, h.beta_max, self.actor, self.options.steps, clip)

    def chain(self, key: Array, actor: PyTree, h: DiffusionQLConfig, obs: Array, noise: float = 1.0) -> Array:
        """An action [A] at obs [O], in [-1, 1]; `noise` 0 starts from the centre and adds none."""
        return chain(key, self.denoise(actor, h, obs, clip=True), self.sigmas(h), self.action_dim, noise)

    def draw(self, key: Array, actor: PyTree, h: DiffusionQLConfig, obs: Array) -> Array:
        """Actions [B, A] at obs [B, O]."""
        return jax.vmap(lambda k, o: self.chain(k, actor, h, o))(jax.random.split(key, obs.shape[0]), obs)

    def policy(self, state: DiffusionQLState) -> Policy:
        params = DiffusionQLPolicyParams(state.actor, state.target_critic, state.hypers)
        return Policy(params, self.sample, self.mode, self.log_prob, self.score if self.options.own_score else None)

    def sample(self, params: DiffusionQLPolicyParams, key: Array, obs: Array) -> Array:
        return self.chain(key, params.actor, params.hypers, obs)

    def mode(self, params: DiffusionQLPolicyParams, obs: Array) -> Array:
        if self.options.choice == "centre":
            return self.centre(params, obs)
        key_draw, key_choice = jax.random.split(key_of(obs))
        many = jnp.broadcast_to(obs, (self.options.candidates, *obs.shape))
        action = self.draw(key_draw, params.actor, params.hypers, many)
        q = self.critics.apply(params.critic, many, action).min(axis=0)
        return action[q.argmax() if self.options.choice == "best" else jax.random.categorical(key_choice, q)]

    def centre(self, params: DiffusionQLPolicyParams, obs: Array) -> Array:
        """The action [A] of the chain without noise."""
        return self.chain(jax.random.key(0), params.actor, params.hypers, obs, noise=0.0)

    def log_prob(self, params: DiffusionQLPolicyParams, obs: Array, action: Array, variance: Array | float) -> Array:
        return common.gaussian_log_prob(action, self.centre(params, obs), jnp.square(params.hypers.policy_std) + variance)

    def score(self, params: DiffusionQLPolicyParams, obs: Array, action: Array, variance: Array | float) -> Array:
        levels = self.sigmas(params.hypers)[:-1]
        sigma = jnp.clip(jnp.sqrt(jnp.mean(jnp.asarray(variance))), levels.min(), levels.max())
        denoised = self.denoise(params.actor, params.hypers, obs, clip=False)(action, sigma)
        return (denoised - action) / jnp.square(sigma)


@functools.cache
def _structure(action_dim: int, options: DiffusionQLConfig) -> _DiffusionQL:
    return _DiffusionQL(action_dim, options)


def diffusion_ql(
    options: DiffusionQLConfig = DiffusionQLConfig(), *, action_dim: int, **changes: Any
) -> Agent[DiffusionQLState]:
    """Diffusion-QL as an Agent for actions [action_dim], with some options changed by name.

    Its `hypers` are the options, of which real numbers may be traced or vmapped. `update` takes transitions with leading axes
    [1, B] and returns the metrics critic_loss, actor_loss, bc_loss, q_gain, q_mean, target_mean, critic_gradient_norm,
    actor_gradient_norm and clipped_gradients (share), all [].
    Its policy uses the actor as it is, not the average, as published:
    - `sample` is one chain of `steps` ancestral steps;
    - `mode`, by `choice`: "softmax" takes one of `candidates` chains with probability softmax(Q), Q the smaller target critic
      (published); "best" the one of highest Q; "centre" the chain without noise, without the critics. The noise is made of the
      observation's bits: the same observation always gives the same action, because `mode` has no key;
    - `log_prob`: a diffusion policy has no log-density. A Gaussian of standard deviation `policy_std` (variance policy_std^2 +
      variance) stands for it, around the action of the chain without noise;
    - `score`, with `own_score`: that of the noised policy, (D(a) - a) / sigma^2 at sigma^2 = variance (its mean over entries),
      kept within the schedule. Guidance then follows it instead of the Gaussian's gradient.
    Raises InputError where an option is out of its range, time_features is no even number above 2, or `init` or `update` get
    other shapes.
    """
    options = common.configure(options, action_dim, changes)
    features = options.time_features
    check(features > 2 and features % 2 == 0, "time_features", features, "an even number above 2")
    s = _structure(action_dim, structure(options))
    return Agent("diffusion_ql", s.init, s.update, s.policy, hypers=options, batches=1, value_fn=s.value)
