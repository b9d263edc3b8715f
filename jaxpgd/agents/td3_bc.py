"""TD3+BC (Fujimoto and Gu, arXiv 2106.06860): TD3 with a behaviour-cloning term in the actor's loss.

One update, in this order:
1. `critic_updates` critic steps, each on a batch of its own and with target noise of its own, all against the same targets;
2. one actor step on the last of these batches (no delay: PGD trains the critic twice per update instead);
3. both target networks move by `polyak`.

With `actor_first`, as PGD's released code: target networks, actor, critics, all on one batch. With `policy_delay` actor and
targets move in every so many-th update only (TD3). The actor may be stochastic, tanh of a normal (DyDiff's base agent).
"""

import dataclasses
import functools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.agents import common
from jaxpgd.agents.deterministic import Deterministic
from jaxpgd.agents.tanh_gaussian import TanhGaussian
from jaxpgd.errors import check
from jaxpgd.networks.actor_critic import Critic, CriticEnsemble, member
from jaxpgd.networks.mlp import Init
from jaxpgd.options import nonnegative, option, options, positive, share
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


Actor = Literal["deterministic", "tanh_gaussian"]

_Q_FLOOR = 1e-8  # keeps the weight of Q finite where every value is exactly 0


@struct.dataclass
class TD3BCHypers:
    """Numeric settings; any of them may be traced. Defaults are those of PGD (arXiv 2404.06356, appendix)."""

    lr: Array | float = 3e-4
    gamma: Array | float = 0.99
    polyak: Array | float = 0.005  # target <- target + polyak * (online - target)
    alpha: Array | float = 2.5  # weight of Q against behaviour cloning
    cloning: Array | float = 1.0  # weight of behaviour cloning
    policy_noise: Array | float = 0.2  # std of target policy smoothing
    noise_clip: Array | float = 0.5
    adam_eps: Array | float = 1e-5
    policy_std: Array | float = 0.5  # std of the Gaussian that `Policy.log_prob` puts around the action


@struct.dataclass
class TD3BCState:
    """Parameters, their slow copies, optimiser states and hyperparameters."""

    actor: PyTree
    critic: PyTree  # stacked, leading axis 2
    target_actor: PyTree
    target_critic: PyTree
    actor_opt: PyTree
    critic_opt: PyTree
    hypers: TD3BCHypers


class _TD3BC:
    """The structure of one agent. One instance per structure (see `_structure`): its methods then compare equal."""

    def __init__(
        self,
        action_dim: int,
        hidden: tuple[int, ...],
        critic_updates: int,
        actor_first: bool,
        init: Init,
        actor: Actor,
        policy_delay: int,
    ) -> None:
        self.batches = 1 if actor_first else critic_updates
        self.critic_updates, self.actor_first, self.policy_delay = critic_updates, actor_first, policy_delay
        self.action_dim = action_dim
        self.behaviour = (Deterministic if actor == "deterministic" else TanhGaussian)(action_dim, hidden, init)
        self.actor = self.behaviour.actor
        self.critics: Any = CriticEnsemble(2, hidden, init)  # Any: flax types `apply` as more than modules return
        self.critic: Any = Critic(hidden)

    def init(self, key: Array, hypers: TD3BCHypers, example: Transition) -> TD3BCState:
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
            hypers=common.as_arrays(hypers),
        )

    def update(self, key: Array, state: TD3BCState, batch: Transition) -> tuple[TD3BCState, Metrics]:
        common.check_batch(batch, self.batches)
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
        if self.policy_delay == 1:
            return moved
        due = (state.critic_opt.count // self.critic_updates) % self.policy_delay == 0
        return jax.tree.map(lambda old, new: jnp.where(due, new, old), state, moved)  # type: ignore[no-any-return]

    def critic_steps(self, key: Array, state: TD3BCState, batch: Transition) -> tuple[TD3BCState, Metrics]:
        """One critic step on each of the batches [critic_updates, B]."""
        h, critic, critic_opt = state.hypers, state.critic, state.critic_opt
        losses, norms = list[Array](), list[Array]()
        targets = self.targets(key, state, batch)  # the target networks rest meanwhile: one pass for all batches
        for i in range(self.critic_updates):
            part = jax.tree.map(lambda x, i=i: x[i], batch)
            loss, grads = jax.value_and_grad(self.critic_loss)(critic, part, targets[i])
            critic, critic_opt = common.adam_step(grads, critic_opt, critic, h.lr, h.adam_eps)
            losses.append(loss)
            norms.append(common.norm(grads))
        metrics = {"critic_loss": jnp.stack(losses).mean(), "target_mean": targets.mean()}
        metrics["critic_gradient_norm"] = jnp.stack(norms).mean()
        return dataclasses.replace(state, critic=critic, critic_opt=critic_opt), metrics

    def actor_step(self, key: Array, state: TD3BCState, batch: Transition) -> tuple[TD3BCState, Metrics]:
        """One actor step on a batch [B], by the critics as they are."""
        h, gradient = state.hypers, jax.value_and_grad(self.actor_loss, argnums=1, has_aux=True)
        (loss, metrics), grads = gradient(key, state.actor, state.critic, batch, h)
        actor, actor_opt = common.adam_step(grads, state.actor_opt, state.actor, h.lr, h.adam_eps)
        metrics |= {"actor_loss": loss, "actor_gradient_norm": common.norm(grads)}
        return dataclasses.replace(state, actor=actor, actor_opt=actor_opt), metrics

    def move_targets(self, state: TD3BCState) -> TD3BCState:
        """Both target networks moved by `polyak`."""
        target_actor = common.polyak(state.target_actor, state.actor, state.hypers.polyak)
        target_critic = common.polyak(state.target_critic, state.critic, state.hypers.polyak)
        return dataclasses.replace(state, target_actor=target_actor, target_critic=target_critic)

    def targets(self, key: Array, state: TD3BCState, batch: Transition) -> Array:
        """r + gamma * discount * min Q'(s', clip(a' + noise)) with a' of the target actor, same shape as `batch.reward`."""
        h = state.hypers
        noise = h.policy_noise * jax.random.normal(key, batch.action.shape, batch.action.dtype)
        action = self.behaviour.act(jax.random.fold_in(key, 2), state.target_actor, batch.next_obs)
        action += jnp.clip(noise, -h.noise_clip, h.noise_clip)
        q = self.critics.apply(state.target_critic, batch.next_obs, jnp.clip(action, -1.0, 1.0))
        return batch.reward + h.gamma * batch.discount * q.min(axis=0)

    def critic_loss(self, params: PyTree, batch: Transition, targets: Array) -> Array:
        """Squared error, averaged over the batch [B] and summed over the critics."""
        q = self.critics.apply(params, batch.obs, batch.action)
        return jnp.square(q - targets).mean(axis=-1).sum()

    def actor_loss(
        self, key: Array, params: PyTree, critic: PyTree, batch: Transition, h: TD3BCHypers
    ) -> tuple[Array, Metrics]:
        """-weight * Q(s, a') + cloning * |a' - a|^2 with weight = alpha / mean |Q| over the batch [B] (equations 4 and 5).

        a' is the actor's action, drawn where the actor is stochastic.
        """
        action = self.behaviour.act(key, params, batch.obs)
        q = self.critic.apply(member(critic, 0), batch.obs, action)  # the first critic only, as TD3
        weight = h.alpha / jnp.maximum(jax.lax.stop_gradient(jnp.abs(q).mean()), _Q_FLOOR)
        cloning = jnp.square(action - batch.action).mean()
        return h.cloning * cloning - weight * q.mean(), {"q_mean": q.mean(), "bc_loss": cloning, "q_weight": weight}

    def policy(self, state: TD3BCState) -> Policy:
        return self.behaviour.make_policy(state.actor, state.hypers.policy_std)


@functools.cache
def _structure(
    action_dim: int,
    hidden: tuple[int, ...],
    critic_updates: int,
    actor_first: bool = False,
    init: Init = "uniform",
    actor: Actor = "deterministic",
    policy_delay: int = 1,
) -> _TD3BC:
    return _TD3BC(action_dim, hidden, critic_updates, actor_first, init, actor, policy_delay)


def td3_bc(
    *,
    action_dim: int,
    hidden: tuple[int, ...] = (256, 256),
    critic_updates: int = 2,
    actor_first: bool = False,
    init: Init = "uniform",
    actor: Actor = "deterministic",
    policy_delay: int = 1,
) -> Agent[TD3BCState]:
    """TD3+BC as an Agent for actions [action_dim]; its `hypers` are TD3BCHypers.

    `update` takes transitions with leading axes [critic_updates, B] and returns the metrics critic_loss, actor_loss, bc_loss,
    q_mean, q_weight, target_mean, critic_gradient_norm and actor_gradient_norm, all []. With `actor_first` it takes one batch,
    [1, B], on which the target networks move, then the actor, then the critics `critic_updates` times (PGD's released code).
    `init` names the initialiser of weights (`networks.mlp.kernel_init`). With `policy_delay` k actor and target networks move
    in every k-th update only, the critics in each; metrics of the actor are of every update.
    The policy is by `actor` "deterministic": `sample` ignores its key; `log_prob` is that of a Gaussian of standard deviation
    `policy_std` (variance policy_std^2 + variance) around its action. Or "tanh_gaussian": actions are drawn, in the loss, the
    targets and by `sample`, from a policy with a density of its own (`tanh_gaussian.TanhGaussian`).
    Raises InputError where sizes are not positive, `actor` is unknown, or `init` or `update` get other shapes.
    """
    check(action_dim > 0, "action_dim", action_dim, "a number above 0")
    check(critic_updates > 0, "critic_updates", critic_updates, "a number above 0")
    check(policy_delay > 0, "policy_delay", policy_delay, "a number above 0")
    check(actor in get_args(Actor), "actor", actor, f"one of {', '.join(get_args(Actor))}")
    s = _structure(action_dim, tuple(hidden), critic_updates, actor_first, init, actor, policy_delay)
    return Agent("td3_bc", s.init, s.update, s.policy, hypers=TD3BCHypers(), batches=s.batches)
