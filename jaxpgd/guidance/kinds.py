"""The guidances by name: one struct with their numbers, which makes a denoiser a guided one for a policy."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.diffusion.solvers import SamplerConfig, noise_levels
from jaxpgd.errors import check
from jaxpgd.guidance.base import Guided, Likelihood, Normalise, PolicyNudge, ReconstructionGuidance, Unguided
from jaxpgd.guidance.moment import MomentGuidance
from jaxpgd.options import nonnegative, option, options, positive, share
from jaxpgd.tokens import TokenCodec
from jaxpgd.types import Denoise, Hook, Metrics, Policy


@options
class GuidanceConfig:
    """How samples are moved towards the policy (PGD section 4)."""

    kind: Literal["published", "reconstruction", "moment", "smc"] = option(
        "moment", "guidance method: published (PGD), reconstruction, moment, or smc (sequential Monte Carlo)"
    )
    coefficient: float = nonnegative(
        1.0, "lambda (published: per 256 steps); its upper bound with target_ess or max_dynamics_error; 0: no guidance"
    )
    target_ess: float = share(
        0.0, "use the largest lambda at which the effective size of weighted unguided samples is this share; 0: off"
    )
    max_dynamics_error: float = nonnegative(
        0.0, "in runs, use the largest lambda with at most this multiple of the unguided dynamics error; 0: off"
    )
    at: Literal["noised", "denoised"] = option("denoised", "published: where the policy's gradient is taken")
    normalise: Literal["none", "safe", "official"] = option(
        "safe", 'published: L2-normalise over the trajectory; "official": NaN at 0'
    )
    sine: float = nonnegative(0.3, "published: weight of the sine term in the schedule", high=1e3)
    hold_states: bool = option(False, "reconstruction, moment: no gradient through the policy's observation")
    limit: float = positive(
        2.0, "all but published: largest change of a denoised entry, in deviations sigma / sqrt(1 + sigma^2) of it", high=1e3
    )
    iterations: int = positive(2, "moment: steps of conjugate gradients, each costs two forward-equivalents")
    damping: float = nonnegative(0.0, "moment: added to the diagonal of the system")
    proposal: Literal["none", "reconstruction", "moment"] = option("reconstruction", "smc: what particles are moved by")
    order: Literal["first", "second"] = option("second", "smc: of the steps")
    particles: int = positive(256, "smc: trajectories of a population, at most")
    threshold: float = share(0.5, "smc: resampled where the effective size falls under this share of the population")
    sigma_min: float = nonnegative(0.0, "smallest noise level at which samples are guided; 0: down to the last step", high=1e9)
    sigma_max: float = option(1e9, "largest noise level at which samples are guided", low=0.0, high=1e9)


Kind = Literal["published", "reconstruction", "moment", "smc"]
Proposal = Literal["none", "reconstruction", "moment"]


@struct.dataclass
class Guidance:
    """Which guidance, with its numbers as leaves; `attach` makes it act on a denoiser for a policy.

    Meanings as in `settings.GuidanceConfig`; the ladder is described in `guidance`.
    """

    coefficient: Array | float
    sine: Array | float = 0.3
    sigma_min: Array | float = 0.0
    sigma_max: Array | float = jnp.inf
    damping: Array | float = 0.0
    threshold: Array | float = 0.5
    target_ess: Array | float = 0.0
    limit: Array | float = jnp.inf
    kind: Kind = struct.field(pytree_node=False, default="reconstruction")
    at: Literal["noised", "denoised"] = struct.field(pytree_node=False, default="denoised")
    normalise: Normalise = struct.field(pytree_node=False, default="safe")
    hold_states: bool = struct.field(pytree_node=False, default=False)
    iterations: int = struct.field(pytree_node=False, default=2)
    proposal: Proposal = struct.field(pytree_node=False, default="reconstruction")
    order: Literal["first", "second"] = struct.field(pytree_node=False, default="second")
    particles: int = struct.field(pytree_node=False, default=256)
    adaptive: bool = struct.field(pytree_node=False, default=False)  # whether `target_ess` chooses the coefficient

    def guided(self, denoise: Denoise, policy: Policy, codec: TokenCodec, counted: Array | None = None) -> Guided:
        """The guided Denoise: of "smc" its proposal. Raises ValueError for "published", which is none.

        `counted` [T] are the steps whose actions count (None: all).
        Raises TypeError where weights need a log-density that the policy does not have.
        """
        if self.weighted and policy.log_prob_fn is None:
            raise TypeError('guidance.kind = "smc": expected a policy with log_prob_fn, which weights are made of')
        kind = self.proposal if self.kind == "smc" else self.kind
        likelihood = Likelihood(
            policy, codec, self.coefficient, self.sigma_min, self.sigma_max, self.limit, self.hold_states, self.weighted,
            counted,
        )  # fmt: skip
        if kind == "none":
            return Unguided(denoise, likelihood)
        if kind == "reconstruction":
            return ReconstructionGuidance(denoise, likelihood)
        if kind == "moment":
            return MomentGuidance(denoise, likelihood, self.damping, self.iterations)
        raise ValueError(f"guidance.kind = {kind!r}: a hook of the sampler, not a denoiser")

    def attach(
        self, denoise: Denoise, policy: Policy, codec: TokenCodec, counted: Array | None = None
    ) -> tuple[Denoise, Hook | None]:
        """The Denoise and the `before_step` hook to sample one trajectory with. "smc" samples populations: see `smc`."""
        if self.kind != "published":
            return self.guided(denoise, policy, codec, counted), None
        numbers = (self.coefficient, self.sine, self.sigma_min, self.sigma_max)
        return denoise, PolicyNudge(policy, codec, *numbers, self.at, self.normalise, counted)

    @property
    def weighted(self) -> bool:
        """Whether samples come in weighted populations."""
        return self.kind == "smc"

    def unweighted(self) -> "Guidance | None":
        """The same guidance; of "smc" its proposal, None where that is the denoiser itself."""
        if self.kind != "smc":
            return self
        return None if self.proposal == "none" else dataclasses.replace(self, kind=self.proposal)

    @property
    def cost(self) -> int:
        """Forward-equivalents of one guided evaluation (a forward pass is 1, a product with the Jacobian 1 more)."""
        kind = self.proposal if self.kind == "smc" else self.kind
        return {"published": 1, "none": 1, "reconstruction": 2, "moment": 1 + 2 * self.iterations}[kind]

    def forward_equivalents(self, evaluations: Array, steps: int) -> Array:
        """Of one sample that took so many evaluations in so many steps: the nudge at the denoised point adds one a step."""
        nudges = steps if self.kind == "published" and self.at == "denoised" else 0
        return self.cost * evaluations + nudges


def guidance_profile(key: Array, guided: Guided, tokens: Array, sigmas: Array) -> Metrics:
    """How strong guidance is at noise levels sigmas [K], on clean tokens [N, T, D] with noise of that level on them.

    `guidance_norm` [K]: root mean square over tokens of the change that guidance makes to the score; `score_norm` [K]: that of
    the unguided score (D(x) - x) / sigma^2.
    """

    def at(key: Array, sigma: Array) -> tuple[Array, Array]:
        x = tokens + sigma * jax.random.normal(key, tokens.shape, tokens.dtype)
        look = jax.vmap(guided.look, in_axes=(0, None))(x, sigma)
        size = lambda change: jnp.sqrt(jnp.square(change).mean()) / jnp.square(sigma)
        return size(look.guided - look.denoised), size(look.denoised - x)

    guidance, score = jax.lax.map(lambda pair: at(*pair), (jax.random.split(key, sigmas.shape[0]), sigmas))
    return {"guidance_norm": guidance, "score_norm": score}


def make_guidance(config: GuidanceConfig) -> Guidance:
    """Guidance with the numbers of its section as leaves."""
    numbers = ("coefficient", "sine", "sigma_min", "sigma_max", "damping", "threshold", "target_ess", "limit")
    structure = ("kind", "at", "normalise", "hold_states", "iterations", "proposal", "particles", "order")
    fields: dict[str, Any] = {name: jnp.asarray(getattr(config, name), jnp.float32) for name in numbers}
    fields["adaptive"] = config.target_ess > 0
    return Guidance(**fields, **{name: getattr(config, name) for name in structure})


def check_guided(sampler: SamplerConfig, guidance: GuidanceConfig) -> None:
    """Check that some step of the sampler is guided. Raises InputError."""
    low, high, published = guidance.sigma_min, guidance.sigma_max, guidance.kind == "published"
    check(low < sampler.sigma_max, "guidance.sigma_min", low,
          f"less than sampler.sigma_max = {sampler.sigma_max}, or no step is guided")  # fmt: skip
    check(high >= sampler.sigma_min, "guidance.sigma_max", high,
          f"at least sampler.sigma_min = {sampler.sigma_min}, or no step is guided")  # fmt: skip
    if sampler.kind == "auto":  # levels are not known yet
        return
    check(not published or sampler.steps > 1, "sampler.steps", sampler.steps,
          "at least 2 where guidance.kind is 'published', whose last step is not guided")  # fmt: skip
    levels = noise_levels(sampler)[: -1 if published else None]
    nearest = min(levels, key=lambda level: max(low - level, level - high))
    check(
        low <= nearest <= high,
        "guidance.sigma_min, guidance.sigma_max",
        (low, high),
        "a noise level of the sampler between them, or no step is guided",
        f"The nearest is {nearest:.4g}.",
    )
