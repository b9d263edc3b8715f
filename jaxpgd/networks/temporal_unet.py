"""The one-dimensional U-Net over time of PGD (arXiv 2404.06356, appendix), with convolutions as matrix products by default.

Gathering the taps of a convolution for one matrix product is fast on CPU, where the gradient of a convolution primitive inside
`lax.scan` is slow, and turns a vmap over weights into a batched matrix product.
"""

import functools
from typing import Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from jaxpgd.networks.dense import Dense
from jaxpgd.networks.initialisers import lecun_normal
from jaxpgd.networks.mlp import sinusoidal

Norm = Literal["sequence", "step"]
Block = Literal["plain", "residual"]
Convolution = Literal["gathered", "primitive"]


class Conv(nn.Module):
    """Convolution over time with zero padding. x [T, C] -> [T, features].

    "gathered" and "primitive" are the same function of the same parameters, to rounding.
    """

    features: int
    kernel: int
    dtype: DTypeLike | None = None
    convolution: Convolution = "gathered"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        left = (self.kernel - 1) // 2
        if self.convolution == "primitive":
            return Primitive(self.features, self.kernel, left, self.dtype, name="Dense_0")(x)
        padded = jnp.pad(x, ((left, self.kernel - 1 - left), (0, 0)))
        taps = [padded[i : i + x.shape[0]] for i in range(self.kernel)]
        return Dense(self.features, dtype=self.dtype)(jnp.concatenate(taps, axis=-1))


class Primitive(nn.Module):
    """The convolution primitive with the parameters of the dense layer over gathered taps. x [T, C] -> [T, features]."""

    features: int
    kernel: int
    left: int  # zeros before the first step
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", lambda key, *shape: lecun_normal(key, shape).T, self.kernel * x.shape[-1], self.features)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        if self.dtype is not None:
            x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        taps = kernel.reshape(self.features, self.kernel, x.shape[-1])
        padding, order = [(self.left, self.kernel - 1 - self.left)], ("NWC", "OWI", "NWC")
        return jax.lax.conv_general_dilated(x[None], taps, (1,), padding, dimension_numbers=order)[0] + bias


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def standardise(x: Array, axes: tuple[int, ...]) -> Array:
    """x without its mean over `axes`, divided by its standard deviation."""
    return _standardised(x, axes)[0]


def _standardised(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    centred = x - x.mean(axes, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(centred).mean(axes, keepdims=True) + 1e-6)
    return centred * inverse, inverse


@standardise.defjvp
def _standardise_jvp(axes: tuple[int, ...], primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """In terms of the result: half of what tracing through mean and variance keeps and reads again."""
    (x,), (dx,) = primals, tangents
    y, inverse = _standardised(x, axes)
    return y, inverse * (dx - dx.mean(axes, keepdims=True) - y * (y * dx).mean(axes, keepdims=True))


class GroupNorm(nn.Module):
    """Group normalisation of x [T, C] with statistics over the sequence or of each time step alone."""

    groups: int
    over: Norm

    @nn.compact
    def __call__(self, x: Array) -> Array:
        grouped = x.reshape(x.shape[0], self.groups, -1)
        grouped = grouped.astype(jnp.promote_types(x.dtype, jnp.float32))  # whatever the products' precision
        normal = standardise(grouped, (0, 2) if self.over == "sequence" else (2,)).reshape(x.shape)
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return (normal * scale + bias).astype(x.dtype)


class ConvBlock(nn.Module):
    """Convolution, optional shift by the noise embedding, group normalisation, ReLU. x [T, C] -> [T, features]."""

    features: int
    kernel: int
    groups: int
    norm: Norm
    dtype: DTypeLike | None = None
    convolution: Convolution = "gathered"

    @nn.compact
    def __call__(self, x: Array, embedding: Array | None = None) -> Array:
        x = Conv(self.features, self.kernel, self.dtype, self.convolution)(x)
        if embedding is not None:
            x = x + Dense(self.features, dtype=self.dtype)(nn.swish(embedding))
        return nn.relu(GroupNorm(self.groups, self.norm)(x))


class ResidualBlock(nn.Module):
    """Two pre-activated convolutions beside an identity (or linear) path. x [T, C] -> [T, features].

    The path keeps magnitudes, which normalisation discards and fine denoising needs.
    """

    features: int
    groups: int
    norm: Norm
    dtype: DTypeLike | None = None
    convolution: Convolution = "gathered"

    @nn.compact
    def __call__(self, x: Array, embedding: Array) -> Array:
        groups = self.groups if x.shape[-1] % self.groups == 0 else 1
        h = Conv(self.features, 3, self.dtype, self.convolution)(nn.swish(GroupNorm(groups, self.norm)(x)))
        h = h + Dense(self.features, dtype=self.dtype)(nn.swish(embedding))
        h = Conv(self.features, 3, self.dtype, self.convolution)(nn.swish(GroupNorm(self.groups, self.norm)(h)))
        return h + (x if x.shape[-1] == self.features else Dense(self.features, dtype=self.dtype)(x))


class NoiseEmbedding(nn.Module):
    """Sinusoidal features of the noise level c_noise [], through two dense layers. -> [features]."""

    features: int

    @nn.compact
    def __call__(self, noise: Array) -> Array:
        half = max(self.features // 8, 2)
        hidden = Dense(self.features)(sinusoidal(noise, 2 * half))
        return Dense(self.features)(nn.swish(hidden))


class TemporalUNet(nn.Module):
    """The network F of a denoiser: x [T, D], noise [] (c_noise of EDM) -> [T, D]. T is at least 2^(blocks - 1).

    There are `blocks` levels, each with half the steps and twice the channels of the one before. T should be a multiple of
    2^(blocks - 1): a level of odd length drops its last step on the way down and repeats the nearest steps on the way up, which
    shifts its steps against those of other levels.
    `block = "plain"` is the published network (PGD, appendix): two convolutions a level with group normalisation and ReLU, max
    pooling down, repetition up. "residual" has residual blocks and average pooling. `norm = "step"` normalises each time step
    alone, as the published code does; "sequence" is group normalisation over the sequence. Products and activations are in
    `dtype`; parameters, statistics of normalisation, the noise embedding and the result are float32. `convolution`: see `Conv`.

    Raises AssertionError for other ranks when it is traced.
    """

    features: int = 64
    blocks: int = 3
    groups: int = 8
    norm: Norm = "sequence"
    block: Block = "residual"
    dtype: DTypeLike | None = None
    convolution: Convolution = "gathered"

    @nn.compact
    def __call__(self, x: Array, noise: Array) -> Array:
        chex.assert_rank([x, noise], [2, 0])
        embedding = NoiseEmbedding(self.features)(noise)
        walk = self._plain if self.block == "plain" else self._residual
        result: Array = Dense(x.shape[-1])(walk(x, embedding).astype(x.dtype))
        return result

    def _plain(self, x: Array, embedding: Array) -> Array:
        def block(level: int, kernel: int) -> ConvBlock:
            return ConvBlock(self.features * 2**level, kernel, self.groups, self.norm, self.dtype, self.convolution)

        skips: list[Array] = []
        for level in range(self.blocks):
            x = x if level == 0 else _larger(_pairs(x))
            x = block(level, 3)(block(level, 3)(x, embedding))
            skips.append(x)
        for level in reversed(range(self.blocks - 1)):
            x = block(level, 2)(_stretched(x, skips[level].shape[0]), embedding)
            x = jnp.concatenate([x, skips[level]], axis=-1)
            x = block(level, 3)(block(level, 3)(x))
        return x

    def _residual(self, x: Array, embedding: Array) -> Array:
        def block(level: int) -> ResidualBlock:
            return ResidualBlock(self.features * 2**level, self.groups, self.norm, self.dtype, self.convolution)

        skips: list[Array] = []
        x = Conv(self.features, 3, self.dtype, self.convolution)(x)
        for level in range(self.blocks):
            x = block(level)(x if level == 0 else _pairs(x).mean(axis=1), embedding)
            skips.append(x)
        for level in reversed(range(self.blocks - 1)):
            x = _stretched(Dense(self.features * 2**level, dtype=self.dtype)(x), skips[level].shape[0])
            x = block(level)(jnp.concatenate([x, skips[level]], axis=-1), embedding)
        return nn.swish(GroupNorm(self.groups, self.norm)(x))


def _pairs(x: Array) -> Array:
    half = x.shape[0] // 2
    return x[: 2 * half].reshape(half, 2, x.shape[-1])


def _larger(pairs: Array) -> Array:
    """[S, C] of pairs [S, 2, C]: the larger entry.

    Not their `max`, whose gradient divides by the number of entries that equal it: none of them does where a compiler computes
    entries twice and rounds otherwise.
    """
    return jnp.maximum(pairs[:, 0], pairs[:, 1])


def _stretched(x: Array, length: int) -> Array:
    """[length, C] of x [S, C]: the nearest step each, every step twice where length is 2 S."""
    if length == 2 * x.shape[0]:
        return jnp.repeat(x, 2, axis=0)
    return x[((np.arange(length) + 0.5) * x.shape[0] / length).astype(int)]
