"""Every hyperparameter of a run, as nested frozen dataclasses; TOML files in, validated settings out.

A file may name a `preset`, whose values apply before the file's own. Unknown keys and wrong types are refused by name.
"""

import dataclasses
import difflib
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from jaxpgd.errors import InputError, check

Config_ = Any  # any dataclass of this module


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which dataset, and which windows of it train the denoiser."""

    name: str = "point2d"  # Minari id, path of a D4RL .hdf5 or flat .npz file, or "point2d"
    window: int = 16  # steps per training window, and of synthetic trajectories
    stride: int = 1  # steps between window starts
    add_episode_starts: bool = True  # add the window that starts each episode
    add_terminals: bool = True  # add the window that ends in each terminal
    allow_timeout_end: bool = False  # keep windows whose last step is a timeout
    validation_fraction: float = 0.05  # share of episodes held out of denoiser training
    episodes: int = 1000  # episodes generated, for built-in environments only


@dataclasses.dataclass(frozen=True)
class DenoiserConfig:
    """Network, EDM training distribution and optimiser (EDM table 1; PGD table of hyperparameters)."""

    features: int = 64  # channels of the first U-Net block; doubled per block
    blocks: int = 3
    groups: int = 8  # group normalisation
    norm: Literal["sequence", "step"] = "step"  # statistics over the whole sequence, or of each time step alone
    sigma_data: float = 1.0
    p_mean: float = -1.2  # log sigma ~ Normal(p_mean, p_std) in training
    p_std: float = 1.2
    steps: int = 4000  # gradient steps; ignored where epochs > 0
    epochs: int = 0  # passes over the windows
    batch_size: int = 64
    peak_lr: float = 2e-3
    warmup_fraction: float = 0.1  # of all steps
    initial_lr_fraction: float = 0.1  # of peak_lr, at step 0
    ema: float = 0.995  # decay of the averaged weights
    ema_every: int = 10  # steps between averages
    gradient_clip: float = 0.0  # global norm; 0: none
    validate_every: int = 1000  # steps between validation losses
    validation_batches: int = 8


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """Noise levels and stochasticity of sampling (EDM section 5, algorithm 2)."""

    kind: Literal["heun", "euler"] = "heun"
    steps: int = 32
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    churn: float = 80.0  # S_churn: total of noise put back over all steps
    churn_min: float = 0.05  # noise is put back for sigma in [churn_min, churn_max]
    churn_max: float = 50.0
    churn_noise: float = 1.003  # S_noise
    predictor: Literal["churned", "unchurned"] = "churned"  # where the Euler step starts; "unchurned" as official code
    batch_size: int = 512  # trajectories sampled at once


@dataclasses.dataclass(frozen=True)
class GuidanceConfig:
    """How samples are moved towards the policy (PGD section 4)."""

    kind: Literal["published", "reconstruction"] = "reconstruction"
    coefficient: float = 0.3  # lambda
    at: Literal["noised", "denoised"] = "denoised"  # published: where the policy's gradient is taken
    normalise: Literal["none", "safe", "official"] = "safe"  # published: L2-normalise over the trajectory; "official": NaN at 0
    sine: float = 0.3  # published: weight of the sine term in the schedule
    hold_states: bool = False  # reconstruction: no gradient through the policy's observation
    sigma_min: float = 0.0  # guide only for sigma in [sigma_min, sigma_max]
    sigma_max: float = 1e9


@dataclasses.dataclass(frozen=True)
class SynthesisConfig:
    """How much synthetic data, and when it is made anew. The regime sets interval and share."""

    regime: Literal["oneoff", "periodic", "continuous"] = "periodic"
    trajectories: int = 1024  # capacity of the replay; all of them are made at the first refresh
    interval: int = 2000  # agent updates between refreshes (periodic and continuous)
    fraction: float = 0.1  # continuous: share of the replay that a refresh replaces, oldest first
    length: int = 0  # steps per trajectory; 0: the training window
    synthetic_ratio: float = 0.9375  # share of each batch drawn from synthetic data (PGD: 240 of 256)
    first_unguided: bool = True  # the first refresh ignores the untrained policy


@dataclasses.dataclass(frozen=True)
class TD3BCConfig:
    """TD3+BC (arXiv 2106.06860) with PGD's settings."""

    lr: float = 3e-4
    gamma: float = 0.99
    polyak: float = 0.005  # target <- target + polyak * (online - target)
    alpha: float = 2.5  # weight of Q against behaviour cloning
    policy_noise: float = 0.2  # std of target policy smoothing
    noise_clip: float = 0.5
    adam_eps: float = 1e-5
    critic_updates: int = 2  # per update, on the same batch size each
    policy_std: float = 1.0  # std of the Gaussian that stands for the deterministic actor in guidance
    hidden: tuple[int, ...] = (256, 256)


@dataclasses.dataclass(frozen=True)
class IQLConfig:
    """IQL (arXiv 2110.06169) with PGD's settings."""

    lr: float = 3e-4
    gamma: float = 0.99
    polyak: float = 0.005
    tau: float = 0.7  # expectile
    beta: float = 3.0  # inverse temperature of the advantage weights
    advantage_clip: float = 100.0  # upper bound of exp(beta * advantage)
    adam_eps: float = 1e-5
    hidden: tuple[int, ...] = (256, 256)


@dataclasses.dataclass(frozen=True)
class AgentConfig:
    """The offline-RL algorithm and its training length. Only the section of the chosen kind is used."""

    kind: Literal["td3_bc", "iql"] = "td3_bc"
    updates: int = 10_000
    batch_size: int = 256
    updates_per_chunk: int = 1000  # updates in one compiled call; logs and checkpoints come between chunks
    normalise_obs: bool = True  # standardise observations with the dataset's statistics
    td3_bc: TD3BCConfig = TD3BCConfig()
    iql: IQLConfig = IQLConfig()


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Returns in the environment and quality of synthetic trajectories."""

    episodes: int = 20  # per seed, at the end
    every: int = 0  # updates between intermediate evaluations; 0: only at the end
    intermediate_episodes: int = 5
    trajectories: int = 512  # synthetic trajectories scored
    coefficients: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)  # guidance coefficients of the sweep in the report
    sampler_steps: int = 0  # sampler steps for the scored trajectories; 0: as in training
    confidence: float = 0.95


@dataclasses.dataclass(frozen=True)
class Config:
    """One run: dataset -> denoiser -> one agent per arm and seed -> evaluation -> report."""

    preset: Literal["none", "paper", "official"] = "none"  # published settings that apply before the file's own values
    out: str = "runs/point2d"  # run directory
    seed: int = 0
    seeds: int = 4  # agents per arm, trained as one vmapped program
    arms: tuple[Literal["real", "unguided", "guided"], ...] = ("real", "unguided", "guided")
    denoiser_from: str = ""  # run directory whose trained denoiser is used instead of training one
    checkpoint_seconds: float = 60.0  # least time between checkpoints within a stage
    wandb_project: str = ""  # also log to this Weights & Biases project (extra `wandb`)
    data: DataConfig = DataConfig()
    denoiser: DenoiserConfig = DenoiserConfig()
    sampler: SamplerConfig = SamplerConfig()
    guidance: GuidanceConfig = GuidanceConfig()
    synthesis: SynthesisConfig = SynthesisConfig()
    agent: AgentConfig = AgentConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


_PAPER: dict[str, Any] = {
    "data": {"window": 32, "stride": 8},
    "denoiser": {
        "features": 1024, "blocks": 3, "norm": "sequence", "sigma_data": 1.0, "p_mean": -1.2, "p_std": 1.2,
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
    "agent": {"updates": 1_000_000, "batch_size": 256, "updates_per_chunk": 10_000},
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    "paper": _PAPER,
    "official": {
        **_PAPER,
        "denoiser": {**_PAPER["denoiser"], "norm": "step"},
        "sampler": {**_PAPER["sampler"], "predictor": "unchurned"},
        "guidance": {**_PAPER["guidance"], "normalise": "official"},
    },
}


def load_config(path: str | Path | None = None, overrides: dict[str, Any] | None = None) -> Config:
    """Read a TOML file (or the defaults, for None), then nested `overrides`; check everything.

    Raises InputError naming the file, the key and, for unknown keys, the nearest valid one.
    """
    raw = _read_toml(Path(path)) if path is not None else {}
    origin = str(path) if path is not None else "config"
    overrides = overrides or {}
    preset = overrides.get("preset", raw.get("preset", "none"))
    check(preset in PRESETS, "preset", preset, f"one of {sorted(PRESETS)}")
    config = Config()
    for values, source in ((PRESETS[preset], "preset"), (raw, origin), (overrides, "override")):
        config = apply_values(config, values, source)
    validate(config)
    return config


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise InputError(f"config = {str(path)!r}: expected a readable TOML file ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"config = {str(path)!r}: expected valid TOML ({error}).") from error


def apply_values(config: Config_, values: dict[str, Any], origin: str, prefix: str = "") -> Config_:
    """`config` (any dataclass of this module) with nested `values` replaced. Raises InputError as `load_config`."""
    hints = typing.get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for key, value in values.items():
        name = prefix + key
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1, cutoff=0.0)
            raise InputError(f"{origin}: unknown key {name!r}. Did you mean {prefix + near[0]!r}?")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise InputError(f"{origin}: {name} = {value!r}: expected a table [{name}].")
            changes[key] = apply_values(getattr(config, key), value, origin, name + ".")
        else:
            changes[key] = _convert(value, hints[key], name, origin)
    return dataclasses.replace(config, **changes)


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
        ok, want = isinstance(value, int | float) and not isinstance(value, bool), "a number"
        value = float(value) if ok else value
    else:
        ok, want = type(value) is hint, {int: "an integer", bool: "true or false", str: "a string"}[hint]
    if not ok:
        raise InputError(f"{origin}: {name} = {value!r}: expected {want}.")
    return value


_POSITIVE = (
    "seeds data.window data.stride data.episodes denoiser.features denoiser.blocks denoiser.groups denoiser.sigma_data "
    "denoiser.p_std denoiser.batch_size denoiser.peak_lr denoiser.ema_every denoiser.validate_every "
    "denoiser.validation_batches "
    "sampler.steps sampler.sigma_min sampler.sigma_max sampler.rho sampler.batch_size "
    "synthesis.trajectories synthesis.interval "
    "agent.updates agent.batch_size agent.updates_per_chunk evaluation.episodes evaluation.intermediate_episodes "
    "evaluation.trajectories agent.td3_bc.lr agent.iql.lr agent.td3_bc.critic_updates agent.td3_bc.policy_std"
).split()
_NOT_NEGATIVE = (
    "seed denoiser.steps denoiser.epochs denoiser.gradient_clip sampler.churn guidance.coefficient synthesis.length "
    "evaluation.every evaluation.sampler_steps checkpoint_seconds agent.td3_bc.alpha agent.td3_bc.policy_noise agent.iql.beta"
).split()
_SHARES = (
    "data.validation_fraction denoiser.warmup_fraction denoiser.initial_lr_fraction denoiser.ema synthesis.fraction "
    "synthesis.synthetic_ratio evaluation.confidence agent.td3_bc.gamma agent.td3_bc.polyak agent.iql.gamma agent.iql.polyak "
    "agent.iql.tau"
).split()


def get(config: Config_, name: str) -> Any:
    """The value of a dotted name."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def validate(config: Config) -> None:
    """Check ranges and combinations. Raises InputError."""
    for name in _POSITIVE:
        check(get(config, name) > 0, name, get(config, name), "a number above 0")
    for name in _NOT_NEGATIVE:
        check(get(config, name) >= 0, name, get(config, name), "a number not below 0")
    for name in _SHARES:
        check(0 <= get(config, name) <= 1, name, get(config, name), "a number from 0 to 1")
    d, s, a = config.denoiser, config.sampler, config.agent
    check(s.sigma_min < s.sigma_max, "sampler.sigma_min", s.sigma_min, f"less than sampler.sigma_max = {s.sigma_max}")
    check(d.steps > 0 or d.epochs > 0, "denoiser.steps", d.steps, "more than 0, or denoiser.epochs > 0")
    check(d.features % d.groups == 0, "denoiser.groups", d.groups, f"a divisor of denoiser.features = {d.features}")
    length = config.synthesis.length or config.data.window
    for name, value in (("data.window", config.data.window), ("synthesis.length", length)):
        check(value % 2 ** (d.blocks - 1) == 0, name, value, f"a multiple of 2^(denoiser.blocks - 1) = {2 ** (d.blocks - 1)}")
    for name, value in (("agent.updates", a.updates), ("synthesis.interval", config.synthesis.interval)):
        check(value % a.updates_per_chunk == 0, name, value, f"a multiple of agent.updates_per_chunk = {a.updates_per_chunk}")
    check(config.evaluation.every % a.updates_per_chunk == 0, "evaluation.every", config.evaluation.every,
          f"a multiple of agent.updates_per_chunk = {a.updates_per_chunk}")  # fmt: skip
    check(len(config.arms) > 0, "arms", config.arms, "at least one of real, unguided, guided")
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
