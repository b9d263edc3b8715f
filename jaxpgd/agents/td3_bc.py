"""TD3+BC (Fujimoto and Gu, arXiv 2106.06860): TD3 (arXiv 1802.09477) with a behaviour-cloning term in the actor's loss.

One update, in this order:
1. `critic_updates` critic steps, each on its own batch and with its own target noise, all with the same target networks;
2. one actor step on the last of these batches (no delay: PGD trains the critic twice per update instead);
3. both target networks move by `polyak`.

`actor_first` is the order of PGD's released code: target networks, actor, critics, all on one batch. With `policy_delay` k
actor and target networks move in every k-th update only (TD3). The actor may be stochastic, tanh of a normal (DyDiff).
"""

import dataclasses
import functools
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd import draws
from jaxpgd.agents import common
from jaxpgd.agents.deterministic import Deterministic
from jaxpgd.agents.tanh_gaussian import TanhGaussian
from jaxpgd.networks.actor_critic import Critic, CriticEnsemble, member
from jaxpgd.networks.mlp import Norm
from jaxpgd.options import nonnegative, option, options, positive, share, structure
from jaxpgd.types import Agent, Metrics, Policy, PyTree, Transition


@options
class TD3BCConfig:
    """TD3+BC (arXiv 2106.06860) with PGD's settings."""

    lr: float = positive(3e-4, "learning rate of Adam, of actor and critics", low=1e-12, high=1.0)
    gamma: float = share(0.99, "discount factor")
    polyak: float = share(0.005, "step of the target networks: target <- target + polyak * (online - target)")
    alpha: float = nonnegative(2.5, "weight of Q against behaviour cloning in the actor's loss (TD3+BC: 2.5); 0: cloning alone")
    cloning: float = nonnegative(1.0, "weight of the behaviour-cloning term (TD3+BC: 1; DyDiff: 0.5); 0: none")
    policy_noise: float = nonnegative(
        0.2, "standard deviation of the noise on target actions (target policy smoothing); 0: none", high=1e3
    )
    noise_clip: float = nonnegative(0.5, "largest absolute value of the noise on target actions", high=1e3)
    adam_eps: float = nonnegative(1e-5, "epsilon of Adam (PGD: 1e-5; PyTorch's default: 1e-8)", low=1e-12, high=1.0)
    critic_updates: int = positive(
        2, "critic steps per update, each on a batch of its own, with actor_first all on the same batch"
    )
    policy_delay: int = positive(
        1, "updates from one step of actor and targets to the next (TD3, DyDiff: 2); 1: a step in every update"
    )
    actor: Literal["deterministic", "tanh_gaussian"] = option(
        "deterministic", "deterministic actor, as published, or a stochastic tanh-Gaussian one (DyDiff)"
    )
    actor_first: bool = option(
        False, "order in an update: targets, actor, critics, as PGD's code; false: critics, actor, targets"
    )
    init: Literal["uniform", "orthogonal", "lecun_normal"] = option(
        "uniform", "initialiser of the weights; lecun_normal is Flax's default, which PGD's code uses"
    )
    policy_std: float = positive(
        0.5,
        "standard deviation of the Gaussian by which guidance replaces the deterministic actor (PGD: 1)",
        low=1e-3,
        high=1e3,
    )
    hidden: tuple[int, ...] = option((256, 256), "widths of the hidden layers of actor and critics")
    critic_norm: Norm = option("none", common.CRITIC_NORM)
    actor_norm: Norm = option("none", common.ACTOR_NORM)


_Q_FLOOR = 1e-8  # keeps the weight of Q finite where every value is exactly 0


@struct.dataclass
class TD3BCState:
    """Parameters, those of the target networks, optimiser states and hyperparameters."""

    actor: PyTree
    critic: PyTree  # stacked, leading axis 2
    target_actor: PyTree
    target_critic: PyTree
    actor_opt: PyTree
    critic_opt: PyTree
    hypers: Any  # the agent's options, real numbers as arrays []


class TD3BC(common.TwinCritics):
    """The structure of one agent. One instance per structure (see `_structure`): its methods then compare equal.

    ReBRAC is a subclass with options of its own, and overrides where they differ: `rates`, `weights`, `climbed`, `next_value`.
    """

    def __init__(
        self,
        action_dim: int,
        options: Any,
        *,
        actor: Literal["deterministic", "tanh_gaussian"] = "deterministic",
        critic_updates: int = 1,
        actor_first: bool = False,
    ) -> None:
        self.action_dim, self.options = action_dim, options
        self.critic_updates, self.actor_first = critic_updates, actor_first
        self.batches = 1 if actor_first else critic_updates
        kind = Deterministic if actor == "deterministic" else TanhGaussian
        self.behaviour = kind(action_dim, options.hidden, options.init, options.actor_norm)
        self.actor = self.behaviour.actor
        # Any: flax types `apply` as more than modules return
        self.critics: Any = CriticEnsemble(2, options.hidden, options.init, norm=options.critic_norm)
        self.critic: Any = Critic(options.hidden, norm=options.critic_norm)

    def init(self, key: Array, hypers: Any, example: Transition) -> TD3BCState:
        common.check_example(example, self.action_dim)
        actor_key, critic_key = jax.random.split(key)
        actor = self.actor.init(actor_key, example.obs)
        critic = self.critics.init(critic_key, example.obs, example.action)
        return TD3BCState(
            actor=actor,
            critic=critic,
            target_actor=common.copy(actor),
            target_critic=common.copy(critic),
            actor_opt=common.adam_init(actor),
            critic_opt=common.adam_init(critic),
            hypers=common.numbers(hypers, self.options),
        )

    def update(self, key: Array, state: TD3BCState, batch: Transition) -> tuple[TD3BCState, Metrics]:
        common.check_batch(batch, self.batches, self.action_dim)
        key_actor = jax.random.fold_in(key, 1)
        if not self.actor_first:
            state, critic_metrics = self.critic_steps(key, state, batch)
            moved, metrics = self.actor_step(key_actor, state, jax.tree.map(lambda x: x[-1], batch))
            return self.if_due(state, self.move_targets(moved)), metrics | critic_metrics
        moved, metrics = self.actor_step(key_actor, self.move_targets(state), jax.tree.map(lambda x: x[0], batch))
        state = self.if_due(state, moved)
        same = jax.tree.map(lambda x: jnp.broadcast_to(x, (self.critic_updates, *x.shape[1:])), batch)
        state, critic_metrics = self.critic_steps(key, state, same)
        return state, metrics | critic_metrics

    def if_due(self, state: TD3BCState, moved: TD3BCState) -> TD3BCState:
        """The state with actor and targets `moved` in every `policy_delay`-th update, else as it was."""
        if self.options.policy_delay == 1:
            return moved
        due = (state.critic_opt.count // self.critic_updates) % self.options.policy_delay == 0
        return jax.tree.map(lambda old, new: jnp.where(due, new, old), state, moved)  # type: ignore[no-any-return]

    def critic_steps(self, key: Array, state: TD3BCState, batch: Transition) -> tuple[TD3BCState, Metrics]:
        """One critic step on each of the batches [critic_updates, B]."""
        h, critic, critic_opt = state.hypers, state.critic, state.critic_opt
        losses, norms = list[Array](), list[Array]()
        targets = self.targets(key, state, batch)  # the target networks rest meanwhile: one pass for all batches
        _, rate = self.rates(h)
        for i in range(self.critic_updates):
            part = jax.tree.map(lambda x, i=i: x[i], batch)
            loss, grads = jax.value_and_grad(self.critic_loss)(critic, part, targets[i])
            critic, critic_opt = common.adam_step(grads, critic_opt, critic, rate, h.adam_eps)
            losses.append(loss)
            norms.append(common.norm(grads))
        metrics = {"critic_loss": jnp.stack(losses).mean(), "target_mean": targets.mean()}
        metrics["critic_gradient_norm"] = jnp.stack(norms).mean()
        return dataclasses.replace(state, critic=critic, critic_opt=critic_opt), metrics

    def actor_step(self, key: Array, state: TD3BCState, batch: Transition) -> tuple[TD3BCState, Metrics]:
        """One actor step on a batch [B], by the critics as they are."""
        h, gradient = state.hypers, jax.value_and_grad(self.actor_loss, argnums=1, has_aux=True)
        (loss, metrics), grads = gradient(key, state.actor, state.critic, batch, h)
        actor, actor_opt = common.adam_step(grads, state.actor_opt, state.actor, self.rates(h)[0], h.adam_eps)
        metrics |= {"actor_loss": loss, "actor_gradient_norm": common.norm(grads)}
        return dataclasses.replace(state, actor=actor, actor_opt=actor_opt), metrics

    def move_targets(self, state: TD3BCState) -> TD3BCState:
        """Both target networks moved by `polyak`."""
        target_actor = common.polyak(state.target_actor, state.actor, state.hypers.polyak)
        target_critic = common.polyak(state.target_critic, state.critic, state.hypers.polyak)
        return dataclasses.replace(state, target_actor=target_actor, target_critic=target_critic)

    def targets(self, key: Array, state: TD3BCState, batch: Transition) -> Array:
        """Targets y, shaped as `batch.reward` (TD3, algorithm 1).

        y = r + gamma * discount * min_i Q'_i(s', a') with a' = clip(pi'(s') + eps, -1, 1) and eps ~ clip(N(0, policy_noise^2),
        -noise_clip, noise_clip); Q' and pi' are the target networks.
        """
        h = state.hypers
        noise = h.policy_noise * draws.normal(key, batch.action.shape, batch.action.dtype)
        action = self.behaviour.act(jax.random.fold_in(key, 2), state.target_actor, batch.next_obs)
        action += jnp.clip(noise, -h.noise_clip, h.noise_clip)
        action = jnp.clip(action, -1.0, 1.0)
        q: Array = self.critics.apply(state.target_critic, batch.next_obs, action)
        y: Array = batch.reward + h.gamma * batch.discount * self.next_value(h, q.min(axis=0), action, batch)
        return y

    def critic_loss(self, params: PyTree, batch: Transition, y: Array) -> Array:
        """(Q_i(s, a) - y)^2 (TD3, algorithm 1), averaged over the batch [B] and summed over the critics i."""
        return common.squared_error(self.critics.apply(params, batch.obs, batch.action), y)

    def actor_loss(self, key: Array, params: PyTree, critic: PyTree, batch: Transition, h: Any) -> tuple[Array, Metrics]:
        """-lambda * Q(s, pi(s)) + cloning * (pi(s) - a)^2 with lambda = alpha / mean |Q(s, pi(s))| (TD3+BC, equations 4 and 5).

        Means over the batch [B]; no gradient through lambda, which is the metric q_weight. The mean of |Q| is over pi(s), as in
        PGD's code. pi(s) is drawn where the actor is stochastic. TD3+BC's objective has cloning 1 and maximises, DyDiff's code
        has 0.5.
        """
        pi = self.behaviour.act(key, params, batch.obs)
        chex.assert_equal_shape([pi, batch.action])
        q, (alpha, beta) = self.climbed(critic, batch.obs, pi), self.weights(h)
        weight = alpha / jnp.maximum(jax.lax.stop_gradient(jnp.abs(q).mean()), _Q_FLOOR)
        cloning = jnp.square(pi - batch.action).mean()
        return beta * cloning - weight * q.mean(), {"q_mean": q.mean(), "bc_loss": cloning, "q_weight": weight}

    def rates(self, h: Any) -> tuple[Array, Array]:
        """Learning rates [] of the actor and of the critics."""
        return h.lr, h.lr

    def weights(self, h: Any) -> tuple[Array | float, Array]:
        """alpha [] of Q and the weight [] of cloning in the actor's loss."""
        return h.alpha, h.cloning

    def climbed(self, critic: PyTree, obs: Array, action: Array) -> Array:
        """The values [B] that the actor climbs: those of the first critic only, as TD3."""
        q: Array = self.critic.apply(member(critic, 0), obs, action)
        return q

    def next_value(self, h: Any, q: Array, action: Array, batch: Transition) -> Array:
        """The value [..., B] of s' in the targets, where `q` [..., B] is the smaller one of a' [..., B, A] there."""
        return q

    def policy(self, state: TD3BCState) -> Policy:
        return self.behaviour.make_policy(state.actor, state.hypers.policy_std)


@functools.cache
def _structure(action_dim: int, options: TD3BCConfig) -> TD3BC:
    o = options
    return TD3BC(action_dim, o, actor=o.actor, critic_updates=o.critic_updates, actor_first=o.actor_first)


def td3_bc(options: TD3BCConfig = TD3BCConfig(), *, action_dim: int, **changes: Any) -> Agent[TD3BCState]:
    """TD3+BC as an Agent for actions [action_dim], with some options changed by name.

    Its `hypers` are the options, of which real numbers may be traced or vmapped. `update` takes transitions with leading axes
    [critic_updates, B] and returns the metrics critic_loss, actor_loss, bc_loss, q_mean, q_weight, target_mean,
    critic_gradient_norm and actor_gradient_norm, all []. With `actor_first` it takes one batch, [1, B], on which the target
    networks move, then the actor, then the critics `critic_updates` times (PGD's released code). With `policy_delay` k actor
    and target networks move in every k-th update only, the critics in each; metrics of the actor are of every update.
    The policy of the "deterministic" actor ignores the key of `sample`; its `log_prob` is that of a Gaussian of standard
    deviation `policy_std` (variance policy_std^2 + variance) around its action. The "tanh_gaussian" actor draws its actions,
    in the loss, the targets and by `sample`, and its policy has a density (`tanh_gaussian.TanhGaussian`).
    Raises InputError where an option is out of its range, or where `init` or `update` get other shapes.
    """
    options = common.configure(options, action_dim, changes)
    s = _structure(action_dim, structure(options))
    return Agent("td3_bc", s.init, s.update, s.policy, hypers=options, batches=s.batches, value_fn=s.value)
