"""Trajectories from a denoiser, unguided (SynthER-style) or guided towards a policy (PGD): one Synthesizer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from jaxpgd.diffusion.conditioning import Chain, Clamp, CleanConditions, Condition
from jaxpgd.diffusion.padding import WindowEnds, padding
from jaxpgd.diffusion.solvers import SamplerConfig
from jaxpgd.errors import check
from jaxpgd.guidance.base import Likelihood
from jaxpgd.guidance.kinds import Guidance, GuidanceConfig, guidance_profile, make_guidance
from jaxpgd.guidance.smc import largest_exponent, smc
from jaxpgd.options import check_ranges
from jaxpgd.synthesis.replay import resample
from jaxpgd.synthesis.sampling import Sampling, make_sampling, map_starts, summary
from jaxpgd.tokens import Ends, TokenCodec, ended
from jaxpgd.types import Denoise, Metrics, Policy, Synthesis, Synthesizer, Trajectory

PROFILE_LEVELS = 8  # noise levels at which a generation tells the strength of its guidance
_PROFILED = 16  # of its trajectories


@struct.dataclass
class TrajectoryDenoiser:
    """A trained denoiser with the codec of its tokens: everything that sampling needs."""

    denoise: Denoise
    codec: TokenCodec
    length: int = struct.field(pytree_node=False)  # T of training
    ends: WindowEnds | None = None  # of its training windows where some are padded: trajectories then end as those do


@struct.dataclass
class DiffusionSynthesizer:
    """Samples whole trajectories of `length` steps; with `guidance`, towards the policy it is called with.

    Start observations only say how many: the model generates its own first states. With `from_start` the first state is
    in-painted instead: set to the start observation at the sampler's noise level at every stage, and exact at the end.
    Of a denoiser of padded windows every trajectory gets an end, drawn as training windows have theirs; after it is padding.
    """

    denoiser: TrajectoryDenoiser
    sampling: Sampling
    guidance: Guidance | None
    length: int = struct.field(pytree_node=False)
    from_start: bool = struct.field(pytree_node=False, default=False)

    def sample_tokens(self, key: Array, policy: Policy | None, start: Array, ends: Ends | None = None) -> tuple[Array, Array]:
        """One trajectory's tokens [T, D] and the number of denoiser evaluations []; start [O] counts with `from_start`."""
        codec, denoise, nudge = self.denoiser.codec, self.knowing(ends), None
        if self.guidance is not None and policy is not None:
            denoise, nudge = self.guidance.attach(denoise, policy, codec, self.own(ends))
        clamp = self.clamp(start) if self.from_start else None
        before = Chain((nudge, clamp)) if nudge is not None and clamp is not None else nudge or clamp
        shape = (self.length, codec.token_dim)
        x, info = self.sampling.draw(key, denoise, shape, before_step=before, after_stage=clamp)
        return x, info["evaluations"]

    def knowing(self, ends: Ends | None) -> Denoise:
        """The denoiser, told where the trajectory ends."""
        denoise = self.denoiser.denoise
        if ends is None:
            return denoise
        return CleanConditions(denoise, padding(self.denoiser.codec, ends, self.length))  # type: ignore[arg-type]

    def own(self, ends: Ends | None) -> Array | None:
        """Which steps [..., T] are before the end; None: all."""
        return None if ends is None else ends.own(self.length)

    def clamp(self, start: Array) -> Clamp:
        """The hook that holds the first state at start [O]."""
        codec = self.denoiser.codec
        value = jnp.zeros((self.length, codec.token_dim), jnp.float32)
        value = value.at[0, codec.obs].set((start - codec.mean[codec.obs]) / codec.std[codec.obs])
        known = jnp.zeros(value.shape, bool).at[0, codec.obs].set(True)
        return Clamp(Condition(value, known), noised=True)

    def __call__(self, key: Array, policy: Policy | None, start: Array) -> Synthesis:
        """start [N, O] -> N trajectories, weighted where guidance is "smc". `policy` may be None where there is no guidance."""
        ends = None
        if self.denoiser.ends is not None:
            key, key_ends = jax.random.split(key)
            ends = self.denoiser.ends.draw(key_ends, start.shape[0], self.length)
        tokens, log_weight, info = self.sample(key, policy, start, ends)
        trajectory = self.denoiser.codec.decode(tokens)
        if ends is not None:
            trajectory = jax.vmap(ended)(trajectory, ends)
        if policy is not None and self.profiled:
            key_profile = jax.random.fold_in(key, 2**32 - 1)  # of no trajectory
            heaviest = jnp.argsort(-log_weight)[:_PROFILED]  # lost particles may be no numbers
            those = jax.tree.map(lambda x: x[heaviest], ends)
            info |= self.with_coefficient(info["coefficient"]).profile(key_profile, policy, tokens[heaviest], those)
        return Synthesis(trajectory, log_weight, info | summary(trajectory, self.own(ends)))

    @property
    def profiled(self) -> bool:
        """Whether the strength of its guidance can be told: `published` moves samples, not the denoiser."""
        return self.guidance is not None and self.guidance.kind != "published"

    def profile(self, key: Array, policy: Policy, tokens: Array, ends: Ends | None = None) -> Metrics:
        """`guidance_profile` [K] around tokens [N, T, D] at noise levels of the sampler, "profile_sigma" [K]."""
        assert self.guidance is not None
        levels = self.sampling.sigmas[:-1]
        sigmas = levels[np.linspace(0, levels.shape[0] - 1, PROFILE_LEVELS).round().astype(int)]
        guided = lambda ends: self.guidance.guided(self.knowing(ends), policy, self.denoiser.codec, self.own(ends))
        if ends is None:
            return {"profile_sigma": sigmas, **guidance_profile(key, guided(None), tokens, sigmas)}
        one = lambda key, x, end: guidance_profile(key, guided(end), x[None], sigmas)
        each = jax.vmap(one)(jax.random.split(key, tokens.shape[0]), tokens, ends)
        return {"profile_sigma": sigmas, **{name: jnp.sqrt(jnp.square(x).mean(axis=0)) for name, x in each.items()}}

    def sample(self, key: Array, policy: Policy | None, start: Array, ends: Ends | None = None) -> tuple[Array, Array, Metrics]:
        """start [N, O] -> tokens [N, T, D], log weights [N], and what they cost: as `__call__`, before tokens are decoded.

        `ends` [N] of trajectories that end before T, which only a denoiser of padded windows knows.
        """
        if policy is not None and self.guidance is not None:
            if self.guidance.adaptive:
                return self.adapted(key, policy, start, ends)
            if self.guidance.weighted:
                return self.populations(key, policy, start)
        tokens, evaluations = map_starts(
            lambda key, x: self.sample_tokens(key, policy, *x), key, (start, ends), self.sampling.batch_size
        )
        return tokens, jnp.zeros(start.shape[0], jnp.float32), self.account(evaluations[0], guided=policy is not None)

    def adapted(self, key: Array, policy: Policy, start: Array, ends: Ends | None = None) -> tuple[Array, Array, Metrics]:
        """As `sample`, with the coefficient that `guidance.target_ess` asks for; info has it as "coefficient".

        It is found on as many unguided trajectories as are asked for, which cost a forward pass an evaluation besides.
        Raises TypeError for policies without log_prob_fn.
        """
        assert self.guidance is not None
        if policy.log_prob_fn is None:
            raise TypeError("guidance.target_ess: expected a policy with log_prob_fn, which weights are made of")
        key, key_unguided = jax.random.split(key)
        plain, _, spent = self.unguided().sample(key_unguided, None, start, ends)
        exact = lambda x, own: Likelihood(policy, self.denoiser.codec, 1.0, counted=own).exact(x)
        log_q = jax.vmap(exact)(plain, self.own(ends))
        coefficient = largest_exponent(log_q, self.guidance.target_ess, self.guidance.coefficient)
        tokens, log_weight, info = self.with_coefficient(coefficient).sample(key, policy, start, ends)
        cost = info["forward_equivalents"] + spent["evaluations"]
        return tokens, log_weight, info | {"coefficient": coefficient, "forward_equivalents": cost}

    @property
    def weighted(self) -> bool:
        """Whether trajectories come with weights."""
        return self.guidance is not None and self.guidance.weighted

    def account(self, evaluations: Array, *, guided: bool) -> Metrics:
        """What one trajectory cost."""
        cost = evaluations
        if self.guidance is not None and guided:
            cost = self.guidance.forward_equivalents(evaluations, self.sampling.sigmas.shape[0] - 1)
        coefficient = self.guidance.coefficient if self.guidance is not None and guided else 0.0
        return {"evaluations": evaluations, "forward_equivalents": cost, "coefficient": jnp.asarray(coefficient, jnp.float32)}

    def populations(self, key: Array, policy: Policy, start: Array) -> tuple[Array, Array, Metrics]:
        """As `sample`, by sequential Monte Carlo: populations of `guidance.particles`, their weights on one scale.

        Populations are of equal size: at most one particle of each is made in vain. Raises ValueError with `from_start`,
        which particles do not support.
        """
        assert self.guidance is not None
        if self.from_start:
            raise ValueError('guidance.kind = "smc": trajectories cannot be made to begin at given observations')
        codec, count = self.denoiser.codec, start.shape[0]
        number = -(-count // self.guidance.particles)
        size = -(-count // number)
        guidance, guided = self.guidance, self.guidance.guided(self.denoiser.denoise, policy, codec)

        def one(key: Array) -> tuple[Array, Array, Metrics]:
            return smc(
                key, guided, (self.length, codec.token_dim), self.sampling.sigmas,
                particles=size, threshold=guidance.threshold, order=guidance.order, batch_size=self.sampling.batch_size,
            )  # fmt: skip

        tokens, log_weight, info = jax.lax.map(one, jax.random.split(key, number))
        # a population counts by its estimate of the normaliser, its particles by their weights
        # one without a living particle has the estimate -inf, and no weight
        inside = log_weight - jax.nn.logsumexp(log_weight, axis=-1, keepdims=True) + info["log_normaliser"][:, None]
        log_weight = jnp.where(jnp.isfinite(inside), inside, -jnp.inf)
        alive = {name: jnp.where(jnp.isfinite(info[name]), info[name], 0.0) for name in ("ess", "least_ess")}
        means = {"ess": alive["ess"].mean(), "least_ess": alive["least_ess"].min(), "resampled": info["resampled"].mean()}
        means["log_normaliser"] = jax.nn.logsumexp(info["log_normaliser"]) - jnp.log(len(info["log_normaliser"]))
        account = self.account(info["looks"][0], guided=True)
        return tokens.reshape(-1, *tokens.shape[2:])[:count], log_weight.reshape(-1)[:count], account | means

    def with_coefficient(self, coefficient: Array | float) -> "DiffusionSynthesizer":
        """The same synthesizer with another guidance coefficient, not adapted. Raises ValueError where it has no guidance."""
        if self.guidance is None:
            raise ValueError("this synthesizer has no guidance whose coefficient could be set")
        number = jnp.asarray(coefficient, jnp.float32)  # as in `make_guidance`: another type would compile once more
        return dataclasses.replace(self, guidance=dataclasses.replace(self.guidance, coefficient=number, adaptive=False))

    def starting(self) -> "DiffusionSynthesizer":
        """The same synthesizer with trajectories that begin at the start observations.

        Particles cannot be made to begin there: of "smc" its proposal is left, without weights. None ends before T.
        """
        guidance = None if self.guidance is None else self.guidance.unweighted()
        whole = dataclasses.replace(self.denoiser, ends=None)
        return dataclasses.replace(self, denoiser=whole, from_start=True, guidance=guidance)

    def unguided(self) -> "DiffusionSynthesizer":
        """The same synthesizer without guidance."""
        return dataclasses.replace(self, guidance=None)


def make_synthesizer(
    denoiser: TrajectoryDenoiser,
    sampler: SamplerConfig | None = None,
    guidance: GuidanceConfig | None = None,
    *,
    length: int = 0,
) -> DiffusionSynthesizer:
    """Synthesizer of a trained denoiser: unguided where `guidance` is None, policy-guided otherwise.

    `length` is the number of steps per trajectory (0: as in training). A denoiser of your own is a pytree callable (a struct
    dataclass, or `jax.tree_util.Partial` of a function and its parameters) in `TrajectoryDenoiser(denoise, windows.codec,
    windows.length)`. Raises InputError, unless they are "kept" also for settings that the kinds leave `unused`.
    """
    own = "a TrajectoryDenoiser: TrajectoryDenoiser(denoise, windows.codec, windows.length)"
    check(isinstance(denoiser, TrajectoryDenoiser), "denoiser", denoiser, own)
    check_ranges(sampler or SamplerConfig(), "sampler.")
    check_ranges(guidance or GuidanceConfig(), "guidance.")
    length = length or denoiser.length
    shape = (length, denoiser.codec.token_dim)
    x, sigma = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
    made = getattr(jax.eval_shape(denoiser.denoise, x, sigma), "shape", None)
    check(made == shape, "denoiser", made, f"tokens {list(shape)} of tokens {list(shape)} and a sigma []")
    through = guidance is not None and guidance.kind != "published"
    check_ends(guidance, denoiser.ends is not None)
    check(not (through and denoiser.codec.bounded), "data.normalisation", "limits",
          "'standard' with guidance of another kind than 'published', which takes tokens to have unit variance")  # fmt: skip
    return DiffusionSynthesizer(
        denoiser=denoiser,
        sampling=make_sampling(sampler or SamplerConfig(), denoiser.denoise, shape, guided=through),
        guidance=None if guidance is None else make_guidance(guidance),
        length=length,
    )


def check_ends(guidance: GuidanceConfig | None, padded: bool) -> None:
    """Raise InputError for a guidance that cannot end trajectories where windows are padded."""
    check(guidance is None or guidance.kind != "smc" or not padded, "guidance.kind", "smc",
          "another kind where data.pad_short pads windows: particles that are weighed against each other have one length",
          )  # fmt: skip


@jax.jit(static_argnames="count")
def synthesize(key: Array, synthesizer: Synthesizer, policy: Policy | None = None, *, count: int = 1) -> Trajectory:
    """`count` trajectories [N, T] of a synthesizer that needs no start observations; compiled once per structure and count.

    Weighted trajectories are resampled.
    """
    return _unweighted(key, synthesizer, synthesizer(key, policy, jnp.zeros((count, 1), jnp.float32)))  # type: ignore[arg-type]


@jax.jit
def synthesize_from(key: Array, synthesizer: Synthesizer, policy: Policy | None, start: Array) -> Trajectory:
    """N trajectories [N, T] of any synthesizer, from start observations [N, O] (diffusion only counts them)."""
    return _unweighted(key, synthesizer, synthesizer(key, policy, start))  # type: ignore[arg-type]


def _unweighted(key: Array, synthesizer: Synthesizer, made: Synthesis) -> Trajectory:
    if not getattr(synthesizer, "weighted", False):
        return made.trajectory
    return resample(jax.random.fold_in(key, 1), made.trajectory, made.log_weight)
