"""Agent updates per second beside those of unifloral and JAX-CORL, taking turns in one process.

The peers' scripts come from a checkout (`--unifloral DIR`, `--jax-corl DIR`) or from where Python finds modules; nothing of
them is in this repository. They are loaded as they are (`peer_scripts`) and compiled as their own loops do (`peer_programs`).
A peer that is not there has a row with the reason.

A ratio is our rate over the peer's, both of the same round: its median, and the lowest and highest of all rounds.
`ratio_of_fastest` compares the fastest round of each, because noise only slows a round down. `work` says what the two programs
differ in, since no two implementations of an algorithm do quite the same.
"""

import dataclasses
import statistics
from pathlib import Path
from typing import Any

import jax

from benchmarks.speed import agents, peer_programs
from benchmarks.speed.peer_programs import Program, Size
from benchmarks.speed.peer_scripts import JAX_CORL, UNIFLORAL, Peer, find, load
from benchmarks.timing import header, in_turn, matmul_peak
from jaxpgd.types import Transition

BUILDERS = {UNIFLORAL.name: peer_programs.unifloral, JAX_CORL.name: peer_programs.jax_corl}


@dataclasses.dataclass(frozen=True)
class Match:
    """An algorithm of ours, with some options changed, beside a peer's, and what the work of the two differs in."""

    algorithm: str
    peer: Peer
    changes: dict[str, Any]
    work: str

    @property
    def ours(self) -> str:
        """The name of our program in rows and ratios."""
        return ", ".join(["jaxpgd", *(f"{option}={value}" for option, value in self.changes.items())])


MATCHES = (
    Match(
        "td3_bc", UNIFLORAL, {"actor_first": True},
        "like for like, one batch per update; the actor's loss of unifloral evaluates both critics, ours the one that it uses",
    ),
    Match("td3_bc", UNIFLORAL, {}, "ours draws a batch for each critic step, unifloral one for both"),
    Match(
        "td3_bc", JAX_CORL, {"critic_norm": "layer"},
        "like for like, a batch for each critic step; critics with layer normalisation, of JAX-CORL before the activation",
    ),
    Match("td3_bc", JAX_CORL, {}, "the critics of JAX-CORL have layer normalisation, ours have none"),
    Match("iql", UNIFLORAL, {"stale_value": True}, "like for like, advantages and targets by V from before its step"),
    Match("iql", UNIFLORAL, {}, "ours evaluates V once more: advantages and targets are by V from after its step"),
    Match(
        "iql", JAX_CORL, {},
        "like for like in V, from after its step; advantages of JAX-CORL are by the online critics, ours by the target critics",
    ),
)  # fmt: skip
ALGORITHMS, PEERS = ("td3_bc", "iql"), (UNIFLORAL, JAX_CORL)


def build(path: Path | None, given: Path | None, algorithm: str, peer: Peer, data: Transition, size: Size) -> Program | str:
    """The program of the peer's script `path`, or the reason why there is none."""
    if path is None:
        where = f"in {given}" if given else f"on Python's module path; name a checkout with {peer.option}"
        return f"no {peer.scripts[algorithm]} {where}"
    try:
        return BUILDERS[peer.name](load(path), algorithm, data, size)
    except Exception as error:  # what others' scripts raise, or lack in another version, cannot be listed here
        return f"{peer.scripts[algorithm]} cannot be used: {type(error).__name__}: {error}"


def _rate_row(algorithm: str, name: str, program: Program, seconds: list[float], updates: int) -> dict[str, Any]:
    return {
        "algorithm": algorithm, "program": name, "rate": updates / statistics.median(seconds),
        "lowest": updates / max(seconds), "highest": updates / min(seconds), "compile_seconds": program.compile_seconds,
    }  # fmt: skip


def _ratio_row(match: Match, seconds: dict[str, list[float]]) -> dict[str, Any]:
    ours, theirs = seconds[match.ours], seconds[match.peer.name]
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return {
        "algorithm": match.algorithm, "ours": match.ours, "theirs": match.peer.name, "ratio": statistics.median(ratios),
        "lowest": min(ratios), "highest": max(ratios), "ratio_of_fastest": min(theirs) / min(ours), "work": match.work,
    }  # fmt: skip


def measure_algorithm(
    algorithm: str, found: dict[str, Program | str], data: Transition, size: Size
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and ratios of one algorithm, of which `found` holds the peers' programs or the reasons why there are none."""
    rows = [{"algorithm": algorithm, "program": name, "skipped": why} for name, why in found.items() if isinstance(why, str)]
    peers = {name: program for name, program in found.items() if isinstance(program, Program)}
    matches = [match for match in MATCHES if match.algorithm == algorithm and match.peer.name in peers]
    changes = {match.ours: match.changes for match in matches}
    programs = {name: peer_programs.ours(algorithm, changed, data, size) for name, changed in changes.items()} | peers
    seconds = in_turn({name: program.run for name, program in programs.items()}, size.rounds)
    timed = [_rate_row(algorithm, name, program, seconds[name], size.updates) for name, program in programs.items()]
    return timed + rows, [_ratio_row(match, seconds) for match in matches]


def run(size: Size | None = None, unifloral: Path | None = None, jax_corl: Path | None = None) -> dict[str, Any]:
    """Updates per second of TD3+BC and IQL, ours and the peers', and the ratios. Raises InputError for a wrong path."""
    size, given = size or Size(), {UNIFLORAL.name: unifloral, JAX_CORL.name: jax_corl}
    paths = {(algorithm, peer.name): find(peer, algorithm, given[peer.name]) for algorithm in ALGORITHMS for peer in PEERS}
    peak = matmul_peak()
    sizes = agents.Size(transitions=size.transitions, obs_dim=size.obs_dim, action_dim=size.action_dim)
    data = agents.make_data(jax.random.key(0), sizes)
    rows, ratios = list[dict[str, Any]](), list[dict[str, Any]]()
    for algorithm in ALGORITHMS:
        source = lambda peer, algorithm=algorithm: (paths[algorithm, peer.name], given[peer.name])
        found = {peer.name: build(*source(peer), algorithm, peer, data, size) for peer in PEERS}
        more_rows, more_ratios = measure_algorithm(algorithm, found, data, size)
        rows += more_rows
        ratios += more_ratios
    return header("peers", size, peak) | {"rows": rows, "ratios": ratios}
