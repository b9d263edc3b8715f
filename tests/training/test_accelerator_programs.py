"""What an accelerator would be given: chunk programs and samplers lowered for CUDA, without a device."""

import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpgd.agents import make_agent
from jaxpgd.agents.bc import BCConfig
from jaxpgd.agents.cql import CQLConfig
from jaxpgd.agents.diffusion_ql import DiffusionQLConfig
from jaxpgd.agents.iql import IQLConfig
from jaxpgd.agents.rebrac import ReBRACConfig
from jaxpgd.agents.td3_bc import TD3BCConfig
from jaxpgd.diffusion.solvers import SamplerConfig
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.precision import precision_of, set_precision
from jaxpgd.experiment.run.seeds import over_seeds
from jaxpgd.experiment.stages.prepare import prepare
from jaxpgd.experiment.studies.store import Store
from jaxpgd.guidance.kinds import GuidanceConfig
from jaxpgd.options import as_arrays
from jaxpgd.parallel import Placement
from jaxpgd.synthesis.diffusion import make_synthesizer
from jaxpgd.synthesis.replay import SynthesisConfig
from jaxpgd.tokens import fit_codec
from jaxpgd.training.agent import AgentConfig, agent_program
from jaxpgd.training.denoiser import DenoiserConfig, denoiser_program, init_denoiser, trained_denoiser
from jaxpgd.training.experience import Experience
from jaxpgd.training.sources import join_sources, sources_program
from jaxpgd.training.windows import Windows
from jaxpgd.training.world_model import world_model_program
from jaxpgd.types import Transition
from jaxpgd.windows import DataConfig
from jaxpgd.world_model.data import prepare_transitions
from jaxpgd.world_model.model import WorldModelConfig

SIZE = 10007  # of the dataset: no other size is like it
DENOISER = DenoiserConfig(features=8, blocks=2, groups=4, steps=4, batch_size=16, validate_every=2, validation_batches=2)
HIDDEN = (12, 12)
AGENTS: dict[str, Any] = {
    "td3_bc": TD3BCConfig(hidden=HIDDEN),
    "iql": IQLConfig(hidden=HIDDEN),
    "bc": BCConfig(hidden=HIDDEN),
    "cql": CQLConfig(hidden=HIDDEN, n_actions=3),
    "diffusion_ql": DiffusionQLConfig(hidden=HIDDEN, steps=2),
    "rebrac": ReBRACConfig(hidden=HIDDEN),
}
AGENT = AgentConfig(updates=8, updates_per_chunk=4, batch_size=6)
SYNTHESIS = SynthesisConfig(trajectories=103, interval=4, length=8, synthetic_ratio=0.5)


@pytest.fixture(autouse=True)
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package takes this process for one with a GPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    before = jax.config.jax_default_matmul_precision
    yield
    jax.config.update("jax_default_matmul_precision", before)


@functools.cache
def data() -> Windows:
    """Random transitions of 3 observations and 2 actions, and the start of every window of 8."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    real = Transition(draw(SIZE, 3), jnp.tanh(draw(SIZE, 2)), draw(SIZE), jnp.ones(SIZE), draw(SIZE, 3))
    starts = np.arange(0, SIZE - 8, 8)
    return Windows(real, jnp.asarray(starts), jnp.asarray(starts[:64]), fit_codec(real, starts, 8), 8)


def shaped(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), tree)


def denoiser_chunk(**changes: Any) -> tuple[Any, Any]:
    """A denoiser's chunk and its arguments, as shapes."""
    program = denoiser_program(data(), dataclasses.replace(DENOISER, **changes))
    state = jax.eval_shape(program.init, jax.random.key(0), data())
    return program.chunk, (state, shaped(data()), jax.ShapeDtypeStruct((), jnp.int32))


def agents(kind: str, made: Any = None) -> tuple[Any, Experience]:
    """The program of two seeds of an agent, and where its batches come from: real data, with a synthesizer others as well."""
    agent = make_agent(kind, AGENTS[kind], 2)
    program = over_seeds(lambda _: agent_program(agent, AGENT, SYNTHESIS), {}, 1, 2)
    real = data().transitions
    if agent.next_actions:
        real = real.replace(next_action=real.action, has_next_action=jnp.ones(SIZE, bool))
    return program, Experience(real, made, None if made is None else synthesizer(None))


def agent_chunk(kind: str, made: Any = None) -> tuple[Any, Any]:
    """The chunk of an agent's seeds and its arguments, as shapes."""
    program, experience = agents(kind, made)
    state = jax.eval_shape(program.init, jax.random.key(0), experience)
    return program.chunk, (state, shaped(experience), jax.ShapeDtypeStruct((), jnp.int32))


def together_chunk() -> tuple[Any, Any]:
    """The chunk of agents of two sources."""
    program = sources_program(make_agent("bc", AGENTS["bc"], 2), AGENT, SYNTHESIS, ("real", "unguided"), 2)
    real = data().transitions
    sources = join_sources([Experience(real), Experience(real, synthesizer(None))])
    state = jax.eval_shape(program.init, jax.random.key(0), sources)
    return program.chunk, (state, shaped(sources), jax.ShapeDtypeStruct((), jnp.int32))


def world_model_chunk() -> tuple[Any, Any]:
    """The chunk of a world model, terminals included."""
    config = WorldModelConfig(members=2, elites=1, hidden=HIDDEN, reward_hidden=HIDDEN, batch_size=256, holdout_most=100)
    prepared = prepare_transitions(jax.tree.map(np.asarray, data().transitions), config)
    program = world_model_program(prepared, config)
    state = jax.eval_shape(program.init, jax.random.key(0), prepared)
    return program.chunk, (state, shaped(prepared), jax.ShapeDtypeStruct((), jnp.int32))


def synthesizer(guidance: Any, **options: Any) -> Any:
    """Of a denoiser whose parameters are zeros, guided as `guidance` says."""
    small = dataclasses.replace(DENOISER, blocks=1)
    init = functools.partial(init_denoiser, windows=data(), config=small)
    state = jax.eval_shape(init, jax.random.key(0))
    zeros = state.replace(ema_params=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state.ema_params))
    denoiser = trained_denoiser(zeros.replace(hypers=as_arrays(small)), data())
    config = SamplerConfig(**{"steps": 3, "batch_size": 32, **options})
    return make_synthesizer(denoiser, config, guidance and GuidanceConfig(kind=guidance))


def sampler(guidance: Any, **options: Any) -> tuple[Any, Any]:
    """The sampling of 40 trajectories, for a policy where they are guided."""
    agent = make_agent("td3_bc", AGENTS["td3_bc"], 2)
    example = jax.tree.map(lambda x: x[0], data().transitions)
    fresh = lambda key: agent.policy(agent.init(key, example, None))
    policy = jax.eval_shape(fresh, jax.random.key(0)) if guidance else None
    start = jax.ShapeDtypeStruct((40, 3), jnp.float32)
    call = lambda made, key, policy, start: made(key, policy, start)
    return call, (shaped(synthesizer(guidance, **options)), shaped(jax.random.key(0)), policy, start)


PROGRAMS: dict[str, Any] = {
    "denoiser": denoiser_chunk,
    "bfloat16": functools.partial(denoiser_chunk, compute="bfloat16"),
    "primitive": functools.partial(denoiser_chunk, convolution="primitive"),
    **{kind: functools.partial(agent_chunk, kind) for kind in AGENTS},
    "guided": lambda: agent_chunk("td3_bc", synthesizer("moment")),
    "together": together_chunk,
    "world_model": world_model_chunk,
    "heun": lambda: sampler(None, kind="heun"),
    "published": lambda: sampler("published", kind="ancestral"),
    "smc": lambda: sampler("smc"),
}
CHUNKS = [name for name in PROGRAMS if name not in ("heun", "published", "smc")]


USUAL = "tensorfloat32"


@functools.cache
def traced(what: str, setting: str) -> Any:
    """A program at a precision, its state donated where it has one."""
    set_precision(setting)
    program, arguments = PROGRAMS[what]()
    return jax.jit(program, donate_argnums=0 if what in CHUNKS else ()).trace(*arguments)


@functools.cache
def lowered(what: str, setting: str) -> tuple[Any, list[Any]]:
    """The program's module for CUDA and all operations in it."""
    module, found = traced(what, setting).lower(lowering_platforms=("cuda",)).compiler_ir("stablehlo"), list[Any]()

    def visit(operation: Any) -> None:
        found.append(operation)
        for inner in (inner for region in operation.regions for block in region.blocks for inner in block.operations):
            visit(inner.operation)

    visit(module.operation)
    return module, found


def element(value: Any) -> str:
    return str(value.type).rsplit("x", 1)[-1].removeprefix("tensor<").rstrip(">")


def products(what: str, setting: str) -> list[tuple[str, str, str]]:
    """Operation, types of the operands and precisions of every matrix product and convolution."""
    kinds = {"stablehlo.dot_general": "product", "stablehlo.convolution": "convolution"}
    named = [op for op in lowered(what, setting)[1] if op.name in kinds]
    stated = lambda op: re.findall(r"precision (\w+)>", str(op.attributes["precision_config"]))
    return [(kinds[op.name], "/".join(map(element, op.operands)), "/".join(stated(op))) for op in named]


STATED = {"tensorfloat32": "HIGH/HIGH", "float32": "HIGHEST/HIGHEST"}
FLOAT32 = [(what, USUAL) for what in PROGRAMS if what != "bfloat16"] + [("denoiser", "float32"), ("bc", "float32")]


@pytest.mark.slow
@pytest.mark.parametrize(("what", "setting"), FLOAT32)
def test_products_carry_the_precision_of_the_setting(what: str, setting: str) -> None:
    found = products(what, setting)
    assert len(found) >= 6 and {each[1:] for each in found} == {("f32/f32", STATED[setting])}
    assert ("convolution" in {each[0] for each in found}) == (what == "primitive")


def test_products_of_half_precision_are_all_but_those_of_embedding_and_result() -> None:
    """The embedding of the noise level has two layers, the result one: 3 products forward and again in the validation loss,
    and backward 3 for kernels and 2 for inputs, as none is for the noise level. Muon's Newton-Schulz steps, a loop of 3
    products for each of its kernels, work on parameters, which are single precision."""
    found, exact = products("bfloat16", USUAL), products("denoiser", USUAL)
    kinds = [each[1] for each in found]
    state = traced("bfloat16", USUAL).args_info[0][0]
    kernels = len(jax.tree.leaves(state.optimiser[0].inner_states["muon"].inner_state[0].mu))
    assert len(found) == len(exact) > 50 and set(kinds) == {"bf16/bf16", "f32/f32"}
    assert kernels > 0 and kinds.count("f32/f32") == 11 + 3 * kernels
    state = traced("bfloat16", USUAL).args_info[0][0]
    sizes = {str(x.dtype) for x in jax.tree.leaves((state.params, state.ema_params, state.optimiser))}
    assert sizes == {"float32", "int32"}  # Adam counts its steps
    roots = [op for op in lowered("bfloat16", USUAL)[1] if op.name == "stablehlo.rsqrt"]
    assert len(roots) >= 5 and {element(op.operands[0]) for op in roots} == {"f32"}  # of statistics


@pytest.mark.parametrize("what", CHUNKS)
def test_the_memory_of_every_leaf_of_the_state_is_used_again(what: str) -> None:
    module, _ = lowered(what, USUAL)
    main = next(op for op in module.body.operations if op.attributes["sym_name"].value == "main")
    arguments = [str(each) for each in main.attributes["arg_attrs"]]
    outputs = [re.findall(r"tf.aliasing_output = (\d+)", text) for text in arguments]
    count = len(jax.tree.leaves(traced(what, USUAL).args_info[0][0]))
    assert [len(each) for each in outputs] == [1] * count + [0] * (len(outputs) - count)
    assert len({each[0] for each in outputs[:count]}) == count


def test_a_stage_donates_its_state_and_nothing_else() -> None:
    chunk, arguments = agent_chunk("bc")
    (call,) = jax.make_jaxpr(Placement(2).step(chunk))(*arguments).eqns
    state, rest = len(jax.tree.leaves(arguments[0])), len(jax.tree.leaves(arguments[1:]))
    assert call.params["donated_invars"] == (True,) * state + (False,) * rest


@pytest.mark.parametrize("what", PROGRAMS)
def test_nothing_calls_the_host(what: str) -> None:
    """The one custom call is JAX's generator of random bits, which runs on the device."""
    found = lowered(what, USUAL)[1]
    assert not {"stablehlo.infeed", "stablehlo.outfeed", "stablehlo.send", "stablehlo.recv"} & {op.name for op in found}
    calls = {op.attributes["call_target_name"].value for op in found if op.name == "stablehlo.custom_call"}
    assert calls <= {"cu_threefry2x32_ffi"}


def parts(equation: Any) -> Iterator[Any]:
    """The programs inside an equation."""
    for value in equation.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if hasattr(part := getattr(part, "jaxpr", part), "eqns"):
                yield part


def simple(jaxpr: Any) -> Iterator[Any]:
    """All equations without programs inside."""
    for equation in jaxpr.eqns:
        inside = list(parts(equation))
        yield from [equation] if not inside else (each for part in inside for each in simple(part))


def touched(equations: Iterator[Any], sizes: set[int]) -> list[str]:
    """The operations that read or make something of one of the sizes."""
    large = lambda x: bool(sizes & set(getattr(x.aval, "shape", ())))
    return [each.primitive.name for each in equations if any(map(large, (*each.invars, *each.outvars)))]


def steps(jaxpr: Any) -> Iterator[Any]:
    """The bodies of the innermost loops that read the dataset."""
    for equation in jaxpr.eqns:
        for part in parts(equation):
            inner = list(steps(part))
            yield from inner
            if not inner and equation.primitive.name in ("scan", "while") and touched(simple(part), {SIZE}):
                yield part


LOOPS = {"denoiser": 2, "bfloat16": 2, "primitive": 2, "world_model": 3}  # training and validation; parts of a world model


@pytest.mark.parametrize("what", CHUNKS)
def test_updates_only_gather_from_what_has_the_size_of_the_dataset(what: str) -> None:
    """Or of its windows, or of the replay, whose trajectories and steps are of sizes of their own."""
    bodies = list(steps(traced(what, USUAL).jaxpr))
    replay = {SYNTHESIS.trajectories, SYNTHESIS.trajectories * SYNTHESIS.length} if what == "guided" else set()
    assert len(bodies) == LOOPS.get(what, 1)
    for body in bodies:
        found = touched(simple(body), {SIZE, data().train.shape[0], *replay})
        assert set(found) == {"gather"} and len(found) >= (10 if replay else 3)


@pytest.mark.parametrize("what", CHUNKS)
def test_updates_have_no_branches(what: str) -> None:
    """Nor loops of unknown length: a GPU's host may have to wait for what decides either."""

    def branches(jaxpr: Any) -> list[str]:
        inner = [name for each in jaxpr.eqns for part in parts(each) for name in branches(part)]
        return inner + [each.primitive.name for each in jaxpr.eqns if each.primitive.name in ("cond", "while")]

    assert [branches(body) for body in steps(traced(what, USUAL).jaxpr)] == [[]] * LOOPS.get(what, 1)


def test_on_cpu_no_precision_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs and the keys of their cache stay as they are."""
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    before = jax.config.jax_default_matmul_precision
    set_precision("tensorfloat32")
    assert jax.config.jax_default_matmul_precision == before and precision_of("tensorfloat32") == "float32"


@pytest.mark.parametrize("command", ["prepare", "kept"])
def test_a_run_sets_its_precision(command: str, tmp_path: Path) -> None:
    """Also where a study takes a dataset that it has kept."""
    usual = Config(data=DataConfig(episodes=4, window=8))
    exact = dataclasses.replace(usual, matmul_precision="float32")
    set_of = prepare if command == "prepare" else Store(tmp_path).prepared
    for config in (usual, exact, usual):
        set_of(config)
        assert jax.config.jax_default_matmul_precision == config.matmul_precision
