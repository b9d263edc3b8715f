"""Which settings count under which choices: the one table by which settings without effect are refused.

A rule says of some settings that they count only where something holds of the config. A setting that no rule names always
counts; one that several rules name counts where all of them hold.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable, Sequence

from jaxpgd.diffusion.solvers import SamplerConfig, noise_levels
from jaxpgd.errors import check
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.needs import NEEDS, clones, needs
from jaxpgd.guidance.kinds import moved_by
from jaxpgd.options import get, names_of
from jaxpgd.training.agent import AgentConfig

AGENTS = tuple(field.name for field in dataclasses.fields(AgentConfig) if dataclasses.is_dataclass(field.default))

_DIFFUSION = NEEDS["denoiser"]
_SAMPLED = (*_DIFFUSION, *NEEDS["state-denoiser"])


@dataclasses.dataclass(frozen=True)
class Rule:
    """Settings, or whole sections of them, that count only where `holds`; `where` says that in words.

    `of_arms`: it is the arms that decide. One set of options then serves runs of different arms, and is told, not refused.
    """

    names: tuple[str, ...]
    holds: Callable[[Config], bool]
    where: str
    of_arms: bool = False

    def names_setting(self, name: str) -> bool:
        """Whether the setting of a dotted name is one of these."""
        return any(name == part or name.startswith(part + ".") for part in self.names)


def _rule(names: str, holds: Callable[[Config], bool], where: str) -> Rule:
    return Rule(tuple(names.split()), holds, where)


def _of_arms(names: str, *arms: str) -> Rule:
    return Rule(tuple(names.split()), lambda c: bool(set(arms) & set(c.arms)), f"arms has {' or '.join(arms)}", of_arms=True)


def _of_agent(kind: str) -> Rule:
    return _rule(f"agent.{kind}", lambda c: c.agent.kind == kind, f"agent.kind is {kind!r}")


def _steps(config: Config) -> int:
    """The largest number of sampler steps that a run takes."""
    return max(config.sampler.steps, config.evaluation.sampler_steps)


def _draws(config: Config) -> bool:
    """Whether anything is sampled, rather than estimated by one evaluation."""
    return config.synthesis.dydiff.states == "sampled" or bool({"unguided", "guided"} & set(config.arms))


def _churns(config: Config, solver: str) -> bool:
    """Whether a solver's section puts noise back at some noise level."""
    own = getattr(config.sampler, solver)
    return own.churn > 0 and any(own.churn_min <= level <= own.churn_max for level in noise_levels(config.sampler))


def _of_solver(kind: str) -> list[Rule]:
    """Of a solver with churn: its section, and the numbers of churn in it."""
    name, within = f"sampler.{kind}", "some noise level is within [churn_min, churn_max]"
    numbers = [f"{name}.{each}" for each in names_of(type(getattr(SamplerConfig(), kind))) if each != "churn"]
    return [
        _rule(name, lambda c: c.sampler.kind == kind, f"sampler.kind is {kind!r}"),
        _rule(
            " ".join(numbers),
            lambda c: _churns(c, kind), f"{name}.churn is above 0 and {within}",
        ),
        _rule(f"{name}.churn", lambda c: get(c, name).churn == 0.0 or _churns(c, kind), within),
    ]  # fmt: skip


def _of_guidance(kind: str) -> Rule:
    return _rule(f"guidance.{kind}", lambda c: moved_by(c.guidance) == kind,
                 f"guidance.kind, or the proposal of 'smc', is {kind!r}")  # fmt: skip


def _refreshes(config: Config) -> bool:
    return config.synthesis.regime != "oneoff" and config.synthesis.interval < config.agent.updates


def _swept(config: Config) -> set[str]:
    """The settings of the agent that the run sweeps over."""
    return {f"agent.{config.agent.kind}.{name.removeprefix('agent.')}" for name in config.sweep[::2]}


RULES: tuple[Rule, ...] = (
    # which arms need what
    _of_arms(
        "models_from data.stride data.add_episode_starts data.add_terminals data.allow_timeout_end data.pad_short "
        "data.terminal_repeats data.done_scale data.normalisation data.validation_fraction "
        "synthesis evaluation.trajectories evaluation.behaviour evaluation.classifier",
        *_SAMPLED, "world_model",
    ),
    _of_arms("denoiser sampler", *_SAMPLED),
    _of_arms("guidance evaluation.coefficients evaluation.sampler_steps", *_DIFFUSION),
    _of_arms("guidance.max_dynamics_error synthesis.first_unguided", "guided"),
    Rule(("world_model",), lambda c: needs(c, "world-model"),
         "arms has dydiff or world_model, or synthesis.consistency.kind is 'dynamics'", of_arms=True),
    _of_arms("synthesis.consistency", *_DIFFUSION),
    _of_arms("synthesis.dydiff", "dydiff"),
    _of_arms("synthesis.world_model", "world_model"),
    # data and denoiser
    _rule("data.episodes", lambda c: c.data.name.split("-")[0] == "point2d", "data.name is a built-in environment"),
    _rule("data.fraction_seed", lambda c: c.data.fraction < 1, "data.fraction is below 1"),
    _rule("denoiser.steps", lambda c: c.denoiser.epochs == 0, "denoiser.epochs is 0"),
    _rule("denoiser.muon_levels", lambda c: c.denoiser.optimiser == "muon", "denoiser.optimiser is 'muon'"),
    _rule("denoiser.ema", lambda c: c.denoiser.ema_width == 0, "denoiser.ema_width is 0"),
    # world model
    _rule("world_model.holdout", lambda c: c.world_model.holdout_by == "transitions" or c.data.validation_fraction == 0,
          "world_model.holdout_by is 'transitions', or data.validation_fraction is 0"),
    # sampler
    _rule("sampler.kind sampler.steps sampler.sigma_min sampler.rho sampler.heun sampler.euler sampler.ancestral", _draws,
          "arms has unguided or guided, or synthesis.dydiff.states is 'sampled'"),
    _rule("sampler.sigma_min", lambda c: _steps(c) > 1, "sampler.steps is above 1"),
    _rule("sampler.rho", lambda c: _steps(c) > 2, "sampler.steps is above 2"),
    *(rule for kind in ("heun", "euler", "ancestral") for rule in _of_solver(kind)),
    # guidance
    _rule("guidance.published", lambda c: c.guidance.kind == "published", "guidance.kind is 'published'"),
    _of_guidance("reconstruction"),
    _of_guidance("moment"),
    _rule(" ".join(f"guidance.{kind}.{name}" for kind in ("reconstruction", "moment")
                   for name in ("hold_states", "cache_interval", "sigma_min", "sigma_max")),
          lambda c: c.guidance.kind != "smc", "guidance.kind is 'reconstruction' or 'moment'"),
    _rule("guidance.smc", lambda c: c.guidance.kind == "smc", "guidance.kind is 'smc'"),
    # synthesis
    _rule("synthesis.interval", lambda c: c.synthesis.regime != "oneoff", "synthesis.regime is not 'oneoff'"),
    _rule("synthesis.fraction", lambda c: c.synthesis.regime in ("continuous", "fifo"),
          "synthesis.regime is 'continuous' or 'fifo'"),
    _rule("synthesis.fraction", lambda c: c.synthesis.regime == "fifo" or _refreshes(c),
          "a refresh is due (synthesis.interval below agent.updates)"),
    _rule("synthesis.consistency.floor synthesis.consistency.denoiser_error synthesis.consistency.sigma_max "
          "synthesis.consistency.iterations",
          lambda c: c.synthesis.consistency.kind != "none", "synthesis.consistency.kind is not 'none'"),
    _rule("synthesis.filter.keep synthesis.filter.steps", lambda c: c.synthesis.filter.kind != "none",
          "synthesis.filter.kind is not 'none'"),
    _rule("synthesis.filter.temperature synthesis.filter.uniform", lambda c: c.synthesis.filter.kind == "softmax",
          "synthesis.filter.kind is 'softmax'"),
    _rule("synthesis.dydiff.mix synthesis.dydiff.conditions synthesis.dydiff.scaled_conditions synthesis.dydiff.conditioning "
          "synthesis.dydiff.behaviour synthesis.dydiff.states",
          lambda c: c.synthesis.dydiff.iterations > 0, "synthesis.dydiff.iterations is above 0"),
    _rule("synthesis.dydiff.chained", lambda c: c.synthesis.dydiff.iterations > 0
          and c.synthesis.length > (c.synthesis.dydiff.window or c.data.window),
          "synthesis.dydiff.iterations is above 0, and synthesis.length above synthesis.dydiff.window (0: data.window)"),
    _rule("synthesis.dydiff.elite synthesis.dydiff.sampled",
          lambda c: c.synthesis.dydiff.iterations == 0 or c.synthesis.dydiff.conditioning != "anchored",
          "synthesis.dydiff.conditioning is not 'anchored', or synthesis.dydiff.iterations is 0"),
    _rule("synthesis.dydiff.loop",
          lambda c: c.synthesis.dydiff.iterations > 1 and c.synthesis.dydiff.conditioning == "anchored",
          "synthesis.dydiff.iterations is above 1, and synthesis.dydiff.conditioning is 'anchored'"),
    _rule("synthesis.dydiff.common_noise",
          lambda c: c.synthesis.dydiff.iterations > 1 and c.synthesis.dydiff.states == "sampled",
          "synthesis.dydiff.iterations is above 1, and synthesis.dydiff.states is 'sampled'"),
    _rule("synthesis.dydiff.behaviour", clones, "synthesis.dydiff.conditioning is not 'published'"),
    _rule("synthesis.dydiff.elite synthesis.world_model.elite synthesis.world_model.truncate",
          lambda c: c.world_model.elites > 1, "world_model.elites is above 1"),
    # agents
    *map(_of_agent, AGENTS),
    _rule("agent.td3_bc.policy_std", lambda c: c.agent.td3_bc.actor == "deterministic",
          "agent.td3_bc.actor is 'deterministic', which has no density of its own"),
    _rule("agent.diffusion_ql.candidates", lambda c: c.agent.diffusion_ql.choice != "centre",
          "agent.diffusion_ql.choice is not 'centre'"),
    # evaluation
    _rule("evaluation.intermediate_episodes", lambda c: c.evaluation.every > 0, "evaluation.every is above 0"),
)  # fmt: skip


def unused(config: Config) -> dict[str, str]:
    """The settings that a config's own choices leave without effect, each with where it would count, in words."""
    found = dict.fromkeys(sorted(_swept(config)), "sweep does not vary it")
    for rule, names in _names_by_rule():
        if not rule.holds(config):
            found = dict.fromkeys(names, rule.where) | found
    return found


@functools.cache
def _names_by_rule() -> list[tuple[Rule, list[str]]]:
    """Every rule, with the settings that it is about."""
    return [(rule, [name for name in names_of(Config) if rule.names_setting(name)]) for rule in RULES]


@functools.cache
def _rules_of(name: str) -> tuple[Rule, ...]:
    """The rules about a setting."""
    return tuple(rule for rule in RULES if rule.names_setting(name))


def of_other_arms(config: Config, name: str) -> bool:
    """Whether a setting is without effect because of the config's arms."""
    return any(rule.of_arms and not rule.holds(config) for rule in _rules_of(name))


def check_used(
    configs: Sequence[Config], given: Iterable[str], defaults: Callable[[Config], Sequence[Config]], before: str = ""
) -> None:
    """Check that the settings `given` by name, where they are at none of their defaults, have an effect in one of the configs.

    Raises InputError, which names the setting, with `before` in front of it, and where it would count. Those that other arms
    would need are told on stderr instead.
    """
    idle, plain = [unused(config) for config in configs], [defaults(config) for config in configs]
    for name in given:
        changed = [i for i, c in enumerate(configs) if get(c, name) not in [get(default, name) for default in plain[i]]]
        if changed and all(name in idle[i] for i in changed):
            first = changed[0]
            value, where = get(configs[first], name), idle[first][name]
            if all(of_other_arms(configs[i], name) for i in changed):
                note = f"note: {before}{name} = {value!r} has no effect: it counts only where {where}"
                print(note, file=sys.stderr, flush=True)
                continue
            check(False, before + name, value, f"its default {get(plain[first][0], name)!r}, as it counts only where {where}")
