import dataclasses
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jaxpgd.errors import InputError
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.config_files import apply_values, load_config, to_dict, to_toml
from jaxpgd.experiment.presets import PRESETS
from jaxpgd.experiment.validation import validate
from jaxpgd.options import get

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("**/*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_shipped_configs_load(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    assert config != Config()
    copy = tmp_path / "copy.toml"
    copy.write_text(to_toml(config))
    assert load_config(copy) == config


def write(path: Path, text: str) -> Path:
    (path / "config.toml").write_text(text)
    return path / "config.toml"


def test_values_over_preset_over_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, 'preset = "paper"\nseeds = 2\n[sampler]\nsteps = 64\n[agent.iql]\nbeta = 1\n')
    config = load_config(path, {"seeds": 3, "agent": {"kind": "iql"}})
    assert (config.seeds, config.sampler.steps, config.agent.iql.beta, config.agent.kind) == (3, 64, 1.0, "iql")
    assert isinstance(config.agent.iql.beta, float)
    assert config.sampler.heun.churn_noise == 1.003 and config.denoiser.features == 1024  # of the preset
    assert config.data.name == Config().data.name
    assert load_config(None, {"preset": "paper"}).denoiser.epochs == 10_000


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_toml_round_trip(preset: str, tmp_path: Path) -> None:
    overrides = {"preset": preset, "out": 'a "quoted" \\ name', "arms": ["real"], "evaluation": {"coefficients": [0.1, 2]}}
    overrides["data"] = {"name": "hopper_medium-v2.hdf5"}
    config = load_config(None, overrides, unused="kept")
    text = to_toml(config)
    assert load_config(write(tmp_path, text), unused="kept") == config
    read = tomllib.loads(text)
    assert read["out"] == 'a "quoted" \\ name' and read["evaluation"]["coefficients"] == [0.1, 2.0]
    assert set(read) == {f.name for f in dataclasses.fields(Config)}  # every setting is there
    assert to_dict(config)["agent"]["td3_bc"]["hidden"] == (256, 256)


def test_what_a_run_wrote_means_what_it_meant_when_its_preset_meant_less(tmp_path: Path) -> None:
    """Settings that came after a run are at their defaults, not at what its preset says of them now."""
    config = load_config(None, {"preset": "official"})
    assert config.synthesis.drop_last and config.agent.td3_bc.actor_first
    later = ("drop_last = ", "after_terminal = ", "actor_first = ")
    lines = [line for line in to_toml(config).splitlines() if not line.startswith(later)]
    path = write(tmp_path, "\n".join(lines))
    (tmp_path / "versions.json").write_text("{}")
    found = load_config(path, {"seeds": 2})
    assert not (found.synthesis.drop_last or found.synthesis.after_terminal or found.agent.td3_bc.actor_first)
    assert found.agent.td3_bc.lr == config.agent.td3_bc.lr and found.seeds == 2
    both = to_toml(dataclasses.replace(config, preset="paper", arms=("unguided", "guided", "dydiff")))  # once one preset
    assert load_config(write(tmp_path, both)).arms == ("unguided", "guided", "dydiff")


@pytest.mark.parametrize("arm", ["real", "world_model", "dydiff", "unguided"])
def test_windows_fit_the_denoisers_that_the_arms_have(arm: str) -> None:
    """Elsewhere denoiser.blocks is refused as without effect, so that no window could be made to fit it."""
    if arm in ("real", "world_model"):
        load_config(None, {"arms": [arm], "data": {"window": 6}})
        return
    with pytest.raises(InputError, match=r"data.window = 6: expected a multiple of 2\^\(denoiser.blocks - 1\) = 4"):
        load_config(None, {"arms": [arm], "data": {"window": 6}})
    window = {"synthesis": {"dydiff": {"window": 8}}} if arm == "dydiff" else {"denoiser": {"blocks": 2}}
    load_config(None, {"arms": [arm], "data": {"window": 6}} | window)


# (dotted name, published value), DESIGN section 4
PAPER = {
    "data.window": 32, "data.stride": 8, "data.allow_timeout_end": False, "data.terminal_repeats": 1,
    "denoiser.features": 1024, "denoiser.blocks": 3, "denoiser.batch_size": 32, "denoiser.peak_lr": 2e-3,
    "denoiser.epochs": 10_000, "denoiser.p_mean": -1.2, "denoiser.p_std": 1.2, "denoiser.p_high": 0.0,
    "denoiser.sigma_data": 1.0,
    "denoiser.optimiser": "adam", "denoiser.ema_width": 0.0,
    "denoiser.ema": 0.995, "denoiser.ema_every": 10, "denoiser.warmup_fraction": 0.1, "denoiser.initial_lr_fraction": 0.1,
    "denoiser.block": "plain", "data.validation_fraction": 0.05,
    "sampler.kind": "heun", "sampler.steps": 256, "sampler.sigma_min": 0.002, "sampler.sigma_max": 80.0, "sampler.rho": 7.0,
    "sampler.heun.churn": 80.0, "sampler.heun.churn_min": 0.05, "sampler.heun.churn_max": 50.0,
    "sampler.heun.churn_noise": 1.003,
    "guidance.kind": "published", "guidance.published.sine": 0.3,
    "synthesis.regime": "periodic", "synthesis.trajectories": 8192, "synthesis.interval": 10_000,
    "synthesis.synthetic_ratio": 240 / 256, "synthesis.first_unguided": True,
    "agent.updates": 1_000_000, "agent.batch_size": 256, "agent.td3_bc.alpha": 2.5, "agent.td3_bc.critic_updates": 2,
    "agent.td3_bc.policy_std": 1.0,
    "agent.td3_bc.policy_noise": 0.2, "agent.td3_bc.noise_clip": 0.5, "agent.td3_bc.lr": 3e-4, "agent.td3_bc.adam_eps": 1e-5,
    "agent.td3_bc.gamma": 0.99, "agent.td3_bc.polyak": 0.005, "agent.iql.tau": 0.7, "agent.iql.beta": 3.0, "agent.iql.lr": 3e-4,
    "agent.iql.advantage_clip": 100.0,
    "agent.bc.lr": 3e-4, "agent.bc.hidden": (256, 256), "agent.bc.policy_std": 1.0,
    "agent.cql.actor_lr": 3e-5, "agent.cql.critic_lr": 3e-4, "agent.cql.gamma": 0.99, "agent.cql.polyak": 0.005,
    "agent.cql.weight": 10.0, "agent.cql.cql_temperature": 1.0, "agent.cql.n_actions": 10, "agent.cql.target_entropy": -1.0,
    "agent.cql.hidden": (256, 256),
    "agent.diffusion_ql.lr": 3e-4, "agent.diffusion_ql.eta": 1.0, "agent.diffusion_ql.steps": 5,
    "agent.diffusion_ql.beta_min": 0.1, "agent.diffusion_ql.beta_max": 10.0, "agent.diffusion_ql.ema": 0.995,
    "agent.diffusion_ql.ema_every": 5, "agent.diffusion_ql.gradient_clip": 5.0, "agent.diffusion_ql.candidates": 50,
    "agent.diffusion_ql.time_features": 16, "agent.diffusion_ql.hidden": (256, 256, 256),
    "agent.diffusion_ql.choice": "softmax", "agent.diffusion_ql.policy_std": 1.0,
}  # fmt: skip


# what PGD's released code does at its defaults
OFFICIAL = {
    "denoiser.norm": "step", "sampler.heun.predictor": "unchurned", "sampler.euler.predictor": "unchurned",
    "guidance.published.normalise": "none", "guidance.published.at": "noised",
    "synthesis.length": 129, "synthesis.drop_last": True, "synthesis.after_terminal": True, "agent.normalise_obs": False,
    "agent.td3_bc.lr": 1e-3, "agent.td3_bc.actor_first": True, "agent.td3_bc.init": "lecun_normal",
    "agent.iql.lr": 1e-3, "agent.iql.stale_value": True, "agent.iql.init": "lecun_normal",
}  # fmt: skip


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_published_values(preset: str) -> None:
    config = load_config(None, {"preset": preset})
    for name, value in (PAPER | (OFFICIAL if preset == "official" else {})).items():
        assert get(config, name) == value, name
    defects = (config.sampler.heun.predictor, config.guidance.published.normalise, config.denoiser.norm)
    assert preset == "official" or defects == ("churned", "safe", "sequence")


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def test_official_changes_these_settings_of_paper_and_no_other() -> None:
    paper, official = (set(leaves(to_dict(load_config(None, {"preset": preset})))) for preset in ("paper", "official"))
    assert {name for name, _ in official - paper} == {*OFFICIAL, "preset"}
    assert all(get(Config(), name) != value for name, value in OFFICIAL.items())


# what DyDiff published, in its paper or its released code, for every base agent
DYDIFF_PAPER = {
    "data.window": 100, "data.stride": 1, "data.allow_timeout_end": True, "data.pad_short": True,
    "data.normalisation": "limits",
    "denoiser.sigma_data": 0.5, "denoiser.p_mean": -1.2, "denoiser.p_std": 1.2, "denoiser.steps": 500_000,
    "denoiser.batch_size": 8, "denoiser.peak_lr": 4e-4, "denoiser.warmup_fraction": 1.0, "denoiser.initial_lr_fraction": 0.0,
    "denoiser.optimiser": "adam", "denoiser.ema_width": 0.0, "denoiser.ema": 0.9999723,
    "sampler.kind": "heun", "sampler.steps": 34, "sampler.sigma_min": 0.002, "sampler.sigma_max": 80.0, "sampler.rho": 7.0,
    "sampler.heun.churn": 60.0, "sampler.heun.churn_min": 0.37, "sampler.heun.churn_max": 52.2,
    "sampler.heun.churn_noise": 1.002,
    "world_model.members": 7, "world_model.elites": 5,
    "world_model.hidden": (200,) * 4, "world_model.reward_hidden": (256, 256),
    "world_model.lr": 1e-4, "world_model.patience": 7, "world_model.holdout": 0.2, "world_model.holdout_most": 5000,
    "world_model.holdout_by": "transitions", "world_model.batch_size": 256,
    "synthesis.regime": "fifo", "synthesis.synthetic_ratio": 0.4, "synthesis.filter.kind": "softmax",
    "synthesis.filter.keep": 0.6, "synthesis.filter.temperature": 0.05,
    "synthesis.filter.uniform": 1e-6, "synthesis.filter.steps": "all",
    "synthesis.dydiff.iterations": 2, "synthesis.dydiff.mix": 0.5, "synthesis.dydiff.conditions": "churned",
    "synthesis.dydiff.scaled_conditions": True, "synthesis.dydiff.sampled": False, "synthesis.dydiff.elite": "step",
    "agent.batch_size": 256, "agent.normalise_obs": True,
}  # fmt: skip
BY_AGENT: dict[str, dict[str, Any]] = {
    "td3_bc": {
        "synthesis.dydiff.actions": "mode", "synthesis.interval": 500, "agent.updates": 1_000_000,
        "agent.td3_bc.actor": "tanh_gaussian", "agent.td3_bc.policy_delay": 2, "agent.td3_bc.alpha": 2.5,
        "agent.td3_bc.cloning": 0.5, "agent.td3_bc.policy_noise": 0.0, "agent.td3_bc.critic_updates": 1,
        "agent.td3_bc.lr": 3e-4, "agent.td3_bc.adam_eps": 1e-8, "agent.td3_bc.hidden": (256, 256),
    },
    "cql": {
        "synthesis.dydiff.actions": "mode", "synthesis.interval": 500, "agent.updates": 1_000_000,
        "agent.cql.weight": 10.0, "agent.cql.actor_lr": 3e-5, "agent.cql.critic_lr": 3e-4, "agent.cql.alpha_lr": 3e-5,
        "agent.cql.n_actions": 10, "agent.cql.hidden": (256, 256),
    },
    "diffusion_ql": {
        "synthesis.dydiff.actions": "sampled", "synthesis.interval": 250, "agent.updates": 500_000,
        "agent.diffusion_ql.lr": 3e-4, "agent.diffusion_ql.decay_updates": 0.0, "agent.diffusion_ql.ema_start": 1000.0,
        "agent.diffusion_ql.ema_every": 5, "agent.diffusion_ql.ema": 0.995, "agent.diffusion_ql.eta": 1.0,
        "agent.diffusion_ql.action_reconstruction": "one_step", "agent.diffusion_ql.critic_hidden": (256, 256),
        "agent.diffusion_ql.critic_activation": "relu", "agent.diffusion_ql.gradient_clip": 5.0,
        "agent.diffusion_ql.hidden": (256, 256, 256), "agent.diffusion_ql.steps": 5, "agent.diffusion_ql.max_q_backup": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("agent", sorted(BY_AGENT))
@pytest.mark.parametrize("preset", ["paper", "dydiff"])
def test_published_values_of_dydiff(preset: str, agent: str) -> None:
    arms = {"arms": ["real", "world_model", "dydiff"]} if preset == "paper" else {}
    config = load_config(None, {"preset": preset, "agent": {"kind": agent}} | arms)
    assert config.arms == ("real", "world_model", "dydiff")
    for name, value in (DYDIFF_PAPER | BY_AGENT[agent]).items():
        assert get(config, name) == value, name
    assert config.agent.updates_per_chunk == config.synthesis.interval


@pytest.mark.parametrize(
    ("values", "method"),
    [
        ({}, "PGD"),
        ({"arms": ["real", "guided"]}, "PGD"),
        ({"arms": ["real", "world_model", "unguided"]}, "PGD"),
        ({"arms": ["real", "dydiff"]}, "DyDiff"),
        ({"arms": ["dydiff"]}, "DyDiff"),
        ({"arms": ["real"]}, "PGD"),
        ({"arms": ["real"], "agent": {"kind": "cql"}}, "DyDiff"),  # which only DyDiff has results of
        ({"arms": ["real"], "agent": {"kind": "iql"}}, "PGD"),
    ],
)
def test_paper_is_that_of_the_method_of_the_arms(values: dict[str, Any], method: str) -> None:
    config = load_config(None, {"preset": "paper"} | values, unused="kept")  # arms are of a file
    assert (config.data.normalisation, config.sampler.steps) == {"PGD": ("standard", 256), "DyDiff": ("limits", 34)}[method]


@pytest.mark.parametrize(
    ("preset", "values", "message"),
    [
        ("paper", {"arms": ["guided", "dydiff"]}, r"arms = \['guided', 'dydiff'\]: expected arms of one method"),
        ("official", {"arms": ["real", "dydiff"]}, "expected no arm of DyDiff: preset 'official' is PGD's"),
        ("official", {"arms": ["dydiff"]}, "expected no arm of DyDiff"),
        ("dydiff", {"arms": ["real", "unguided"]}, "expected no arm of PGD: preset 'dydiff' is DyDiff's"),
        ("dydiff", {"agent": {"kind": "iql"}}, "agent.kind = 'iql': expected one of td3_bc, cql, diffusion_ql with DyDiff's"),
        (
            "paper",
            {"arms": ["dydiff"], "agent": {"kind": "bc"}},
            "agent.kind = 'bc': expected one of td3_bc, cql, diffusion_ql",
        ),
    ],
)
def test_no_arm_passes_as_published_under_another_methods_settings(preset: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(None, {"preset": preset} | values)
    load_config(None, {"agent": {"kind": "td3_bc"}} | values | ({"sampler": {"kind": "heun"}}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sead = 1", r"config.toml: unknown key 'sead'. Did you mean 'seed'\?"),
        ("[sampler]\nstep = 3", r"unknown key 'sampler.step'. Did you mean 'sampler.steps'\?"),
        ("[agent.td3_bc]\nalfa = 3", r"unknown key 'agent.td3_bc.alfa'. Did you mean 'agent.td3_bc.alpha'\?"),
        ("sampler = 3", r"sampler = 3: expected a table \[sampler\]"),
        ("seeds = 2.5", "seeds = 2.5: expected an integer"),
        ("seeds = true", "seeds = True: expected an integer"),
        ('seeds = "2"', "seeds = '2': expected an integer"),
        ("[sampler]\nrho = true", "sampler.rho = True: expected a finite number"),
        ("[agent]\nnormalise_obs = 1", "agent.normalise_obs = 1: expected true or false"),
        ("out = 3", "out = 3: expected a string"),
        ('[agent.cql]\ncritic_norm = "batch"', "agent.cql.critic_norm = 'batch': expected one of 'none', 'layer'"),
        ('[agent]\nkind = "sac"', "agent.kind = 'sac': expected one of 'td3_bc', 'iql', 'bc', 'cql', 'diffusion_ql', 'rebrac'"),
        ('[sampler]\nkind = "dpm"', "sampler.kind = 'dpm': expected one of 'heun', 'euler', 'ancestral'"),
        ("[agent.cql]\nn_action = 3", r"unknown key 'agent.cql.n_action'. Did you mean 'agent.cql.n_actions'\?"),
        ('arms = ["real", "fake"]', r"arms\[1\] = 'fake': expected one of 'real', 'unguided', 'guided'"),
        ('arms = "real"', "arms = 'real': expected a list"),
        ("[agent.iql]\nhidden = [3, 1.5]", r"agent.iql.hidden\[1\] = 1.5: expected an integer"),
        ('preset = "papr"', "preset = 'papr': expected one of"),
        ("seeds = ", "expected valid TOML"),
    ],
)
def test_bad_files(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        load_config(write(tmp_path, text))


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent.toml'.*expected a readable TOML file \(No such file"):
        load_config(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("seeds", 0, "a number above 0"),
        ("data.window", 0, "a number above 0"),
        ("sampler.heun.churn", -1.0, "not below 0"),
        ("synthesis.world_model.length", -1, "not below 0"),
        ("guidance.coefficient", -0.1, "not below 0"),
        ("synthesis.synthetic_ratio", 1.5, "from 0 to 1"),
        ("evaluation.confidence", 1.0, "between 0 and 1"),
        ("data.window", 1, "at least 2 steps"),
        ("sampler.sigma_min", 90.0, r"less than sampler.sigma_max = 80.0"),
        ("denoiser.groups", 7, "a divisor of denoiser.features"),
        ("data.window", 18, r"a multiple of 2\^\(denoiser.blocks - 1\) = 4"),
        ("synthesis.length", 3, r"at least 2\^\(denoiser.blocks - 1\) = 4"),
        ("agent.updates", 1234, "a multiple of agent.updates_per_chunk"),
        ("synthesis.interval", 1234, "a multiple of agent.updates_per_chunk"),
        ("evaluation.every", 1234, "a multiple of agent.updates_per_chunk"),
        ("denoiser.steps", 1234, "a multiple of denoiser.validate_every"),
        ("denoiser.steps", 0, "more than 0, or denoiser.epochs > 0"),
        ("agent.bc.lr", 0.0, "a number above 0"),
        ("agent.cql.n_actions", 0, "a number above 0"),
        ("agent.cql.weight", -1.0, "not below 0"),
        ("agent.cql.polyak", 1.5, "from 0 to 1"),
        ("agent.rebrac.critic_penalty", -1.0, "not below 0"),
        ("agent.rebrac.policy_delay", 0, "a number above 0"),
        ("agent.diffusion_ql.candidates", 0, "a number above 0"),
        ("agent.diffusion_ql.gradient_clip", -1.0, "not below 0"),
        ("agent.diffusion_ql.ema", 1.5, "from 0 to 1"),
        ("agent.diffusion_ql.beta_min", 11.0, "at most agent.diffusion_ql.beta_max = 10.0"),
        ("agent.diffusion_ql.time_features", 7, "an even number above 2"),
        ("arms", [], "at least one of"),
        ("arms", ["real", "real"], "no arm twice"),
    ],
)
def test_ranges_and_combinations(name: str, value: Any, message: str) -> None:
    nested: Any = value
    for part in reversed(name.split(".")):
        nested = {part: nested}
    config = apply_values(Config(), nested, "test")
    with pytest.raises(InputError, match=f"{name} = .*{message}"):
        validate(config)


def test_rollouts_of_one_step_are_allowed_unless_their_only_step_is_dropped() -> None:
    values: dict[str, Any] = {"arms": ["world_model"], "synthesis": {"world_model": {"length": 1}}}
    assert load_config(None, values).synthesis.world_model.length == 1
    values["synthesis"]["drop_last"] = True
    with pytest.raises(InputError, match=r"synthesis.world_model.length = 1: expected 0 or at least 2"):
        load_config(None, values)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "guidance.reconstruction.hold_states",
            {"guidance": {"kind": "smc", "reconstruction": {"hold_states": True}}},
            "whose weights move states",
        ),
        ("agent.diffusion_ql.own_score", {"guidance": {"kind": "smc"}}, "guidance.target_ess. Their weights are"),
        ("agent.diffusion_ql.own_score", {"guidance": {"target_ess": 0.5}}, "guidance.target_ess. Their weights are"),
    ],
)
def test_what_weights_would_undo_is_refused(name: str, changes: dict[str, Any], message: str) -> None:
    agent = {"kind": "diffusion_ql", "diffusion_ql": {"own_score": "own_score" in name}}
    with pytest.raises(InputError, match=f"{name} = True: expected false .*{message}"):
        load_config(None, changes | {"agent": agent})


@pytest.mark.parametrize("kind", ["reconstruction", "moment", "smc"])
def test_guidance_that_takes_tokens_of_unit_variance_refuses_limits(kind: str) -> None:
    values = {"data": {"normalisation": "limits"}, "guidance": {"kind": kind}}
    with pytest.raises(InputError, match=r"data.normalisation = 'limits': expected 'standard' where guidance.kind is"):
        load_config(None, values)
    load_config(None, values | {"arms": ["real", "unguided"]})
    load_config(None, values | {"guidance": {"kind": "published"}})


def test_the_ancestral_sampler_has_no_unchurned_predictor() -> None:
    load_config(None, {"sampler": {"kind": "ancestral"}})
    with pytest.raises(InputError, match=r"unknown key 'sampler.ancestral.predictor'"):
        load_config(None, {"sampler": {"kind": "ancestral", "ancestral": {"predictor": "unchurned"}}})
    with pytest.raises(InputError, match=r"sampler.heun.predictor = 'unchurned': expected its default 'churned'"):
        load_config(None, {"sampler": {"kind": "ancestral", "heun": {"predictor": "unchurned"}}})


@pytest.mark.parametrize("kind", ["td3_bc", "iql", "bc", "cql", "diffusion_ql", "rebrac"])
def test_every_agent_can_be_chosen_and_its_layers_are_checked(kind: str) -> None:
    assert load_config(None, {"agent": {"kind": kind}}).agent.kind == kind
    with pytest.raises(InputError, match="hidden = 0: expected layer widths above 0"):
        load_config(None, {"agent": {kind: {"hidden": [8, 0]}}})


def test_checked_names_exist() -> None:
    """Defaults pass, so that every name in the tables of checks is a setting."""
    validate(Config())


def test_negative_coefficients_of_the_sweep() -> None:
    with pytest.raises(InputError, match=r"evaluation.coefficients\[1\] = -1.0: expected a number above 0"):
        load_config(None, {"evaluation": {"coefficients": [0.3, -1.0]}})


@pytest.mark.parametrize("changes", [{"agent": {"updates": 1000}}, {"synthesis": {"regime": "oneoff"}}])
def test_a_guided_arm_that_would_never_be_guided_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"synthesis.first_unguided = True: expected false where no refresh is due before"):
        load_config(None, changes)
    load_config(None, changes | {"arms": ["real", "unguided"]})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sampler": {"heun": {"churn": 20.0}}}, "sampler.heun.churn = 20.0: expected its default"),
        (
            {"arms": ["dydiff"], "synthesis": {"dydiff": {"conditions": "churned"}}},
            "synthesis.dydiff.conditions = 'churned': expected",
        ),
    ],
)
def test_churn_is_refused_where_the_sampler_has_none(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(None, values)
    sampler = values.get("sampler", {}) | {"kind": "heun"}
    load_config(None, values | {"sampler": sampler})


def test_every_setting_has_a_help_text_and_a_range() -> None:
    def fields(section: Any) -> Iterator[dataclasses.Field[Any]]:
        for field in dataclasses.fields(section):
            if dataclasses.is_dataclass(field.default):
                yield from fields(field.default)
            else:
                yield field

    found = list(fields(Config()))
    assert len(found) > 150
    assert not [field.name for field in found if not field.metadata["help"] or field.metadata["range"] is None]


def test_noised_conditions_are_not_scaled() -> None:
    values: dict[str, Any] = {"synthesis": {"dydiff": {"conditions": "noised", "scaled_conditions": True}}}
    with pytest.raises(InputError, match=r"synthesis.dydiff.scaled_conditions = True: expected false where"):
        load_config(None, values | {"arms": ["dydiff"]})
