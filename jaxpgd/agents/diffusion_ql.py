"""Diffusion-QL (Wang et al., arXiv 2208.06193): a policy that is a diffusion model of actions, drawn towards high Q.

One update, in this order, on one batch:
1. critics, against r + gamma * discount * min Q'(s', a') with a' sampled from the averaged actor (with `max_q_backup` N > 1
   the largest value of N such actions, critic by critic);
2. actor: the noise-prediction loss minus `eta` times a normalised Q of sampled actions, through the sampling chain, or of
   the data's actions noised and denoised in one step (EDP, arXiv 2305.20081);
3. the averaged actor, every `ema_every` updates from `ema_start` on; target critics move by `polyak`.
"""

import dataclasses
import functools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import Array

from jaxpgd.agents import common
from jaxpgd.diffusion.edm import coefficients, vp_sigmas, vp_time
from jaxpgd.diffusion.solvers import ancestral
from jaxpgd.errors import check
from jaxpgd.networks.activations import mish
from jaxpgd.networks.actor_critic import CriticEnsemble, DiffusionActor
from jaxpgd.options import nonnegative, option, options, positive, share
from jaxpgd.types import Agent, Metrics, Policy, PyTree, Transition


@options
class DiffusionQLConfig:
    """Diffusion-QL (arXiv 2208.06193) with its paper's settings."""

    lr: float = positive(3e-4, "learning rate of the actor", low=1e-12, high=1.0)
    critic_lr: float = positive(3e-4, "learning rate of the critics", low=1e-12, high=1.0)
    decay_updates: float = nonnegative(
        0.0, "updates in which both rates fall to 0 by a cosine (published: all; in code 50 times all); 0: none", high=1e9
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


Choice = Literal["softmax", "best", "centre"]  # of the action that evaluation takes
Reconstruction = Literal["chain", "one_step"]  # of the action whose Q the actor raises
Activation = Literal["mish", "relu"]

_Q_FLOOR = 1e-8  # keeps the weight of Q finite where every value is exactly 0


@struct.dataclass
class DiffusionQLHypers:
    """Numeric settings; any of them may be traced. Defaults are those of the paper (section 5 and appendix)."""

    lr: Array | float = 3e-4  # of the actor
    critic_lr: Array | float = 3e-4
    decay_updates: Array | float = 0.0  # cosine decay of both to 0 over so many updates; 0: none
    gamma: Array | float = 0.99
    polyak: Array | float = 0.005  # target <- target + polyak * (online - target)
    eta: Array | float = 1.0  # weight of Q against behaviour cloning
    ema: Array | float = 0.995  # decay of the averaged actor
    ema_start: Array | float = 0.0  # updates before which the average stays as initialised
    gradient_clip: Array | float = 5.0  # global norm of each network's gradient; 0: none
    beta_min: Array | float = 0.1  # noise schedule
    beta_max: Array | float = 10.0
    adam_eps: Array | float = 1e-8
    policy_std: Array | float = 0.5  # std of the Gaussian that `Policy.log_prob` puts around the deterministic chain's action


@struct.dataclass
class DiffusionQLState:
    """Parameters, their slow copies, optimiser states, the number of updates done and hyperparameters."""

    actor: PyTree
    critic: PyTree  # stacked, leading axis 2
    ema_actor: PyTree
    target_critic: PyTree
    actor_opt: PyTree
    critic_opt: PyTree
    updates: Array  # []
    hypers: DiffusionQLHypers


@struct.dataclass
class DiffusionQLPolicyParams:
    """Leaves of a Diffusion-QL policy."""

    actor: PyTree
    critic: PyTree  # the target critics, which choose among candidates
    hypers: DiffusionQLHypers


@struct.dataclass
class ActionDenoise:
    """The Denoise of actions at one observation: x [A], sigma [] > 0 -> E[action | x] [A].

    The network predicts the noise (EDM table 1, column VP): D = x - sigma * network(x / sqrt(1 + sigma^2), step, obs), with the
    steps of the schedule counted from 0 at its lowest level. With `clip`, D is kept in [-1, 1], as in sampling.
    """

    params: PyTree
    obs: Array  # [O]
    beta_min: Array | float
    beta_max: Array | float
    network: nn.Module = struct.field(pytree_node=False)
    steps: int = struct.field(pytree_node=False)
    clip: bool = struct.field(pytree_node=False)

    def __call__(self, x: Array, sigma: Array) -> Array:
        """Estimate of the clean action."""
        step = self.steps * vp_time(sigma, self.beta_min, self.beta_max) - 1.0
        noise: Array = self.network.apply(self.params, coefficients(sigma, 1.0).into * x, step, self.obs)  # type: ignore[assignment]
        action = x - sigma * noise
        return jnp.clip(action, -1.0, 1.0) if self.clip else action


@dataclasses.dataclass(frozen=True)
class _DiffusionQL:
    """The structure of one agent. One instance per structure (see `_structure`): its methods then compare equal."""

    action_dim: int
    hidden: tuple[int, ...]
    steps: int
    candidates: int
    choice: Choice
    ema_every: int
    time_features: int
    own_score: bool
    max_q_backup: int = 1
    action_reconstruction: Reconstruction = "chain"
    critic_hidden: tuple[int, ...] = ()  # none: `hidden`
    critic_activation: Activation = "mish"

    @functools.cached_property
    def actor(self) -> Any:  # Any: flax types `apply` as more than it returns
        return DiffusionActor(self.action_dim, self.hidden, self.time_features)

    @functools.cached_property
    def critics(self) -> Any:
        activation = mish if self.critic_activation == "mish" else nn.relu
        return CriticEnsemble(2, self.critic_hidden or self.hidden, activation=activation)

    def init(self, key: Array, hypers: DiffusionQLHypers, example: Transition) -> DiffusionQLState:
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
            hypers=common.as_arrays(hypers),
        )

    def update(self, key: Array, state: DiffusionQLState, batch: Transition) -> tuple[DiffusionQLState, Metrics]:
        common.check_batch(batch, 1)
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
        rate = jnp.where((updates % self.ema_every == 0) & (updates >= h.ema_start), 1.0 - h.ema, 0.0)
        ema_actor = common.polyak(state.ema_actor, actor, rate)
        target_critic = common.polyak(state.target_critic, critic, h.polyak)
        metrics |= {"critic_loss": critic_loss, "actor_loss": actor_loss, "target_mean": targets.mean()}
        clipped = [(h.gradient_clip > 0) & (value > h.gradient_clip) for value in norms.values()]
        metrics |= norms | {"clipped_gradients": jnp.stack(clipped).mean(dtype=jnp.float32)}
        return DiffusionQLState(actor, critic, ema_actor, target_critic, actor_opt, critic_opt, updates, h), metrics

    def targets(self, key: Array, state: DiffusionQLState, batch: Transition) -> Array:
        """r + gamma * discount * min over critics of max over `max_q_backup` actions a' of Q'(s', a'), [B].

        a' are drawn from the averaged actor. The largest value of each critic comes first, then the least of the critics.
        """
        next_obs = jnp.repeat(batch.next_obs, self.max_q_backup, axis=0)
        action = self.draw(key, state.ema_actor, state.hypers, next_obs)
        q = self.critics.apply(state.target_critic, next_obs, action)
        q = q.reshape(2, -1, self.max_q_backup).max(axis=-1).min(axis=0)
        return batch.reward + state.hypers.gamma * batch.discount * q

    def critic_loss(self, params: PyTree, batch: Transition, targets: Array) -> Array:
        """Squared error, averaged over the batch [B] and summed over the critics."""
        q = self.critics.apply(params, batch.obs, batch.action)
        return jnp.square(q - targets).mean(axis=-1).sum()

    def actor_loss(
        self, key: Array, params: PyTree, critic: PyTree, batch: Transition, h: DiffusionQLHypers
    ) -> tuple[Array, Metrics]:
        """Cloning loss - eta * mean Q_i(s, a) / mean |Q_j(s, a)| with i one of the critics at random, j the other.

        a is sampled, or the action that the cloning loss has denoised, kept in [-1, 1]. Means over the batch [B]; no gradient
        through the normaliser.
        """
        key_cloning, key_draw, key_pick = jax.random.split(key, 3)
        denoised, sigma = self.denoised(key_cloning, params, batch, h)
        cloning = noise_error(denoised, batch.action, sigma)
        if self.action_reconstruction == "chain":
            action = self.draw(key_draw, params, h, batch.obs)
        else:
            action = jnp.clip(denoised, -1.0, 1.0)
        q = self.critics.apply(critic, batch.obs, action)
        pick = jax.random.bernoulli(key_pick).astype(int)
        scale = jax.lax.stop_gradient(jnp.abs(q[1 - pick]).mean())
        gain = q[pick].mean() / jnp.maximum(scale, _Q_FLOOR)
        return cloning - h.eta * gain, {"bc_loss": cloning, "q_gain": gain, "q_mean": q.mean()}

    def denoised(self, key: Array, params: PyTree, batch: Transition, h: DiffusionQLHypers) -> tuple[Array, Array]:
        """The batch's actions [B, A] after noise and one step of denoising, and the noise levels [B], uniform over steps."""
        key_step, key_noise = jax.random.split(key)
        sigma = jax.random.choice(key_step, self.sigmas(h)[:-1], batch.reward.shape)

        def one(key: Array, obs: Array, action: Array, sigma: Array) -> Array:
            noised = action + sigma * jax.random.normal(key, action.shape, action.dtype)
            return self.denoise(params, h, obs, clip=False)(noised, sigma)

        return jax.vmap(one)(jax.random.split(key_noise, sigma.shape[0]), batch.obs, batch.action, sigma), sigma

    def cloning_loss(self, key: Array, params: PyTree, batch: Transition, h: DiffusionQLHypers) -> Array:
        """Error [] of the predicted noise, averaged over the batch [B], at a step of the schedule drawn for every example."""
        denoised, sigma = self.denoised(key, params, batch, h)
        return noise_error(denoised, batch.action, sigma)

    def sigmas(self, h: DiffusionQLHypers) -> Array:
        return vp_sigmas(self.steps, h.beta_min, h.beta_max)

    def denoise(self, actor: PyTree, h: DiffusionQLHypers, obs: Array, *, clip: bool) -> ActionDenoise:
        return ActionDenoise(actor, obs, h.beta_min, h.beta_max, self.actor, self.steps, clip)

    def chain(self, key: Array, actor: PyTree, h: DiffusionQLHypers, obs: Array, noise: float = 1.0) -> Array:
        """An action [A] at obs [O]; `noise` 0 starts from the centre and adds none. Within [-1, 1] as its last step is D.

        The chain starts, as published, at unit variance in the coordinates where samples keep it: sqrt(1 + sigma^2) here.
        """
        key_start, key_chain = jax.random.split(key)
        sigmas = self.sigmas(h)
        start = noise * jnp.sqrt(1.0 + jnp.square(sigmas[0])) * jax.random.normal(key_start, (self.action_dim,), sigmas.dtype)
        return ancestral(key_chain, self.denoise(actor, h, obs, clip=True), start, sigmas, noise=noise)[0]

    def draw(self, key: Array, actor: PyTree, h: DiffusionQLHypers, obs: Array) -> Array:
        """Actions [B, A] at obs [B, O]."""
        return jax.vmap(lambda k, o: self.chain(k, actor, h, o))(jax.random.split(key, obs.shape[0]), obs)

    def policy(self, state: DiffusionQLState) -> Policy:
        params = DiffusionQLPolicyParams(state.actor, state.target_critic, state.hypers)
        return Policy(params, self.sample, self.mode, self.log_prob, self.score if self.own_score else None)

    def sample(self, params: DiffusionQLPolicyParams, key: Array, obs: Array) -> Array:
        return self.chain(key, params.actor, params.hypers, obs)

    def mode(self, params: DiffusionQLPolicyParams, obs: Array) -> Array:
        if self.choice == "centre":
            return self.centre(params, obs)
        key_draw, key_choice = jax.random.split(key_of(obs))
        many = jnp.broadcast_to(obs, (self.candidates, *obs.shape))
        action = self.draw(key_draw, params.actor, params.hypers, many)
        q = self.critics.apply(params.critic, many, action).min(axis=0)
        return action[q.argmax() if self.choice == "best" else jax.random.categorical(key_choice, q)]

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


_structure = functools.cache(_DiffusionQL)


def noise_error(denoised: Array, action: Array, sigma: Array) -> Array:
    """Mean squared error [] of the noise that a denoised action [B, A] comes of: that of the action over sigma [B]."""
    return (jnp.square(denoised - action).mean(axis=-1) / jnp.square(sigma)).mean()


def key_of(obs: Array) -> Array:
    """A key made of the bits of obs [O]: other noise at every observation, the same at the same one.

    With one key for all, the noise would be one persistent error of the actions along an episode.
    """
    bits = jax.lax.bitcast_convert_type(jnp.asarray(obs, jnp.float32), jnp.uint32)
    words = (bits + jnp.arange(bits.size, dtype=jnp.uint32)) * jnp.uint32(0x9E3779B1)
    words = (words ^ (words >> 15)) * jnp.uint32(0x85EBCA6B)  # not linear: entries that change places or signs give another key
    return jax.random.key(jnp.sum(words ^ (words >> 13), dtype=jnp.uint32))


def diffusion_ql(
    *,
    action_dim: int,
    hidden: tuple[int, ...] = (256, 256, 256),
    steps: int = 5,
    candidates: int = 50,
    choice: Choice = "softmax",
    ema_every: int = 5,
    time_features: int = 16,
    own_score: bool = False,
    max_q_backup: int = 1,
    action_reconstruction: Reconstruction = "chain",
    critic_hidden: tuple[int, ...] = (),
    critic_activation: Activation = "mish",
) -> Agent[DiffusionQLState]:
    """Diffusion-QL as an Agent for actions [action_dim]; its `hypers` are DiffusionQLHypers.

    `update` takes transitions with leading axes [1, B] and returns the metrics critic_loss, actor_loss, bc_loss, q_gain,
    q_mean, target_mean, critic_gradient_norm, actor_gradient_norm and clipped_gradients (share), all []. Of every target's
    `max_q_backup` next actions the largest value counts (its authors: 10 on most antmaze tasks, elsewhere 1).
    The actor raises the Q of an action that is sampled by its `action_reconstruction` "chain", or denoised in "one_step".
    Critics have the layers `critic_hidden` (none: those of the actor) with `critic_activation`.
    Its policy uses the actor as it is, not the average, as published:
    - `sample` is one chain of `steps` ancestral steps;
    - `mode`, by `choice`: "softmax" takes one of `candidates` chains with probability softmax(Q), Q the smaller target critic
      (published); "best" the one of highest Q; "centre" the chain without noise, without the critics. The noise is made of the
      observation's bits: the same observation always gives the same action, because `mode` has no key;
    - `log_prob`: a diffusion policy has no log-density. A Gaussian of standard deviation `policy_std` (variance policy_std^2 +
      variance) stands for it, around the action of the chain without noise;
    - `score`, with `own_score`: that of the noised policy, (D(a) - a) / sigma^2 at sigma^2 = variance (its mean over entries),
      kept within the schedule. Guidance then follows it instead of the Gaussian's gradient.
    Raises InputError where sizes are not positive, a choice is unknown, time_features is no even number above 2, or `init` or
    `update` get other shapes.
    """
    sizes = {"action_dim": action_dim, "steps": steps, "candidates": candidates, "ema_every": ema_every}
    sizes["max_q_backup"] = max_q_backup
    for name, value in sizes.items():
        check(value > 0, name, value, "a number above 0")
    check(time_features > 2 and time_features % 2 == 0, "time_features", time_features, "an even number above 2")
    choices = (
        ("choice", choice, Choice),
        ("action_reconstruction", action_reconstruction, Reconstruction),
        ("critic_activation", critic_activation, Activation),
    )
    for name, chosen, kinds in choices:
        check(chosen in get_args(kinds), name, chosen, f"one of {', '.join(get_args(kinds))}")
    s = _structure(
        action_dim, tuple(hidden), steps, candidates, choice, ema_every, time_features, own_score, max_q_backup,
        action_reconstruction, tuple(critic_hidden), critic_activation,
    )  # fmt: skip
    return Agent("diffusion_ql", s.init, s.update, s.policy, hypers=DiffusionQLHypers(), batches=1)
