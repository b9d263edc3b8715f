"""IQL (Kostrikov et al., arXiv 2110.06169): expectile regression of values, advantage-weighted regression of the actor.

One update, in this order, on one batch: value V (from the target critics), actor (advantages of the target critics over the
new V), critics (from the new V), target critics move by `polyak`. With `stale_value` actor and critics use V from before its
step, as PGD's released code.
"""

import functools
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd import draws
from jaxpgd.agents import common
from jaxpgd.networks.actor_critic import CriticEnsemble, GaussianActor, ValueNetwork
from jaxpgd.networks.mlp import Norm
from jaxpgd.options import nonnegative, option, options, positive, share, structure
from jaxpgd.types import Agent, Metrics, Policy, PyTree, Transition, Value


@options
class IQLConfig:
    """IQL (arXiv 2110.06169) with PGD's settings."""

    lr: float = positive(3e-4, "learning rate of Adam, of actor, value and critics", low=1e-12, high=1.0)
    decay_updates: float = nonnegative(
        0.0, "updates in which the actor's learning rate falls to 0 by a cosine (IQL: all); 0: no decay", high=1e9
    )
    gamma: float = share(0.99, "discount factor")
    polyak: float = share(0.005, "step of the target critics: target <- target + polyak * (online - target)")
    tau: float = share(0.7, "expectile of the value regression (IQL on MuJoCo: 0.7, on antmaze: 0.9)")
    beta: float = nonnegative(
        3.0, "inverse temperature of the advantage weights exp(beta A) (IQL on MuJoCo: 3, on antmaze: 10)"
    )
    advantage_clip: float = nonnegative(100.0, "upper bound of the advantage weights exp(beta A) (IQL: 100)")
    adam_eps: float = nonnegative(1e-5, "epsilon of Adam (PGD: 1e-5)", low=1e-12, high=1.0)
    stale_value: bool = option(
        False, "use the value from before its step in advantages and targets, as PGD's code; false: from after it"
    )
    init: Literal["uniform", "orthogonal", "lecun_normal"] = option(
        "orthogonal", "initialiser of the weights; lecun_normal is Flax's default"
    )
    hidden: tuple[int, ...] = option((256, 256), "widths of the hidden layers of actor, value and critics")
    critic_norm: Norm = option("none", common.CRITIC_NORM + "; of the value network as well")
    actor_norm: Norm = option("none", common.ACTOR_NORM)


@struct.dataclass
class IQLState:
    """Parameters, those of the target critics, optimiser states and hyperparameters."""

    actor: PyTree
    critic: PyTree  # stacked, leading axis 2
    value: PyTree
    target_critic: PyTree
    actor_opt: PyTree
    critic_opt: PyTree
    value_opt: PyTree
    updates: Array  # []
    hypers: IQLConfig  # real numbers as arrays []


def expectile_loss(u: Array, tau: Array | float) -> Array:
    """L_2^tau(u) = |tau - 1(u < 0)| u^2, elementwise (IQL, equation 5); tau 0.5 is half the squared error."""
    return jnp.abs(tau - (u < 0)) * jnp.square(u)


def advantage_weight(advantage: Array, beta: Array | float, clip: Array | float) -> Array:
    """min(exp(beta * (Q - V)), clip), elementwise: advantage-weighted regression (IQL, equation 7), clipped as in its code."""
    return jnp.minimum(jnp.exp(beta * advantage), clip)


class _IQL:
    """The structure of one agent. One instance per structure (see `_structure`): its methods then compare equal."""

    def __init__(self, action_dim: int, options: IQLConfig) -> None:
        self.action_dim, self.options, hidden, init = action_dim, options, options.hidden, options.init
        # Any: flax types `apply` as more than the modules return
        self.actor: Any = GaussianActor(action_dim, hidden, init, options.actor_norm)
        self.critics: Any = CriticEnsemble(2, hidden, init, norm=options.critic_norm)
        # V is what the critics' targets bootstrap from: where they are normalised, so is it
        self.value_network: Any = ValueNetwork(hidden, init, options.critic_norm)

    def init(self, key: Array, hypers: IQLConfig, example: Transition) -> IQLState:
        common.check_example(example, self.action_dim)
        actor_key, critic_key, value_key = jax.random.split(key, 3)
        actor = self.actor.init(actor_key, example.obs)
        critic = self.critics.init(critic_key, example.obs, example.action)
        value = self.value_network.init(value_key, example.obs)
        return IQLState(
            actor=actor,
            critic=critic,
            value=value,
            target_critic=common.copy(critic),
            actor_opt=common.adam_init(actor),
            critic_opt=common.adam_init(critic),
            value_opt=common.adam_init(value),
            updates=jnp.zeros((), jnp.int32),
            hypers=common.numbers(hypers, self.options),
        )

    def update(self, key: Array, state: IQLState, batch: Transition) -> tuple[IQLState, Metrics]:
        common.check_batch(batch, 1, self.action_dim)
        h, batch = state.hypers, jax.tree.map(lambda x: x[0], batch)
        q = self.critics.apply(state.target_critic, batch.obs, batch.action).min(axis=0)
        value_loss, grads = jax.value_and_grad(self.value_loss)(state.value, batch, q, h.tau)
        norms = {"value_gradient_norm": common.norm(grads)}
        value, value_opt = common.adam_step(grads, state.value_opt, state.value, h.lr, h.adam_eps)

        used = state.value if self.options.stale_value else value
        both = jnp.concatenate([batch.obs, batch.next_obs])  # one pass of V instead of two: less to compile
        v, next_v = jnp.split(self.value_network.apply(used, both), 2)
        advantage = q - v
        weight = advantage_weight(advantage, h.beta, h.advantage_clip)
        actor_loss, grads = jax.value_and_grad(self.actor_loss)(state.actor, batch, weight)
        actor_lr = h.lr * common.cosine_decay(state.updates, h.decay_updates)
        norms["actor_gradient_norm"] = common.norm(grads)
        actor, actor_opt = common.adam_step(grads, state.actor_opt, state.actor, actor_lr, h.adam_eps)

        targets = batch.reward + h.gamma * batch.discount * next_v
        critic_loss, grads = jax.value_and_grad(self.critic_loss)(state.critic, batch, targets)
        norms["critic_gradient_norm"] = common.norm(grads)
        critic, critic_opt = common.adam_step(grads, state.critic_opt, state.critic, h.lr, h.adam_eps)

        metrics = {"value_loss": value_loss, "actor_loss": actor_loss, "critic_loss": critic_loss, "q_mean": q.mean()}
        metrics |= {"advantage_mean": advantage.mean(), "weight_mean": weight.mean(), "target_mean": targets.mean()}
        metrics |= norms
        target_critic = common.polyak(state.target_critic, critic, h.polyak)
        optimisers = (actor_opt, critic_opt, value_opt)
        return IQLState(actor, critic, value, target_critic, *optimisers, state.updates + 1, h), metrics

    def value_loss(self, params: PyTree, batch: Transition, q: Array, tau: Array | float) -> Array:
        """L_V = L_2^tau(Q'(s, a) - V(s)), averaged over the batch [B] (IQL, equation 5); q [B] is Q'."""
        v = self.value_network.apply(params, batch.obs)
        chex.assert_equal_shape([q, v])
        return expectile_loss(q - v, tau).mean()

    def critic_loss(self, params: PyTree, batch: Transition, y: Array) -> Array:
        """L_Q = (y - Q_i(s, a))^2 with y = r + gamma * discount * V(s') (IQL, equation 6).

        Averaged over the batch [B] and summed over the critics i.
        """
        return common.squared_error(self.critics.apply(params, batch.obs, batch.action), y)

    def actor_loss(self, params: PyTree, batch: Transition, weight: Array) -> Array:
        """L_pi = -exp(beta * (Q'(s, a) - V(s))) log pi(a | s), averaged over the batch [B] (IQL, equation 7).

        `weight` [B] is the exponential, clipped: `advantage_weight`.
        """
        mean, std = self.actor.apply(params, batch.obs)
        log_pi = common.gaussian_log_prob(batch.action, mean, jnp.square(std))
        chex.assert_equal_shape([weight, log_pi])
        return -(weight * log_pi).mean()

    def policy(self, state: IQLState) -> Policy:
        return Policy(state.actor, self.sample, self.mode, self.log_prob)

    def value(self, state: IQLState) -> Value:
        """V(s), what the critics' targets bootstrap from: an expectile over the data's actions, whatever the policy takes."""
        return Value(state.value, state.hypers.gamma, self.of_state)  # type: ignore[arg-type]

    def of_state(self, params: PyTree, obs: Array, action: Array) -> Array:
        """V [...] at obs [..., O]; the action has no part in it."""
        v: Array = self.value_network.apply(params, obs)
        return v

    def sample(self, params: PyTree, key: Array, obs: Array) -> Array:
        mean, std = self.actor.apply(params, obs)
        return jnp.clip(mean + std * draws.normal(key, mean.shape, mean.dtype), -1.0, 1.0)

    def mode(self, params: PyTree, obs: Array) -> Array:
        mean: Array = self.actor.apply(params, obs)[0]
        return mean

    def log_prob(self, params: PyTree, obs: Array, action: Array, variance: Array | float) -> Array:
        mean, std = self.actor.apply(params, obs)
        return common.gaussian_log_prob(action, mean, jnp.square(std) + variance)


@functools.cache
def _structure(action_dim: int, options: IQLConfig) -> _IQL:
    return _IQL(action_dim, options)


def iql(options: IQLConfig = IQLConfig(), *, action_dim: int, **changes: Any) -> Agent[IQLState]:
    """IQL as an Agent for actions [action_dim], with some options changed by name.

    Its `hypers` are the options, of which real numbers may be traced or vmapped. `update` takes transitions with leading axes
    [1, B] and returns the metrics value_loss, actor_loss, critic_loss, q_mean, advantage_mean, weight_mean, target_mean, and
    gradient_norm of each network (critic_gradient_norm), all []. The policy is Normal(tanh mean, std): `sample` clips to
    [-1, 1], `mode` is the mean, `log_prob` that of the unclipped normal with variance std^2 + variance.
    Raises InputError where an option is out of its range, or where `init` or `update` get other shapes.
    """
    options = common.configure(options, action_dim, changes)
    s = _structure(action_dim, structure(options))
    return Agent("iql", s.init, s.update, s.policy, hypers=options, batches=1, value_fn=s.value)
