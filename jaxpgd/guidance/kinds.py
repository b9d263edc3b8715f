"""The guidance methods by name: their options, and the object of the chosen one."""

import dataclasses
from collections.abc import Callable
from typing import Literal

from jaxpgd.diffusion.solvers import SamplerConfig, noise_levels
from jaxpgd.errors import check
from jaxpgd.guidance.base import DenoisedPointGuidance, Guidance, GuidedLevels, NoGuidance
from jaxpgd.guidance.moment import MomentConfig, MomentGuidance
from jaxpgd.guidance.published import PublishedConfig, PublishedGuidance
from jaxpgd.guidance.reconstruction import ReconstructionConfig, ReconstructionGuidance
from jaxpgd.guidance.smc import SMCConfig, SMCGuidance
from jaxpgd.guidance.strength import EffectiveSizeStrength, FixedStrength, Strength
from jaxpgd.options import as_arrays, nonnegative, option, options, share


@options
class GuidanceConfig:
    """How samples are moved towards the policy (PGD section 4); of the methods' sections that of `kind` is used."""

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
    published: PublishedConfig = PublishedConfig()
    reconstruction: ReconstructionConfig = ReconstructionConfig()
    moment: MomentConfig = MomentConfig()
    smc: SMCConfig = SMCConfig()


PROPOSALS: dict[str, Callable[[GuidanceConfig], DenoisedPointGuidance]] = {
    "none": lambda config: NoGuidance(),
    "reconstruction": lambda config: ReconstructionGuidance(config.reconstruction),
    "moment": lambda config: MomentGuidance(config.moment),
}
METHODS: dict[str, Callable[[GuidanceConfig], Guidance]] = {
    "published": lambda config: PublishedGuidance(config.published),
    "reconstruction": PROPOSALS["reconstruction"],
    "moment": PROPOSALS["moment"],
    "smc": lambda config: SMCGuidance(config.smc, at_every_level(PROPOSALS[config.smc.proposal](config))),
}


def at_every_level(guidance: DenoisedPointGuidance) -> DenoisedPointGuidance:
    """The same method, computed at every evaluation and noise level: what `smc` proposes with."""
    everywhere = as_arrays(dataclasses.replace(guidance.options, sigma_min=0.0, sigma_max=1e9, cache_interval=1))
    found: DenoisedPointGuidance = dataclasses.replace(guidance, options=everywhere)  # type: ignore[type-var]
    return found


def make_guidance(config: GuidanceConfig) -> Guidance:
    """The guidance that a config names, its numbers as leaves. Its coefficient is not among them: see `make_strength`."""
    return METHODS[config.kind](as_arrays(config))


def make_strength(config: GuidanceConfig) -> Strength:
    """What chooses the coefficient of a refresh, its numbers as leaves: `target_ess` where it is set, else the stated one.

    `max_dynamics_error` needs the real dynamics: a run resolves it and states the number.
    """
    numbers = as_arrays(config)
    if config.target_ess > 0:
        return EffectiveSizeStrength(numbers.target_ess, numbers.coefficient)
    return FixedStrength(numbers.coefficient)


def moved_by(config: GuidanceConfig) -> str:
    """The method that moves samples: of "smc" its proposal."""
    return config.smc.proposal if config.kind == "smc" else config.kind


def check_guided(sampler: SamplerConfig, guidance: GuidanceConfig) -> None:
    """Check that some step of the sampler is guided, unless numbers are traced or arrays. Raises InputError."""
    if guidance.kind == "smc":  # its proposals are guided at every level
        return
    section, published = f"guidance.{guidance.kind}", guidance.kind == "published"
    levels: GuidedLevels = getattr(guidance, guidance.kind)
    low, high = levels.sigma_min, levels.sigma_max
    if not all(isinstance(x, int | float) for x in (low, high, sampler.sigma_min, sampler.sigma_max, sampler.rho)):
        return
    check(low < sampler.sigma_max, f"{section}.sigma_min", low,
          f"less than sampler.sigma_max = {sampler.sigma_max}, or no step is guided")  # fmt: skip
    check(high >= sampler.sigma_min, f"{section}.sigma_max", high,
          f"at least sampler.sigma_min = {sampler.sigma_min}, or no step is guided")  # fmt: skip
    check(not published or sampler.steps > 1, "sampler.steps", sampler.steps,
          "at least 2 where guidance.kind is 'published', whose last step is not guided")  # fmt: skip
    steps = noise_levels(sampler)[: -1 if published else None]
    nearest = min(steps, key=lambda level: max(low - level, level - high))
    check(
        low <= nearest <= high,
        f"{section}.sigma_min, {section}.sigma_max",
        (low, high),
        "a noise level of the sampler between them, or no step is guided",
        f"The nearest is {nearest:.4g}.",
    )
