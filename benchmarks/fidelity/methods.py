"""The guidance methods that the suite `guidance` measures, each with a sampler and numbers of steps."""

import dataclasses
import math
from typing import Any, Literal

from jaxpgd.diffusion.solvers import SolverKind
from jaxpgd.guidance.kinds import GuidanceConfig
from jaxpgd.guidance.moment import MomentConfig
from jaxpgd.guidance.published import PublishedConfig
from jaxpgd.guidance.reconstruction import ReconstructionConfig
from jaxpgd.guidance.smc import SMCConfig

MethodKind = Literal["published", "reconstruction", "moment", "smc"]
COUNT = 4096  # samples, and particles of `smc`


@dataclasses.dataclass(frozen=True)
class Method:
    """A guidance method with a sampler, and the numbers of steps at which it is measured."""

    name: str
    guidance: GuidanceConfig | None
    solver: SolverKind
    steps: tuple[int, ...]
    churn: float = 0.0
    step_size: float = 0.0  # of `published` only: its coefficient, the size of a step; the target has another


def nudge(step_size: float) -> Method:
    """The published guidance and churn, at a step size."""
    guidance = GuidanceConfig("published", published=PublishedConfig(at="noised"))
    return Method(f"published, step size {step_size:g}", guidance, "heun", (), 80.0, step_size)


ALL_LEVELS: dict[str, Any] = {
    "jacobian": "symmetrised", "sigma_max": 1e9, "jacobian_sigma_min": 0.0
}  # fmt: skip


def guided(kind: MethodKind, smc: SMCConfig = SMCConfig(), **moment: Any) -> GuidanceConfig:
    """Options of a method, without its limit on changes: targets in closed form are those of the method itself."""
    sections = ReconstructionConfig(limit=math.inf), MomentConfig(limit=math.inf, **moment)
    return GuidanceConfig(kind, reconstruction=sections[0], moment=sections[1], smc=smc)


def methods(particles: int = COUNT) -> tuple[Method, ...]:
    """All guidance methods but `published`, of which "smc" uses only the noise levels of its solver."""
    smc_with = lambda proposal, order="second": guided("smc", smc=SMCConfig(proposal, order, particles))
    moment = lambda **options: guided("moment", **options)
    return (
        Method("none", None, "heun", (32,)),
        Method("reconstruction", guided("reconstruction"), "heun", (16, 32, 64)),
        Method("reconstruction, churn 20", guided("reconstruction"), "heun", (32, 64, 128), 20.0),
        Method("moment", moment(), "dpmpp_2m_sde", (16, 24, 32, 48)),
        Method("moment, 2 iterations", moment(iterations=2), "dpmpp_2m_sde", (32,)),
        Method("moment, cached", moment(cache_interval=2), "dpmpp_2m_sde", (32,)),
        Method("moment, all levels, 2 iterations", moment(iterations=2, **ALL_LEVELS), "dpmpp_2m_sde", (16, 32)),
        Method("moment, 2M", moment(), "dpmpp_2m", (13, 26, 52)),
        Method("moment, all levels, 2 iterations, 2M", moment(iterations=2, **ALL_LEVELS), "dpmpp_2m", (13, 26)),
        Method("moment, Heun", moment(), "heun", (16, 32)),
        Method("moment, all levels, 16 iterations", moment(iterations=16, **ALL_LEVELS), "heun", (32,)),
        Method("smc, first order", smc_with("reconstruction", "first"), "heun", (32, 64, 128)),
        Method("smc of none", smc_with("none"), "heun", (32, 128)),
        Method("smc of reconstruction", smc_with("reconstruction"), "heun", (32, 64, 128, 256, 512)),
        Method("smc of moment", smc_with("moment"), "heun", (32, 64)),
    )


NUDGES = (0.01, 0.03, 0.1, 0.3, 1.0)  # step sizes of the published guidance (per 256 steps); the best one is reported
