"""What DyDiff's state denoiser is conditioned on, and the states in its samples: three kinds, one interface.

"published" is DyDiff's (arXiv 2405.19189): the first state and all actions. If the behaviour policy of the data reacts to
states, its actions are evidence about the states in which it took them, and the model has learned to use it: for another
policy's actions, states are pulled back to the data. "innovations" conditions on e_t = a_t - mu_b(s_t) instead, with mu_b the
behaviour's mean: under the behaviour, e_t is independent of the states up to t. "anchored" adds the ensemble's rollout s_hat of
mu_b + e from the first state; the denoiser then models the deviation s - s_hat, which is small.

An iteration of DyDiff takes what is given from the states s of the one before, in which the policy acts. Anchored, it can close
the loop: it keeps their deviations, and the policy acts in s_hat + deviation while s_hat is rolled out. With the loop open, an
error of one state moves its action, which moves all later states in the next iteration: over long rollouts that grows at first.
With the loop closed, deviations are taken to another anchor than they were found for: that does harm where anchors part.
"""

from typing import ClassVar, Literal, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.diffusion.conditioning import Condition
from jaxpgd.tokens import TokenCodec
from jaxpgd.types import Policy
from jaxpgd.world_model.behaviour import Behaviour
from jaxpgd.world_model.model import WorldModel
from jaxpgd.world_model.rollouts import anchor, anchor_of_policy
from jaxpgd.world_model.scales import Statistics

Conditioning = Literal["published", "innovations", "anchored"]
Loop = Literal["closed", "open"]


class Followed(NamedTuple):
    """What is given of a policy in one iteration."""

    condition: Condition  # the known entries
    reference: Array  # [T, O] the states that deviations are from; without an anchor, 0
    ended: Array | None = None  # [T] bool: states at or behind a terminal of the anchor; None: no anchor


class Given(Protocol):
    """The tokens [T, D] of a state denoiser: which entries are known of a rollout, their values, and the states in samples."""

    kind: ClassVar[Conditioning]

    @property
    def dim(self) -> int:
        """D."""
        ...

    def known(self, length: int) -> Array:
        """Which entries [T, D] are known, bool."""
        ...

    def condition(self, s: Array, a: Array) -> Condition:
        """The known entries, for actions a [T, A] taken in states s [T, O] of the previous iteration, from s_0 on."""
        ...

    def follow(self, policy: Policy, action_keys: Array, s: Array, reference: Array) -> Followed:
        """What is given of a policy.

        From states s [T, O] of the previous iteration and their `reference` [T, O]; `action_keys` [T] are the policy's.
        """
        ...

    def moved(self, s: Array, reference: Array, new: Array) -> Array:
        """States [T, O] with their deviations from one reference, from a new one."""
        ...

    def begin(self, policy: Policy, action_keys: Array, start: Array) -> tuple[Array, Array] | None:
        """States [T, O] before the first iteration, and their reference; None: those of the world model's rollout, and 0."""
        ...

    def states(self, x: Array, condition: Condition) -> Array:
        """The states [T, O] in a sample x [T, D] under a condition."""
        ...


class _Unanchored:
    """What entries of the states themselves share: [obs, A more], of which the first observation and the others are known."""

    codec: TokenCodec

    @property
    def dim(self) -> int:
        """O + A."""
        return self.codec.obs_dim + self.codec.action_dim

    def known(self, length: int) -> Array:
        """The first observation, and all entries behind observations: [T, O + A] bool."""
        return known_entries(self.codec, length)

    def follow(self: Given, policy: Policy, action_keys: Array, s: Array, reference: Array) -> Followed:
        """As `Given.follow`: of the policy's actions in s."""
        return Followed(self.condition(s, jax.vmap(policy.sample)(action_keys, s)), reference)

    def moved(self, s: Array, reference: Array, new: Array) -> Array:
        """As `Given.moved`: s."""
        return s

    def begin(self, policy: Policy, action_keys: Array, start: Array) -> tuple[Array, Array] | None:
        """As `Given.begin`: the world model's rollout."""
        return None

    def states(self, x: Array, condition: Condition) -> Array:
        """As `Given.states`."""
        return self.codec.observation(x)


@struct.dataclass
class GivenActions(_Unanchored):
    """[obs, action] entries, of which the first observation and all actions are known (DyDiff, arXiv 2405.19189)."""

    codec: TokenCodec
    kind: ClassVar[Conditioning] = "published"

    def condition(self, s: Array, a: Array) -> Condition:
        """Only s_0 is used."""
        chex.assert_rank([s, a], 2)
        obs = jnp.broadcast_to(s[0], (a.shape[0], s.shape[1]))
        return Condition(self.codec.encode_steps(obs, a), self.known(a.shape[0]))


@struct.dataclass
class GivenInnovations(_Unanchored):
    """[obs, innovation] entries, of which the first observation and all innovations are known."""

    codec: TokenCodec  # of unit variance
    behaviour: Behaviour
    scale: Array  # [A] standard deviation of the data's innovations
    kind: ClassVar[Conditioning] = "innovations"

    def encode(self, obs: Array, e: Array, s_hat: Array | None = None) -> Array:
        """Tokens [T, O + A] of states [T, O] and innovations [T, A]; no anchor is used."""
        chex.assert_rank([obs, e], 2)
        return jnp.concatenate([standardised(self.codec, obs), e / self.scale], axis=1)

    def condition(self, s: Array, a: Array) -> Condition:
        """e_t = a_t - mu_b(s_t)."""
        obs = jnp.broadcast_to(s[0], s.shape)
        return Condition(self.encode(obs, self.behaviour.innovation(s, a)), self.known(a.shape[0]))


@struct.dataclass
class GivenAnchor:
    """[deviation, innovation, anchor] entries, of which all are known but for the deviations after the first state, which is 0.

    The anchor s_hat is the ensemble's rollout of the behaviour with these innovations (`world_model.rollouts.anchor`). From a
    terminal on it stands still, and innovations are 0 (but for that of the last step, where the terminal is the last). Rollouts
    end where their anchors do: what is learned of deviations from there on is of windows that had no such terminal.
    Deviations s - s_hat grow along a rollout and have heavy tails: they are normalised by step and entry,
    z = (s - s_hat - centre) / spread by quantiles, and the token is arsinh z. Rollouts longer than those of training use the
    spread of the last step.
    """

    innovations: GivenInnovations
    model: WorldModel  # the ensemble that the denoiser was trained beside
    centre: Array  # [T, O] median deviation of training
    spread: Array  # [T, O] 0.9 quantile of its size, over that of a unit Gaussian
    clipped: Array  # [] share of the entries of training anchors that were clipped to the data's widened range
    loop: Loop = struct.field(pytree_node=False, default="closed")
    kind: ClassVar[Conditioning] = "anchored"

    @property
    def dim(self) -> int:
        """2 O + A."""
        return self.innovations.dim + self.innovations.codec.obs_dim

    def known(self, length: int) -> Array:
        """[T, 2 O + A] bool."""
        anchors = jnp.ones((length, self.innovations.codec.obs_dim), bool)
        return jnp.concatenate([self.innovations.known(length), anchors], axis=1)

    def anchor(self, start: Array, e: Array) -> tuple[Array, Array, Array]:
        """s_hat [T, O], which of its states have ended [T], and the share of its entries that were clipped."""
        return anchor(self.model, self.innovations.behaviour, start, e)

    def encode(self, obs: Array, e: Array, s_hat: Array | None = None) -> Array:
        """Tokens [T, 2 O + A] of states [T, O], innovations [T, A] and their anchor [T, O] (by default it is rolled out)."""
        s_hat = self.anchor(obs[0], e)[0] if s_hat is None else s_hat
        chex.assert_equal_shape([obs, s_hat])
        centre, spread = self._deviations(obs.shape[0])
        own, z = self.innovations, (obs - s_hat - centre) / spread
        e = jnp.where(stands_still(s_hat)[:, None], 0.0, e / own.scale)
        return jnp.concatenate([jnp.arcsinh(z), e, standardised(own.codec, s_hat)], axis=1)

    def condition(self, s: Array, a: Array) -> Condition:
        """e_t = a_t - mu_b(s_t), and the anchor from s_0 under e."""
        e = self.innovations.behaviour.innovation(s, a)
        return self._given(e, self.anchor(s[0], e)[0])

    def _given(self, e: Array, s_hat: Array) -> Condition:
        return Condition(self.encode(s_hat, e, s_hat), self.known(e.shape[0]))

    def follow(self, policy: Policy, action_keys: Array, s: Array, reference: Array) -> Followed:
        """As `Given.follow`, of the policy's actions in the new anchor and the deviations s - reference, or, open, in s."""
        behaviour = self.innovations.behaviour
        if self.loop == "open":
            e = behaviour.innovation(s, jax.vmap(policy.sample)(action_keys, s))
            s_hat, ended, _ = self.anchor(s[0], e)
            return Followed(self._given(e, s_hat), reference, ended)
        s_hat, e, ended = anchor_of_policy(self.model, behaviour, policy, action_keys, s[0], s - reference)
        return Followed(self._given(e, s_hat), s_hat, ended)

    def moved(self, s: Array, reference: Array, new: Array) -> Array:
        """As `Given.moved`, clipped as the anchor is; open: s."""
        return s if self.loop == "open" else self.model.clip_obs(new + s - reference)

    def begin(self, policy: Policy, action_keys: Array, start: Array) -> tuple[Array, Array] | None:
        """As `Given.begin`: the anchor of the policy, without deviation; in a closed loop the first iteration rolls it out."""
        none = jnp.zeros((action_keys.shape[0], *start.shape), start.dtype)
        if self.loop == "closed":
            return none + start, none + start
        s_hat, _, _ = anchor_of_policy(self.model, self.innovations.behaviour, policy, action_keys, start, none)
        return s_hat, s_hat

    def states(self, x: Array, condition: Condition) -> Array:
        """Anchor and deviation, clipped as the anchor is."""
        codec = self.innovations.codec
        centre, spread = self._deviations(x.shape[0])
        s_hat = condition.value[:, self.innovations.dim :] * codec.std[codec.obs] + codec.mean[codec.obs]
        return self.model.clip_obs(s_hat + jnp.sinh(x[:, codec.obs]) * spread + centre)

    def _deviations(self, length: int) -> tuple[Array, Array]:
        step = jnp.minimum(jnp.arange(length), self.centre.shape[0] - 1)
        return self.centre[step], self.spread[step]


def known_entries(codec: TokenCodec, length: int) -> Array:
    """The conditions among state tokens [T, O + A], bool: all actions, and the first observation."""
    is_action = jnp.arange(codec.obs_dim + codec.action_dim) >= codec.obs_dim
    first = jnp.arange(length) == 0
    return is_action[None, :] | first[:, None]


def standardised(codec: TokenCodec, obs: Array) -> Array:
    """The observation entries [..., O] of tokens."""
    return (obs - codec.mean[codec.obs]) / codec.std[codec.obs]


def stands_still(s_hat: Array) -> Array:
    """[T] bool: the steps of an anchor [T, O] from its terminal on (the last step as the one before)."""
    still = (s_hat[1:] == s_hat[:-1]).all(-1)
    return jnp.append(still, still[-1:]) if s_hat.shape[0] > 1 else jnp.zeros(1, bool)


def ensemble_of(given: Given) -> WorldModel | None:
    """The ensemble that anchors are rolled out in; None where there are none."""
    return given.model if isinstance(given, GivenAnchor) else None


def looped(given: Given | None, loop: Loop) -> Given | None:
    """The same entries with another `GivenAnchor.loop`; others have none."""
    return given.replace(loop=loop) if isinstance(given, GivenAnchor) else given  # type: ignore[attr-defined, no-any-return]


def same_model(a: WorldModel, b: WorldModel) -> bool:
    """Whether two ensembles predict the same states: of equal parameters, or not known, as one is traced.

    Scales may differ by rounding: they are sums over the data, whose order depends on the number of cores.
    """
    if a is b:
        return True
    left, right = (jax.tree.leaves(model.elites) for model in (a, b))
    scales = [(a.scales.obs, b.scales.obs), (a.scales.delta, b.scales.delta)]
    if any(isinstance(x, jax.core.Tracer) for x in (*left, *right, *jax.tree.leaves(scales))):
        return True
    equal = len(left) == len(right) and all(bool(jnp.array_equal(x, y)) for x, y in zip(left, right, strict=True))
    return equal and all(_to_rounding(x, y) for x, y in scales)


def _to_rounding(a: Statistics, b: Statistics) -> bool:
    """Whether two statistics differ by next to nothing, in standard deviations."""
    if a.std.shape != b.std.shape:
        return False
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(bool((jnp.abs(x - y) <= 1e-4 * a.std).all()) for x, y in pairs)
