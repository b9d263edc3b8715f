"""What runs survive: `kill -9` at random moments, damaged checkpoints, full disks. Each is resumed and compared bit by bit.

Processes of `jaxpgd run` on settings that take seconds, with a checkpoint after every chunk, over all stages: denoiser, world
model, state denoiser, agents on guided and on DyDiff data (which need all models), returns, scores, report.
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.timing import describe_device
from jaxpgd.pipeline.reproduce import compare_runs
from jaxpgd.pipeline.run_directory import open_run

CONFIG = """
arms = ["guided", "dydiff"]
seeds = 2
checkpoint_seconds = 0.0
data = { episodes = 40, window = 16, validation_fraction = 0.25 }
sampler = { kind = "euler", steps = 4, batch_size = 16 }
guidance = { kind = "reconstruction", coefficient = 0.5 }
dynamics = { members = 3, elites = 2, hidden = [16], reward_hidden = [16], epochs = 6, steps_per_epoch = 8, batch_size = 16 }
synthesis = { trajectories = 16, interval = 8 }
evaluation = { episodes = 2, every = 16, intermediate_episodes = 1, trajectories = 32, coefficients = [1.0] }
[denoiser]
features = 8
groups = 4
blocks = 1
block = "plain"
steps = 40
validate_every = 4
batch_size = 8
validation_batches = 1
[agent]
updates = 64
updates_per_chunk = 4
batch_size = 16
td3_bc = { hidden = [16] }
"""
# settings that change no result and let XLA compile faster: most of such a run is compilation
_ENVIRONMENT = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault: what was done, in which stage, whether the resumed run ends with the bits of the undisturbed one."""

    kind: str
    stage: str
    survived: bool
    detail: str = ""


class Laboratory:
    """A folder with the undisturbed run, and runs to disturb."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "config.toml").write_text(CONFIG)
        self.environment = {**os.environ, **_ENVIRONMENT, "JAX_COMPILATION_CACHE_DIR": str(root / "compiled")}
        self.reference = root / "reference"
        for _ in range(2):  # the second finds compiled programs, as all that follow
            shutil.rmtree(self.reference, ignore_errors=True)
            began = time.monotonic()
            self.finish(self.reference)
            self.seconds = time.monotonic() - began

    def start(self, out: Path) -> subprocess.Popen[bytes]:
        """`jaxpgd run --resume` into `out`, what it says into `out`.log."""
        command = [sys.executable, "-m", "jaxpgd", "run", str(self.root / "config.toml"), "--resume", "--out", str(out)]
        with self.log(out).open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=self.environment)

    def log(self, out: Path) -> Path:
        return self.root / f"{'-'.join(out.relative_to(self.root).parts)}.log"

    def finish(self, out: Path) -> None:
        """Run to the end. Raises RuntimeError with the last lines where that fails."""
        code = self.start(out).wait()
        if code != 0:
            raise RuntimeError(f"exit status {code}: " + " | ".join(self.log(out).read_text().splitlines()[-3:]))

    def kill(self, out: Path, after: float) -> str:
        """Start, `kill -9` so many seconds after its directory is there; the stage that was under way."""
        process = self.start(out)
        while process.poll() is None and not (out / "config.toml").exists():
            time.sleep(0.005)
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        return stage_of(out)

    def resumed(self, kind: str, stage: str, out: Path, detail: str = "") -> Fault:
        """Run to the end, compare with the undisturbed run, clean up."""
        try:
            self.finish(out)
            parts = compare_runs(open_run(self.reference), open_run(out))
            different = [f"{part.part}: {part.first}" for part in parts if part.differing]
            fault = Fault(kind, stage, not different, "; ".join([detail, *different]).strip("; "))
        except Exception as error:
            fault = Fault(kind, stage, False, f"{detail} {type(error).__name__}: {error}")
        shutil.rmtree(out, ignore_errors=True)
        print(f"{kind}, {stage}: {'survived' if fault.survived else 'LOST'} {fault.detail}", file=sys.stderr, flush=True)
        return fault


def stage_of(out: Path) -> str:
    """The stage that a run is in, by what it has left."""
    done = {p.stem for p in (out / "stages").glob("*.json")} if (out / "stages").is_dir() else set()
    order = ["denoiser", "dynamics", "state-denoiser", "agent-guided", "agent-dydiff", "returns", "quality", "report"]
    return next((stage for stage in order if stage not in done), "end")


def killed(lab: Laboratory, number: int, share: float) -> Fault:
    """A run that is killed at a share of its time, then resumed."""
    out = lab.root / f"killed-{number}"
    return lab.resumed("kill -9", lab.kill(out, share * lab.seconds), out)


def damaged(lab: Laboratory, number: int, share: float, rng: random.Random) -> Fault:
    """A run that is killed, and whose newest checkpoint loses its end, or has one byte changed; then resumed."""
    out = lab.root / f"damaged-{number}"
    stage = lab.kill(out, share * lab.seconds)
    stages = [p for p in (out / "checkpoints").glob("*") if sum(c.name.isdigit() for c in p.iterdir()) >= 2]
    if not stages:
        return lab.resumed("damage", stage, out, "too early: nothing to damage")
    chosen = max(stages, key=lambda p: p.stat().st_mtime)
    newest = max((c for c in chosen.iterdir() if c.name.isdigit()), key=lambda c: int(c.name))
    files = [f for f in sorted(newest.rglob("*")) if f.is_file() and f.stat().st_size > 0]
    file = rng.choices(files, weights=[f.stat().st_size for f in files])[0]
    content, size = bytearray(file.read_bytes()), file.stat().st_size
    place = rng.randrange(len(content))
    cut = number % 2 == 0
    if cut:
        del content[place:]
    else:
        content[place] ^= 1 << rng.randrange(8)
    file.write_bytes(bytes(content))
    what = "truncated" if cut else "byte changed"
    return lab.resumed(f"newest checkpoint, {what}", chosen.name, out, f"{file.name} at {place} of {size}")


def full_disk(lab: Laboratory, size: int) -> Fault:
    """A run on a file system of `size` KiB that fills up; then it gets room, and the run is resumed."""
    disk = lab.root / f"disk-{size}"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        return Fault("full disk", "none", False, "cannot mount a tmpfs here: run as root, or under `unshare -Urm`")
    try:
        out = disk / "run"
        code = lab.start(out).wait()
        said = [line for line in lab.log(out).read_text().splitlines() if line.startswith("error:")]
        stage, message = stage_of(out), said[-1] if said else ""
        clear = code == 1 and "no space left" in message and str(disk) in message
        subprocess.run(["mount", "-o", "remount,size=512m", str(disk)], check=True)
        lab.log(out).unlink()
        fault = lab.resumed(f"disk of {size} KiB full", stage, out, message.removeprefix("error: ").replace(str(disk), "DISK"))
        return fault if clear else dataclasses.replace(fault, survived=False, detail=f"exit status {code}: {message}")
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def run(kills: int = 50, damages: int = 10, disks: int = 8, seed: int = 0) -> dict[str, Any]:
    """All faults, two at a time where there are two cores; a table of those tried, survived and lost."""
    root = Path(tempfile.mkdtemp(prefix="jaxpgd-faults-"))
    try:
        lab = Laboratory(root)
        print(f"an undisturbed run takes {lab.seconds:.1f} s", file=sys.stderr, flush=True)
        rng = random.Random(seed)
        jobs: list[Any] = [lambda i=i, s=rng.random(): killed(lab, i, s) for i in range(kills)]
        jobs += [lambda i=i, s=0.2 + 0.6 * rng.random(), r=rng.random(): damaged(lab, i, s, random.Random(r))
                 for i in range(damages)]  # fmt: skip
        needed = sum(f.stat().st_size for f in lab.reference.rglob("*") if f.is_file()) // 1024
        jobs += [lambda size=int(needed * (0.1 + 0.85 * i / max(disks - 1, 1))): full_disk(lab, size) for i in range(disks)]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            faults = list(pool.map(lambda job: job(), jobs))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    table = []
    for kind in dict.fromkeys(f.kind.split(" of ")[0] for f in faults):
        mine = [f for f in faults if f.kind.split(" of ")[0] == kind]
        survived = sum(f.survived for f in mine)
        table.append({"fault": kind, "tried": len(mine), "survived": survived, "lost": len(mine) - survived,
                      "stages": dict(Counter(f.stage for f in mine))})  # fmt: skip
    return {"suite": "faults", "device": describe_device(), "run_seconds": lab.seconds, "table": table,
            "faults": [dataclasses.asdict(f) for f in faults]}  # fmt: skip
