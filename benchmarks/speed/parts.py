"""Where the time of an agent's update goes: every operation of the compiled update, timed by JAX's profiler, by part.

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
from benchmarks.timing import header, matmul_peak
from jaxpgd.agents import iql, td3_bc
from jaxpgd.training.agent import update_many
from jaxpgd.training.experience import Experience
from jaxpgd.types import Agent, Transition

SCOPES = {
    "adam": "Adam",
    "target_networks": "target networks",
    "gradient_norm": "gradient norms",
    "take_batch": "batches",
    "draw_batch": "random numbers",
    "threefry": "random numbers",
    "_normal": "random numbers",
}
LAYERS = ("first layers", "hidden layers", "last layers")
REST = "losses, targets and the rest"


@dataclasses.dataclass(frozen=True)
class Size(agents.Size):
    """Sizes of the measurement: those of `agents`, on real data alone."""

    updates: int = 64
    repeats: int = 5


def part_of(name: str, path: str, hidden: int) -> str:
    """The part of the update to which an operation belongs, by its kind `name` and its path of scopes.

    Networks have `hidden` hidden layers. A product comes with what the compiler has fused with it.
    """
    for scope, part in SCOPES.items():
        if scope in path:
            return part
    layer = re.search(r"Dense_(\d+)", path)
    if path.endswith("dot_general") or (layer and name.startswith(("ynn", "dot"))):
        index = int(layer.group(1)) if layer else 0
        return f"products of {LAYERS[0 if index == 0 else 2 if index == hidden else 1]}"
    if "copy" in name or path.endswith(("transpose", "reshape")):
        return "copies into another layout"
    if "MLP_" in path:
        return "activations and biases"
    return REST


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


def measure_parts(agent: Agent[Any], data: Transition, size: Size) -> list[dict[str, Any]]:
    """A row for each part of one agent's update: microseconds, share, and operations of one update."""
    state = agents.start(jax.random.key(0), agent, data, None)
    many = lambda state, agent, data: update_many(state, Experience(data), agent, size.batch, 0, size.updates)
    compiled = jax.jit(many).lower(state, agent, data).compile()
    where, total = paths(compiled.as_text()), size.updates * size.repeats
    micros, operations = collections.Counter[str](), collections.Counter[str]()
    for name, each in durations(functools.partial(compiled, state, agent, data), size.repeats).items():
        if name.split(".")[0] in ("while", "call", "conditional"):  # what they hold is listed itself
            continue
        part = part_of(name, where.get(name, ""), len(size.hidden))
        micros[part] += sorted(each)[len(each) // 4] * len(each) / total
        operations[part] += len(each) / total
    everything = sum(micros.values())
    return [
        {"agent": agent.name, "part": part, "microseconds": spent, "share": spent / everything, "operations": operations[part]}
        for part, spent in micros.most_common()
    ]


def run(size: Size | None = None) -> dict[str, Any]:
    """The parts of an update of TD3+BC and of IQL; with the time that its products would take at the measured peak."""
    size, peak = size or Size(), matmul_peak()
    data = jax.block_until_ready(agents.make_data(jax.random.key(0), size))
    rows, totals = list[dict[str, Any]](), list[dict[str, Any]]()
    for agent in (make(action_dim=size.action_dim, hidden=size.hidden) for make in (td3_bc, iql)):
        found = measure_parts(agent, data, size)
        rows += found
        at_peak = agents.update_flops(agent, size) / 1e3 / max(peak, matmul_peak())
        spent = sum(row["microseconds"] for row in found)
        totals.append({"agent": agent.name, "microseconds": spent, "products_at_peak": at_peak, "share": at_peak / spent})
    return header("parts", size, peak) | {"rows": rows, "totals": totals}
