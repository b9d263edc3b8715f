"""Choosing which synthetic trajectories are kept, by return (DyDiff, arXiv 2405.19189, section 4.3)."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.options import as_arrays, option, options, positive, share
from jaxpgd.types import Trajectory, until_terminal


@options
class FilterConfig:
    """Which synthetic trajectories are kept, by return (DyDiff section 4.3)."""

    kind: Literal["none", "hardmax", "softmax"] = option(
        "none", "trajectories kept by return: all, those of highest return, or a softmax sample (DyDiff)"
    )
    keep: float = share(0.6, "share of the trajectories that the filter keeps (DyDiff: 0.6)", low=1e-3, positive=True)
    temperature: float = positive(0.05, "temperature of the softmax over standardised returns (DyDiff: 0.05)")
    uniform: float = share(0.0, "share of uniform weights mixed into those of the softmax (DyDiff's code: 1e-6); 0: none")
    steps: Literal["valid", "all"] = option(
        "valid", "steps whose rewards the return sums: those up to a terminal, or all (DyDiff)"
    )


def returns(trajectory: Trajectory, steps: Literal["valid", "all"] = "valid") -> Array:
    """Undiscounted sums [N] of the learned rewards of trajectories [N, T], up to and including the first terminal.

    With "all" `steps` also of those after it, as in DyDiff's code.
    """
    if steps == "all":
        return trajectory.reward.sum(-1)
    return jnp.where(until_terminal(trajectory.discount), trajectory.reward, 0.0).sum(-1)


_DEFAULT = FilterConfig()


@struct.dataclass
class Filter:
    """Which of N trajectories are kept: all, those of highest return, or a draw that favours them.

    "hardmax": the ones of highest return. "softmax": drawn without replacement, by adding Gumbel noise and taking the top, with
    probabilities p = (1 - uniform) softmax(z / temperature) + uniform / N, z the returns standardised over the N. DyDiff's code
    has `uniform` 1e-6, which at its temperature of 0.05 makes most of the draw uniform: after the best few the softmax has less
    weight than that. Returns are those of learned rewards: a scale of them changes no order, a shift does where lengths differ.
    `steps`: whose are summed.
    """

    temperature: Array | float = _DEFAULT.temperature
    uniform: Array | float = _DEFAULT.uniform
    kind: Literal["none", "hardmax", "softmax"] = struct.field(pytree_node=False, default=_DEFAULT.kind)
    keep: float = struct.field(pytree_node=False, default=_DEFAULT.keep)  # share kept; ignored by "none"
    steps: Literal["valid", "all"] = struct.field(pytree_node=False, default=_DEFAULT.steps)

    def needed(self, count: int) -> int:
        """How many trajectories to generate so that `count` are kept."""
        return count if self.kind == "none" else max(count, round(count / self.keep))

    def scores(self, key: Array, values: Array) -> Array:
        """Scores [N] for returns [N], of which the highest are kept. Returns that are not finite come last."""
        finite = jnp.isfinite(values)
        if self.kind == "hardmax":
            return jnp.where(finite, values, -jnp.inf)
        mean, std = jnp.mean(values, where=finite), jnp.std(values, where=finite)
        logits = jnp.where(finite, (values - mean) / jnp.maximum(std, 1e-8) / self.temperature, -jnp.inf)
        # log p up to a constant; without uniform weights the logits themselves
        even = jax.nn.logsumexp(logits) + jnp.log(self.uniform / jnp.maximum(finite.sum(), 1))
        log_p = jnp.logaddexp(logits + jnp.log1p(-jnp.asarray(self.uniform, logits.dtype)), even)
        return jnp.where(finite, log_p + jax.random.gumbel(key, values.shape, values.dtype), -jnp.inf)

    def __call__(self, key: Array, trajectory: Trajectory, count: int) -> Trajectory:
        """`count` of the trajectories [N, T]. Raises ValueError where there are fewer."""
        size = trajectory.reward.shape[0]
        if count > size:
            raise ValueError(f"filter: cannot keep {count} of {size} trajectories")
        if self.kind == "none":
            first: Trajectory = jax.tree.map(lambda x: x[:count], trajectory)
            return first
        _, index = jax.lax.top_k(self.scores(key, returns(trajectory, self.steps)), count)
        kept: Trajectory = jax.tree.map(lambda x: x[index], trajectory)
        return kept


def make_filter(config: FilterConfig) -> Filter:
    """The filter of a config section, its real numbers as leaves."""
    numbers = as_arrays(config)
    return Filter(numbers.temperature, numbers.uniform, kind=config.kind, keep=config.keep, steps=config.steps)
