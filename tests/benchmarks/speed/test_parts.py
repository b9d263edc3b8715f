"""The suite `parts`: to which part an operation belongs, and that the parts of a step are found in its profile."""

from collections.abc import Iterator

import jax
import pytest

from benchmarks.speed import agents, denoiser, parts
from jaxpgd.agents import iql

IN = "jit(many)/while/body/closed_call"
TINY = parts.Size(transitions=40, obs_dim=3, action_dim=2, batch=8, hidden=(16, 16), updates=4, repeats=2)


@pytest.mark.parametrize(
    ("name", "path", "part"),
    [
        ("ynn_fusion.3", "CriticEnsemble/vmap(members)/MLP_0/Dense_0/dot_general", "products of first layers"),
        ("dot.2", "transpose(jvp(ValueNetwork))/MLP_0/Dense_1/dot_general", "products of hidden layers"),
        ("ynn_fusion.7", "jvp(GaussianActor)/MLP_0/Dense_2/dot_general", "products of last layers"),
        ("copy_bitcast_fusion.1", "transpose(jvp(CriticEnsemble))/MLP_0/Dense_1/reshape", "copies into another layout"),
        ("add_maximum_fusion", "jvp(ValueNetwork)/MLP_0/jit(relu)/max", "activations and biases"),
        ("multiply_subtract_fusion", "adam/sub", "Adam"),
        ("multiply_add_fusion.9", "target_networks/add", "target networks"),
        ("wrapped_multiply", "gradient_norm/integer_pow", "gradient norms"),
        ("gather_fusion", "vmap(take_batch)/gather", "batches"),
        ("broadcast_add_fusion", "vmap(draw_batch)/vmap(jit(_randint))/add", "random numbers"),
        ("xor_fusion", "vmap(jit(_threefry_split))/xor", "random numbers"),
        ("reduce_fusion", "jvp()/reduce_sum", parts.REST),
    ],
)
def test_the_part_of_an_operation(name: str, path: str, part: str) -> None:
    assert parts.part_of(name, f"{IN}/{path}", hidden=2) == part


@pytest.mark.parametrize(
    ("name", "path", "part"),
    [
        (
            "ynn_fusion.17",
            "transpose(jvp(vmap(TemporalUNet)))/ResidualBlock_3/Conv_0/Dense_0/dot_general",
            "products of convolutions",
        ),
        ("ynn_fusion.14", "jvp(vmap(TemporalUNet))/ResidualBlock_3/Dense_1/dot_general", "other products"),
        ("ynn_fusion.100", "jvp(vmap(TemporalUNet))/ResidualBlock_4/GroupNorm_0/reduce_sum", "group normalisation"),
        ("concatenate.152", "jvp(vmap(TemporalUNet))/ResidualBlock_4/Conv_0/concatenate", "taps of convolutions"),
        ("copy_bitcast_fusion.6", "transpose(jvp(vmap(TemporalUNet)))/ResidualBlock_1/Conv_1/Dense_0/reshape", parts.COPIES),
        ("multiply_add_fusion.1", "transpose(jvp(vmap(TemporalUNet)))/ResidualBlock_4/jit(silu)/add_any", parts.ACTIVATIONS),
        ("multiply_subtract_fusion.32", "optimiser/sub", "Adam"),
        ("multiply_add_fusion.2", "averaged_weights/cond/branch_1_fun/add", "averaged weights"),
        ("reduce_fusion", "jvp(vmap())/reduce_sum", parts.REST),
    ],
)
def test_the_part_of_an_operation_of_a_denoiser(name: str, path: str, part: str) -> None:
    assert parts.part_of_denoiser(name, f"{IN}/{path}") == part


@pytest.fixture(autouse=True)
def full_locations() -> Iterator[None]:
    """Paths of scopes are among what tests leave out."""
    name = "jax_include_full_tracebacks_in_locations"
    before = getattr(jax.config, name)
    jax.config.update(name, True)
    yield
    jax.config.update(name, before)


def test_paths_of_operations_are_read_from_a_compiled_program() -> None:
    program = jax.jit(lambda x: jax.named_scope("outer")(lambda y: y @ y)(x)).lower(jax.numpy.ones((4, 4))).compile()
    assert any("outer/dot_general" in path for path in parts.paths(program.as_text()).values())


@pytest.mark.slow
def test_the_parts_of_an_update_add_up() -> None:
    data = agents.make_data(jax.random.key(0), TINY)
    rows = parts.agent_parts(iql(action_dim=2, hidden=TINY.hidden), data, TINY)
    assert sum(row["share"] for row in rows) == pytest.approx(1.0)
    found = {row["part"]: row for row in rows}
    assert {"products of hidden layers", "Adam", "target networks"} <= set(found)
    # forward: target critics, critics, V, V of both states, actor
    assert found["products of hidden layers"]["operations"] >= 5


@pytest.mark.slow
def test_the_parts_of_a_denoisers_step_add_up() -> None:
    size = denoiser.Size(obs_dim=3, action_dim=2, transitions=80, window=8, batch=4, features=(16,), blocks=2, steps=2)
    rows, flops = parts.denoiser_parts(size, repeats=2)
    assert sum(row["share"] for row in rows) == pytest.approx(1.0) and flops > 0
    found = {row["part"]: row for row in rows}
    assert {"products of convolutions", "group normalisation", "Adam"} <= set(found)
    # forward: the first convolution, and two in each of three residual blocks
    assert found["products of convolutions"]["operations"] >= 7
