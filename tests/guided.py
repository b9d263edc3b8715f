"""Guidance methods for tests: by name, without a limit, computed in full at all noise levels unless options say otherwise."""

from typing import Any

import jax.numpy as jnp

from jaxpgd.guidance.base import NoGuidance
from jaxpgd.guidance.kinds import at_every_level
from jaxpgd.guidance.moment import MomentConfig, MomentGuidance
from jaxpgd.guidance.published import PublishedConfig, PublishedGuidance
from jaxpgd.guidance.reconstruction import ReconstructionConfig, ReconstructionGuidance
from jaxpgd.guidance.smc import SMCConfig, SMCGuidance

ALL_LEVELS: dict[str, Any] = {"sigma_max": 1e9, "jacobian_sigma_min": 0.0}


def method(kind: str = "reconstruction", **options: Any) -> Any:
    """A guidance with options of its own; of "smc" `proposal` and those of the proposal."""
    if kind == "smc":
        proposal = options.pop("proposal", "reconstruction")
        return SMCGuidance(SMCConfig(proposal=proposal), at_every_level(method(proposal, **options)))
    if kind == "none":
        return NoGuidance()
    if kind == "published":
        return PublishedGuidance(PublishedConfig(**options))
    if kind == "moment":
        return MomentGuidance(MomentConfig(**{"limit": jnp.inf, "iterations": 2} | ALL_LEVELS | options))
    return ReconstructionGuidance(ReconstructionConfig(**{"limit": jnp.inf} | options))
