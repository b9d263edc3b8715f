"""Lower bounds on the time of a computation from its shapes: arithmetic, memory traffic, kernel launches (a roofline).

Arithmetic counts matrix products only. Memory traffic counts what must cross the device's memory if nothing stays in caches:
parameters, and the input and output of every product. Launches are an estimate: one kernel per product, one for the elementwise
work between two products, one per array that an optimiser updates. `count_launches` counts them in a compiled program instead.
"""

import dataclasses
import itertools
import re
from typing import Any, NamedTuple

from benchmarks.speed.agents import Size as AgentSize
from benchmarks.speed.agents import update_flops
from jaxpgd.types import Agent

BYTES = {"float32": 4, "tensorfloat32": 4, "bfloat16": 2}  # per activation, by precision of the products


@dataclasses.dataclass(frozen=True)
class Peaks:
    """The peak rates of a device."""

    flops: dict[str, float]  # FLOP/s by precision
    bandwidth: float  # bytes a second, read and written
    launch: float  # seconds from one kernel to the next


# from the data sheet (dense products); the launch time is that inside a compiled loop
H100 = Peaks({"float32": 67e12, "tensorfloat32": 495e12, "bfloat16": 800e12}, 3.3e12, 2.5e-6)


@dataclasses.dataclass(frozen=True)
class Work:
    """One unit of work: floating-point operations, bytes moved, kernels launched, precision of the products."""

    flops: float
    bytes: float
    launches: float
    precision: str  # a key of `Peaks.flops`

    def times(self, factor: float) -> "Work":
        """The work of `factor` units."""
        return Work(self.flops * factor, self.bytes * factor, self.launches * factor, self.precision)

    def seconds(self, peaks: Peaks) -> dict[str, float]:
        """The three lower bounds in seconds."""
        arithmetic = self.flops / peaks.flops[self.precision]
        return {"arithmetic": arithmetic, "memory": self.bytes / peaks.bandwidth, "launches": self.launches * peaks.launch}

    def bound(self, peaks: Peaks) -> tuple[str, float]:
        """The largest of the three: its name and its seconds."""
        found = self.seconds(peaks)
        name = max(found, key=lambda key: found[key])
        return name, found[name]


class Layer(NamedTuple):
    """A matrix product of the U-Net for one trajectory: [rows, taps * inputs] times [taps * inputs, outputs], with a bias.

    `norm`: channels of the normalisation layer that belongs to it. `data`: the input is data and needs no gradient.
    """

    rows: int
    inputs: int
    outputs: int
    taps: int = 1
    norm: int = 0
    data: bool = False

    @property
    def weights(self) -> int:
        """Number of parameters."""
        return self.taps * self.inputs * self.outputs + self.outputs + 2 * self.norm

    @property
    def flops(self) -> int:
        """FLOPs of a forward pass: a multiplication and an addition per weight and row."""
        return 2 * self.rows * self.taps * self.inputs * self.outputs

    @property
    def activations(self) -> int:
        """Number of entries of input and output; the taps of a convolution read the same input."""
        return self.rows * (self.inputs + self.outputs)


def layers(features: int, blocks: int, window: int, token: int, block: str = "residual") -> list[Layer]:
    """Every matrix product of `TemporalUNet`, in the order of the forward pass."""
    width = lambda level: features * 2**level
    rows = lambda level: window // 2**level
    found = [Layer(1, 2 * max(features // 8, 2), features, data=True), Layer(1, features, features)]
    if block == "plain":

        def pair(level: int, inputs: int) -> list[Layer]:
            return [Layer(rows(level), inputs if first else width(level), width(level), 3, width(level)) for first in (1, 0)]

        for level in range(blocks):
            first, second = pair(level, token if level == 0 else width(level - 1))
            found += [first._replace(data=level == 0), Layer(1, features, width(level)), second]
        for level in reversed(range(blocks - 1)):
            up = Layer(rows(level), width(level + 1), width(level), 2, width(level))
            found += [up, Layer(1, features, width(level)), *pair(level, 2 * width(level))]
        return [*found, Layer(window, features, token)]

    def residual(level: int, inputs: int) -> list[Layer]:
        beside = [] if inputs == width(level) else [Layer(rows(level), inputs, width(level))]
        first, second = (Layer(rows(level), n, width(level), 3, n) for n in (inputs, width(level)))
        return [first, Layer(1, features, width(level)), second, *beside]

    found.append(Layer(window, token, features, 3, data=True))
    for level in range(blocks):
        found += residual(level, features if level == 0 else width(level - 1))
    for level in reversed(range(blocks - 1)):
        found += [Layer(rows(level + 1), width(level + 1), width(level)), *residual(level, 2 * width(level))]
    return [*found, Layer(window, features, token, norm=features)]


def parameters(network: list[Layer]) -> int:
    """Number of parameters of a network."""
    return sum(layer.weights for layer in network)


def training_work(network: list[Layer], batch: int, precision: str, ema_every: int = 1) -> Work:
    """One training step of `batch` trajectories.

    Arithmetic: one forward product, and one for each of the two gradients (of weights and of the input). Memory: 13 passes over
    the float32 parameters if weights are averaged at every step (parameters read forward and backward; gradients written, read
    for their norm and by Adam; parameters and two moments read and written; the average read and written, which happens every
    `ema_every` steps), and three passes over input and output of every product: one forward, two backward.
    """
    forward = sum(layer.flops for layer in network)
    free = sum(layer.flops for layer in network if layer.data)
    weights, activations = parameters(network), sum(layer.activations for layer in network)
    passes = 11 + 2 / ema_every
    products = 3 * len(network) - sum(layer.data for layer in network)
    leaves = sum(2 + 2 * (layer.norm > 0) for layer in network)
    moved = 4 * passes * weights + 3 * batch * activations * BYTES[precision]
    return Work(batch * (3 * forward - free), moved, 2 * products + leaves, precision)


def sampling_work(network: list[Layer], batch: int, nfe: int, cost: int, precision: str) -> Work:
    """One trajectory of `batch` sampled at once, with `nfe` function evaluations of `cost` forward-equivalents each.

    A product with the Jacobian or its transpose counts as one forward pass. Parameters are read once per batch and pass, in the
    precision of the products. The guiding policy is left out: it adds 2 to 6 % at 128 features.
    """
    passes = nfe * cost
    forward, activations = sum(layer.flops for layer in network), sum(layer.activations for layer in network)
    moved = BYTES[precision] * (activations + parameters(network) / batch)
    return Work(passes * forward, passes * moved, passes * 2 * len(network) / batch, precision)


def agent_parameters(agent: Agent[Any], size: AgentSize) -> tuple[int, int]:
    """Number of trained parameters, and of parameters of target networks."""
    body = sum(a * b + b for a, b in itertools.pairwise(size.hidden))
    first, last = (lambda n: (n + 1) * size.hidden[0]), (lambda n: (size.hidden[-1] + 1) * n)
    critics = 2 * (first(size.obs_dim + size.action_dim) + body + last(1))
    actor, value = first(size.obs_dim) + body + last(size.action_dim), first(size.obs_dim) + body + last(1)
    if agent.name == "td3_bc":
        return critics + actor, critics + actor
    return critics + actor + value, critics


def agent_work(agent: Agent[Any], size: AgentSize, precision: str, seeds: int = 1) -> Work:
    """One update of one of `seeds` agents in one program, which share its launches.

    Memory: parameters, their two moments and the targets, each read and written once, and the batches. Launches: with networks
    of d layers, TD3+BC with two critic steps has 13 d - 3 products (targets 2 d, each critic step 3 d - 1, actor 5 d - 1), IQL
    has 12 d - 3 (target critics d, value 5 d - 1, actor and critics 3 d - 1 each); each optimiser step updates 2 d arrays.
    """
    trained, targets = agent_parameters(agent, size)
    entries = agent.batches * size.batch * (2 * size.obs_dim + size.action_dim + 2)
    depth = len(size.hidden) + 1
    steps, products = (agent.batches + 1, 13 * depth - 3) if agent.name == "td3_bc" else (3, 12 * depth - 3)
    launches = 2 * products + 2 * depth * steps
    return Work(update_flops(agent, size), 4 * (2 * (3 * trained + targets) + entries), launches / seeds, precision)


def product_work(size: int, precision: str) -> Work:
    """One product of two [size, size] matrices."""
    return Work(2 * size**3, 3 * size**2 * BYTES[precision], 1, precision)


# HLO operations that launch a kernel; `while`, `conditional` and `call` are followed, the rest launch nothing
KERNELS = frozenset(
    "add all-reduce broadcast cholesky concatenate convert convolution copy copy-start custom-call divide dot dynamic-slice "
    "dynamic-update-slice fft fusion gather iota multiply pad reduce reduce-window reverse rng rng-bit-generator scatter "
    "select select-and-scatter slice sort subtract topk transpose triangular-solve".split()
)
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{\s*$")
_OPCODE = re.compile(r" = .*? ([a-z][a-z0-9\-]*)\(")
_CALLED = re.compile(r"(body|condition|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"?known_trip_count"?:\s*\{\s*"?n"?:\s*"?(\d+)')


def count_launches(text: str) -> float:
    """Kernels that a run of a compiled program (its text) starts: loops count as often as they turn, branches at their most.

    Loops whose turns the compiler does not know count once. Scalars that a device would not start a kernel for do not count.
    """
    bodies: dict[str, list[str]] = {}
    entry = current = ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = match[2]
            bodies[current] = []
            entry = current if match[1] else entry
        elif current:
            bodies[current].append(line)
    known: dict[str, float] = {}

    def count(name: str) -> float:
        if name not in known:
            known[name] = 0.0  # a computation does not call itself
            known[name] = sum(_of_instruction(line, count) for line in bodies.get(name, ()))
        return known[name]

    return count(entry)


def _of_instruction(line: str, count: Any) -> float:
    match = _OPCODE.search(line)
    if match is None:
        return 0.0
    opcode, called = match[1], dict(_CALLED.findall(line))
    if opcode == "while":
        trips = _TRIPS.search(line)
        return (float(trips[1]) if trips else 1.0) * (count(called.get("body", "")) + count(called.get("condition", "")))
    if opcode == "conditional":
        branches = _BRANCHES.search(line)
        names = [name.strip().lstrip("%") for name in branches[1].split(",")] if branches else list(called.values())
        return max((count(name) for name in names), default=0.0)
    if opcode in ("call", "async-start"):
        return count(called.get("to_apply", "")) if "to_apply" in called else 1.0
    small = re.search(r" = \(?(?:pred|[su]\d+|f\d+|bf16)\[\]", line) and opcode not in (
        "fusion",
        "custom-call",
        "reduce",
        "dot",
    )
    return 1.0 if opcode in KERNELS and not small else 0.0
