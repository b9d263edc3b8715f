"""Sampling: one loop over noise levels, and what a solver is. Any Denoise can be sampled: no network or policy is known here.

Guidance comes as a wrapped Denoise, with a memory or without, or as a hook.
"""

from typing import Any, ClassVar, Protocol

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.types import Denoise, DenoiseWithMemory, Hook, Memory, Metrics, PyTree, Stage


@struct.dataclass
class Memoryless:
    """Any Denoise as a `DenoiseWithMemory` that keeps nothing; an evaluation counts as one forward pass."""

    denoise: Denoise

    def __call__(self, x: Array, sigma: Array) -> Array:
        """As `Denoise`."""
        return self.denoise(x, sigma)

    def init_memory(self, x: Array) -> Memory:
        """As `DenoiseWithMemory.init_memory`: nothing kept."""
        return Memory((), jnp.zeros((), jnp.int32))

    def evaluate(self, x: Array, sigma: Array, memory: Memory) -> tuple[Array, Memory]:
        """As `DenoiseWithMemory.evaluate`."""
        return self.denoise(x, sigma), Memory(memory.kept, memory.passes + 1)


def with_memory(denoise: Denoise) -> DenoiseWithMemory:
    """The denoiser itself if it has a memory, else `Memoryless`."""
    return denoise if isinstance(denoise, DenoiseWithMemory) else Memoryless(denoise)


@struct.dataclass
class Step:
    """One step of a sampler: the noise levels that it goes between, and what it calls on the way."""

    denoise: DenoiseWithMemory
    before_step: Hook | None
    after_stage: Hook | None
    index: Array  # [] i of `count`, from 0
    sigmas: tuple[Array, ...]  # [] each: the solver's `history` earlier levels, the present one and the next one
    count: int = struct.field(pytree_node=False)
    last: bool = struct.field(pytree_node=False, default=False)  # whether it is the last one (False if not `last_step_differs`)

    def stage(self, key: Array, sigma: Array) -> Stage:
        """The `Stage` that hooks receive at noise level sigma []."""
        return Stage(index=self.index, count=self.count, sigma=sigma, key=key, denoise=self.denoise)

    def before(self, key: Array, x: Array) -> Array:
        """x [T, D] after the hook `before_step`."""
        return x if self.before_step is None else self.before_step(x, self.stage(key, self.sigmas[-2]))

    def after(self, key: Array, x: Array) -> Array:
        """x [T, D] at the next level, after the hook `after_stage`."""
        return x if self.after_stage is None else self.after_stage(x, self.stage(key, self.sigmas[-1]))


class Solver(Protocol):
    """How a sampler steps from one noise level to the next: `init` and `step`. A pytree with its numbers as leaves.

    A step evaluates by `step.denoise.evaluate` and passes the denoiser's memory on from each evaluation to the next.
    """

    history: ClassVar[int]  # number of earlier noise levels that a step uses
    last_step_differs: ClassVar[bool]  # whether the step to sigma 0 is another one

    def init(self, x: Array) -> PyTree:
        """The state besides x [T, D] before the first step, such as earlier denoised points."""
        ...

    def step(self, key: Array, x: Array, state: Any, memory: Memory, step: Step) -> tuple[Array, PyTree, Memory]:
        """x [T, D] at `step.sigmas[-2]` -> x at `step.sigmas[-1]`, the new state, the denoiser's new memory."""
        ...

    def nfe(self, steps: int) -> int:
        """Number of function evaluations, that is of the denoiser, in so many steps."""
        ...


def sample(
    key: Array,
    denoise: Denoise,
    x: Array,
    sigmas: Array,
    solver: Solver,
    *,
    before_step: Hook | None = None,
    after_stage: Hook | None = None,
) -> tuple[Array, Metrics]:
    """Turn noise x [T, D] of standard deviation sigmas[0] into a sample [T, D]; sigmas [n + 1] decrease to 0 at the end.

    Before step i `before_step` changes x; `after_stage` changes the result of every stage (in-painting). Returns the sample and
    {"nfe": [], "forward_equivalents": []}: the number of evaluations, and what they cost in forward passes by the count of the
    denoiser's memory. Evaluations of hooks are in neither.
    """
    chex.assert_rank(sigmas, 1)
    n = sigmas.shape[0] - 1
    in_loop = n - 1 if solver.last_step_differs else n
    keys, past, remembering = jax.random.split(key, n), solver.history, with_memory(denoise)
    # the first steps have no levels behind them, and do not use these
    levels = jnp.concatenate([*(2.0**i * sigmas[:1] for i in range(past, 0, -1)), sigmas])

    def advance(carry: tuple[Array, PyTree, Memory], inputs: tuple[Array, ...]) -> tuple[tuple[Array, PyTree, Memory], None]:
        key, index, *near = inputs
        return solver.step(key, *carry, Step(remembering, before_step, after_stage, index, tuple(near), n)), None

    inputs = (keys[:in_loop], jnp.arange(in_loop), *(levels[i : i + in_loop] for i in range(past + 2)))
    (x, state, memory), _ = jax.lax.scan(advance, (x, solver.init(x), remembering.init_memory(x)), inputs)
    if solver.last_step_differs:
        near = tuple(levels[i + in_loop] for i in range(past + 2))
        last = Step(remembering, before_step, after_stage, jnp.asarray(in_loop), near, n, last=True)
        x, _, memory = solver.step(keys[-1], x, state, memory, last)
    return x, {"nfe": jnp.asarray(solver.nfe(n)), "forward_equivalents": memory.passes}
