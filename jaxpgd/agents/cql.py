"""CQL(H) (Kumar et al., arXiv 2006.04779): soft actor-critic with a penalty on the critics' values of actions not in the data.

The loss of each critic is its squared error plus `weight` times log(integral of exp Q(s, .)) - Q(s, a), with the integral
estimated by importance sampling. One update, in this order, on one batch:
1. critics, with targets r + gamma * discount * min_i Q'_i(s', a'), a' drawn from the actor, and no entropy bonus;
2. actor, by the smaller of the new critics and with the entropy temperature from before its step;
3. entropy temperature, from the log-density of the actions that the actor's loss drew;
4. target critics move by `polyak`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd import draws
from jaxpgd.agents import common
from jaxpgd.agents.tanh_gaussian import TanhGaussian
from jaxpgd.networks.actor_critic import CriticEnsemble
from jaxpgd.networks.mlp import Norm
from jaxpgd.options import nonnegative, option, options, positive, share, structure
from jaxpgd.types import Agent, Metrics, Policy, PyTree, Transition


@options
class CQLConfig:
    """CQL(H) on soft actor-critic (arXiv 2006.04779) with DyDiff's settings (arXiv 2405.19189)."""

    actor_lr: float = positive(3e-5, "learning rate of the actor", low=1e-12, high=1.0)
    critic_lr: float = positive(3e-4, "learning rate of the critics", low=1e-12, high=1.0)
    alpha_lr: float = nonnegative(3e-5, "learning rate of the entropy temperature", low=1e-12, high=1.0)
    gamma: float = share(0.99, "discount factor")
    polyak: float = share(0.005, "step of the target critics: target <- target + polyak * (online - target)")
    weight: float = nonnegative(10.0, "weight of the conservative term in the critics' loss; 0: soft actor-critic")
    cql_temperature: float = positive(1.0, "temperature of the log-sum-exp over actions in the conservative term", low=1e-3)
    n_actions: int = positive(
        10, "actions in the conservative term: this many uniform ones, from the policy at s, and from it at s'"
    )
    initial_alpha: float = positive(1.0, "entropy temperature at the start of training; it is learned from then on")
    target_entropy: float = option(
        -1.0, "target entropy of the policy, in nats per action dimension (published: -1)", low=-1000.0, high=1e3
    )
    cloning_updates: float = nonnegative(
        0.0, "updates at the start in which the actor clones the data (CQL's code on MuJoCo: 40,000); 0: none", high=1e9
    )
    adam_eps: float = nonnegative(1e-8, "epsilon of Adam (PyTorch's default: 1e-8)", low=1e-12, high=1.0)
    hidden: tuple[int, ...] = option((256, 256), "widths of the hidden layers of actor and critics")
    critic_norm: Norm = option("none", common.CRITIC_NORM)
    actor_norm: Norm = option("none", common.ACTOR_NORM)


@struct.dataclass
class CQLState:
    """Parameters, those of the target critics, optimiser states and hyperparameters."""

    actor: PyTree
    critic: PyTree  # stacked, leading axis 2
    log_alpha: Array  # [] log of the entropy temperature
    target_critic: PyTree
    actor_opt: PyTree
    critic_opt: PyTree
    alpha_opt: PyTree
    updates: Array  # []
    hypers: CQLConfig  # real numbers as arrays []


def log_integral(q: Array, log_density: Array, temperature: Array | float) -> Array:
    """temperature * log of the integral of exp(Q / temperature) over actions, by importance sampling (CQL, appendix F).

    q [..., K, B] at K actions that were drawn with log-density [K, B] -> [..., B].
    """
    return temperature * jax.nn.logmeanexp(q / temperature - log_density, axis=-2)


class _CQL(common.TwinCritics, TanhGaussian):
    """The structure of one agent. One instance per structure (see `_structure`): its methods then compare equal."""

    def __init__(self, action_dim: int, options: CQLConfig) -> None:
        super().__init__(action_dim, options.hidden, norm=options.actor_norm)
        self.options = options
        # Any: flax types `apply` as more than the module returns
        self.critics: Any = CriticEnsemble(2, options.hidden, norm=options.critic_norm)

    def init(self, key: Array, hypers: CQLConfig, example: Transition) -> CQLState:
        common.check_example(example, self.action_dim)
        actor_key, critic_key = jax.random.split(key)
        actor = self.actor.init(actor_key, example.obs)
        critic = self.critics.init(critic_key, example.obs, example.action)
        hypers = common.numbers(hypers, self.options)
        log_alpha = jnp.log(hypers.initial_alpha)
        return CQLState(
            actor=actor,
            critic=critic,
            log_alpha=log_alpha,
            target_critic=common.copy(critic),
            actor_opt=common.adam_init(actor),
            critic_opt=common.adam_init(critic),
            alpha_opt=common.adam_init(log_alpha),
            updates=jnp.zeros((), jnp.int32),
            hypers=hypers,
        )

    def update(self, key: Array, state: CQLState, batch: Transition) -> tuple[CQLState, Metrics]:
        common.check_batch(batch, 1, self.action_dim)
        h, batch = state.hypers, jax.tree.map(lambda x: x[0], batch)
        key_target, key_proposal, key_actor = jax.random.split(key, 3)
        targets = self.targets(key_target, state, batch)
        proposals = self.proposals(key_proposal, state.actor, batch)
        critic_grad = jax.value_and_grad(self.critic_loss, has_aux=True)
        (critic_loss, metrics), grads = critic_grad(state.critic, batch, targets, proposals, h)
        metrics["critic_gradient_norm"] = common.norm(grads)
        critic, critic_opt = common.adam_step(grads, state.critic_opt, state.critic, h.critic_lr, h.adam_eps)

        actor_grad = jax.value_and_grad(self.actor_loss, argnums=1, has_aux=True)
        cloning = state.updates < h.cloning_updates
        (actor_loss, log_prob), grads = actor_grad(key_actor, state.actor, critic, batch, jnp.exp(state.log_alpha), cloning)
        metrics["actor_gradient_norm"] = common.norm(grads)
        actor, actor_opt = common.adam_step(grads, state.actor_opt, state.actor, h.actor_lr, h.adam_eps)

        # the gradient of -log_alpha * (log pi + target entropy): SAC's code, for J(alpha) of its equation 18
        alpha_grad = -(log_prob + self.action_dim * h.target_entropy).mean()
        log_alpha, alpha_opt = common.adam_step(alpha_grad, state.alpha_opt, state.log_alpha, h.alpha_lr, h.adam_eps)

        metrics |= {"critic_loss": critic_loss, "actor_loss": actor_loss, "target_mean": targets.mean()}
        metrics |= {"entropy": -log_prob.mean(), "alpha": jnp.exp(log_alpha)}
        target_critic = common.polyak(state.target_critic, critic, h.polyak)
        optimisers = (actor_opt, critic_opt, alpha_opt)
        return CQLState(actor, critic, log_alpha, target_critic, *optimisers, state.updates + 1, h), metrics

    def targets(self, key: Array, state: CQLState, batch: Transition) -> Array:
        """Targets y = r + gamma * discount * min_i Q'_i(s', a') with a' drawn from the actor, [B]."""
        action, _ = self.draw(key, state.actor, batch.next_obs)
        q_min: Array = self.critics.apply(state.target_critic, batch.next_obs, action).min(axis=0)
        return batch.reward + state.hypers.gamma * batch.discount * q_min

    def proposals(self, key: Array, actor: PyTree, batch: Transition) -> tuple[Array, Array]:
        """K = 3 * n_actions actions [K, B, A] with their log-densities [K, B]: uniform ones, from pi(s), from pi(s')."""
        n = self.options.n_actions
        key_uniform, key_policy = jax.random.split(key)
        uniform = draws.uniform(key_uniform, (n, *batch.action.shape), -1.0, 1.0)
        uniform_density = jnp.full(uniform.shape[:-1], -self.action_dim * jnp.log(2.0), jnp.float32)
        both = jnp.stack([batch.obs, batch.next_obs])
        keys = jax.random.split(key_policy, n)
        action, log_prob = jax.vmap(lambda k: self.draw(k, actor, both), out_axes=1)(keys)  # [2, n, B, ...]
        return jnp.concatenate([uniform, *action]), jnp.concatenate([uniform_density, *log_prob])

    def critic_loss(
        self, params: PyTree, batch: Transition, y: Array, proposals: tuple[Array, Array], h: CQLConfig
    ) -> tuple[Array, Metrics]:
        """(Q_i(s, a) - y)^2 + weight * (log integral exp Q_i(s, .) - Q_i(s, a)) (CQL, equation 4).

        Averaged over the batch [B] and summed over the critics i. Equation 4 halves the squared error; the authors' code does
        not, and `weight` (alpha there) has the meaning that it has in that code. The actions of the data and the proposals go
        through the critics in one product.
        """
        action, log_density = proposals
        action = jnp.concatenate([batch.action[None], action])
        obs = jnp.broadcast_to(batch.obs, (*action.shape[:2], batch.obs.shape[-1]))
        q = self.critics.apply(params, obs, action)  # [2, 1 + K, B]
        error = common.squared_error(q[:, 0], y)
        gap = (log_integral(q[:, 1:], log_density, h.cql_temperature) - q[:, 0]).mean(axis=-1).sum()
        return error + h.weight * gap, {"q_error": error, "conservative_gap": gap, "q_mean": q[:, 0].mean()}

    def actor_loss(
        self, key: Array, params: PyTree, critic: PyTree, batch: Transition, alpha: Array, cloning: Array
    ) -> tuple[Array, Array]:
        """alpha * log pi(a | s) - min_i Q_i(s, a) with a drawn from the actor, averaged over the batch [B]; also log pi [B].

        The loss J_pi of soft actor-critic (arXiv 1812.05905, equation 7). Where `cloning` [] is true the log-density of the
        data's action takes the place of Q, as in CQL's code.
        """
        action, log_prob = self.draw(key, params, batch.obs)
        q = self.critics.apply(critic, batch.obs, action).min(axis=0)
        cloned = self.log_prob(params, batch.obs, batch.action, 0.0)
        return (alpha * log_prob - jnp.where(cloning, cloned, q)).mean(), log_prob

    def policy(self, state: CQLState) -> Policy:
        return self.make_policy(state.actor)


@functools.cache
def _structure(action_dim: int, options: CQLConfig) -> _CQL:
    return _CQL(action_dim, options)


def cql(options: CQLConfig = CQLConfig(), *, action_dim: int, **changes: Any) -> Agent[CQLState]:
    """CQL as an Agent for actions [action_dim], with some options changed by name.

    Its `hypers` are the options, of which real numbers may be traced or vmapped. `update` takes transitions with leading axes
    [1, B] and returns the metrics critic_loss, q_error, conservative_gap, q_mean, actor_loss, entropy, alpha, target_mean,
    critic_gradient_norm and actor_gradient_norm, all []. The conservative term draws `n_actions` actions each uniformly, from
    the policy at s, and from it at s'. The policy is tanh of a normal (`tanh_gaussian.TanhGaussian`).
    Raises InputError where an option is out of its range, or where `init` or `update` get other shapes.
    """
    options = common.configure(options, action_dim, changes)
    s = _structure(action_dim, structure(options))
    return Agent("cql", s.init, s.update, s.policy, hypers=options, batches=1, value_fn=s.value)
