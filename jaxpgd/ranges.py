"""Choices and ranges of settings, of a whole config or of one section, for all that take settings."""

import dataclasses
import math
import typing
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

from jaxpgd.errors import check
from jaxpgd.settings import AgentConfig, DenoiserConfig, GuidanceConfig, SamplerConfig, SynthesisConfig

_POSITIVE = (
    "seeds keep_checkpoints data.reward_scale data.window data.stride data.terminal_repeats data.episodes "
    "denoiser.features denoiser.blocks denoiser.groups denoiser.sigma_data "
    "denoiser.p_std denoiser.batch_size denoiser.peak_lr denoiser.ema_every denoiser.validate_every "
    "denoiser.validation_batches "
    "guidance.limit guidance.iterations guidance.particles "
    "sampler.steps sampler.sigma_min sampler.sigma_max sampler.rho "
    "synthesis.trajectories synthesis.interval "
    "agent.updates agent.batch_size agent.updates_per_chunk evaluation.episodes evaluation.intermediate_episodes "
    "dynamics.members dynamics.elites dynamics.lr dynamics.batch_size dynamics.holdout_most dynamics.epochs dynamics.patience "
    "synthesis.filter.keep synthesis.filter.temperature "
    "evaluation.trajectories agent.td3_bc.lr agent.iql.lr agent.td3_bc.critic_updates agent.td3_bc.policy_std "
    "agent.td3_bc.policy_delay "
    "agent.bc.lr agent.bc.policy_std agent.cql.actor_lr agent.cql.critic_lr agent.cql.cql_temperature agent.cql.n_actions "
    "agent.cql.initial_alpha agent.diffusion_ql.lr agent.diffusion_ql.steps agent.diffusion_ql.beta_min "
    "agent.diffusion_ql.beta_max agent.diffusion_ql.ema_every agent.diffusion_ql.candidates agent.diffusion_ql.policy_std "
    "agent.diffusion_ql.critic_lr agent.diffusion_ql.max_q_backup"
).split()
_NOT_NEGATIVE = (
    "seed health.skip_updates health.value_excess denoiser.steps denoiser.epochs denoiser.gradient_clip "
    "sampler.churn sampler.batch_size "
    "guidance.coefficient synthesis.length evaluation.every evaluation.sampler_steps evaluation.processes checkpoint_seconds "
    "evaluation.max_steps "
    "agent.td3_bc.alpha agent.td3_bc.cloning agent.td3_bc.policy_noise agent.iql.beta "
    "data.done_scale agent.td3_bc.noise_clip agent.td3_bc.adam_eps agent.iql.adam_eps agent.iql.advantage_clip "
    "dynamics.weight_decay dynamics.steps_per_epoch synthesis.world_model.length synthesis.world_model.penalty "
    "synthesis.dydiff.iterations synthesis.dydiff.window "
    "guidance.max_dynamics_error guidance.damping sampler.churn_noise sampler.churn_min guidance.sigma_min guidance.sine "
    "agent.diffusion_ql.ema_start agent.iql.decay_updates agent.cql.cloning_updates agent.diffusion_ql.decay_updates "
    "agent.bc.adam_eps agent.cql.alpha_lr agent.cql.weight agent.cql.adam_eps "
    "agent.diffusion_ql.eta agent.diffusion_ql.gradient_clip agent.diffusion_ql.adam_eps"
).split()
_SHARES = (
    "guidance.threshold guidance.target_ess data.validation_fraction "
    "denoiser.warmup_fraction denoiser.initial_lr_fraction denoiser.ema denoiser.p_high "
    "synthesis.fraction synthesis.synthetic_ratio synthesis.filter.keep synthesis.dydiff.mix dynamics.holdout "
    "agent.td3_bc.gamma agent.td3_bc.polyak agent.iql.gamma agent.iql.polyak "
    "agent.iql.tau agent.cql.gamma agent.cql.polyak "
    "agent.diffusion_ql.gamma agent.diffusion_ql.polyak agent.diffusion_ql.ema"
).split()

_ENDS: dict[str, tuple[float, float]] = {  # of real numbers: within them samples and losses are finite in float32
    "sampler.rho": (0.1, 1e6),  # below, levels crowd at the largest until they are one
    "sampler.churn_noise": (0.0, 10.0),
    "guidance.sigma_min": (0.0, 1e9),
    "guidance.sigma_max": (0.0, 1e9),
    "guidance.limit": (1e-6, 1e3),  # above, changes feed on themselves without a bound
    "guidance.sine": (0.0, 1e3),
    "denoiser.p_mean": (-10.0, 10.0),  # the logarithm of noise levels
    "denoiser.p_std": (1e-6, 3.0),
    "denoiser.sigma_data": (1e-3, 1e3),
    "data.done_scale": (0.0, 1e3),
    "checkpoint_seconds": (0.0, 1e9),
    "synthesis.filter.keep": (1e-3, 1.0),  # so many times as many are made
    "dynamics.weight_decay": (0.0, 1.0),
    "agent.td3_bc.policy_noise": (0.0, 1e3),
    "agent.td3_bc.noise_clip": (0.0, 1e3),
    "agent.cql.cql_temperature": (1e-3, 1e6),
    "agent.cql.target_entropy": (-1e3, 1e3),
    "agent.diffusion_ql.beta_min": (1e-6, 50.0),  # exp(beta) is the variance of noise
    "agent.diffusion_ql.beta_max": (1e-6, 50.0),
}
_ENDS_OF_ANY: dict[str, tuple[float, float]] = {  # by the last word of the name
    "lr": (1e-12, 1.0),
    "adam_eps": (1e-12, 1.0),  # at 0 Adam divides 0 by 0 where a gradient is 0
    "policy_std": (1e-3, 1e3),
    "decay_updates": (0.0, 1e9),
    "cloning_updates": (0.0, 1e9),
}


def ends(name: str) -> tuple[float, float]:
    """The least and the largest value of a setting that is a real number."""
    if name in _SHARES:
        return _ENDS.get(name, (0.0, 1.0))
    low = 1e-6 if name in _POSITIVE else 0.0 if name in _NOT_NEGATIVE else -1e6
    last = name.rpartition(".")[2]
    own = next((found for word, found in _ENDS_OF_ANY.items() if last == word or last.endswith("_" + word)), (low, 1e6))
    least, most = _ENDS.get(name, own)
    return max(least, low) if name in _NOT_NEGATIVE else least, most


def get(config: Any, name: str) -> Any:
    """The value of a dotted name."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def check_ranges(config: Any, prefix: str = "") -> None:
    """Check the choices and ranges of a config, or of one section of it: `check_ranges(AgentConfig(), "agent.")`.

    Values that are traced have no range yet and are left alone. Raises InputError, which names the setting.
    """
    _check_choices(config, prefix)
    ranges: tuple[tuple[list[str], Callable[[float], bool], str], ...] = (
        (_POSITIVE, lambda x: x > 0, "a number above 0"),
        (_NOT_NEGATIVE, lambda x: x >= 0, "a number not below 0"),
        (_SHARES, lambda x: 0 <= x <= 1, "a number from 0 to 1"),
    )
    for names, holds, expected in ranges:
        for name in names:
            value = get(config, name.removeprefix(prefix)) if name.startswith(prefix) else None
            check(not isinstance(value, int | float) or holds(value), name, value, expected)
    _check_ends(config, prefix)


def _check_ends(config: Any, prefix: str) -> None:
    """The same for ends that keep numbers finite, of settings that are real numbers or, below 2^31, whole ones."""
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            _check_ends(value, f"{prefix}{name}.")
        elif hint is int and isinstance(value, int):
            check(value < 2**31, prefix + name, value, "a number below 2^31")
        elif hint is float and isinstance(value, int | float):
            low, high = ends(prefix + name)
            check(low <= value <= high, prefix + name, value, f"a number from {low:g} to {high:g}")


def _check_choices(config: Any, prefix: str) -> None:
    """The same for settings that name one of several things."""
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            _check_choices(value, f"{prefix}{name}.")
        elif get_origin(hint) is Literal:
            check(value in get_args(hint), prefix + name, value, "one of " + ", ".join(map(repr, get_args(hint))))


def check_seed(seed: int) -> None:
    """Check `--seed` of a command. Raises InputError."""
    check(0 <= seed < 2**31, "--seed", seed, "a number from 0 to 2^31 - 1")


def noise_levels(sampler: SamplerConfig) -> list[float]:
    """The noise levels of a sampler's steps, the largest first (EDM equation 5), as `diffusion.edm.karras_sigmas`."""
    low, high, last = sampler.sigma_min, sampler.sigma_max, sampler.steps - 1
    shrink = math.expm1((math.log(low) - math.log(high)) / sampler.rho)
    inner = [high * math.exp(sampler.rho * math.log1p(i / last * shrink)) for i in range(1, last)]
    return [high, *inner, low] if last > 0 else [high]


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
    check(low <= nearest <= high, "guidance.sigma_min, guidance.sigma_max", (low, high),
          "a noise level of the sampler between them, or no step is guided", f"The nearest is {nearest:.4g}.")  # fmt: skip


def check_share(synthesis: SynthesisConfig, batch: int) -> None:
    """Check that batches of so many hold synthetic transitions. Raises InputError."""
    ratio = synthesis.synthetic_ratio
    check(round(ratio * batch) > 0, "synthesis.synthetic_ratio", ratio,
          f"more than {0.5 / batch:g}, for one synthetic transition in agent.batch_size = {batch}",
          "For none choose arms = [\"real\"].")  # fmt: skip


def check_training(agent: AgentConfig, synthesis: SynthesisConfig | None) -> None:
    """Check the settings that an agent is trained with; without `synthesis` it has real data alone. Raises InputError."""
    check_ranges(agent, "agent.")
    lengths = {"agent.updates": agent.updates}
    if synthesis is not None:
        check_ranges(synthesis, "synthesis.")
        check_share(synthesis, agent.batch_size)
        lengths |= {"synthesis.interval": synthesis.interval} if synthesis.regime != "oneoff" else {}
    chunk = agent.updates_per_chunk
    for name, value in lengths.items():
        check(value % chunk == 0, name, value, f"a multiple of agent.updates_per_chunk = {chunk}")


def check_denoiser(d: DenoiserConfig) -> None:
    """Check the settings that a denoiser is trained with. Raises InputError."""
    check_ranges(d, "denoiser.")
    check(d.steps > 0 or d.epochs > 0, "denoiser.steps", d.steps, "more than 0, or denoiser.epochs > 0")
    check(d.epochs > 0 or d.steps % d.validate_every == 0, "denoiser.steps", d.steps,
          f"a multiple of denoiser.validate_every = {d.validate_every}")  # fmt: skip
    check(d.features % d.groups == 0, "denoiser.groups", d.groups, f"a divisor of denoiser.features = {d.features}")
