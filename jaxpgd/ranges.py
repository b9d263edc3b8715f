"""Choices and ranges of settings, of a whole config or of one section, for all that take settings."""

import dataclasses
import typing
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

from jaxpgd.errors import check
from jaxpgd.settings import AgentConfig, DenoiserConfig, SynthesisConfig

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


def check_training(agent: AgentConfig, synthesis: SynthesisConfig | None) -> None:
    """Check the settings that an agent is trained with; without `synthesis` it has real data alone. Raises InputError."""
    check_ranges(agent, "agent.")
    lengths = {"agent.updates": agent.updates}
    if synthesis is not None:
        check_ranges(synthesis, "synthesis.")
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
