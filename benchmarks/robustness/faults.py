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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.timing import describe_device
from jaxpgd.experiment.commands.reproduce import compare_runs
from jaxpgd.experiment.run.checkpoints import CheckpointStore
from jaxpgd.experiment.run.directory import open_run

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
STAGES = ("denoiser", "dynamics", "state-denoiser", "agent-guided", "agent-dydiff", "returns", "quality", "report")
TRAINED = 5  # of these, the first
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

    def start(self, out: Path, *options: str) -> subprocess.Popen[bytes]:
        """`jaxpgd run --resume` into `out`, what it says into `out`.log."""
        command = [sys.executable, "-m", "jaxpgd", "run", str(self.root / "config.toml"), "--resume", "--out", str(out)]
        with self.log(out).open("ab") as log:
            return subprocess.Popen([*command, *options], stdout=log, stderr=log, env=self.environment)

    def log(self, out: Path) -> Path:
        return self.root / f"{'-'.join(out.relative_to(self.root).parts)}.log"

    def lines(self, out: Path) -> list[str]:
        """What has been said into that log."""
        return self.log(out).read_text().splitlines() if self.log(out).exists() else []

    def finish(self, out: Path) -> None:
        """Run to the end. Raises RuntimeError with the last lines where that fails."""
        code = self.start(out).wait()
        if code != 0:
            raise RuntimeError(f"exit status {code}: " + " | ".join(self.lines(out)[-3:]))

    def lasted(self, stage: str) -> float:
        """Seconds that a stage took in the undisturbed run, by when stages were marked as done."""
        ends = [(self.reference / "stages" / f"{each}.json").stat().st_mtime for each in STAGES]
        number = STAGES.index(stage)
        return ends[number] - (ends[number - 1] if number else (self.reference / "config.toml").stat().st_mtime)

    def kill(self, out: Path, stage: str, share: float, after: float) -> str:
        """Start, `kill -9` so many seconds after `share` of a stage is logged; the stage that was under way then.

        By progress and not by the clock, whose seconds are not those of the undisturbed run where other work goes on. A run
        that ended before it was killed was not hit: another is started, and killed earlier. Raises RuntimeError where one
        ends with an error.
        """
        lines = int(share * logged(self.reference, stage))
        while True:
            process = self.start(out)
            while process.poll() is None and not (stage_of(out) == stage and logged(out, stage) >= lines):
                time.sleep(0.002)
            try:
                process.wait(after)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
            code = process.wait()
            if code == -signal.SIGKILL:
                return stage_of(out)
            if code != 0:
                raise RuntimeError(f"exit status {code} before the fault: {' | '.join(self.lines(out)[-3:])}")
            after /= 2
            shutil.rmtree(out)

    def resumed(self, kind: str, stage: str, out: Path, detail: str = "") -> Fault:
        """Run to the end, compare with the undisturbed run, clean up. A stage that had a checkpoint may not start again."""
        kept = [each for each in STAGES if len(checkpoints(out, each)) > 1]
        said = len(self.lines(out))
        try:
            self.finish(out)
            parts = compare_runs(open_run(self.reference), open_run(out))
            wrong = [f"{part.part}: {part.first}" for part in parts if part.differing]
            again = [each for each in kept for line in self.lines(out)[said:] if line.startswith(f"{each}, start")]
            wrong += [f"{each} started again" for each in again]
            wrong += [f"report: {name}" for name in missing(self.reference, out)]
            fault = Fault(kind, stage, not wrong, "; ".join([detail, *wrong]).strip("; "))
        except Exception as error:
            fault = Fault(kind, stage, False, f"{detail} {type(error).__name__}: {error}")
        shutil.rmtree(out, ignore_errors=True)
        print(f"{kind}, {stage}: {'survived' if fault.survived else 'LOST'} {fault.detail}", file=sys.stderr, flush=True)
        return fault


def checkpoints(out: Path, stage: str) -> list[int]:
    """The chunks of a stage that a run has saved."""
    return CheckpointStore(out / "checkpoints" / stage).saved()


def missing(reference: Path, out: Path) -> list[str]:
    """Files of the report that a run does not have, or that are shorter there."""
    files = [reference / "report.html", *(reference / "figures").glob("*")]
    size = lambda file: file.stat().st_size if file.exists() else 0
    return [file.name for file in files if size(out / file.relative_to(reference)) < 0.9 * size(file)]


def stage_of(out: Path) -> str:
    """The stage that a run is in, by what it has left."""
    done = {p.stem for p in (out / "stages").glob("*.json")} if (out / "stages").is_dir() else set()
    return next((stage for stage in STAGES if stage not in done), "end")


def logged(out: Path, stage: str) -> int:
    """Lines that a stage has in the log of a run."""
    log = out / "metrics.jsonl"
    return log.read_text().count(f'{{"stage": "{stage}"') if log.exists() else 0


def killed(lab: Laboratory, number: int, rng: random.Random) -> Fault:
    """A run that is killed at a random moment of one stage, of each in turn, then resumed."""
    out, stage = lab.root / f"killed-{number}", STAGES[number % len(STAGES)]
    longest = 0.3 if logged(lab.reference, stage) else lab.lasted(stage)
    return lab.resumed("kill -9", lab.kill(out, stage, rng.random(), longest * rng.random()), out)


def damaged(lab: Laboratory, number: int, rng: random.Random) -> Fault:
    """A run that is killed, and whose newest checkpoint loses its end, or has one byte changed; then resumed."""
    out, stage = lab.root / f"damaged-{number}", STAGES[number % TRAINED]
    stage = lab.kill(out, stage, 0.3 + 0.6 * rng.random(), 0.3 * rng.random())
    stages = [p for p in (out / "checkpoints").glob("*") if sum(c.name.isdigit() for c in p.iterdir()) >= 2]
    if not stages:
        raise RuntimeError(f"killed in {stage} too early: nothing to damage")
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


@contextmanager
def small_disk(lab: Laboratory, name: str, size: int) -> Iterator[Path]:
    """A tmpfs of `size` KiB. Raises OSError where none can be mounted."""
    disk = lab.root / name
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        raise OSError("cannot mount a tmpfs here: run as root, or under `unshare -Urm`")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def fill(disk: Path, room: int = 0) -> Path:
    """A file that leaves `room` KiB of a disk."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as stream, suppress(OSError):
        while stream.write(bytes(2**16)) == 2**16:
            pass
    os.truncate(ballast, max(ballast.stat().st_size - room * 1024, 0))
    return ballast


def ended(lab: Laboratory, process: subprocess.Popen[bytes], out: Path, part: str = "") -> tuple[str, str]:
    """The message with which a run on a full disk ended, and what is wrong with it, if anything."""
    code = process.wait()
    said = [line for line in lab.log(out).read_text().splitlines() if line.startswith("error:")]
    message = said[-1].removeprefix("error: ") if said else ""
    clear = code == 1 and "no space left" in message and str(out) in message and part in message
    message = message.replace(str(out), "RUN")
    return message, "" if clear else f"exit status {code}: {message}"


def continued(lab: Laboratory, what: str, stage: str, out: Path, said: tuple[str, str]) -> Fault:
    """The run resumed where there is room again; lost as well where its message was not clear."""
    lab.log(out).unlink()
    fault = lab.resumed(f"disk full, {what}", stage, out, said[0])
    return dataclasses.replace(fault, survived=False, detail=said[1]) if said[1] else fault


def full_from_the_start(lab: Laboratory, size: int) -> Fault:
    """A run on a disk of `size` KiB, which it fills up, with checkpoints for the most part."""
    with small_disk(lab, f"disk-{size}", size) as disk:
        out = disk / "run"
        said = ended(lab, lab.start(out), out)
        stage = stage_of(out)
        subprocess.run(["mount", "-o", "remount,size=512m", str(disk)], check=True)
        return continued(lab, "as it fills up", stage, out, (f"{size} KiB: {said[0]}", said[1]))


def full_while_logging(lab: Laboratory, stage: str) -> Fault:
    """A disk that others fill up while a stage logs, between checkpoints: its lines no longer fit."""
    with small_disk(lab, f"disk-{stage}", 2**19) as disk:
        out = disk / "run"
        process = lab.start(out, "--checkpoint-seconds", "1e9")
        while process.poll() is None and logged(out, stage) == 0:
            time.sleep(0.001)
        process.send_signal(signal.SIGSTOP)
        ballast = fill(disk)
        process.send_signal(signal.SIGCONT)
        said = ended(lab, process, out, "metrics.jsonl")
        ballast.unlink()
        return continued(lab, "metrics.jsonl", stage, out, said)


def full_while_reporting(lab: Laboratory, share: float) -> Fault:
    """A disk with room for a share of the report: its figures, or its text, no longer fit."""
    with small_disk(lab, f"disk-report-{share}", 2**19) as disk:
        out = disk / "run"
        lab.finish(out)
        report = [out / "results.json", out / "report.html", *out.glob("figures/*")]
        size = sum(file.stat().st_size for file in report) // 1024
        for file in report:
            file.unlink()
        (out / "figures").rmdir()
        (out / "stages" / "report.json").unlink()
        ballast = fill(disk, int(share * size))
        said = ended(lab, lab.start(out), out, "report.html" if share > 0.5 else "figures")
        ballast.unlink()
        return continued(lab, "report", "report", out, said)


def attempted(job: Callable[[], Fault]) -> Fault:
    """A fault, or that it could not be made: it then counts as lost."""
    try:
        return job()
    except (OSError, RuntimeError) as error:
        return Fault("not made", "none", False, str(error))


def full_disks(lab: Laboratory, count: int) -> list[Callable[[], Fault]]:
    """`count` jobs: disks of growing sizes and, from two on, ones that are full when lines or the report are to be written."""
    others: list[Callable[[], Fault]] = []
    others += [partial(full_while_logging, lab, stage) for stage in ("agent-guided", "agent-dydiff")]
    others += [partial(full_while_reporting, lab, share) for share in (0.15, 0.8)]
    others = others[: max(count - 1, 0)]
    sizes = count - len(others)
    needed = sum(f.stat().st_size for f in lab.reference.rglob("*") if f.is_file()) // 1024
    starts = [int(needed * (0.1 + 0.85 * i / max(sizes - 1, 1))) for i in range(sizes)]
    return [*(partial(full_from_the_start, lab, size) for size in starts), *others]


def run(kills: int = 50, damages: int = 10, disks: int = 8, seed: int = 0) -> dict[str, Any]:
    """All faults, two at a time where there are two cores; a table of those tried, survived and lost."""
    root = Path(tempfile.mkdtemp(prefix="jaxpgd-faults-"))
    try:
        lab = Laboratory(root)
        print(f"an undisturbed run takes {lab.seconds:.1f} s", file=sys.stderr, flush=True)
        rng = random.Random(seed)
        jobs: list[Callable[[], Fault]] = [partial(killed, lab, i, random.Random(rng.random())) for i in range(kills)]
        jobs += [partial(damaged, lab, i, random.Random(rng.random())) for i in range(damages)]
        jobs += full_disks(lab, disks)
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
    return {"suite": "faults", "device": describe_device(), "run_seconds": lab.seconds, "table": table,
            "faults": [dataclasses.asdict(f) for f in faults]}  # fmt: skip
