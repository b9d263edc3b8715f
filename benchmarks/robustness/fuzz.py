"""Hostile files: mutated configs, studies, datasets, checkpoints, actors and logs, each read as a user would have it read.

An input is accepted, refused with the error that bad input must raise, or a failure: another exception, a dead process, no
answer within `PATIENCE` seconds, more memory than any of these files needs, or code that ran because a file named it. To repeat
one input: `python -c "from benchmarks.robustness.fuzz import one; one('npz', 17)"`.
"""

import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.robustness.inputs import KINDS
from benchmarks.robustness.mutations import CANARY, mutate_bytes

PATIENCE = 30.0  # seconds for one input
MEMORY = 32 * 2**30  # bytes of address space of a reader; JAX reserves most of it and does not use it


def one(name: str, number: int, seed: int = 0, sound: Path | None = None) -> str:
    """Make, mutate and read one input; returns "accepted" or "refused: message". Raises any other exception of the reader."""
    from jaxpgd.errors import InputError

    kind, rng = KINDS[name], random.Random(f"{seed} {name} {number}")
    with tempfile.TemporaryDirectory(prefix="jaxpgd-fuzz-") as path:
        folder = Path(path) / "input"
        if sound is None:
            folder.mkdir()
            kind.make(folder)
        else:
            shutil.copytree(sound, folder)
        (mutate_bytes if rng.random() < 0.5 else kind.change)(rng, folder)
        try:
            kind.read(folder)
            answer = "accepted"
        except InputError as error:
            answer = f"refused: {error}"
        if (folder / CANARY).exists():
            raise AssertionError("code that the file named was executed")
        return answer


def _serve(name: str, seed: int, first: int, count: int, answers: Any) -> None:
    """In a process of its own: read the inputs from `first` on, and send the outcome of each through the pipe `answers`."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.environ["JAX_PLATFORMS"] = "cpu"
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    with tempfile.TemporaryDirectory(prefix="jaxpgd-fuzz-") as path:
        sound = Path(path) / "sound"
        sound.mkdir()
        KINDS[name].make(sound)
        KINDS[name].read(sound)  # unless a sound input is accepted, the mutated ones show nothing
        answers.send((first, "ready"))
        for number in range(first, count):
            try:
                answer = one(name, number, seed, sound)
            except Exception as error:
                answer = f"crash: {type(error).__name__}: {error}"
            answers.send((number, answer))


def fuzz(name: str, inputs: int, seed: int = 0) -> dict[str, Any]:
    """Read `inputs` mutated inputs of a kind, in a process that is replaced when it dies or hangs."""
    context = multiprocessing.get_context("spawn")
    counts, failures, number = dict.fromkeys(("accepted", "refused", "crash", "hang"), 0), list[dict[str, Any]](), 0
    began, messages = time.monotonic(), set[str]()
    while number < inputs:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_serve, args=(name, seed, number, inputs, theirs), daemon=True)
        process.start()
        theirs.close()
        patience = 10 * PATIENCE  # the first answer includes imports
        while number < inputs:
            answer = "hang"
            if ours.poll(patience):
                try:
                    _, answer = ours.recv()
                except EOFError:
                    process.join()
                    answer = f"crash: the process died with exit status {process.exitcode}"
            patience = PATIENCE
            if answer == "ready":
                continue
            word = answer.partition(":")[0]
            counts[word] += 1
            messages |= {answer} if word == "refused" else set()
            if word in ("crash", "hang"):
                failures.append({"input": number, "what": answer[:500]})
            number += 1
            if word == "hang" or "process died" in answer:
                break
        process.kill()
        process.join()
        ours.close()
    return {"kind": name, "inputs": inputs, **counts, "different_messages": len(messages), "failures": failures,
            "seconds": time.monotonic() - began}  # fmt: skip


def run(inputs: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Fuzz all kinds; a table of inputs tried, accepted, refused with a clear error, crashed and hung."""
    from benchmarks.timing import describe_device

    table = []
    for name in KINDS:
        table.append(fuzz(name, inputs, seed))
        print({k: v for k, v in table[-1].items() if k != "failures"}, *table[-1]["failures"][:5], file=sys.stderr, flush=True)
    return {"suite": "fuzz", "device": describe_device(), "table": table}
