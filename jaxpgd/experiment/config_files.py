"""TOML files in, validated settings out: presets, unknown keys, types, ranges.

A file may name a `preset`, whose values apply before the file's own. Unknown keys and wrong types are refused by name.
"""

import dataclasses
import math
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from jaxpgd.errors import InputError, check
from jaxpgd.experiment.config import Arm, Config
from jaxpgd.experiment.nearest import unknown_key
from jaxpgd.experiment.published import diffusion_ql_values
from jaxpgd.experiment.published_dydiff import BASE_AGENTS, DYDIFF, dydiff_values
from jaxpgd.experiment.used_settings import AGENTS, check_used
from jaxpgd.guidance.kinds import check_guided
from jaxpgd.options import check_ranges, get, range_of
from jaxpgd.synthesis.replay import check_share
from jaxpgd.training.denoiser import check_denoiser

Config_ = Any  # any options


_PAPER: dict[str, Any] = {
    "data": {"window": 32, "stride": 8, "allow_timeout_end": False, "terminal_repeats": 1, "done_scale": 0.0},
    "denoiser": {
        "features": 1024, "blocks": 3, "norm": "sequence",
        "block": "plain", "sigma_data": 1.0, "p_mean": -1.2, "p_std": 1.2, "p_high": 0.0,
        "epochs": 10_000, "batch_size": 32, "peak_lr": 2e-3, "warmup_fraction": 0.1, "initial_lr_fraction": 0.1,
        "ema": 0.995, "ema_every": 10,
    },
    "sampler": {
        "kind": "heun", "steps": 256, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "churn": 80.0,
        "churn_min": 0.05, "churn_max": 50.0, "churn_noise": 1.003, "predictor": "churned",
    },
    "guidance": {"kind": "published", "coefficient": 1.0, "at": "denoised", "normalise": "safe", "sine": 0.3},
    "synthesis": {
        "regime": "periodic", "trajectories": 8192, "interval": 10_000, "synthetic_ratio": 0.9375, "first_unguided": True,
    },
    "agent": {
        "updates": 1_000_000, "batch_size": 256, "updates_per_chunk": 10_000, "td3_bc": {"policy_std": 1.0},
        "bc": {"policy_std": 1.0}, "diffusion_ql": {"policy_std": 1.0},
    },
}  # fmt: skip

# What PGD's released code does at its defaults, where that changes results; configs/README.md lists the rest.
_OFFICIAL: dict[str, Any] = {
    **_PAPER,
    "denoiser": {**_PAPER["denoiser"], "norm": "step"},
    "sampler": {**_PAPER["sampler"], "predictor": "unchurned"},
    "guidance": {**_PAPER["guidance"], "at": "noised", "normalise": "none"},
    "synthesis": {**_PAPER["synthesis"], "length": 129, "drop_last": True, "after_terminal": True},
    "agent": {
        **_PAPER["agent"], "normalise_obs": False,
        "td3_bc": {"policy_std": 1.0, "lr": 1e-3, "actor_first": True, "init": "lecun_normal"},
        "iql": {"lr": 1e-3, "stale_value": True, "init": "lecun_normal"},
    },
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    "paper": _PAPER,  # PGD's; of DyDiff's arms "dydiff"
    "official": _OFFICIAL,
    "dydiff": DYDIFF,  # and what `published_dydiff.dydiff_values` says of the agent
    "diffusion_ql": {  # and what `published.diffusion_ql_values` says of the dataset
        "arms": ["real"],
        "agent": {
            "kind": "diffusion_ql", "batch_size": 256, "updates_per_chunk": 1000, "normalise_obs": False,
            "diffusion_ql": {
                "critic_lr": 3e-4, "ema_start": 1000.0, "choice": "softmax", "candidates": 50, "hidden": [256, 256, 256],
            },
        },
        "evaluation": {"every": 50_000},
    },
}  # fmt: skip


def load_config(
    path: str | Path | None = None, overrides: dict[str, Any] | None = None, *, unused: Literal["refused", "kept"] = "refused"
) -> Config:
    """Read a TOML file (or the defaults, for None), then nested `overrides`; check everything.

    Raises InputError naming the file, the key and, for unknown keys, the nearest valid one; and, unless they are "kept", for
    settings without effect: those that differ from their default (a preset's value is one) although the choices made leave
    them `used_settings.unused`. A file answers for its own choices: what it sets for others than `overrides` choose, and
    sections of other agents, are left alone, and so is all that a run wrote into its directory.
    """
    config, by_a_run = resolve(config_of(path, overrides)), path is not None and _written_by_a_run(Path(path))
    if not by_a_run:
        check_published(config)
    validate(config)
    if unused == "refused":
        if path is not None and not by_a_run:
            _check_used(config_of(path), _read_toml(Path(path)), other_agents=True)
        _check_used(config_of(path, overrides), overrides or {})
    return config


def _written_by_a_run(path: Path) -> bool:
    """Whether a file holds all settings that there were when its run began."""
    return path.name == "config.toml" and path.with_name("versions.json").is_file()


def _check_used(config: Config, values: dict[str, Any], *, other_agents: bool = False) -> None:
    """Check that `values`, the last that went into a config, have an effect in it."""
    given = names_in(values)
    chosen = config.arms == resolve(config).arms
    check(chosen or "arms" not in given, "arms", list(config.arms), "none beside synthesis.kind, which is the only arm")
    if other_agents:
        spared = tuple(f"agent.{kind}." for kind in AGENTS if kind != config.agent.kind)
        given = [name for name in given if not name.startswith(spared)]
    check_used([resolve(config)], given, preset_of)


def preset_of(config: Config) -> list[Config]:
    """The values of a config's preset: what its settings are where nobody sets them."""
    return [with_preset(config)]


def names_in(values: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted names of all settings in nested values."""
    found = []
    for key, value in values.items():
        found += names_in(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]
    return found


def config_of(path: str | Path | None = None, overrides: dict[str, Any] | None = None) -> Config:
    """As `load_config`, without a check of ranges and combinations.

    What a run wrote has its preset's values. Settings that came later are at their defaults there, which change nothing,
    whatever the preset has come to mean.
    """
    raw = _read_toml(Path(path)) if path is not None else {}
    origin = str(path) if path is not None else "config"
    overrides = overrides or {}
    preset = overrides.get("preset", raw.get("preset", "none"))
    check(preset in PRESETS, "preset", preset, f"one of {sorted(PRESETS)}")
    chosen = apply_values(apply_values(Config(), raw, origin), overrides, "override")
    base = Config() if path is not None and _written_by_a_run(Path(path)) else with_preset(chosen)
    return apply_values(apply_values(base, raw, origin), overrides, "override")


def with_preset(chosen: Config) -> Config:
    """The defaults with the values of the preset that a config names: "paper" means the method of its arms (`published`),
    "dydiff" depends on its agent, "diffusion_ql" on its dataset. Raises InputError."""
    preset = published(chosen)
    config = apply_values(Config(), PRESETS[preset], "preset")
    if preset == "dydiff":
        return apply_values(config, dydiff_values(chosen.agent.kind), "preset")
    return apply_values(config, diffusion_ql_values(chosen.data.name), "preset") if preset == "diffusion_ql" else config


_ARMS_OF: dict[str, tuple[Arm, ...]] = {"PGD": ("unguided", "guided"), "DyDiff": ("dydiff",)}


def _methods(config: Config) -> list[str]:
    """The methods whose arms a config has: of its own where synthesis.kind says which, else of those in `arms`."""
    alone = resolve(config).arms
    of = lambda arms: [method for method, own in _ARMS_OF.items() if set(own) & set(arms)]
    return of(alone) or of(config.arms)


def published(config: Config) -> str:
    """The preset that a config's own name means: in place of "paper" that of the method that its arms are of.

    Arms of neither (real data, a world model) count as DyDiff's with the agents that only DyDiff's paper has, else as PGD's.
    """
    if config.preset != "paper":
        return config.preset
    found = _methods(config) or ["DyDiff" if config.agent.kind in set(BASE_AGENTS) - {"td3_bc"} else "PGD"]
    return "dydiff" if found == ["DyDiff"] else "paper"


def check_published(config: Config) -> None:
    """Check that no arm passes as published under another method's settings. Raises InputError."""
    own = {"official": "PGD", "dydiff": "DyDiff"}.get(config.preset)
    others = {"paper": ["PGD", "DyDiff"], "official": ["DyDiff"], "dydiff": ["PGD"]}.get(config.preset, [])
    found = [method for method in _methods(config) if method in others]
    expected = f"no arm of {found[0] if found else ''}: preset {config.preset!r} is {own}'s" if own else "arms of one method"
    arms = "; ".join(f"{method}: {', '.join(names)}" for method, names in _ARMS_OF.items())
    check(len(found) < (1 if own else 2), "arms", list(config.arms), f"{expected} ({arms})")
    other = config.preset == "diffusion_ql" and config.agent.kind != "diffusion_ql"
    check(not other, "agent.kind", config.agent.kind, "'diffusion_ql' with the preset of that name")


KIND_ARMS: dict[str, Arm] = {"pgd": "guided"}  # where the name of a synthesizer and of its arm differ


def resolve(config: Config) -> Config:
    """`synthesis.kind`, where it is set, as the run's only arm."""
    kind = config.synthesis.kind
    return dataclasses.replace(config, arms=(KIND_ARMS.get(kind, kind),)) if kind else config  # type: ignore[arg-type]


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"config = {str(path)!r}: expected a readable TOML file ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"config = {str(path)!r}: expected valid TOML ({error}).") from error


def apply_values(config: Config_, values: dict[str, Any], origin: str, prefix: str = "") -> Config_:
    """`config` (any options) with nested `values` replaced. Raises InputError as `load_config`."""

    def apply(section: Config_, own: dict[str, Any], inside: str) -> Config_:
        hints = typing.get_type_hints(type(section))
        changes: dict[str, Any] = {}
        for key, value in own.items():
            name = prefix + inside + key
            if key not in hints:
                said = unknown_key(inside + key, config, values, table=isinstance(value, dict), before=prefix)
                raise InputError(f"{origin}: {said}")
            if dataclasses.is_dataclass(hints[key]):
                if not isinstance(value, dict):
                    raise InputError(f"{origin}: {name} = {value!r}: expected a table [{name}].")
                changes[key] = apply(getattr(section, key), value, f"{inside}{key}.")
            else:
                changes[key] = _convert(value, hints[key], name, origin)
        return dataclasses.replace(section, **changes)

    return apply(config, values, "")


def _convert(value: Any, hint: Any, name: str, origin: str) -> Any:
    if get_origin(hint) is Literal:
        ok, want = value in get_args(hint), "one of " + ", ".join(map(repr, get_args(hint)))
    elif get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"{origin}: {name} = {value!r}: expected a list.")
        return tuple(_convert(v, get_args(hint)[0], f"{name}[{i}]", origin) for i, v in enumerate(value))
    elif isinstance(hint, types.UnionType):
        return value if value is None else _convert(value, get_args(hint)[0], name, origin)
    elif hint is float:
        ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        want, value = "a finite number", float(value) if ok else value
    else:
        ok, want = type(value) is hint, {int: "an integer", bool: "true or false", str: "a string"}[hint]
    if not ok:
        raise InputError(f"{origin}: {name} = {value!r}: expected {want}.")
    return value


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
    d, s, a = config.denoiser, config.sampler, config.agent
    check(s.sigma_min < s.sigma_max, "sampler.sigma_min", s.sigma_min, f"less than sampler.sigma_max = {s.sigma_max}")
    _check_evaluation(config)
    g, y = config.guidance, config.synthesis
    if "guided" in config.arms:
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
    check(not (config.data.pad_short and y.after_terminal), "synthesis.after_terminal", True,
          "false with data.pad_short: what follows the end of a padded window is no step")  # fmt: skip
    check(g.target_ess == 0 or g.kind != "published", "guidance.target_ess", g.target_ess,
          "0 where guidance.kind is 'published', whose coefficient is a step size and no exponent")  # fmt: skip
    check(g.max_dynamics_error == 0 or g.target_ess == 0, "guidance.max_dynamics_error", g.max_dynamics_error,
          f"0 where guidance.target_ess = {g.target_ess} chooses the coefficient")  # fmt: skip
    check(not g.hold_states or g.kind != "smc", "guidance.hold_states", True,
          "false where guidance.kind is 'smc', whose weights move states")  # fmt: skip
    weighted = g.kind == "smc" or g.target_ess > 0
    own = a.kind == "diffusion_ql" and a.diffusion_ql.own_score
    check(not (weighted and own), "agent.diffusion_ql.own_score", True, "false with guidance.kind 'smc' or guidance.target_ess",
          "Their weights are of the log-density, not of the score.")  # fmt: skip
    if "guided" in config.arms:
        check_guided(s, g)
    check(s.kind != "auto" or not {"dydiff"} & set(config.arms), "sampler.kind", s.kind,
          "a solver by name with the arm 'dydiff', whose denoiser is not what is measured")  # fmt: skip
    multistep = s.kind.startswith("dpmpp_")
    check(not multistep or y.dydiff.conditions != "churned" or "dydiff" not in config.arms, "synthesis.dydiff.conditions",
          y.dydiff.conditions, f"'clean' or 'noised' where sampler.kind is {s.kind!r}, which has no churn")  # fmt: skip
    check(not y.dydiff.scaled_conditions or y.dydiff.conditions != "noised", "synthesis.dydiff.scaled_conditions", True,
          "false where synthesis.dydiff.conditions is 'noised', which has no clean ones")  # fmt: skip
    ranges = (
        ("guidance.sigma_min", "guidance.sigma_max"), ("sampler.churn_min", "sampler.churn_max"),
        ("agent.diffusion_ql.beta_min", "agent.diffusion_ql.beta_max"),
    )  # fmt: skip
    for low, high in ranges:
        check(get(config, low) <= get(config, high), low, get(config, low), f"at most {high} = {get(config, high)}")
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
    ):
        check(width > 0, "hidden", width, "layer widths above 0")
    m, dydiff = config.dynamics, y.dydiff
    check(m.elites <= m.members, "dynamics.elites", m.elites, f"at most dynamics.members = {m.members}")
    check(m.holdout < 1, "dynamics.holdout", m.holdout, "a number below 1")
    check(0 < y.fraction, "synthesis.fraction", y.fraction, "a number above 0")
    drops = y.drop_last and "world_model" in config.arms
    check(not drops or y.world_model.length != 1, "synthesis.world_model.length", y.world_model.length,
          "0 or at least 2 where synthesis.drop_last leaves the last step out")  # fmt: skip
    arms, step = set(config.arms), 2 ** (d.blocks - 1)
    own_window = ("synthesis.dydiff.window", dydiff.window) if dydiff.window else ("data.window", config.data.window)
    lengths = (  # what is trained lies even on every level of a denoiser
        ("data.window", config.data.window, arms & {"unguided", "guided"}, "a multiple of"),
        ("synthesis.length", y.length or config.data.window, arms & {"unguided", "guided"}, "at least"),
        (*own_window, arms & {"dydiff"}, "a multiple of"),
    )  # fmt: skip
    for name, value, denoised, expected in lengths:
        check(value > 1, name, value, "at least 2 steps, for one usable transition")
        fits = value % step == 0 if expected == "a multiple of" else value >= step
        check(fits or not denoised, name, value, f"{expected} 2^(denoiser.blocks - 1) = {step}")
    synthetic = set(config.arms) != {"real"}
    if synthetic:
        check_share(y, a.batch_size)
    chunked = {"agent.updates": a.updates} | ({"synthesis.interval": y.interval} if synthetic and y.regime != "oneoff" else {})
    for name, value in chunked.items():
        check(value % a.updates_per_chunk == 0, name, value, f"a multiple of agent.updates_per_chunk = {a.updates_per_chunk}")
    check(config.evaluation.every % a.updates_per_chunk == 0, "evaluation.every", config.evaluation.every,
          f"a multiple of agent.updates_per_chunk = {a.updates_per_chunk}")  # fmt: skip
    check(len(config.arms) > 0, "arms", config.arms, "at least one of " + ", ".join(get_args(Arm)))
    check(len(set(config.arms)) == len(config.arms), "arms", config.arms, "no arm twice")


def to_dict(config: Config_) -> dict[str, Any]:
    """Nested plain values, ready for JSON."""
    return dataclasses.asdict(config)


def to_toml(config: Config_, prefix: str = "") -> str:
    """The config as TOML text that `load_config` reads back to an equal value (without its preset applied twice)."""
    plain, tables = [], []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            tables.append(f"\n[{prefix}{field.name}]\n" + to_toml(value, f"{prefix}{field.name}."))
        else:
            plain.append(f"{field.name} = {_toml_value(value)}\n")
    return "".join(plain) + "".join(tables)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    return repr(value)
