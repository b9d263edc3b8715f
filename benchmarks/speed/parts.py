"""Where the time of a training step goes, of agents and denoiser: every operation, timed by JAX's profiler, by part.

A part is what the library names (`jax.named_scope`: Adam, target networks, ...) or a layer of a network. Of each operation the
lower quartile of its durations counts, since noise only adds time. Choose one core from outside, as operations that run side by
side count twice: `taskset -c 0 python -m benchmarks parts`.
"""

import collections
import dataclasses
import functools
import glob
import gzip
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from benchmarks.speed import agents
from benchmarks.speed.denoiser import Size as DenoiserSize
from benchmarks.speed.denoiser import make_windows, one_step, scan_steps, trained
from benchmarks.timing import compiled_flops, header, matmul_peak
from jaxpgd.agents import iql, td3_bc
from jaxpgd.training.agent import update_many
from jaxpgd.training.denoiser import init_denoiser
from jaxpgd.training.experience import Experience
from jaxpgd.types import Agent, PyTree, Transition

SCOPES = {
    "adam": "Adam",
    "optimiser": "Adam",
    "averaged_weights": "averaged weights",
    "target_networks": "target networks",
    "gradient_norm": "gradient norms",
    "take_batch": "batches",
    "draw_batch": "random numbers",
    "threefry": "random numbers",
    "_normal": "random numbers",
}
LAYERS = ("first layers", "hidden layers", "last layers")
ACTIVATIONS, COPIES, REST = "activations and biases", "copies into another layout", "losses, targets and the rest"


@dataclasses.dataclass(frozen=True)
class Size(agents.Size):
    """Sizes of the measurement: those of `agents`, on real data alone, and of `denoiser`."""

    updates: int = 64
    repeats: int = 5
    denoiser: DenoiserSize = DenoiserSize()


def _scope(path: str) -> str | None:
    return next((part for scope, part in SCOPES.items() if scope in path), None)


def _is_product(name: str, path: str) -> bool:
    return path.endswith("dot_general") or ("Dense_" in path and name.startswith(("ynn", "dot")))


def _is_copy(name: str, path: str) -> bool:
    return "copy" in name or path.endswith(("transpose", "reshape"))


def part_of(name: str, path: str, hidden: int) -> str:
    """The part of an agent's update to which an operation belongs, by its kind `name` and its path of scopes.

    Networks have `hidden` hidden layers. A product comes with what the compiler has fused with it.
    """
    if scope := _scope(path):
        return scope
    if _is_product(name, path):
        layer = re.search(r"Dense_(\d+)", path)
        index = int(layer.group(1)) if layer else 0
        return f"products of {LAYERS[0 if index == 0 else 2 if index == hidden else 1]}"
    if _is_copy(name, path):
        return COPIES
    return ACTIVATIONS if "MLP_" in path else REST


def part_of_denoiser(name: str, path: str) -> str:
    """The part of a denoiser's training step to which an operation belongs, as `part_of`."""
    if scope := _scope(path):
        return scope
    if _is_product(name, path):
        return "products of convolutions" if "Conv_" in path else "other products"
    if "GroupNorm_" in path:
        return "group normalisation"
    if "Conv_" in path and path.endswith(("concatenate", "pad", "slice", "add_any", "split")):
        return "taps of convolutions"
    if _is_copy(name, path):
        return COPIES
    return ACTIVATIONS if "TemporalUNet" in path else REST


def paths(program: str) -> dict[str, str]:
    """The path of scopes of every operation in the text of a compiled program."""
    lines = (re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = ", line) for line in program.splitlines())
    path = lambda line: (re.search(r'op_name="([^"]*)"', line) or [None, ""])[1]
    return {found.group(1): path(found.string) for found in lines if found}


def durations(run: Callable[[], Any], repeats: int) -> dict[str, list[float]]:
    """Microseconds of every execution of every operation in `repeats` runs of a compiled program, by its name."""
    jax.block_until_ready(run())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(repeats):
                jax.block_until_ready(run())
        (path,) = glob.glob(f"{folder}/**/*.trace.json.gz", recursive=True)
        events = json.loads(gzip.decompress(Path(path).read_bytes()))["traceEvents"]
    found = collections.defaultdict[str, list[float]](list)
    for event in events:
        if "hlo_op" in event.get("args", {}) and event.get("ph") == "X":
            found[event["args"]["hlo_op"]].append(event["dur"])
    return found


def measure_parts(
    name: str,
    compiled: Callable[..., Any],
    arguments: tuple[PyTree, ...],
    part: Callable[[str, str], str],
    steps: int,
    repeats: int,
) -> list[dict[str, Any]]:
    """A row for each part of one of the `steps` that a compiled program takes: microseconds, share, and operations."""
    where, total = paths(compiled.as_text()), steps * repeats  # type: ignore[attr-defined]
    micros, operations = collections.Counter[str](), collections.Counter[str]()
    for operation, each in durations(functools.partial(compiled, *arguments), repeats).items():
        if operation.split(".")[0] in ("while", "call", "conditional"):  # what they hold is listed itself
            continue
        found = part(operation, where.get(operation, ""))
        micros[found] += sorted(each)[len(each) // 4] * len(each) / total
        operations[found] += len(each) / total
    everything = sum(micros.values())
    return [
        {"program": name, "part": part, "microseconds": spent, "share": spent / everything, "operations": operations[part]}
        for part, spent in micros.most_common()
    ]


def agent_parts(agent: Agent[Any], data: Transition, size: Size) -> list[dict[str, Any]]:
    """The parts of an agent's update."""
    state = agents.start(jax.random.key(0), agent, data, None)
    many = lambda state, agent, data: update_many(state, Experience(data), agent, size.batch, 0, size.updates)
    compiled = jax.jit(many).lower(state, agent, data).compile()
    part = functools.partial(part_of, hidden=len(size.hidden))
    return measure_parts(agent.name, compiled, (state, agent, data), part, size.updates, size.repeats)


def denoiser_parts(size: DenoiserSize, repeats: int) -> tuple[list[dict[str, Any]], float]:
    """The parts of a training step of the denoiser of the suite `denoiser`, and the step's FLOPs."""
    windows, config = make_windows(size), trained(size.features[0], size)
    state = init_denoiser(jax.random.key(0), windows, config)
    many = lambda state, windows: scan_steps.__wrapped__(state, windows, size.steps)
    compiled = jax.jit(many).lower(state, windows).compile()
    rows = measure_parts("denoiser", compiled, (state, windows), part_of_denoiser, size.steps, repeats)
    return rows, compiled_flops(one_step, state, windows)


def _total(rows: list[dict[str, Any]], flops: float, peak: float) -> dict[str, Any]:
    """All parts of a program beside the time that its products would take at the measured peak."""
    spent, at_peak = sum(row["microseconds"] for row in rows), flops / 1e3 / peak
    return {"program": rows[0]["program"], "microseconds": spent, "products_at_peak": at_peak, "share": at_peak / spent}


def run(size: Size | None = None) -> dict[str, Any]:
    """The parts of an update of TD3+BC and IQL and of a training step of the denoiser."""
    size, peak = size or Size(), matmul_peak()
    data = jax.block_until_ready(agents.make_data(jax.random.key(0), size))
    rows, totals = list[dict[str, Any]](), list[dict[str, Any]]()
    for agent in (make(action_dim=size.action_dim, hidden=size.hidden) for make in (td3_bc, iql)):
        found = agent_parts(agent, data, size)
        rows += found
        totals.append(_total(found, agents.update_flops(agent, size), max(peak, matmul_peak())))
    found, flops = denoiser_parts(size.denoiser, size.repeats)
    totals.append(_total(found, flops, max(peak, matmul_peak())))
    return header("parts", size, peak) | {"rows": rows + found, "totals": totals}
