"""No setting is accepted without effect: every field of every kind changes what is computed, or is refused."""

import contextlib
import dataclasses
import functools
import re
import shlex
import typing
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from jax import Array
from jax.interpreters import partial_eval

from jaxpgd.agents import make_agent
from jaxpgd.diffusion.solvers import SamplerConfig
from jaxpgd.errors import InputError
from jaxpgd.experiment.cli import read_run_arguments
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.config_files import load_config, names_in
from jaxpgd.experiment.needs import needs
from jaxpgd.experiment.presets import PRESETS
from jaxpgd.experiment.stages.build import Models, build_synthesizer
from jaxpgd.experiment.studies.plan import load_study
from jaxpgd.experiment.used_settings import RULES, check_used, of_other_arms, unused
from jaxpgd.guidance.kinds import GuidanceConfig
from jaxpgd.guidance.moment import MomentConfig
from jaxpgd.guidance.published import PublishedConfig
from jaxpgd.options import get, names_of
from jaxpgd.synthesis.diffusion import TrajectoryDenoiser, make_synthesizer
from jaxpgd.synthesis.dydiff import StateDenoiser, make_dydiff
from jaxpgd.synthesis.filters import make_filter
from jaxpgd.synthesis.given import GivenAnchor, GivenInnovations
from jaxpgd.synthesis.world_model import make_world_model_synthesizer
from jaxpgd.tokens import TokenCodec
from jaxpgd.training.agent import make_schedule
from jaxpgd.training.denoiser import DenoiserConfig, train_denoiser
from jaxpgd.types import Policy, Trajectory, Transition
from jaxpgd.world_model.scales import Scales, statistics

CODEC = TokenCodec(mean=jnp.zeros(5), std=jnp.ones(5), obs_dim=2, action_dim=1)
SMALL: dict[str, Any] = {
    "data": {"window": 4}, "denoiser": {"blocks": 1, "features": 8}, "sampler": {"steps": 4, "batch_size": 2},
    "synthesis": {"trajectories": 40, "interval": 4}, "agent": {"updates": 16, "updates_per_chunk": 4, "batch_size": 8},
}  # fmt: skip


@struct.dataclass
class Gaussian:
    """The denoiser of unit Gaussian tokens, conditions or none."""

    def __call__(self, x: Array, sigma: Array) -> Array:
        return jnp.tanh(x) / (1.0 + sigma**2)

    def given(self, x: Array, sigma: Array, condition: Any) -> Array:
        return condition.impose(self(condition.impose(x), sigma))


@struct.dataclass
class Model:
    """A world model of two members."""

    drift: Array
    error: Array = struct.field(default_factory=lambda: jnp.full(2, 0.01))
    reward_error: Array = struct.field(default_factory=lambda: jnp.asarray(0.01))
    disagreements: Array = struct.field(default_factory=lambda: jnp.linspace(0.0, 1.0, 5))
    scales: Scales = struct.field(default_factory=lambda: Scales(*[statistics(jnp.eye(2))] * 3))
    members: int = struct.field(pytree_node=False, default=2)

    def next_states(self, obs: Array, action: Array) -> tuple[Array, Array]:
        return obs + self.drift[:, None] * action.sum(), jnp.broadcast_to(jnp.square(obs), (2, 2))

    def reward(self, obs: Array, action: Array) -> Array:
        return obs.sum()

    def discount(self, obs: Array, action: Array, next_obs: Array) -> Array:
        return jnp.float32(next_obs.sum() < 9)

    def clip_obs(self, obs: Array) -> Array:
        return obs


@struct.dataclass
class Behaviour:
    """Acts by half of the first entry."""

    def mean(self, obs: Array) -> Array:
        return 0.5 * obs[..., :1]

    def innovation(self, obs: Array, action: Array) -> Array:
        return action - self.mean(obs)


MODEL, INNOVATIONS = Model(jnp.ones(2)), GivenInnovations(CODEC, Behaviour(), jnp.ones(1))  # type: ignore[arg-type]
GIVEN = {
    "published": None, "innovations": INNOVATIONS,
    "anchored": GivenAnchor(INNOVATIONS, MODEL, jnp.zeros((4, 2)), jnp.ones((4, 2)), jnp.zeros(())),  # type: ignore[arg-type]
}  # fmt: skip

POLICY = Policy(
    params=jnp.ones(2),
    sample_fn=lambda p, key, obs: jnp.tanh(p @ obs + jax.random.normal(key, (1,))),
    mode_fn=lambda p, obs: jnp.tanh(p @ obs)[None],
    log_prob_fn=lambda p, obs, action, variance: -(jnp.square(action - jnp.tanh(p @ obs)) / (0.25 + variance)).sum(),
)


SEEN: dict[Any, tuple[str, list[bool], tuple[bytes, ...]]] = {}


def program(function: Callable[..., Any], *args: Any, named: Hashable = None) -> tuple[Any, ...]:
    """What a function computes of its arguments: its jaxpr without dead code, and the numbers that it reads.

    A function that has a name is traced once for arguments of one structure: other numbers are no other program.
    """
    leaves, tree = jax.tree.flatten(args)
    key = object() if named is None else (named, tree, *map(jnp.shape, leaves))
    if key not in SEEN:
        closed = jax.make_jaxpr(lambda *flat: function(*jax.tree.unflatten(tree, flat)))(*leaves)
        live, read = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
        SEEN[key] = str(live), read, tuple(np.asarray(c).tobytes() for c in closed.consts if not hasattr(c, "unwrap"))
    live_text, read, constants = SEEN[key]
    numbers = [np.asarray(x).tobytes() if not jnp.issubdtype(jnp.asarray(x).dtype, jax.dtypes.prng_key) else b""
               for x, used in zip(leaves, read, strict=True) if used]  # fmt: skip
    return live_text, *constants, *numbers


KEY, STARTS = jax.random.key(0), jnp.zeros((4, 2))
TRACED: dict[Any, tuple[Any, ...]] = {}


def traced(synthesizer: Any, policy: Policy | None) -> tuple[Any, ...]:
    """The program of a synthesizer: the same one, and traced once, for configs that make equal synthesizers."""
    leaves, tree = jax.tree.flatten(synthesizer)
    key = (tree, policy is None, *(np.asarray(x).tobytes() for x in leaves))
    if key not in TRACED:
        TRACED[key] = program(lambda s, key, start: s(key, policy, start), synthesizer, KEY, STARTS)
    return TRACED[key]


def models(config: Config) -> Models:
    return Models(TrajectoryDenoiser(Gaussian(), CODEC, config.data.window), Model(jnp.ones(2)))  # type: ignore[arg-type]


@functools.cache
def diffusion(config: Config) -> tuple[Any, ...]:
    synthesizer = build_synthesizer(config, models(config), guided="guided" in config.arms)
    return traced(synthesizer, POLICY if "guided" in config.arms else None)


SAMPLE = jax.jit(lambda synthesizer, key, start: synthesizer(key, None, start).trajectory)


@functools.cache
def drawn(config: Config) -> tuple[Any, ...]:
    """The samples themselves, for settings that are read and yet without effect."""
    made = SAMPLE(build_synthesizer(config, models(config), guided=False), KEY, STARTS)
    return (config.sampler.batch_size, *(np.asarray(x).tobytes() for x in jax.tree.leaves(made)))


@functools.cache
def dydiff(config: Config) -> tuple[Any, ...]:
    states, settings = StateDenoiser(Gaussian(), CODEC, config.data.window), config.synthesis.dydiff
    states = dataclasses.replace(states, conditions="noised" if settings.conditions == "noised" else "clean")
    states = dataclasses.replace(states, given=GIVEN[settings.conditioning])
    made = make_dydiff(MODEL, states, settings, config.sampler, length=config.synthesis.length)  # type: ignore[arg-type]
    cloned = settings.behaviour if needs(config, "behaviour") and settings.iterations > 0 else None  # of its training
    return (settings.window, cloned, *traced(made, POLICY))


@functools.cache
def rollouts(config: Config) -> tuple[Any, ...]:
    own, length = config.synthesis.world_model, config.synthesis.length or config.data.window
    made = make_world_model_synthesizer(Model(jnp.ones(2)), own, length=length)  # type: ignore[arg-type]
    return program(lambda s, key, start: s(key, POLICY, start), made, KEY, STARTS)


@functools.cache
def replay(config: Config) -> tuple[Any, ...]:
    if set(config.arms) == {"real"}:
        return (config.agent,)
    schedule, own = make_schedule(config.agent, config.synthesis), make_filter(config.synthesis.filter)
    refreshes = [i for i in range(schedule.chunks) if schedule.due(i)]
    count = schedule.refresh_count if refreshes else schedule.first_count
    made = Trajectory(*(jnp.zeros((own.needed(count), 4, *entries)) for entries in ((2,), (1,), (), (), ())))
    refreshes = [i for i in range(schedule.chunks) if schedule.due(i)]
    count = schedule.refresh_count if refreshes else schedule.first_count
    numbers = dataclasses.astuple(dataclasses.replace(schedule, refresh_count=count, refresh_chunks=0))
    made = Trajectory(*(jnp.zeros((own.needed(count), 4, *entries)) for entries in ((2,), (1,), (), (), ())))
    kept = program(lambda own, key, made: own(key, made, count), own, KEY, made)
    return (
        numbers,
        round(config.synthesis.synthetic_ratio * config.agent.batch_size),
        config.agent.batch_size,
        refreshes,
        *kept,
    )


@functools.cache
def agent(config: Config) -> tuple[Any, ...]:
    section = getattr(config.agent, config.agent.kind)
    stats = {"obs_mean": jnp.ones(2), "obs_std": jnp.ones(2)} if config.agent.normalise_obs else {}
    own = make_agent(config.agent.kind, section, 1, **stats)
    example = Transition(jnp.zeros(2), jnp.zeros(1), jnp.zeros(()), jnp.ones(()), jnp.zeros(2))
    batch = jax.tree.map(lambda x: jnp.zeros((own.batches, 4, *x.shape)), example)
    if own.next_actions:
        batch = dataclasses.replace(batch, next_action=batch.action, has_next_action=jnp.ones_like(batch.reward, bool))

    def trained(hypers: Any, key: Array, batch: Transition) -> Any:
        state, metrics = own.update(key, own.init(key, example, hypers), batch)
        learned = getattr(state, "inner", state).replace(hypers=None)  # which are handed on whether they count or not
        policy, obs = own.policy(state), batch.obs[0, 0]
        acts = policy.sample(key, obs), policy.mode(obs), policy.score(obs, example.action, 0.1)
        return learned, metrics, acts, policy.log_prob_fn and policy.log_prob(obs, example.action, 0.1)

    return program(trained, own.hypers, KEY, batch, named=("agent", config.agent.kind, config.agent.normalise_obs))


DYDIFF: dict[str, Any] = {"arms": ["dydiff"], "sampler": {"kind": "heun"}}
# sections that are walked, what their settings make, and the choices between which settings are told apart
GUIDANCES: list[dict[str, Any]] = [{"kind": kind} for kind in ("published", "reconstruction", "moment")] + [{"target_ess": 0.5}]
PROPOSALS = ("none", "reconstruction", "moment")
GUIDANCES += [{"kind": "smc", "smc": {"proposal": proposal, "particles": 2, "least_ancestors": 1}} for proposal in PROPOSALS]
SAMPLERS = get_args(typing.get_type_hints(type(Config().sampler))["kind"])
REGIMES = get_args(typing.get_type_hints(type(Config().synthesis))["regime"])
FILTERS = get_args(typing.get_type_hints(type(Config().synthesis.filter))["kind"])
AGENTS = get_args(typing.get_type_hints(type(Config().agent))["kind"])

WALKS: list[tuple[str, Callable[[Config], tuple[Any, ...]], dict[str, Any]]] = [
    *(("guidance", diffusion, {"arms": ["guided"], "guidance": own}) for own in GUIDANCES),
    ("guidance", replay, DYDIFF),
    ("guidance", diffusion, {"arms": ["guided"], "guidance": {"kind": "published"}, "sampler": {"steps": 2}}),
    *(("sampler", diffusion, {"arms": ["unguided"], "sampler": {"kind": kind}}) for kind in SAMPLERS),
    ("sampler", drawn, {"arms": ["unguided"], "sampler": {"kind": "heun", "steps": 2}}),
    ("sampler", drawn, {"arms": ["unguided"], "sampler": {"kind": "euler", "steps": 1}}),
    ("sampler", drawn, {"arms": ["unguided"], "sampler": {"kind": "heun", "heun": {"churn": 0.0}}}),
    ("sampler", drawn, {"arms": ["unguided"], "sampler": {"kind": "euler", "euler": {"churn_min": 60.0, "churn_max": 70.0}}}),
    ("sampler", dydiff, DYDIFF),
    ("sampler", dydiff, {"arms": ["dydiff"], "synthesis": {"dydiff": {"states": "mean"}}}),
    *(("synthesis", replay, {"arms": ["unguided"], "synthesis": {"regime": regime}}) for regime in REGIMES),
    ("synthesis", replay, {"arms": ["unguided"], "synthesis": {"regime": "continuous", "interval": 16}}),
    ("synthesis", replay, {"arms": ["real"]}),
    *(("synthesis.filter", replay, {"arms": ["unguided"], "synthesis": {"filter": {"kind": kind}}}) for kind in FILTERS),
    *(("synthesis.dydiff", dydiff, {**DYDIFF, "synthesis": {"dydiff": {"iterations": m}}}) for m in (0, 2)),
    ("synthesis.dydiff", dydiff, {**DYDIFF, "synthesis": {"dydiff": {"conditioning": "anchored"}}}),
    ("synthesis.dydiff", dydiff, {**DYDIFF, "synthesis": {"length": 8}}),
    ("synthesis.dydiff", replay, {"arms": ["world_model"]}),
    ("synthesis.world_model", rollouts, {"arms": ["world_model"]}),
    ("synthesis.world_model", replay, DYDIFF),
    *(
        ("synthesis.consistency", diffusion, {"arms": ["unguided"], "synthesis": {"consistency": {"kind": kind}}})
        for kind in ("none", "dynamics")
    ),
    ("synthesis.consistency", replay, {"arms": ["world_model"]}),
    *((f"agent.{kind}", agent, {"agent": {"kind": kind}}) for kind in AGENTS),
    ("agent.td3_bc", agent, {"agent": {"kind": "bc"}}),
    ("agent.td3_bc", agent, {"agent": {"td3_bc": {"actor": "tanh_gaussian", "policy_delay": 2}}}),
    ("agent.diffusion_ql", agent, {"agent": {"kind": "diffusion_ql", "diffusion_ql": {"choice": "centre"}}}),
]  # fmt: skip

# what a walk does not see, as it is not of that program: of run, or of another part that has a walk of its own
ELSEWHERE = {
    "guidance.max_dynamics_error": "pipeline.calibration, before a refresh",
    "synthesis.dydiff.scaled_conditions": "the network and its training",
    "synthesis.length": "steps of a synthesizer: `test_length`",
    "synthesis.first_unguided": "the synthesizer of the first generation",
    "synthesis.consistency.": "", "synthesis.filter.": "", "synthesis.world_model.": "", "synthesis.dydiff.": "",
}  # fmt: skip


def hint_of(name: str) -> Any:
    section: Any = Config
    for part in name.split("."):
        section = typing.get_type_hints(section)[part]
    return section


def others(name: str, value: Any) -> Iterator[Any]:
    """Other values of a setting, some of which may be refused for their range."""
    hint = hint_of(name)
    if get_origin(hint) is Literal:
        yield from (each for each in get_args(hint) if each != value)
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value // 2, 2 * value, value + 1, 8, 4, 2)
    elif isinstance(value, float):
        yield from (0.5 * value, 0.5, 2.0 * value, 0.9, 2.0)
    elif isinstance(value, tuple):
        yield (3, 3)


def nested(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    return value  # type: ignore[no-any-return]


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {key: merged(below[key], above[key]) for key in below.keys() & above.keys() if isinstance(below[key], dict)}
    return {**below, **above, **both}


def ids(walk: Any) -> str:
    values = walk[2]
    return f"{walk[0]}-" + ",".join(f"{name}={get_in(values, name)}" for name in names_in(values))


def get_in(values: Any, name: str) -> Any:
    for part in name.split("."):
        values = values[part]
    return values


def marks(walk: Any) -> Any:
    """Slow where programs take long to compile."""
    return pytest.mark.slow if any(name in ids(walk) for name in ("agent.diffusion_ql", "proposal=moment")) else ()


@pytest.mark.parametrize(
    ("section", "part", "choices"), [pytest.param(*walk, id=ids(walk), marks=marks(walk)) for walk in WALKS]
)
def test_a_setting_has_an_effect_or_is_refused(
    section: str, part: Any, choices: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """And one that is refused, or told as one of other arms, has none: the table is neither too short nor too long."""
    base = merged(SMALL, choices)
    config = load_config(None, base, unused="kept")
    made, idle = part(config), unused(config)
    # one step is the same by either solver, and all regimes are one where no refresh is due
    alike = {"sampler.kind": part is drawn, "synthesis.regime": config.synthesis.interval >= config.agent.updates}
    nowhere = [name for name in ELSEWHERE if not section.startswith(name.rstrip("."))]
    for name in names_of(type(get(config, section)), section + "."):
        if alike.get(name) or (name.startswith(tuple(nowhere)) and name not in idle):
            continue
        value, seen, refused = get(config, name), False, False
        for other in (each for each in others(name, value) if each != value):
            if seen and not isinstance(value, str | bool):
                break  # one other number is enough
            try:
                changed = load_config(None, merged(base, nested(name, other)), unused="kept")
            except InputError:
                refused = True  # no value of it, or none beside the choices
                continue
            if name in idle and name in unused(changed):
                told = f"note: {name} = " if of_other_arms(changed, name) else ""
                refusal = pytest.raises(InputError, match=f"{name} = .*: expected its default .*, as it counts only where")
                with contextlib.nullcontext() if told else refusal:
                    check_used([changed], [name], lambda _: [Config()])
                said = capsys.readouterr().err
                assert said.startswith(told) and bool(said) == bool(told)
                assert part(changed) == made, f"{name} = {other!r} is refused, but changes something"
            else:
                assert part(changed) != made, f"{name} = {other!r} instead of {value!r} changes nothing"
            seen = True
        assert seen or refused or name in idle or isinstance(value, str), f"{name}: no other value was tried"


def test_the_table_names_settings() -> None:
    known = set(names_of(Config))
    for rule in RULES:
        for part in rule.names:
            assert any(name == part or name.startswith(part + ".") for name in known), part
    assert unused(Config()).keys() <= known
    for preset in PRESETS:  # whose own settings all count, or are never asked
        load_config(None, {"preset": preset, "data": {"name": "hopper_medium-v2.hdf5"}})


CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        ("paper/pgd_hopper_td3_bc", {"denoiser": {"steps": 200}}, "denoiser.steps = 200: .* where denoiser.epochs is 0"),
        ("paper/pgd_hopper_td3_bc", {"agent": {"iql": {"beta": 1.0}}}, "agent.iql.beta = 1.0: .* where agent.kind is 'iql'"),
        (
            "",
            {"guidance": {"kind": "reconstruction", "reconstruction": {"sigma_max": 1e-3}}},
            "guidance.reconstruction.sigma_max = 0.001: expected at least sampler.sigma_min = 0.002",
        ),
        (
            "",
            {"guidance": {"moment": {"sigma_min": 7.0, "sigma_max": 7.1}}},
            r"\(7.0, 7.1\): expected a noise level .* nearest is 6.464",
        ),
        ("", {"guidance": {"kind": "published"}, "sampler": {"steps": 1}}, "sampler.steps = 1: expected at least 2"),
        ("", {"synthesis": {"synthetic_ratio": 1e-3}}, "synthesis.synthetic_ratio = 0.001: expected more than 0.00195312"),
        ("", {"arms": ["unguided"], "synthesis": {"synthetic_ratio": 0.0}}, "synthesis.synthetic_ratio = 0.0: expected more"),
        ("", {"evaluation": {"intermediate_episodes": 3}}, "intermediate_episodes = 3: .* where evaluation.every is above 0"),
        ("", {"sweep": ["agent.alpha", "1,2"], "agent": {"td3_bc": {"alpha": 3.0}}}, "td3_bc.alpha = 3.0: .* sweep does not"),
    ],
)
def test_what_the_command_line_sets_without_effect(file: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(CONFIGS / f"{file}.toml" if file else None, options)


@pytest.mark.parametrize(
    "options",
    [{"models_from": ["runs/x"]}, {"sampler": {"steps": 5}}, {"data": {"pad_short": True}}, {"denoiser": {"steps": 500}}],
)
def test_one_set_of_options_serves_every_arm(options: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    name = names_in(options)[0]
    load_config(None, options | {"arms": ["real"]})
    assert re.fullmatch(rf"note: {name} = .* has no effect: it counts only where arms has .*\n", capsys.readouterr().err)
    load_config(None, options | {"arms": ["guided"]})
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "options",
    [
        {"arms": ["real"]}, {"agent": {"kind": "iql"}}, {"guidance": {"kind": "smc"}}, {"sampler": {"kind": "dpmpp_2m"}},
        {"denoiser": {"epochs": 3}}, {"arms": ["dydiff"], "sampler": {"kind": "euler"}},
    ],
)  # fmt: skip
def test_options_may_choose_what_a_file_or_preset_is_not_made_for(options: dict[str, Any]) -> None:
    load_config(CONFIGS / "pgd/hopper_medium_cpu.toml", options)
    if "guidance" not in options:
        load_config(CONFIGS / "dydiff/point2d_cpu.toml", options)
    load_config(None, {"preset": "paper"} | {key: options[key] for key in options if key != "synthesis"})


def test_a_file_answers_for_its_own_choices_but_not_for_those_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[guidance]\nkind = "moment"\npublished.sine = 0.5\n[agent.iql]\nbeta = 1.0\n')
    with pytest.raises(
        InputError, match=r"guidance.published.sine = 0.5: expected its default 0.3, as it counts only where guidance.kind"
    ):
        load_config(path)
    assert load_config(path, {"seeds": 2}, unused="kept").guidance.published.sine == 0.5
    (tmp_path / "versions.json").write_text("{}")
    assert load_config(path, {"seeds": 2}).guidance.published.sine == 0.5


STUDY = """
title = "A study"
[base]
sampler.steps = 5
[axes.source]
real = {{ arms = ["real"] }}
guided = {{ arms = ["guided"], guidance.kind = "{kind}", guidance.moment.iterations = 3 }}
"""


def test_a_setting_of_a_study_counts_in_one_cell_at_least(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "study.toml"
    path.write_text(STUDY.format(kind="moment"))
    load_study(str(path))
    load_study(str(path), only={"source": ("real",)})
    with pytest.raises(InputError, match=r"--guidance.published.sine = 0.5: expected its default 0.3"):
        load_study(str(path), overrides={"guidance": {"published": {"sine": 0.5}}})
    load_study(str(path), only={"source": ("real",)}, overrides={"sampler": {"rho": 5.0}})
    assert "note: --sampler.rho = 5.0 has no effect" in capsys.readouterr().err
    path.write_text(STUDY.format(kind="published"))
    with pytest.raises(InputError, match=r"study.toml: guidance.moment.iterations = 3: expected its default 1"):
        load_study(str(path))
    path.write_text(STUDY.format(kind="moment") + "[measure]\nsamples = 3\n")
    with pytest.raises(InputError, match=r"measure.samples = 3: expected its default, as it counts only where measure.kind is"):
        load_study(str(path))


def test_sections_in_python() -> None:
    denoiser = TrajectoryDenoiser(Gaussian(), CODEC, 4)
    with pytest.raises(TypeError, match="iterations"):  # which the options of other methods do not have
        GuidanceConfig(kind="published", published=PublishedConfig(iterations=5))  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="churn"):
        SamplerConfig(batch_size=2, churn=3.0)  # type: ignore[call-arg]
    upto = lambda x: GuidanceConfig(moment=MomentConfig(sigma_max=x))
    with pytest.raises(InputError, match=r"guidance.moment.sigma_max = 0.001: expected at least"):
        make_synthesizer(denoiser, SamplerConfig(batch_size=2), upto(1e-3))
    guided = lambda x: make_synthesizer(denoiser, SamplerConfig(batch_size=2), upto(x)).guidance
    assert jax.tree.leaves(jax.vmap(guided)(jnp.array([1e-3, 1.0])))  # traced: not known yet
    of = lambda rho: make_synthesizer(denoiser, SamplerConfig(rho=rho, batch_size=2)).sampling.sigmas
    scales = jax.vmap(of)(jnp.array([3.0, 7.0]))
    assert scales.shape == (2, 33)
    official = load_config(None, {"preset": "official", "data": {"name": "hopper_medium-v2.hdf5"}})
    make_synthesizer(denoiser, official.sampler, dataclasses.replace(official.guidance, kind="moment"))
    with pytest.raises(InputError, match=r"denoiser.steps = 5: expected its default 3000"):
        jax.eval_shape(lambda key: train_denoiser(key, None, config=DenoiserConfig(steps=5, validate_every=5, epochs=1)), KEY)


def test_run_commands_of_the_documentation_are_accepted() -> None:
    pages = [CONFIGS.parent / "README.md", *sorted((CONFIGS.parent / "docs").glob("*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages).replace("\\\n", "")
    commands = [line for line in text.splitlines() if line.startswith("jaxpgd run ")]
    assert len(commands) > 5
    for command in commands:
        read_run_arguments(shlex.split(command, comments=True)[2:], "run")
