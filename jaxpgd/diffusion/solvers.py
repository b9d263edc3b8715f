"""The solvers by name, and the options of a sampler: its solver, its noise levels, the solver's own numbers."""

import math
from collections.abc import Callable
from typing import Literal

from jaxpgd.diffusion.multistep import DPMpp2M, DPMpp3M
from jaxpgd.diffusion.sampling import Solver
from jaxpgd.diffusion.single_step import Ancestral, ChurnConfig, EDMConfig, Euler, Heun
from jaxpgd.options import as_arrays, nonnegative, option, options, positive

SolverKind = Literal["heun", "euler", "ancestral", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "dpmpp_3m_sde"]


@options
class SamplerConfig:
    """Noise levels and solver of sampling (EDM section 5, algorithm 2); of the solvers' sections that of `kind` is used."""

    kind: SolverKind = option("dpmpp_2m_sde", "solver; `jaxpgd pareto` names the cheapest that suffices")
    steps: int = positive(32, "solver steps; heun takes two function evaluations in each but the last, other solvers one")
    sigma_min: float = positive(0.002, "smallest noise level (EDM: 0.002)")
    sigma_max: float = positive(80.0, "largest noise level, where sampling starts (EDM: 80)")
    rho: float = positive(
        7.0, "spacing of the noise levels (EDM, equation 5: 7); larger values put more of them near sigma_min", low=0.1
    )
    batch_size: int = nonnegative(0, "trajectories sampled at once; 0: the largest batch that fits the device's memory")
    heun: EDMConfig = EDMConfig()
    euler: EDMConfig = EDMConfig()
    ancestral: ChurnConfig = ChurnConfig()


SOLVERS: dict[str, Callable[[SamplerConfig], Solver]] = {
    "euler": lambda config: Euler(as_arrays(config.euler)),
    "heun": lambda config: Heun(as_arrays(config.heun)),
    "ancestral": lambda config: Ancestral(as_arrays(config.ancestral)),
    "dpmpp_2m": lambda config: DPMpp2M(),
    "dpmpp_2m_sde": lambda config: DPMpp2M(noise=1.0),
    "dpmpp_3m": lambda config: DPMpp3M(),
    "dpmpp_3m_sde": lambda config: DPMpp3M(noise=1.0),
}


def make_solver(config: SamplerConfig) -> Solver:
    """The solver that a config names, its numbers as leaves."""
    return SOLVERS[config.kind](config)


def noise_levels(sampler: SamplerConfig) -> list[float]:
    """The noise levels of a sampler's steps, the largest first (EDM equation 5), as `diffusion.edm.karras_sigmas`."""
    low, high, last = sampler.sigma_min, sampler.sigma_max, sampler.steps - 1
    shrink = math.expm1((math.log(low) - math.log(high)) / sampler.rho)
    inner = [high * math.exp(sampler.rho * math.log1p(i / last * shrink)) for i in range(1, last)]
    return [high, *inner, low] if last > 0 else [high]
