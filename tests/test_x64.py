"""Everything computes in float32 where JAX's default is double precision (JAX_ENABLE_X64=1)."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpgd.agents import AGENTS, make_agent
from jaxpgd.diffusion.solvers import SamplerConfig
from jaxpgd.envs.linear_gaussian import linear_policy
from jaxpgd.envs.point2d import Point2D, goal_policy, importance_truth
from jaxpgd.experiment.run.seeds import over_seeds
from jaxpgd.guidance.kinds import GuidanceConfig
from jaxpgd.synthesis.diffusion import make_synthesizer
from jaxpgd.synthesis.dydiff import DyDiffConfig, make_dydiff
from jaxpgd.synthesis.filters import FilterConfig, make_filter
from jaxpgd.synthesis.replay import SynthesisConfig
from jaxpgd.synthesis.world_model import make_world_model_synthesizer
from jaxpgd.tokens import fit_codec
from jaxpgd.training.agent import AgentConfig, agent_program
from jaxpgd.training.denoiser import (
    DenoiserConfig,
    denoiser_program,
    trained_denoiser,
)
from jaxpgd.training.experience import Experience
from jaxpgd.training.program import Program
from jaxpgd.training.sources import join_sources, sources_program
from jaxpgd.training.state_denoiser import trained_state_denoiser
from jaxpgd.training.windows import Windows, state_windows
from jaxpgd.training.world_model import trained_world_model, world_model_program
from jaxpgd.types import Transition
from jaxpgd.world_model.data import prepare_transitions
from jaxpgd.world_model.model import WorldModelConfig
from jaxpgd.world_model.rollouts import RolloutConfig
from jaxpgd.world_model.termination import make_rule

T, OBS, ACT = 4, 3, 2
DENOISER = DenoiserConfig(features=8, blocks=1, groups=4, steps=2, validate_every=1, validation_batches=1, batch_size=4)
WORLD_MODEL = WorldModelConfig(members=2, elites=2, hidden=(8,), reward_hidden=(8,), batch_size=8, epochs=2, steps_per_epoch=2)
AGENT = AgentConfig(updates=4, updates_per_chunk=2, batch_size=8)
SYNTHESIS = SynthesisConfig(trajectories=8, interval=2, synthetic_ratio=0.5)
SAMPLER = SamplerConfig(steps=3, batch_size=4)
KINDS = get_args(get_type_hints(GuidanceConfig)["kind"])
SOLVERS = [kind for kind in get_args(get_type_hints(SamplerConfig)["kind"]) if kind in ("ancestral", "dpmpp_3m_sde")]


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def transitions() -> Transition:
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return Transition(draw(64, OBS), jnp.tanh(draw(64, ACT)), draw(64), jnp.ones(64, jnp.float32), draw(64, OBS))


def is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def zeros(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.random.key(0) if is_key(x) else jnp.zeros(x.shape, x.dtype), tree)


def check_single(tree: Any) -> None:
    """No leaf has 64 bits."""
    wide = [jax.tree_util.keystr(path) for path, x in jax.tree_util.tree_leaves_with_path(tree)
            if not is_key(x) and x.dtype.itemsize == 8]  # fmt: skip
    assert wide == []


def traced(program: Program[Any], data: Any) -> Any:
    """The shapes of a program's first state, which a chunk returns as they are; scans that mix types fail here."""
    state = jax.eval_shape(program.init, jax.random.key(0), data)
    after, _ = jax.eval_shape(program.chunk, state, data, jnp.asarray(0, jnp.int32))
    check_single(state)
    assert [x.dtype for x in jax.tree.leaves(after)] == [x.dtype for x in jax.tree.leaves(state)]
    return state


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """Denoisers of trajectories and of states, and world models with a rule and a classifier for terminals; all zeros."""
    with jax.enable_x64(True):
        data, starts = transitions(), np.arange(0, 64 - T, T)
        windows = Windows(data, jnp.asarray(starts), jnp.asarray(starts), fit_codec(data, starts, T), T)
        chosen, found = state_windows(windows, "clean"), dict[str, Any]()
        found["denoiser"] = trained_denoiser(zeros(traced(denoiser_program(windows, DENOISER), windows)), windows)
        states = zeros(traced(denoiser_program(chosen, DENOISER), chosen))
        found["states"] = trained_state_denoiser(states, chosen, "clean")
        known = prepare_transitions(jax.tree.map(np.asarray, data), WORLD_MODEL)
        for name, rule in (("world", make_rule("never")), ("learned", None)):
            state = zeros(traced(world_model_program(known, WORLD_MODEL, rule), known))
            found[name] = trained_world_model(state, known, WORLD_MODEL, rule)
    return found


def synthesizer(models: dict[str, Any], source: str) -> Any:
    kind, _, which = source.partition(" ")
    if kind == "guided":
        return make_synthesizer(models["denoiser"], SAMPLER, GuidanceConfig(which, coefficient=0.1))  # type: ignore[arg-type]
    if kind == "chosen":
        return make_synthesizer(models["denoiser"], SAMPLER, GuidanceConfig("reconstruction", target_ess=0.5))
    if kind == "unguided":
        return make_synthesizer(models["denoiser"], dataclasses.replace(SAMPLER, kind=which or SAMPLER.kind))  # type: ignore[arg-type]
    if kind == "world_model":
        return make_world_model_synthesizer(models[which], RolloutConfig(penalty=0.1), length=T)
    return make_dydiff(models["world"], models["states"], DyDiffConfig(), SAMPLER)


def small_agent(kind: str) -> Any:
    section = dataclasses.replace(getattr(AgentConfig(), kind), hidden=(8,))
    mean, std = jnp.zeros(OBS, jnp.float32), jnp.ones(OBS, jnp.float32)
    return make_agent(kind, section, ACT, obs_mean=mean, obs_std=std)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(AGENTS))
def test_every_agent_trains_in_single_precision(models: dict[str, Any], kind: str) -> None:
    agent, data = small_agent(kind), transitions()
    if agent.next_actions:
        data = dataclasses.replace(data, next_action=data.action, has_next_action=jnp.ones(64, bool))
    traced(agent_program(agent, AGENT, SYNTHESIS, skip=True), Experience(data))
    one = over_seeds(lambda _: agent_program(agent, AGENT, SYNTHESIS), {"seed": jnp.zeros(1)}, 1, 2)
    state = traced(one, Experience(data, synthesizer(models, "world_model world")))
    policy = agent.policy(jax.tree.map(lambda x: x[0], zeros(state.agent)))
    obs = jnp.zeros(OBS, jnp.float32)
    check_single(jax.eval_shape(lambda p: (p.sample(jax.random.key(0), obs), p.mode(obs)), policy))


SOURCES = ["unguided", *(f"unguided {kind}" for kind in SOLVERS), *(f"guided {kind}" for kind in KINDS), "chosen",
           "world_model world", "world_model learned", "dydiff"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_every_source_makes_single_precision(models: dict[str, Any], source: str) -> None:
    data = Experience(transitions(), synthesizer(models, source), None, make_filter(FilterConfig("softmax")))
    traced(agent_program(small_agent("td3_bc"), AGENT, SYNTHESIS), data)


def test_padded_windows() -> None:
    data, starts = transitions(), jnp.arange(0, 64 - T, T)
    left = jnp.asarray(T - 1 - np.arange(64) % T, jnp.int32).at[starts].set(2)  # steps to an episode's end
    windows = Windows(data, starts, starts, fit_codec(data, np.asarray(starts), T), T, left=left)
    denoiser = trained_denoiser(zeros(traced(denoiser_program(windows, DENOISER), windows)), windows)
    guided = make_synthesizer(denoiser, SAMPLER, GuidanceConfig("moment", coefficient=0.1))
    traced(agent_program(small_agent("td3_bc"), AGENT, SYNTHESIS), Experience(data, guided))


def test_given_starts_and_noised_conditions(models: dict[str, Any]) -> None:
    start, policy = jnp.zeros((2, OBS), jnp.float32), linear_policy(np.zeros((ACT, OBS)), np.zeros(ACT), 1.0)
    states = dataclasses.replace(models["states"], conditions="noised")
    noised = make_dydiff(models["world"], states, DyDiffConfig(conditions="noised"), SAMPLER)
    for each in (synthesizer(models, "guided moment").starting(), noised):
        check_single(jax.eval_shape(each, jax.random.key(0), policy, start).trajectory)


def test_sources_together(models: dict[str, Any]) -> None:
    made = [None, synthesizer(models, "unguided"), synthesizer(models, "world_model world")]
    sources = join_sources([Experience(transitions(), each) for each in made])
    traced(sources_program(small_agent("bc"), AGENT, SYNTHESIS, ("real", "unguided", "world_model"), 2), sources)


def test_built_in_environments() -> None:
    env, policy = Point2D(), goal_policy((0.0, 1.0), 0.4)
    check_single(jax.eval_shape(lambda key: importance_truth(key, env, policy, 0.3, 4), jax.random.key(0)))
    assert jax.eval_shape(env.reset, jax.random.key(0)).dtype == jnp.float32
    check_single(
        jax.eval_shape(linear_policy(np.zeros((1, 2)), [0.0], 1.0).sample, jax.random.key(0), jnp.zeros(2, jnp.float32))
    )


def test_commands_compute_in_single_precision_whatever_the_environment_says() -> None:
    """Their results are then those of any other machine, bit for bit, and runs go on under either setting."""
    code = "from jaxpgd.experiment.cli import main; main(['data', 'info', 'point2d', '--data.episodes', '2']); import jax;" \
           "import jax.numpy as jnp; print(jnp.zeros(()).dtype)"  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"JAX_ENABLE_X64": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "float32"
