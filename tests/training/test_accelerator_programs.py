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
from jaxpgd.packing import fit_codec
from jaxpgd.pipeline.drive import over_seeds
from jaxpgd.pipeline.parts import prepare
from jaxpgd.precision import precision_of, set_precision
from jaxpgd.settings import (
    AgentConfig,
    BCConfig,
    Config,
    CQLConfig,
    DataConfig,
    DenoiserConfig,
    DiffusionQLConfig,
    GuidanceConfig,
    IQLConfig,
    SamplerConfig,
    SynthesisConfig,
    TD3BCConfig,
)
from jaxpgd.studies.store import Store
from jaxpgd.synthesis.diffusion import make_synthesizer
from jaxpgd.training.agent import Experience, agent_program
from jaxpgd.training.denoiser import Windows, denoiser_hypers, denoiser_program, init_denoiser, trained_denoiser
from jaxpgd.types import Transition

SIZE = 10007  # of the dataset: no other size is like it
DENOISER = DenoiserConfig(features=8, blocks=2, groups=4, steps=4, batch_size=16, validate_every=2, validation_batches=2)
HIDDEN = (12, 12)
AGENTS: dict[str, Any] = {
    "td3_bc": TD3BCConfig(hidden=HIDDEN),
    "iql": IQLConfig(hidden=HIDDEN),
    "bc": BCConfig(hidden=HIDDEN),
    "cql": CQLConfig(hidden=HIDDEN, n_actions=3),
    "diffusion_ql": DiffusionQLConfig(hidden=HIDDEN, steps=2),
}
AGENT = AgentConfig(updates=8, updates_per_chunk=4, batch_size=6)
SYNTHESIS = SynthesisConfig(trajectories=101, interval=4, length=8)


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
    program = denoiser_program(data(), DenoiserConfig(**{**vars(DENOISER), **changes}))
    state = jax.eval_shape(program.init, jax.random.key(0), data())
    return program.chunk, (state, shaped(data()), jax.ShapeDtypeStruct((), jnp.int32))


def synthesizer(guidance: GuidanceConfig | None, **sampler: Any) -> Any:
    state = init_denoiser(jax.random.key(0), data(), denoiser_hypers(DENOISER), DENOISER)
    config = SamplerConfig(**{"steps": 3, "batch_size": 32, **sampler})
    return make_synthesizer(trained_denoiser(state, data(), DENOISER), config, guidance)


def agent_chunk(kind: str = "td3_bc", *, made: Any = None, seeds: int = 2) -> tuple[Any, Any]:
    """The chunk of several seeds of an agent, on real data or with a synthesizer, and its arguments, as shapes."""
    agent = make_agent(kind, AGENTS[kind], 2)
    program = over_seeds(lambda _: agent_program(agent, AGENT, SYNTHESIS), {}, 1, seeds)
    experience = Experience(data().transitions, made)
    state = jax.eval_shape(program.init, jax.random.key(0), experience)
    return program.chunk, (state, shaped(experience), jax.ShapeDtypeStruct((), jnp.int32))


def lower(chunk: Any, arguments: Any, **options: Any) -> Any:
    return jax.jit(chunk, **options).trace(*arguments).lower(lowering_platforms=("cuda",))


def operations(chunk: Any, arguments: Any) -> list[Any]:
    """All operations of a program lowered for CUDA, and the module that they are of."""
    module, found = lower(chunk, arguments).compiler_ir("stablehlo"), list[Any]()

    def visit(operation: Any) -> None:
        found.append(operation)
        for inner in (inner for region in operation.regions for block in region.blocks for inner in block.operations):
            visit(inner.operation)

    visit(module.operation)
    return [module, *found]


def products(found: list[Any]) -> list[tuple[str, str]]:
    """Type of the operands and precision of every matrix product and convolution."""
    kinds = ("stablehlo.dot_general", "stablehlo.convolution")
    named = [op for op in found[1:] if op.name in kinds]
    text = lambda op: re.findall(r"precision (\w+)>", str(op.attributes["precision_config"]))
    return [("/".join(str(x.type).rsplit("x", 1)[-1].rstrip(">") for x in op.operands), "/".join(text(op))) for op in named]


PRECISIONS = {"tensorfloat32": "HIGH/HIGH", "float32": "HIGHEST/HIGHEST"}
LOWERED = [*[(what, "tensorfloat32") for what in ("denoiser", *AGENTS)], ("denoiser", "float32"), ("td3_bc", "float32")]


@pytest.mark.parametrize(("what", "setting"), LOWERED)
def test_products_carry_the_precision_of_the_setting(what: str, setting: str) -> None:
    set_precision(setting)
    found = products(operations(*denoiser_chunk() if what == "denoiser" else agent_chunk(what)))
    assert len(found) >= 6 and set(found) == {("f32/f32", PRECISIONS[setting])}


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
