"""Trajectories from a denoiser, unguided (SynthER-style) or guided towards a policy (PGD): one Synthesizer."""

import dataclasses
from typing import Literal, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from jaxpgd.diffusion.conditioning import Chain, Clamp, CleanConditions, Condition
from jaxpgd.diffusion.padding import WindowEnds, padding
from jaxpgd.diffusion.solvers import SamplerConfig
from jaxpgd.errors import check
from jaxpgd.guidance.base import Echo, Guidance, Guided
from jaxpgd.guidance.consistency import Consistency, ConsistencyConfig, ConsistentDenoise, ConsistentGuided, OneStepModel
from jaxpgd.guidance.diagnostics import guidance_profile
from jaxpgd.guidance.kinds import GuidanceConfig, check_guided, make_guidance, make_strength
from jaxpgd.guidance.likelihood import Likelihood
from jaxpgd.guidance.smc import SMCGuidance, on_one_scale, smc
from jaxpgd.guidance.strength import FixedStrength, Strength
from jaxpgd.options import as_arrays, check_ranges
from jaxpgd.synthesis.replay import resample
from jaxpgd.synthesis.sampling import Sampling, make_sampling, map_starts, summary
from jaxpgd.tokens import Ends, TokenCodec, ended
from jaxpgd.types import Denoise, Metrics, Policy, Synthesis, Synthesizer, Trajectory

PROFILE_LEVELS = 8  # noise levels at which a refresh tells the strength of its guidance
_PROFILED = 16  # of its trajectories


@struct.dataclass
class TrajectoryDenoiser:
    """A trained denoiser with the codec of its tokens: everything that sampling needs."""

    denoise: Denoise
    codec: TokenCodec
    length: int = struct.field(pytree_node=False)  # T of training
    ends: WindowEnds | None = None  # of its training windows where some are padded: trajectories then end as those do


@struct.dataclass
class DiffusionSynthesizer(Synthesizer):
    """Samples entire trajectories of `length` steps; with `guidance`, towards the policy it is called with.

    Start observations only say how many: the model generates its own first states. With `from_start` the first state is
    in-painted instead: set to the start observation at the sampler's noise level at every stage, and exact at the end.
    Of a denoiser of padded windows every trajectory gets an end, drawn as training windows have theirs; after it is padding.
    With `consistency` trajectories are corrected towards the dynamics while they are sampled, guided or not.
    """

    denoiser: TrajectoryDenoiser
    sampling: Sampling
    guidance: Guidance | None
    strength: Strength | None
    length: int = struct.field(pytree_node=False)
    from_start: bool = struct.field(pytree_node=False, default=False)
    consistency: Consistency | None = None

    def sample_tokens(
        self, key: Array, policy: Policy | None, coefficient: Array | float, start: Array, ends: Ends | None = None
    ) -> tuple[Array, Metrics]:
        """One trajectory's tokens [T, D], and its `nfe` and `forward_equivalents` []; start [O] counts with `from_start`."""
        codec, denoise, hook = self.denoiser.codec, self.knowing(ends), None
        if self.guidance is not None and policy is not None:
            denoise, hook = self.guidance.attach(denoise, policy, codec, coefficient, self.valid(ends))
        denoise = self.corrected(denoise, ends)
        clamp = self.clamp(start) if self.from_start else None
        before = Chain((hook, clamp)) if hook is not None and clamp is not None else hook or clamp
        shape = (self.length, codec.token_dim)
        x, info = self.sampling.draw(key, denoise, shape, before_step=before, after_stage=clamp)
        return x, self.with_hooks(info, guided=hook is not None)

    def knowing(self, ends: Ends | None) -> Denoise:
        """The denoiser, told where the trajectory ends."""
        denoise = self.denoiser.denoise
        if ends is None:
            return denoise
        return CleanConditions(denoise, padding(self.denoiser.codec, ends, self.length))  # type: ignore[arg-type]

    def corrected(self, denoise: Denoise, ends: Ends | None = None) -> Denoise:
        """The denoiser with the correction by the dynamics, if there is one."""
        return denoise if self.consistency is None else ConsistentDenoise(denoise, self.consistency, self.valid(ends))

    def valid(self, ends: Ends | None) -> Array | None:
        """Which steps [..., T] are before the end; None: all."""
        return None if ends is None else ends.valid(self.length)

    def clamp(self, start: Array) -> Clamp:
        """The hook that holds the first state at start [O]."""
        codec = self.denoiser.codec
        value = jnp.zeros((self.length, codec.token_dim), jnp.float32)
        value = value.at[0, codec.obs].set((start - codec.mean[codec.obs]) / codec.std[codec.obs])
        known = jnp.zeros(value.shape, bool).at[0, codec.obs].set(True)
        return Clamp(Condition(value, known), noised=True)

    def __call__(self, key: Array, policy: Policy | None, start: Array) -> Synthesis:
        """start [N, O] -> N trajectories, weighted where guidance is "smc". `policy` may be None where there is no guidance.

        Info: `nfe`, `forward_equivalents` and `coefficient` [] (0: unguided) of one trajectory, besides `summary`.
        """
        chex.assert_rank(start, 2)
        ends = None
        if self.denoiser.ends is not None:
            key, key_ends = jax.random.split(key)
            ends = self.denoiser.ends.draw(key_ends, start.shape[0], self.length)
        tokens, log_weight, info = self.sample(key, policy, start, ends)
        trajectory = self.denoiser.codec.decode(tokens)
        if ends is not None:
            trajectory = jax.vmap(ended)(trajectory, ends)
        if policy is not None and self.profile_levels > 0:
            key_profile = jax.random.fold_in(key, 2**32 - 1)  # of no trajectory
            heaviest = jnp.argsort(-log_weight)[:_PROFILED]  # lost particles may be no numbers
            those = jax.tree.map(lambda x: x[heaviest], ends)
            info |= self.profile(key_profile, policy, info["coefficient"], tokens[heaviest], those)
        return Synthesis(trajectory, log_weight, info | summary(trajectory, self.valid(ends)))

    @property
    def guided(self) -> bool:
        """As `Synthesizer.guided`."""
        return self.guidance is not None

    @property
    def weighted(self) -> bool:
        """As `Synthesizer.weighted`."""
        return self.guidance is not None and self.guidance.weighted

    @property
    def profile_levels(self) -> int:
        """As `Synthesizer.profile_levels`; `published` moves samples, not the denoiser."""
        return PROFILE_LEVELS if self.guidance is not None and self.guidance.at_denoised_point else 0

    def profile(
        self, key: Array, policy: Policy, coefficient: Array | float, tokens: Array, ends: Ends | None = None
    ) -> Metrics:
        """`guidance_profile` [K] around tokens [N, T, D] at noise levels of the sampler, "profile_sigma" [K]."""
        assert self.guidance is not None
        guidance, codec, levels = self.guidance, self.denoiser.codec, self.sampling.sigmas[:-1]
        sigmas = levels[np.linspace(0, levels.shape[0] - 1, PROFILE_LEVELS).round().astype(int)]

        def guided_until(end: Ends | None) -> Guided:
            denoise, _ = guidance.attach(self.knowing(end), policy, codec, coefficient, self.valid(end))
            return cast(Guided, denoise)

        if ends is None:
            return {"profile_sigma": sigmas, **guidance_profile(key, guided_until(None), tokens, sigmas)}
        one = lambda key, x, end: guidance_profile(key, guided_until(end), x[None], sigmas)
        each = jax.vmap(one)(jax.random.split(key, tokens.shape[0]), tokens, ends)
        return {"profile_sigma": sigmas, **{name: jnp.sqrt(jnp.square(x).mean(axis=0)) for name, x in each.items()}}

    def resolve(
        self, key: Array, policy: Policy | None, start: Array, ends: Ends | None = None
    ) -> tuple[Array, Array, Array | int]:
        """The key to go on with, the coefficient lambda [] of these trajectories, and the forward-equivalents that it took.

        A strength that needs samples finds it on as many unguided trajectories as are asked for, which cost a forward pass an
        evaluation. Raises TypeError for policies without log_prob_fn.
        """
        if self.strength is None or policy is None:
            return key, jnp.zeros((), jnp.float32), 0
        if not self.strength.needs_samples:
            return key, self.strength.resolve(), 0
        if policy.log_prob_fn is None:
            raise TypeError("guidance.target_ess: expected a policy with log_prob_fn, which weights are made of")
        key, key_unguided = jax.random.split(key)
        plain, _, info = self.unguided().sample(key_unguided, None, start, ends)
        exact = lambda x, valid: Likelihood(policy, self.denoiser.codec, 1.0, valid=valid).exact(x)
        return key, self.strength.resolve(jax.vmap(exact)(plain, self.valid(ends))), info["nfe"]

    def sample(self, key: Array, policy: Policy | None, start: Array, ends: Ends | None = None) -> tuple[Array, Array, Metrics]:
        """start [N, O] -> tokens [N, T, D], log weights [N], and what they cost: as `__call__`, before tokens are decoded.

        `ends` [N] of trajectories that end before T, which only a denoiser of padded windows knows.
        """
        key, coefficient, spent = self.resolve(key, policy, start, ends)
        if policy is not None and self.weighted:
            tokens, log_weight, info = self.populations(key, policy, coefficient, start)
        else:
            one = lambda key, x: self.sample_tokens(key, policy, coefficient, *x)
            tokens, each = map_starts(one, key, (start, ends), self.sampling.batch_size)
            log_weight = jnp.zeros(start.shape[0], jnp.float32)
            info = {name: value[0] for name, value in each.items()}  # the same for all
            info["coefficient"] = jnp.asarray(coefficient if self.guides(policy) else 0.0, jnp.float32)
        return tokens, log_weight, info | {"forward_equivalents": info["forward_equivalents"] + spent}

    def guides(self, policy: Policy | None) -> bool:
        """Whether trajectories for this policy are guided."""
        return self.guidance is not None and policy is not None

    def with_hooks(self, info: Metrics, *, guided: bool) -> Metrics:
        """A sampler's info with the forward passes of guidance that is a hook."""
        if not guided or self.guidance is None:
            return info
        extra = self.guidance.hook_cost(self.sampling.sigmas.shape[0] - 1)
        return info | {"forward_equivalents": info["forward_equivalents"] + extra}

    def cost(self, *, guided: bool = True) -> Array:
        """Forward-equivalents [] of one trajectory, as `__call__` counts them, without sampling any."""
        if self.guidance is None or not guided:
            return self.sampling.cost(Echo())
        if isinstance(self.guidance, SMCGuidance):
            return jax.vmap(self.guidance.cost)(self.sampling.sigmas[:-1]).sum()
        counted = {"forward_equivalents": self.sampling.cost(self.guidance.counting())}
        return self.with_hooks(counted, guided=True)["forward_equivalents"]

    def populations(self, key: Array, policy: Policy, coefficient: Array | float, start: Array) -> tuple[Array, Array, Metrics]:
        """As `sample`, by sequential Monte Carlo: populations of equal size, their weights on one scale.

        At most one particle of each is drawn in vain. Raises ValueError with `from_start`, which particles do not support.
        """
        assert isinstance(self.guidance, SMCGuidance)
        if self.from_start:
            raise ValueError('guidance.kind = "smc": trajectories cannot be made to begin at given observations')
        codec, count, options = self.denoiser.codec, start.shape[0], self.guidance.options
        number = -(-count // options.particles)
        size = -(-count // number)
        least = options.least_share(size)
        guided: Guided = self.guidance.guide(self.denoiser.denoise, policy, codec, coefficient)
        if self.consistency is not None:
            guided = ConsistentGuided(guided, self.consistency)

        def one(key: Array) -> tuple[Array, Array, Metrics]:
            return smc(
                key, guided, (self.length, codec.token_dim), self.sampling.sigmas,
                particles=size, threshold=options.threshold, least_share=least, order=options.order,
                batch_size=self.sampling.batch_size,
            )  # fmt: skip

        tokens, log_weight, info = jax.lax.map(one, jax.random.split(key, number))
        log_weight, means = on_one_scale(log_weight, info, least)
        cost = {"nfe": info["nfe"][0], "forward_equivalents": self.cost(), "coefficient": jnp.asarray(coefficient, jnp.float32)}
        return tokens.reshape(-1, *tokens.shape[2:])[:count], log_weight.reshape(-1)[:count], cost | means

    def with_coefficient(self, coefficient: Array | float) -> "DiffusionSynthesizer":
        """As `Synthesizer.with_coefficient`."""
        if self.guidance is None:
            raise ValueError("this synthesizer has no guidance whose coefficient could be set")
        # as in `make_strength`: another type would compile once more
        return dataclasses.replace(self, strength=FixedStrength(jnp.asarray(coefficient, jnp.float32)))

    def starting(self) -> "DiffusionSynthesizer":
        """The same synthesizer with trajectories that begin at the start observations.

        Particles cannot begin there: of "smc" its proposal is left, without weights. None ends before T.
        """
        guidance = None if self.guidance is None else self.guidance.unweighted()
        denoiser, strength = dataclasses.replace(self.denoiser, ends=None), self.strength if guidance is not None else None
        return dataclasses.replace(self, denoiser=denoiser, from_start=True, guidance=guidance, strength=strength)

    def unguided(self) -> "DiffusionSynthesizer":
        """As `Synthesizer.unguided`."""
        return dataclasses.replace(self, guidance=None, strength=None)


def make_synthesizer(
    denoiser: TrajectoryDenoiser,
    sampler: SamplerConfig | None = None,
    guidance: GuidanceConfig | None = None,
    *,
    consistency: ConsistencyConfig | None = None,
    model: OneStepModel | None = None,
    length: int = 0,
    unused: Literal["refused", "kept"] = "refused",
) -> DiffusionSynthesizer:
    """Synthesizer of a trained denoiser: unguided where `guidance` is None, policy-guided otherwise.

    `length` is the number of steps per trajectory (0: as in training). `consistency` corrects trajectories towards what the
    one-step `model`, such as a `WorldModel`, predicts. A denoiser of your own is a pytree callable (a struct
    dataclass, or `jax.tree_util.Partial` of a function and its parameters) in `TrajectoryDenoiser(denoise, windows.codec,
    windows.length)`. Raises InputError for options out of their range, for a denoiser that does not fit its codec and, unless
    it is "kept", for guidance that acts at no noise level of the sampler (`check_guided`).
    """
    own = "a TrajectoryDenoiser: TrajectoryDenoiser(denoise, windows.codec, windows.length)"
    check(isinstance(denoiser, TrajectoryDenoiser), "denoiser", denoiser, own)
    check_ranges(sampler or SamplerConfig(), "sampler.")
    check_ranges(guidance or GuidanceConfig(), "guidance.")
    if guidance is not None and unused == "refused":
        check_guided(sampler or SamplerConfig(), guidance)
    length = length or denoiser.length
    shape = (length, denoiser.codec.token_dim)
    x, sigma = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
    found = getattr(jax.eval_shape(denoiser.denoise, x, sigma), "shape", None)
    check(found == shape, "denoiser", found, f"tokens {list(shape)} of tokens {list(shape)} and a sigma []")
    through = guidance is not None and guidance.kind != "published"
    check_ends(guidance, denoiser.ends is not None)
    check(not (through and denoiser.codec.bounded), "data.normalisation", "limits",
          "'standard' with guidance of another kind than 'published', which takes tokens to have unit variance")  # fmt: skip
    corrected = make_consistency(consistency or ConsistencyConfig(), model, denoiser.codec, length)
    return DiffusionSynthesizer(
        denoiser=denoiser,
        sampling=make_sampling(sampler or SamplerConfig(), denoiser.denoise, shape, guided=through, correct=corrected),
        guidance=None if guidance is None else make_guidance(guidance),
        strength=None if guidance is None else make_strength(guidance),
        length=length,
        consistency=corrected,
    )


def make_consistency(
    config: ConsistencyConfig, model: OneStepModel | None, codec: TokenCodec, length: int
) -> Consistency | None:
    """The correction that a config names, its numbers as leaves; None for kind "none". Raises InputError."""
    check_ranges(config, "synthesis.consistency.")
    if config.kind == "none":
        return None
    check(model is not None, "model", model, "a one-step model, such as a WorldModel, where consistency.kind is 'dynamics'")
    check(length > 1, "length", length, "at least 2 steps where consistency.kind is 'dynamics'")
    check(not codec.bounded, "data.normalisation", "limits", "'standard' where consistency.kind is 'dynamics'")
    numbers = as_arrays(config)
    return Consistency(model, codec, numbers.floor, numbers.denoiser_error, numbers.sigma_max, config.iterations)  # type: ignore[arg-type]


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


def _unweighted(key: Array, synthesizer: Synthesizer, synthesis: Synthesis) -> Trajectory:
    if not synthesizer.weighted:
        return synthesis.trajectory
    return resample(jax.random.fold_in(key, 1), synthesis.trajectory, synthesis.log_weight)
