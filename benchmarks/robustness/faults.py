"""What runs survive: `kill -9` at random moments, damaged checkpoints, full disks. Each is resumed and compared bit by bit.

Every run is a process of `jaxpgd run` on settings that take seconds, with a checkpoint after every chunk. It goes through all
stages: denoiser, world model, state denoiser, agents on guided and on DyDiff data, returns, scores, report.
"""

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.robustness.sandbox import STAGES, TRAINED, Fault, Sandbox, logged, stage_of
from benchmarks.timing import describe_device


def killed(box: Sandbox, number: int, rng: random.Random) -> Fault:
    """Kill a run at a random moment of one stage (stages take turns), then resume it."""
    out, stage = box.root / f"killed-{number}", STAGES[number % len(STAGES)]
    longest = 0.3 if logged(box.reference, stage) else box.stage_seconds(stage)
    return box.resumed("kill -9", box.kill(out, stage, rng.random(), longest * rng.random()), out)


def damaged(box: Sandbox, number: int, rng: random.Random) -> Fault:
    """Kill a run, truncate its newest checkpoint or change one byte of it, then resume it."""
    out, stage = box.root / f"damaged-{number}", STAGES[number % TRAINED]
    stage = box.kill(out, stage, 0.3 + 0.6 * rng.random(), 0.3 * rng.random())
    stages = [p for p in (out / "checkpoints").glob("*") if sum(c.name.isdigit() for c in p.iterdir()) >= 2]
    if not stages:
        raise RuntimeError(f"killed in {stage} too early: nothing to damage")
    chosen = max(stages, key=lambda p: p.stat().st_mtime)
    newest = max((c for c in chosen.iterdir() if c.name.isdigit()), key=lambda c: int(c.name))
    files = [f for f in sorted(newest.rglob("*")) if f.is_file() and f.stat().st_size > 0]
    file = rng.choices(files, weights=[f.stat().st_size for f in files])[0]
    content, size = bytearray(file.read_bytes()), file.stat().st_size
    offset = rng.randrange(len(content))
    cut = number % 2 == 0
    if cut:
        del content[offset:]
    else:
        content[offset] ^= 1 << rng.randrange(8)
    file.write_bytes(bytes(content))
    how = "truncated" if cut else "byte changed"
    return box.resumed(f"newest checkpoint, {how}", chosen.name, out, f"{file.name} at {offset} of {size}")


@contextmanager
def small_disk(box: Sandbox, name: str, size: int) -> Iterator[Path]:
    """A tmpfs of `size` KiB. Raises OSError if it cannot be mounted."""
    disk = box.root / name
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        raise OSError("cannot mount a tmpfs here: run as root, or under `unshare -Urm`")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def fill(disk: Path, room: int = 0) -> Path:
    """Fill a disk with one file but for `room` KiB; returns the file."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as stream, suppress(OSError):
        while stream.write(bytes(2**16)) == 2**16:
            pass
    os.truncate(ballast, max(ballast.stat().st_size - room * 1024, 0))
    return ballast


def ended(box: Sandbox, process: subprocess.Popen[bytes], out: Path, part: str = "") -> tuple[str, str]:
    """The message with which a run on a full disk ended, and what is wrong with that message (empty if nothing)."""
    code = process.wait()
    messages = [line for line in box.log(out).read_text().splitlines() if line.startswith("error:")]
    message = messages[-1].removeprefix("error: ") if messages else ""
    clear = code == 1 and "no space left" in message and str(out) in message and part in message
    message = message.replace(str(out), "RUN")
    return message, "" if clear else f"exit status {code}: {message}"


def continued(box: Sandbox, what: str, stage: str, out: Path, ending: tuple[str, str]) -> Fault:
    """Resume a run once there is room. It also counts as lost if its message was not clear."""
    box.log(out).unlink()
    fault = box.resumed(f"disk full, {what}", stage, out, ending[0])
    return dataclasses.replace(fault, survived=False, detail=ending[1]) if ending[1] else fault


def full_from_the_start(box: Sandbox, size: int) -> Fault:
    """A run that fills up a disk of `size` KiB, mostly with checkpoints."""
    with small_disk(box, f"disk-{size}", size) as disk:
        out = disk / "run"
        ending = ended(box, box.start(out), out)
        stage = stage_of(out)
        subprocess.run(["mount", "-o", "remount,size=512m", str(disk)], check=True)
        return continued(box, "as it fills up", stage, out, (f"{size} KiB: {ending[0]}", ending[1]))


def full_while_logging(box: Sandbox, stage: str) -> Fault:
    """A disk that another process fills while a stage logs, between checkpoints: its log lines no longer fit."""
    with small_disk(box, f"disk-{stage}", 2**19) as disk:
        out = disk / "run"
        process = box.start(out, "--checkpoint-seconds", "1e9")
        while process.poll() is None and logged(out, stage) == 0:
            time.sleep(0.001)
        process.send_signal(signal.SIGSTOP)
        ballast = fill(disk)
        process.send_signal(signal.SIGCONT)
        ending = ended(box, process, out, "metrics.jsonl")
        ballast.unlink()
        return continued(box, "metrics.jsonl", stage, out, ending)


def full_while_reporting(box: Sandbox, share: float) -> Fault:
    """A disk with room for only a `share` of the report: its figures, or its HTML, no longer fit."""
    with small_disk(box, f"disk-report-{share}", 2**19) as disk:
        out = disk / "run"
        box.finish(out)
        report = [out / "results.json", out / "report.html", *out.glob("figures/*")]
        size = sum(file.stat().st_size for file in report) // 1024
        for file in report:
            file.unlink()
        (out / "figures").rmdir()
        (out / "stages" / "report.json").unlink()
        ballast = fill(disk, int(share * size))
        ending = ended(box, box.start(out), out, "report.html" if share > 0.5 else "figures")
        ballast.unlink()
        return continued(box, "report", "report", out, ending)


def attempted(job: Callable[[], Fault]) -> Fault:
    """Run a job. A fault that could not be caused counts as lost."""
    try:
        return job()
    except (OSError, RuntimeError) as error:
        return Fault("not made", "none", False, str(error))


def full_disks(box: Sandbox, count: int) -> list[Callable[[], Fault]]:
    """`count` jobs: disks of growing sizes and, from the second on, disks that are full when the log or report is written."""
    others: list[Callable[[], Fault]] = []
    others += [partial(full_while_logging, box, stage) for stage in ("agent-guided", "agent-dydiff")]
    others += [partial(full_while_reporting, box, share) for share in (0.15, 0.8)]
    others = others[: max(count - 1, 0)]
    sizes = count - len(others)
    needed = sum(f.stat().st_size for f in box.reference.rglob("*") if f.is_file()) // 1024
    starts = [int(needed * (0.1 + 0.85 * i / max(sizes - 1, 1))) for i in range(sizes)]
    return [*(partial(full_from_the_start, box, size) for size in starts), *others]


def run(kills: int = 50, damages: int = 10, disks: int = 8, seed: int = 0) -> dict[str, Any]:
    """Cause all faults, one per usable core at a time; a table of faults tried, survived and lost."""
    root = Path(tempfile.mkdtemp(prefix="jaxpgd-faults-"))
    try:
        box = Sandbox(root)
        print(f"an undisturbed run takes {box.seconds:.1f} s", file=sys.stderr, flush=True)
        rng = random.Random(seed)
        jobs: list[Callable[[], Fault]] = [partial(killed, box, i, random.Random(rng.random())) for i in range(kills)]
        jobs += [partial(damaged, box, i, random.Random(rng.random())) for i in range(damages)]
        jobs += full_disks(box, disks)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            faults = list(pool.map(attempted, jobs))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    table = []
    for kind in dict.fromkeys(f.kind for f in faults):
        mine = [f for f in faults if f.kind == kind]
        survived = sum(f.survived for f in mine)
        table.append({"fault": kind, "tried": len(mine), "survived": survived, "lost": len(mine) - survived,
                      "stages": dict(Counter(f.stage for f in mine))})  # fmt: skip
    return {"suite": "faults", "device": describe_device(), "run_seconds": box.seconds, "table": table,
            "faults": [dataclasses.asdict(f) for f in faults]}  # fmt: skip
