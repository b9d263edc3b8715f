"""The bounds against cases worked out by hand, and against what JAX traces."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.speed import agents, bounds
from benchmarks.speed.rows.base import REHEARSAL
from benchmarks.speed.rows.denoiser import denoiser_config, denoiser_state, windows_of
from benchmarks.speed.rows.plan import plan
from jaxpgd.agents import iql, td3_bc
from jaxpgd.training.denoiser import network, train_step


def test_work_of_a_layer_by_hand():
    layer = bounds.Layer(rows=4, inputs=3, outputs=5, taps=3, norm=3)
    assert layer.weights == 3 * 3 * 5 + 5 + 2 * 3
    assert layer.flops == 2 * 4 * 3 * 3 * 5
    assert layer.activations == 4 * (3 + 5)  # taps read the same input


def test_work_of_training_and_sampling_by_hand():
    two = [bounds.Layer(2, 3, 4, data=True), bounds.Layer(2, 4, 3)]
    weights, forward, activations = 16 + 15, 48 + 48, 14 + 14
    work = bounds.training_work(two, batch=10, precision="bfloat16")
    assert work.flops == 10 * (3 * forward - 48)  # the first layer's input needs no gradient
    assert work.bytes == 13 * 4 * weights + 10 * 3 * 2 * activations
    assert work.launches == 2 * (3 * 2 - 1) + 4  # products and what is between them, two arrays for each layer
    assert bounds.training_work(two, 10, "bfloat16", ema_every=2).bytes == 12 * 4 * weights + 10 * 3 * 2 * activations
    work = bounds.sampling_work(two, batch=5, nfe=7, cost=2, precision="float32")
    assert (work.flops, work.bytes) == (14 * forward, pytest.approx(14 * 4 * (activations + weights / 5)))
    assert work.launches == pytest.approx(14 * 4 / 5)


def test_the_largest_bound_is_told():
    peaks = bounds.Peaks({"float32": 100.0}, bandwidth=10.0, launch=0.5)
    assert bounds.Work(1000.0, 20.0, 4.0, "float32").bound(peaks) == ("arithmetic", 10.0)
    assert bounds.Work(100.0, 20.0, 3.0, "float32").bound(peaks) == ("memory", 2.0)
    assert bounds.Work(100.0, 5.0, 3.0, "float32").times(2.0).bound(peaks) == ("launches", 3.0)


def traced_flops(jaxpr):
    """Of the products in a jaxpr and those inside it."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            total += 2 * eqn.outvars[0].aval.size * int(np.prod([shape[i] for i in contracted]))
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            total += traced_flops(inner) if hasattr(inner, "eqns") else 0
    return total


@pytest.mark.parametrize("published", [False, True])
def test_layers_have_the_parameters_and_products_of_the_network(published):
    windows, batch = windows_of(REHEARSAL), 3
    config = denoiser_config(dataclasses.replace(REHEARSAL, blocks=2), 16, published=published, batch_size=batch)
    found = bounds.layers(16, 2, windows.length, windows.dim, config.block)
    state = jax.eval_shape(functools.partial(denoiser_state, config=config, training=True), windows)
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == bounds.parameters(found)
    x = jax.ShapeDtypeStruct((windows.length, windows.dim), jnp.float32)
    forward = jax.make_jaxpr(network(config).apply)(state.params, x, jnp.zeros(())).jaxpr
    assert traced_flops(forward) == sum(layer.flops for layer in found)
    step = jax.make_jaxpr(lambda state: train_step(state, windows))(state).jaxpr
    assert traced_flops(step) == bounds.training_work(found, batch, "float32").flops


@pytest.mark.parametrize("make", [td3_bc, iql])
def test_parameters_of_agents_are_theirs(make):
    size = agents.Size(transitions=8, hidden=(16, 16))
    agent = make(action_dim=size.action_dim, hidden=size.hidden)
    example = jax.tree.map(lambda x: x[0], agents.make_data(jax.random.key(0), size))
    state = jax.eval_shape(agent.init, jax.random.key(0), example)
    count = lambda *names: sum(x.size for name in names if hasattr(state, name) for x in jax.tree.leaves(getattr(state, name)))
    trained, targets = bounds.agent_parameters(agent, size)
    assert trained == pytest.approx(count("actor", "critic", "value"), abs=size.action_dim)  # a Gaussian's spread
    assert targets == count("target_actor", "target_critic")
    work = bounds.agent_work(agent, size, "float32", seeds=4)
    assert work.bytes == 4 * (2 * (3 * trained + targets) + agent.batches * 256 * (2 * 17 + 6 + 2))
    assert work.launches == bounds.agent_work(agent, size, "float32").launches / 4


PROGRAM = """HloModule jit_f, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %s = f32[8]{0} sine(%p)
}

%branch.1 (a: (f32[8])) -> (f32[8]) {
  %x.1 = f32[8]{0} fusion(%a), kind=kLoop, calls=%fused
  ROOT %t.1 = (f32[8]{0}) tuple(%x.1)
}

%branch.2 (a: (f32[8])) -> (f32[8]) {
  ROOT %a = (f32[8]{0}) parameter(0)
}

%body (c: (s32[], f32[8])) -> (s32[], f32[8]) {
  %c = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %add = s32[] add(%i, %i)
  %f = f32[8]{0} fusion(%c), kind=kLoop, calls=%fused
  %g = (f32[8,8]{1,0}, s8[64]{0}) custom-call(%f, %f), custom_call_target="__cublas$gemm"
  %k = (f32[8]{0}) conditional(%i, %f, %f), branch_computations={%branch.1, %branch.2}
  ROOT %t = (s32[], f32[8]{0}) tuple(%add, %f)
}

%cond (c: (s32[], f32[8])) -> pred[] {
  %c = (s32[], f32[8]{0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %w = (s32[], /*index=1*/f32[8]{0}) while(%x), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %c1 = ((f32[8]{0}), u32[]) copy-start(%x)
  %c2 = f32[8]{0} copy-done(%c1)
  ROOT %r = f32[8]{0} sort(%c2), to_apply=%cond
}
"""


def test_launches_of_a_program_are_counted_through_loops_and_branches():
    assert bounds.count_launches(PROGRAM) == 5 * (1 + 1 + 1) + 2  # fusion, product, the longer branch; a copy and a sort


@pytest.mark.parametrize("turns", [7, 40])
def test_launches_of_a_loop_that_jax_compiled_are_counted_as_often_as_it_turns(turns: int) -> None:
    def launches(turns: int) -> float:
        loop = jax.jit(lambda x: jax.lax.fori_loop(0, turns, lambda _, x: jnp.sin(x @ x), x))
        return bounds.count_launches(loop.lower(jnp.ones((8, 8))).compile().as_text())

    each = launches(turns + 1) - launches(turns)
    assert 1 <= each <= 4  # by version of XLA
    assert 0 <= launches(turns) - turns * each <= 3  # the rest is outside of the loop


def test_every_row_has_a_prediction_without_a_device():
    rows = [row for group in plan(REHEARSAL) for row in group]
    assert len({row.name for row in rows}) == len(rows)
    assert all(row.predicted > 0 and row.work.bytes > 0 and row.units > 0 for row in rows)
