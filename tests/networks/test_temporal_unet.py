from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpgd.networks.temporal_unet import (
    Block,
    Conv,
    GroupNorm,
    NoiseEmbedding,
    TemporalUNet,
    _larger,
    _pairs,
    _stretched,
    standardise,
)

X = jax.random.normal(jax.random.key(0), (6, 4))


@pytest.mark.parametrize(("kernel", "padding"), [(1, (0, 0)), (2, (0, 1)), (3, (1, 1))])
def test_convolution_equals_the_primitive(kernel: int, padding: tuple[int, int]) -> None:
    conv = Conv(5, kernel)
    params = conv.init(jax.random.key(1), X)
    weights = params["params"]["Dense_0"]["kernel"].T.reshape(kernel, 4, 5)
    expected = jax.lax.conv_general_dilated(X[None], weights, (1,), [padding], dimension_numbers=("NWC", "WIO", "NWC"))[0]
    np.testing.assert_allclose(conv.apply(params, X), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
@pytest.mark.parametrize("kernel", [2, 3])
def test_both_ways_to_convolve_are_one_function(kernel: int, dtype: Any) -> None:
    """Of the same parameters, made from the same key: values and gradients, over a batch and over parameters as well."""
    ways = [Conv(5, kernel, dtype, way) for way in ("gathered", "primitive")]
    params, same = (jax.vmap(way.init, (0, None))(jax.random.split(jax.random.key(1), 2), X) for way in ways)
    chex.assert_trees_all_equal(params, same)
    x, weights = (jax.random.normal(jax.random.key(i), (3, 6, n)) for i, n in ((2, 4), (3, 5)))

    def both(way: Conv) -> Any:
        def loss(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            y = jax.vmap(way.apply, (None, 0))(params, x)
            return (weights * y).sum(), y

        return jax.jit(jax.vmap(jax.value_and_grad(loss, (0, 1), has_aux=True), (0, None)))(params, x)

    gathered, primitive = (both(way) for way in ways)
    assert jax.tree.map(jnp.shape, gathered) == jax.tree.map(jnp.shape, primitive)
    near = 1e-5 if dtype is None else 3e-2
    for a, b in zip(*map(jax.tree.leaves, (gathered, primitive)), strict=True):
        assert a.dtype == b.dtype and np.linalg.norm(a - b) < near * np.linalg.norm(a)


@pytest.mark.parametrize("block", ["plain", "residual"])
def test_a_network_of_primitives_is_the_same_network(block: Block) -> None:
    gathered, primitive = (TemporalUNet(8, 2, 4, block=block, convolution=way) for way in ("gathered", "primitive"))
    x = jax.random.normal(jax.random.key(2), (8, 5))
    params = random_params(gathered, x)
    text, other = (jax.jit(net.apply).lower(params, x, 0.3).as_text() for net in (gathered, primitive))
    convolutions = {"plain": 7, "residual": 7}[block]
    assert "stablehlo.convolution" not in text and other.count("stablehlo.convolution") == convolutions
    np.testing.assert_allclose(jax.jit(primitive.apply)(params, x, 0.3), jax.jit(gathered.apply)(params, x, 0.3), atol=1e-4)


@pytest.mark.parametrize("over", ["sequence", "step"])
def test_group_norm_by_hand(over: Any) -> None:
    norm = GroupNorm(2, over)
    scale, bias = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 1.0, 0.0, -1.0])
    result = norm.apply({"params": {"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)}}, X)
    x = np.asarray(X, np.float64)
    expected = np.empty_like(x)
    for group in (slice(0, 2), slice(2, 4)):
        for rows in [slice(None)] if over == "sequence" else [slice(t, t + 1) for t in range(6)]:
            part = x[rows, group]
            expected[rows, group] = (part - part.mean()) / np.sqrt(part.var() + 1e-6)
    np.testing.assert_allclose(result, expected * scale + bias, atol=2e-3)


def test_noise_embedding_is_sinusoidal() -> None:
    """Its first layer sees sin and cos of the noise at frequencies from 1 down to 1e-4."""
    embedding, noise = NoiseEmbedding(16), 0.7
    params = embedding.init(jax.random.key(0), jnp.asarray(noise))["params"]
    features = np.array([np.sin(noise), np.sin(noise * 1e-4), np.cos(noise), np.cos(noise * 1e-4)])
    first, second = (jax.tree.map(np.asarray, params[f"Dense_{i}"]) for i in (0, 1))
    hidden = features @ first["kernel"].T + first["bias"]
    expected = (hidden / (1 + np.exp(-hidden))) @ second["kernel"].T + second["bias"]
    np.testing.assert_allclose(embedding.apply({"params": params}, jnp.asarray(noise)), expected, atol=1e-5)


def random_params(net: TemporalUNet, x: jax.Array, seed: int = 0) -> Any:
    """Parameters without compiling the network's own initialisation."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, jnp.zeros(()))
    return jax.tree.map(lambda s: jnp.asarray(0.5 * rng.normal(size=s.shape), jnp.float32), shapes)


CASES = [("plain", "step", 1), ("plain", "sequence", 2), ("residual", "sequence", 1), ("residual", "step", 3)]


@pytest.mark.parametrize(("block", "norm", "blocks"), CASES)
def test_shapes_noise_and_reach(block: Any, norm: Any, blocks: int) -> None:
    # groups of four channels: the statistics of two leave nothing but signs
    net = TemporalUNet(features=8, blocks=blocks, groups=2, norm=norm, block=block)
    x = jax.random.normal(jax.random.key(2), (8, 5))
    params = random_params(net, x)
    apply = jax.jit(net.apply)
    out = apply(params, x, jnp.asarray(0.3))
    assert out.shape == (8, 5) and np.isfinite(out).all()
    assert (apply(params, x, jnp.asarray(-1.0)) != out).any()  # the noise level matters
    bumped = jnp.abs(apply(params, x.at[0].add(1.0), jnp.asarray(0.3)) - out) > 1e-4  # more than rounding
    assert bumped[0].any()
    assert bumped[-1].any() == (norm == "sequence" or blocks > 1)  # one level sees neighbours only; more see everything


@pytest.mark.parametrize(("short", "length"), [(4, 8), (4, 9), (64, 129), (2, 5)])
def test_levels_are_stretched_to_the_nearest_step(short: int, length: int) -> None:
    """As an image is resized, which is how the published network comes up to an odd length."""
    x = jax.random.normal(jax.random.key(0), (short, 3))
    np.testing.assert_array_equal(_stretched(x, length), jax.image.resize(x, (length, 3), "nearest"))
    pooled = nn.max_pool(_stretched(x, length)[None], (2,), (2,))[0]
    np.testing.assert_array_equal(_larger(_pairs(_stretched(x, length))), pooled)


@pytest.mark.parametrize("block", ["plain", "residual"])
def test_a_network_of_one_length_runs_at_others(block: Block) -> None:
    """An odd length among them, of which no step is left out: each is seen by its neighbours and sees them."""
    net = TemporalUNet(8, 2, 2, norm="step", block=block)  # groups of four, as above
    params = random_params(net, jnp.zeros((8, 5)))
    x = jax.random.normal(jax.random.key(2), (13, 5))
    moved = jax.jit(jax.jacobian(lambda x: net.apply(params, x, jnp.asarray(0.3)).sum(1)))(x)
    reach = np.abs(moved).sum(2) > 0
    assert reach.shape == (13, 13) and reach.diagonal().all() and reach.diagonal(1).all() and reach.diagonal(-1).all()


def test_channels_double_down_the_levels() -> None:
    net = TemporalUNet(features=8, blocks=3, groups=4, block="plain")
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((8, 5)), jnp.zeros(()))["params"]
    # (outputs, taps * inputs) of the convolutions: down 5 -> 8 -> 16 -> 32, up with two taps and skips
    found = [shapes[f"ConvBlock_{i}"]["Conv_0"]["Dense_0"]["kernel"].shape for i in range(12)]
    down = [(15, 8), (24, 8), (24, 16), (48, 16), (48, 32), (96, 32)]
    up = [(64, 16), (96, 16), (48, 16), (32, 8), (48, 8), (24, 8)]
    assert sorted(found) == sorted((outputs, inputs) for inputs, outputs in down + up)


def test_weights_vmap() -> None:
    net = TemporalUNet(features=4, blocks=1, groups=2, block="plain")
    x = jax.random.normal(jax.random.key(2), (4, 3))
    one, other = random_params(net, x, 1), random_params(net, x, 2)
    both = jax.jit(jax.vmap(net.apply, in_axes=(0, None, None)))(
        jax.tree.map(lambda *p: jnp.stack(p), one, other), x, jnp.asarray(0.1)
    )
    np.testing.assert_allclose(both[1], jax.jit(net.apply)(other, x, jnp.asarray(0.1)), atol=1e-5)


@pytest.mark.parametrize("axes", [(0, 2), (2,)])
def test_the_derivative_of_standardising_is_that_of_its_definition(axes: tuple[int, ...]) -> None:
    def plain(x: jax.Array) -> jax.Array:
        centred = x - x.mean(axes, keepdims=True)
        return centred / jnp.sqrt(jnp.square(centred).mean(axes, keepdims=True) + 1e-6)

    x, dx = (3.0 + jax.random.normal(jax.random.key(i), (6, 2, 5)) for i in (0, 1))
    ours = lambda x: standardise(x, axes)
    np.testing.assert_allclose(ours(x), plain(x), atol=1e-5)
    np.testing.assert_allclose(ours(x).mean(axes), 0.0, atol=1e-5)
    np.testing.assert_allclose(ours(x).std(axes), 1.0, atol=1e-5)
    np.testing.assert_allclose(jax.jvp(ours, (x,), (dx,))[1], jax.jvp(plain, (x,), (dx,))[1], atol=1e-5)
    np.testing.assert_allclose(jax.vjp(ours, x)[1](dx)[0], jax.vjp(plain, x)[1](dx)[0], atol=1e-5)


@pytest.mark.parametrize("block", [pytest.param("plain", marks=pytest.mark.slow), "residual"])
def test_half_precision_is_of_the_products_alone(block: Block) -> None:
    exact, half = (TemporalUNet(features=16, blocks=2, groups=4, block=block, dtype=d) for d in (None, jnp.bfloat16))
    x = jax.random.normal(jax.random.key(2), (8, 5))
    params = random_params(exact, x, 0)
    assert jax.tree.map(lambda p: p.dtype, half.init(jax.random.key(0), x, jnp.zeros(()))) == jax.tree.map(
        lambda p: jnp.dtype(jnp.float32), params
    )
    expected, y = (jax.jit(net.apply)(params, x, jnp.asarray(0.3)) for net in (exact, half))
    assert y.dtype == jnp.float32
    relative = np.linalg.norm(y - expected) / np.linalg.norm(expected)
    assert 1e-5 < relative < 0.05  # bfloat16 has 8 bits; and it is used
