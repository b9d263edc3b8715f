"""How faithful the trajectories of a solver are, for `jaxpgd pareto`: candidates, measures, and which of them suffice."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxpgd.diffusion.solvers import SamplerConfig
from jaxpgd.errors import check
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.stages.build import Models, build_synthesizer
from jaxpgd.experiment.stages.prepare import Prepared, stage_key
from jaxpgd.experiment.stages.score_trajectories import flat_tokens, real_windows, score_trajectories
from jaxpgd.simulators.resimulation import has_simulator
from jaxpgd.synthesis.diffusion import DiffusionSynthesizer, synthesize
from jaxpgd.types import Policy

NFE = (4, 8, 12, 16, 24, 32, 64, 128, 256, 512)  # function evaluations of a trajectory
REFERENCE_STEPS = 256  # of Heun's method with churn (PGD, table of hyperparameters)
TOLERANCE = 0.05  # a sampler suffices where no measure exceeds the reference's by more than this share
# Noise levels for a small NFE: above 20 a token of unit variance is noise alone, below 0.01 nothing is left to correct.
SHORT_RANGE, SHORT_MOST = (0.01, 20.0), 32
# Less is better. Rewards of trajectories that end in a terminal are left out: they are the hardest and decide by their number.
MEASURES = ("dynamics_error", "surviving_reward_error", "sliced_wasserstein_1")
GUIDED_MEASURES = MEASURES[:2]  # guidance is meant to leave the data
SHOWN = (*MEASURES, "dynamics_error_se", "log_likelihood", "log_likelihood_se", "terminal_rate")
_HELD_OUT = 2000  # windows that trajectories are compared with, at most

Row = dict[str, Any]
Measure = Callable[[DiffusionSynthesizer], Row]


def steps_for(kind: str, nfe: int) -> int:
    """Noise levels with which a solver has at most this NFE, at least 2."""
    return max(2, nfe // 2 if kind == "heun" else nfe)


def candidates(sampler: SamplerConfig, nfe: tuple[int, ...], kinds: tuple[str, ...]) -> list[SamplerConfig]:
    """Samplers to measure, the cheapest first: every solver over the noise levels of the config.

    For a small NFE also over fewer noise levels. Churn stays that of the config, at most sqrt(2) - 1 a step.
    """
    found = []
    churned = {kind: dataclasses.replace(getattr(sampler, kind), predictor="churned") for kind in ("heun", "euler")}
    for count in sorted(nfe):
        ranges = [(sampler.sigma_min, sampler.sigma_max)]
        if count <= SHORT_MOST and SHORT_RANGE not in ranges:
            ranges.append(SHORT_RANGE)
        for kind in kinds:
            for low, high in ranges:
                changes = {"kind": kind, "steps": steps_for(kind, count), "sigma_min": low, "sigma_max": high}
                found.append(dataclasses.replace(sampler, **churned, **changes))  # type: ignore[arg-type]
    return found


def reference_of(sampler: SamplerConfig) -> SamplerConfig:
    """The published sampler: 256 Heun steps with churn over EDM's noise levels."""
    return dataclasses.replace(SamplerConfig(), kind="heun", steps=REFERENCE_STEPS, batch_size=sampler.batch_size)


def make_measure(config: Config, prepared: Prepared, policy: Policy | None, trajectories: int, seed: int) -> Measure:
    """Scores a synthesizer by trajectories from the same noise every time, guided where there is a policy."""
    key = jax.random.fold_in(stage_key(config, "pareto"), seed)
    held_out = np.random.default_rng(0).permutation(np.asarray(prepared.windows.validation))[:_HELD_OUT]
    real = flat_tokens(prepared.windows, real_windows(prepared.windows, held_out))

    def measure(synthesizer: DiffusionSynthesizer) -> Row:
        synthetic = synthesize(key, synthesizer, policy, count=trajectories)
        row = score_trajectories(jax.tree.map(np.asarray, synthetic), policy, prepared, real, key)
        return {name: row[name] for name in SHOWN if name in row}

    return measure


def check_measurable(field: str, value: object, config: Config, prepared: Prepared, *, guided: bool = False) -> None:
    """Raise InputError, naming `field`, where no measure would tell one sampler's trajectories from another's."""
    info, length = prepared.dataset.info, config.synthesis.length or config.data.window
    check(
        has_simulator(info) or (not guided and length == config.data.window), field, value,
        f"an environment that a simulator replays, which {info.env_id!r} is not, or unguided trajectories of data.window steps",
        "Nothing else tells samplers apart.",
    )  # fmt: skip


def suffices(row: Row, reference: Row, tolerance: float = TOLERANCE) -> bool:
    """Whether no measure is worse than the reference's by more than the tolerance; one that is not a number is worse.

    Guided, the log-likelihood may fall short by that share of what guidance gained in the reference.
    """
    guided = "unguided_log_likelihood" in reference
    names = [name for name in (GUIDED_MEASURES if guided else MEASURES) if np.isfinite(reference.get(name, np.nan))]
    check(bool(names), "measures", reference, "at least one that is a number for 256 Heun steps")
    if not all(row[name] <= (1 + tolerance) * reference[name] for name in names):
        return False
    if not guided:
        return True
    gain = reference["log_likelihood"] - reference["unguided_log_likelihood"]
    return bool(row["log_likelihood"] >= reference["log_likelihood"] - tolerance * abs(gain))


def described(sampler: SamplerConfig) -> Row:
    """What a row says of its sampler."""
    nfe = 2 * sampler.steps - 1 if sampler.kind == "heun" else sampler.steps
    return {
        "solver": sampler.kind, "nfe": nfe, "sigma_min": sampler.sigma_min, "sigma_max": sampler.sigma_max,
    }  # fmt: skip


def measured(config: Config, models: Models, measure: Measure, samplers: list[SamplerConfig], guided: bool) -> Iterator[Row]:
    """A row for each sampler, as they come."""
    for sampler in samplers:
        synthesizer = build(config, models, sampler, guided)
        row = described(sampler)
        row["settings"] = dataclasses.asdict(sampler)
        yield row | {"forward_equivalents": float(synthesizer.cost())} | measure(synthesizer)


def build(config: Config, models: Models, sampler: SamplerConfig, guided: bool) -> DiffusionSynthesizer:
    """The synthesizer of a config with another sampler, at the coefficient that the config states."""
    guidance = config.guidance if guided else None
    if guidance is not None:  # the coefficient as it is: what would choose it draws samples of its own
        guidance = dataclasses.replace(guidance, target_ess=0.0, max_dynamics_error=0.0)
    named = dataclasses.replace(config, sampler=sampler, guidance=guidance or config.guidance)
    return build_synthesizer(named, models, guided=guided)


def error_of(row: Row) -> float:
    """What of two rows of the same cost the better has less of."""
    return float(row["dynamics_error"] if "dynamics_error" in row else row.get("sliced_wasserstein_1", 0.0))
