"""Checks of a whole config: ranges, and combinations that no single section can check."""

from typing import get_args

from jaxpgd.diffusion.solvers import noise_levels
from jaxpgd.errors import check
from jaxpgd.experiment.config import Arm, Config
from jaxpgd.experiment.needs import NEEDS, clones, corrects
from jaxpgd.guidance.kinds import check_guided, moved_by
from jaxpgd.options import check_ranges, get, range_of
from jaxpgd.synthesis.replay import check_share
from jaxpgd.training.denoiser import check_denoiser


def _check_evaluation(config: Config) -> None:
    check(0 < config.evaluation.confidence < 1, "evaluation.confidence", config.evaluation.confidence, "between 0 and 1")
    for i, coefficient in enumerate(config.evaluation.coefficients):
        check(coefficient > 0, f"evaluation.coefficients[{i}]", coefficient, "a number above 0 (0 is always included)")
        most = range_of(config, "guidance.coefficient").high
        check(coefficient <= most, f"evaluation.coefficients[{i}]", coefficient, f"a number up to {most:g}")


def validate(config: Config) -> None:
    """Check ranges and combinations. Raises InputError."""
    check_ranges(config)
    check_denoiser(config.denoiser)
    s = config.sampler
    check(s.sigma_min < s.sigma_max, "sampler.sigma_min", s.sigma_min, f"less than sampler.sigma_max = {s.sigma_max}")
    _check_evaluation(config)
    if "guided" in config.arms:
        _check_guided_arm(config)
    _check_guidance(config)
    _check_consistency(config)
    _check_dydiff(config)
    _check_pairs(config)
    _check_numbers(config)
    _check_lengths(config)
    _check_chunks(config)
    check(len(config.arms) > 0, "arms", config.arms, "at least one of " + ", ".join(get_args(Arm)))
    check(len(set(config.arms)) == len(config.arms), "arms", config.arms, "no arm twice")


def _check_guided_arm(config: Config) -> None:
    g, y, a = config.guidance, config.synthesis, config.agent
    check(g.coefficient > 0, "guidance.coefficient", g.coefficient,
          "a number above 0 where arms has guided (0 is the arm unguided)")  # fmt: skip
    never = y.first_unguided and (y.regime == "oneoff" or y.interval >= a.updates)
    want = f"false where no refresh is due before agent.updates = {a.updates} (synthesis.interval = {y.interval}, "
    check(not never, "synthesis.first_unguided", True, want + f"regime {y.regime!r}): nothing would ever be guided",
          "Set it to false or " + ("choose another regime." if y.regime == "oneoff" else "shorten synthesis.interval."),
          )  # fmt: skip
    check(g.kind == "published" or config.data.normalisation == "standard", "data.normalisation", config.data.normalisation,
          f"'standard' where guidance.kind is {g.kind!r}, which takes tokens to have unit variance")  # fmt: skip
    check(g.max_dynamics_error == 0 or y.first_unguided, "synthesis.first_unguided", False,
          "true where guidance.max_dynamics_error chooses the coefficient, which it does before a refresh")  # fmt: skip


def _check_consistency(config: Config) -> None:
    own, length = config.synthesis.consistency, config.synthesis.length or config.data.window
    if not corrects(config):
        return
    where = f"where synthesis.consistency.kind is {own.kind!r}"
    check(config.data.normalisation == "standard", "data.normalisation", config.data.normalisation, f"'standard' {where}")
    name = "synthesis.length" if config.synthesis.length else "data.window"
    check(length > 1, name, length, f"at least 2 {where}: one step has no dynamics")
    least = noise_levels(config.sampler)[-1]
    check(own.sigma_max >= least, "synthesis.consistency.sigma_max", own.sigma_max,
          f"at least the sampler's smallest noise level, {least:.4g}, or no step is corrected")  # fmt: skip


def _check_guidance(config: Config) -> None:
    g, y, a = config.guidance, config.synthesis, config.agent
    check(not (config.data.pad_short and y.after_terminal), "synthesis.after_terminal", True,
          "false with data.pad_short: what follows the end of a padded window is no step")  # fmt: skip
    check(g.target_ess == 0 or g.kind != "published", "guidance.target_ess", g.target_ess,
          "0 where guidance.kind is 'published', whose coefficient is a step size and no exponent")  # fmt: skip
    check(g.max_dynamics_error == 0 or g.target_ess == 0, "guidance.max_dynamics_error", g.max_dynamics_error,
          f"0 where guidance.target_ess = {g.target_ess} chooses the coefficient")  # fmt: skip
    for proposal in ("reconstruction", "moment"):
        held = get(g, proposal).hold_states and g.kind == "smc" and moved_by(g) == proposal
        check(not held, f"guidance.{proposal}.hold_states", True,
              "false where guidance.kind is 'smc', whose weights move states")  # fmt: skip
    weighted = g.kind == "smc" or g.target_ess > 0
    own = a.kind == "diffusion_ql" and a.diffusion_ql.own_score
    check(not (weighted and own), "agent.diffusion_ql.own_score", True, "false with guidance.kind 'smc' or guidance.target_ess",
          "Their weights are of the log-density, not of the score.")  # fmt: skip
    if "guided" in config.arms:
        check_guided(config.sampler, g)


def _check_dydiff(config: Config) -> None:
    s, y = config.sampler, config.synthesis
    multistep = s.kind.startswith("dpmpp_")
    check(not multistep or y.dydiff.conditions != "churned" or "dydiff" not in config.arms, "synthesis.dydiff.conditions",
          y.dydiff.conditions, f"'clean' or 'noised' where sampler.kind is {s.kind!r}, which has no churn")  # fmt: skip
    check(not y.dydiff.scaled_conditions or y.dydiff.conditions != "noised", "synthesis.dydiff.scaled_conditions", True,
          "false where synthesis.dydiff.conditions is 'noised', which has no clean ones")  # fmt: skip
    hidden = y.dydiff.conditions == "noised" or y.dydiff.scaled_conditions
    check(not hidden or y.dydiff.states == "sampled", "synthesis.dydiff.states", y.dydiff.states,
          "'sampled' where synthesis.dydiff.conditions is 'noised' or scaled_conditions is true: at the largest noise level "
          "they tell nothing")  # fmt: skip
    if "dydiff" not in config.arms or not clones(config):
        return
    where = f"where synthesis.dydiff.conditioning is {y.dydiff.conditioning!r}"
    check(y.dydiff.conditions != "noised", "synthesis.dydiff.conditions", "noised", f"'clean' or 'churned' {where}")
    check(config.data.normalisation == "standard", "data.normalisation", config.data.normalisation, f"'standard' {where}")
    for width in y.dydiff.behaviour.hidden:
        check(width > 0, "synthesis.dydiff.behaviour.hidden", width, "layer widths above 0")


def _check_pairs(config: Config) -> None:
    """Lower and upper ends that are two settings."""
    ranges = (
        *((f"guidance.{kind}.sigma_min", f"guidance.{kind}.sigma_max") for kind in ("published", "reconstruction", "moment")),
        *((f"sampler.{kind}.churn_min", f"sampler.{kind}.churn_max") for kind in ("heun", "euler", "ancestral")),
        ("agent.diffusion_ql.beta_min", "agent.diffusion_ql.beta_max"),
    )  # fmt: skip
    for low, high in ranges:
        check(get(config, low) <= get(config, high), low, get(config, low), f"at most {high} = {get(config, high)}")


def _check_numbers(config: Config) -> None:
    a, y = config.agent, config.synthesis
    check(config.seed < 2**31, "seed", config.seed, "a number below 2^31")
    features = a.diffusion_ql.time_features
    check(features > 2 and features % 2 == 0, "agent.diffusion_ql.time_features", features, "an even number above 2")
    for width in (
        *a.td3_bc.hidden,
        *a.iql.hidden,
        *a.bc.hidden,
        *a.cql.hidden,
        *a.diffusion_ql.hidden,
        *a.diffusion_ql.critic_hidden,
        *a.rebrac.hidden,
    ):
        check(width > 0, "hidden", width, "layer widths above 0")
    m = config.world_model
    check(m.elites <= m.members, "world_model.elites", m.elites, f"at most world_model.members = {m.members}")
    check(m.holdout < 1, "world_model.holdout", m.holdout, "a number below 1")
    check(0 < y.fraction, "synthesis.fraction", y.fraction, "a number above 0")
    cuts = y.world_model.truncate > 0 and "world_model" in config.arms
    check(not (cuts and y.after_terminal), "synthesis.after_terminal", True,
          "false where synthesis.world_model.truncate cuts rollouts: what follows is not to be learned from")  # fmt: skip
    check(not (cuts and y.filter.kind != "none"), "synthesis.filter.kind", y.filter.kind,
          "'none' where synthesis.world_model.truncate cuts rollouts: returns would tell how soon they are cut")  # fmt: skip
    drops = y.drop_last and "world_model" in config.arms
    check(not drops or y.world_model.length != 1, "synthesis.world_model.length", y.world_model.length,
          "0 or at least 2 where synthesis.drop_last leaves the last step out")  # fmt: skip


def _check_lengths(config: Config) -> None:
    """Steps of windows and trajectories, which lie even on every level of a denoiser."""
    d, y = config.denoiser, config.synthesis
    arms, step = set(config.arms), 2 ** (d.blocks - 1)
    own_window = ("synthesis.dydiff.window", y.dydiff.window) if y.dydiff.window else ("data.window", config.data.window)
    lengths = (
        ("data.window", config.data.window, arms & set(NEEDS["denoiser"]), "a multiple of"),
        ("synthesis.length", y.length or config.data.window, arms & set(NEEDS["denoiser"]), "at least"),
        (*own_window, arms & {"dydiff"}, "a multiple of"),
    )  # fmt: skip
    for name, value, denoised, expected in lengths:
        check(value > 1, name, value, "at least 2 steps, for one usable transition")
        fits = value % step == 0 if expected == "a multiple of" else value >= step
        check(fits or not denoised, name, value, f"{expected} 2^(denoiser.blocks - 1) = {step}")


def _check_chunks(config: Config) -> None:
    """Numbers of updates, which are whole chunks."""
    a, y = config.agent, config.synthesis
    synthetic = set(config.arms) != {"real"}
    if synthetic:
        check_share(y, a.batch_size)
    chunked = {"agent.updates": a.updates} | ({"synthesis.interval": y.interval} if synthetic and y.regime != "oneoff" else {})
    for name, value in chunked.items():
        check(value % a.updates_per_chunk == 0, name, value, f"a multiple of agent.updates_per_chunk = {a.updates_per_chunk}")
    check(config.evaluation.every % a.updates_per_chunk == 0, "evaluation.every", config.evaluation.every,
          f"a multiple of agent.updates_per_chunk = {a.updates_per_chunk}")  # fmt: skip
