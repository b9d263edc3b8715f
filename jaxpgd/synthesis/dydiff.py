"""DyDiff (arXiv 2405.19189): a diffusion model of states given actions, iterated so that it follows the learning policy."""

import dataclasses
from typing import Literal

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd import draws
from jaxpgd.diffusion.conditioning import Condition, Conditions, attach
from jaxpgd.diffusion.solvers import SamplerConfig
from jaxpgd.errors import check
from jaxpgd.options import nonnegative, option, options, share
from jaxpgd.synthesis.given import Conditioning, Given, GivenActions, Loop, ensemble_of, looped, same_model
from jaxpgd.synthesis.given import known_entries as known_entries
from jaxpgd.synthesis.sampling import Sampling, make_sampling, map_starts, summary
from jaxpgd.tokens import TokenCodec
from jaxpgd.types import Denoise, Policy, Stage, Synthesis, Synthesizer, Trajectory, valid_steps
from jaxpgd.world_model.acting import Actions, acting
from jaxpgd.world_model.behaviour import BehaviourConfig
from jaxpgd.world_model.model import WorldModel
from jaxpgd.world_model.rollouts import Elite, RolloutConfig, rollout

States = Literal["sampled", "mean"]


@options
class DyDiffConfig:
    """Iterated state diffusion under the policy's actions (DyDiff, arXiv 2405.19189)."""

    iterations: int = nonnegative(2, "M, how often states are sampled again (published: 2); 0: the world model's rollout alone")
    mix: float = share(0.5, "weight of the previous iteration's states; the sampled ones have 1 - mix (published: 0.5)")
    window: int = nonnegative(0, "steps per training window, and per trajectory (published: 100); 0: data.window")
    conditions: Conditions = option(
        "clean", 'how the sampler shows first state and actions: "clean", with its churn noise (published), or fully noised'
    )
    conditioning: Conditioning = option(
        "published", "what states are sampled given: the actions (published), innovations, or innovations and the anchor"
    )
    states: States = option(
        "sampled", "states of an iteration: sampled, or their mean given the conditions (one evaluation at sampler.sigma_max)"
    )
    loop: Loop = option(
        "closed",
        "where the policy acts in an iteration of anchored states: in the new anchor and the deviations of the iteration "
        "before, or, open, in the states of the iteration before",
    )
    common_noise: bool = option(
        False,
        "sample with the same noise in every iteration, so that mixing averages nothing and states keep their spread; false: "
        "with new noise (published), which leaves 0.56 of the spread of a sample after 2 iterations of mix 0.5",
    )
    scaled_conditions: bool = option(
        False, "scale the conditions down with the noised sample, as published; false: legible at every noise level"
    )
    actions: Actions = option("sampled", "the policy's actions: sampled, or its mode")
    sampled: bool = option(False, "world model's rollout: draw next states from the elite's Gaussian; false: its mean")
    elite: Elite = option(
        "step", "world model's rollout: draw the elite that predicts at every step, or once per trajectory; mean: all of them"
    )
    chained: bool = option(
        False,
        "rollouts longer than a training window: a chain of windows, the last state of one starts the next; false: one pass "
        "of the network over all steps",
    )
    behaviour: BehaviourConfig = BehaviourConfig()


@struct.dataclass
class StateDenoiser:
    """A denoiser of states whose conditions are known entries of its tokens (`synthesis.given`)."""

    denoise: Denoise
    codec: TokenCodec
    length: int = struct.field(pytree_node=False)  # T of training
    conditions: Conditions = struct.field(pytree_node=False, default="clean")
    given: Given | None = None  # what it is conditioned on; None: first observation and actions, as published

    @property
    def entries(self) -> Given:
        """The entries of its tokens, and which are known."""
        return GivenActions(self.codec) if self.given is None else self.given

    def condition(self, start: Array, action: Array, states: Array | None = None) -> Condition:
        """The known entries for a first observation [O] and actions [T, A], taken in `states` [T, O].

        The published condition needs no states but the first.
        """
        chex.assert_rank([start, action], [1, 2])
        if states is None and self.entries.kind != "published":
            raise ValueError(f"{self.entries.kind} states need those that the actions were taken in")
        s = jnp.broadcast_to(start, (action.shape[0], start.shape[0])) if states is None else states.at[0].set(start)
        return self.entries.condition(s, action)


@struct.dataclass
class DyDiffSynthesizer(Synthesizer):
    """DyDiff's rollouts (arXiv 2405.19189, section 4, algorithm 1).

    With s and a the states and actions of a trajectory, pi the policy and D the state denoiser:

        s, a <- rollout of pi in the world model from s_0
        repeat M times:
            s' ~ D(. | s_0, a)              sample_given: what s and a tell, by `synthesis.given`
            s  <- mix s + (1 - mix) s'      iterate; anchored, of deviations from the anchor
            a_t <- pi(s_t)
        r_t, end_t <- reward and terminal model at s_t, a_t, s_{t+1}

    pi's random numbers are drawn once per step and used in every iteration, so that a_t belongs to s_t rather than to another
    draw of the policy. D's are drawn anew, so that s is an average of its samples, with (1 - mix) / (1 + mix) (1 - mix^2M) of
    their variance; with `common_noise` they are drawn once, and s goes to one sample of D, given its own actions.

    With `window` steps, the same is done of one window after the other, each from the last state of the one before.
    """

    model: WorldModel
    denoiser: StateDenoiser
    sampling: Sampling
    mix: Array | float
    rollout: RolloutConfig  # of the world model; its length is that of the trajectories
    iterations: int = struct.field(pytree_node=False)  # M
    mean: bool = struct.field(pytree_node=False, default=False)  # take D's mean instead of a sample
    common_noise: bool = struct.field(pytree_node=False, default=False)  # D's noise is that of the first iteration
    window: int = struct.field(pytree_node=False, default=0)  # steps of a link of a chain; 0: all steps at once

    def sample_states(self, key: Array, start: Array, a: Array, s: Array | None = None) -> Array:
        """States [T, O] of the diffusion model from start [O] under actions a [T, A], taken in s [T, O]."""
        return self.sample_given(key, start, self.denoiser.condition(start, a, s))

    def sample_given(self, key: Array, start: Array, condition: Condition) -> Array:
        """States [T, O] of the diffusion model from start [O] under a condition.

        At a noise level far above the data, D's estimate tells nothing but the conditions: it is the mean of the tokens given
        them. Of an anchored denoiser, whose tokens are the arsinh of deviations, that is nearer to the median of the states.
        """
        denoise, clamp = attach(self.denoiser.conditions, self.denoiser.denoise, condition)
        if self.mean:
            key, key_clamp = jax.random.split(key)
            sigma = self.sampling.sigmas[0]
            stage = Stage(index=jnp.zeros((), jnp.int32), count=1, sigma=sigma, key=key_clamp, denoise=denoise)
            x = denoise(clamp(sigma * draws.normal(key, condition.value.shape), stage), sigma)
            return self.denoiser.entries.states(x, condition).at[0].set(start)
        x, _ = self.sampling.draw(key, denoise, condition.value.shape, before_step=clamp, after_stage=clamp)
        return self.denoiser.entries.states(x, condition).at[0].set(start)

    def iterate(
        self, key: Array, action_keys: Array, policy: Policy, s: Array, reference: Array
    ) -> tuple[Array, Array, Array | None]:
        """One iteration: states s [T, O] and their reference [T, O] to the next ones, and which of these have ended [T].

        `action_keys` [T] are the policy's.
        """
        given = self.denoiser.entries
        condition, new, ended = given.follow(policy, action_keys, s, reference)
        sampled = self.sample_given(key, s[0], condition)
        return self.mix * given.moved(s, reference, new) + (1.0 - self.mix) * sampled, new, ended

    def complete(self, s: Array, a: Array, ended: Array | None = None) -> Trajectory:
        """The trajectory of states s [T, O] and actions a [T, A], with the world model's rewards and terminals.

        It also ends at the first state that has `ended` [T].
        """
        chex.assert_rank([s, a], 2)
        reward = jax.vmap(self.model.reward)(s, a)
        discount = jax.vmap(self.model.discount)(s[:-1], a[:-1], s[1:])
        discount = discount if ended is None else jnp.where(ended[1:], 0.0, discount)
        discount = jnp.append(discount, 1.0)  # the state after the last step is not sampled: that step is masked
        return Trajectory(obs=s, action=a, reward=reward, discount=discount, mask=valid_steps(discount))

    def one(self, key: Array, policy: Policy, start: Array) -> Trajectory:
        """One trajectory [T] from start [O]."""
        chex.assert_rank(start, 1)
        key, key_rollout, key_actions = jax.random.split(key, 3)
        length = self.rollout.length
        if self.iterations == 0:
            return rollout(key_rollout, self.model, policy, start, self.rollout, jax.random.split(key_actions, length))
        if 0 < self.window < length:
            return self.complete(*self.chain((key_rollout, key), key_actions, policy, start))
        return self.complete(*self.follow((key_rollout, key), jax.random.split(key_actions, length), policy, start))

    def follow(
        self, keys: tuple[Array, Array], action_keys: Array, policy: Policy, start: Array
    ) -> tuple[Array, Array, Array | None]:
        """States [L, O], actions [L, A] and which states have ended [L], from start [O] after all iterations.

        `keys` are those of the first rollout and of the iterations, `action_keys` [L] the policy's.
        """

        def step(carry: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], Array | None]:
            s, reference, ended = self.iterate(key, action_keys, policy, *carry)
            return (s, reference), ended

        own = jax.random.split(keys[1], self.iterations)
        own = jnp.broadcast_to(own[:1], own.shape) if self.common_noise else own
        (s, _), ended = jax.lax.scan(step, self.begin(keys[0], action_keys, policy, start), own)
        return s, jax.vmap(policy.sample)(action_keys, s), None if ended is None else ended[-1]

    def begin(self, key: Array, action_keys: Array, policy: Policy, start: Array) -> tuple[Array, Array]:
        """States [L, O] before the first iteration, and their reference [L, O].

        Those of the world model's rollout or, anchored, of the anchor.
        """
        begun = self.denoiser.entries.begin(policy, action_keys, start)
        if begun is not None:
            return begun
        config = dataclasses.replace(self.rollout, length=action_keys.shape[0])
        s = rollout(key, self.model, policy, start, config, action_keys).obs
        return s, jnp.zeros_like(s)

    def chain(
        self, keys: tuple[Array, Array], key_actions: Array, policy: Policy, start: Array
    ) -> tuple[Array, Array, Array | None]:
        """As `follow`, of `rollout.length` steps in windows that share their ends."""
        length, steps = self.rollout.length, self.window - 1
        links = -(-(length - 1) // steps)
        action_keys = jax.random.split(key_actions, links * steps + 1)
        own = action_keys[jnp.arange(links)[:, None] * steps + jnp.arange(self.window)]

        def link(begin: Array, keys: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array, Array | None]]:
            found = self.follow((keys[0], keys[1]), keys[2], policy, begin)
            return found[0][-1], found

        _, (s, a, ended) = jax.lax.scan(link, start, (*(jax.random.split(key, links) for key in keys), own))
        join = lambda x: jnp.append(x[:, :-1].reshape(-1, *x.shape[2:]), x[-1, -1:], 0)[:length]
        if ended is not None:  # a window begins at the end of the one before, which may have been a terminal
            ended = join(ended.at[1:, 0].set(ended[:-1, -1]))
        return join(s), join(a), ended

    def __call__(self, key: Array, policy: Policy, start: Array) -> Synthesis:
        """start [N, O] -> N trajectories that begin there, weights zero."""
        chex.assert_rank(start, 2)
        policy = acting(policy, self.rollout.actions)
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

    Without a config, conditions are those of the denoiser. Raises InputError for conditions that it was not trained for
    ("clean" and "churned" share their training, "noised" has its own), for another conditioning, and for another ensemble than
    a denoiser is anchored on. `config.chained` counts for lengths above the denoiser's.
    """
    config = config or DyDiffConfig(conditions=denoiser.conditions, conditioning=denoiser.entries.kind)
    fit = ("noised",) if denoiser.conditions == "noised" else ("clean", "churned")
    check(config.conditions in fit, "synthesis.dydiff.conditions", config.conditions, f"{' or '.join(fit)}, as in training")
    check(config.conditioning == denoiser.entries.kind, "synthesis.dydiff.conditioning", config.conditioning,
          f"{denoiser.entries.kind!r}, as in the denoiser's training")  # fmt: skip
    anchored = ensemble_of(denoiser.entries)
    check(anchored is None or same_model(anchored, model), "world model", "another ensemble",
          "the ensemble that the anchored state denoiser was trained beside")  # fmt: skip
    length, sampler = length or denoiser.length, sampler or SamplerConfig()
    if config.states == "mean":
        sampler = SamplerConfig("euler", steps=1, sigma_max=sampler.sigma_max, batch_size=sampler.batch_size)
    shape = (length, denoiser.entries.dim)
    initial = RolloutConfig(length=length, sampled=config.sampled, elite=config.elite, actions=config.actions)
    return DyDiffSynthesizer(
        model=model,
        denoiser=dataclasses.replace(denoiser, conditions=config.conditions, given=looped(denoiser.given, config.loop)),
        sampling=make_sampling(sampler, denoiser.denoise, shape, guided=False),
        mix=jnp.asarray(config.mix, jnp.float32),
        iterations=config.iterations,
        rollout=initial,
        window=denoiser.length if config.chained else 0,
        mean=config.states == "mean",
        common_noise=config.common_noise,
    )
