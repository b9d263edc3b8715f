"""Runs to disturb: their settings, the undisturbed reference run, and the comparison of a resumed run with it."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from jaxpgd.experiment.commands.reproduce import compare_runs
from jaxpgd.experiment.run.checkpoints import CheckpointStore
from jaxpgd.experiment.run.view import open_run

CONFIG = """
arms = ["guided", "dydiff"]
seeds = 2
checkpoint_seconds = 0.0
data = { episodes = 40, window = 16, validation_fraction = 0.25 }
sampler = { kind = "euler", steps = 4, batch_size = 16 }
guidance = { kind = "reconstruction", coefficient = 0.5 }
world_model = { members = 3, elites = 2, hidden = [16], reward_hidden = [16], epochs = 6, steps_per_epoch = 8, batch_size = 16 }
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
STAGES = ("denoiser", "world-model", "state-denoiser", "agent-guided", "agent-dydiff", "returns", "quality", "report")
TRAINED = 5  # the first five stages train and write checkpoints
# Most of such a short run is compilation. These settings make it faster and change no result.
_ENVIRONMENT = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault: what was done, in which stage, and whether the resumed run equals the reference run bit for bit."""

    kind: str
    stage: str
    survived: bool
    detail: str = ""


class Sandbox:
    """A folder with a reference run that nothing disturbs, and with runs to disturb."""

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
        """Start `jaxpgd run --resume` into `out`; its output goes to `out`.log."""
        command = [sys.executable, "-m", "jaxpgd", "run", str(self.root / "config.toml"), "--resume", "--out", str(out)]
        with self.log(out).open("ab") as log:
            return subprocess.Popen([*command, *options], stdout=log, stderr=log, env=self.environment)

    def log(self, out: Path) -> Path:
        """The file with the output of the run in `out`."""
        return self.root / f"{'-'.join(out.relative_to(self.root).parts)}.log"

    def lines(self, out: Path) -> list[str]:
        """Lines of that log so far."""
        return self.log(out).read_text().splitlines() if self.log(out).exists() else []

    def finish(self, out: Path) -> None:
        """Run to the end. Raises RuntimeError with the last lines of output if that fails."""
        code = self.start(out).wait()
        if code != 0:
            raise RuntimeError(f"exit status {code}: " + " | ".join(self.lines(out)[-3:]))

    def stage_seconds(self, stage: str) -> float:
        """How long a stage took in the reference run, from the times at which stages were marked as done."""
        ends = [(self.reference / "stages" / f"{each}.json").stat().st_mtime for each in STAGES]
        number = STAGES.index(stage)
        return ends[number] - (ends[number - 1] if number else (self.reference / "config.toml").stat().st_mtime)

    def kill(self, out: Path, stage: str, share: float, after: float) -> str:
        """Start a run and `kill -9` it `after` seconds after it logged `share` of a stage; returns the stage it was then in.

        Progress is measured by log lines, not by the clock: on a busy machine a run is slower than the reference run was. A
        run that ended before it was killed does not count; another is started and killed earlier. Raises RuntimeError if one
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
        """Resume to the end, compare with the reference run, clean up. A stage that had a checkpoint must not start again."""
        kept = [each for each in STAGES if len(checkpoints(out, each)) > 1]
        before = len(self.lines(out))
        try:
            self.finish(out)
            parts = compare_runs(open_run(self.reference), open_run(out))
            wrong = [f"{part.part}: {part.first}" for part in parts if part.differing]
            again = [each for each in kept for line in self.lines(out)[before:] if line.startswith(f"{each}, start")]
            wrong += [f"{each} started again" for each in again]
            wrong += [f"report: {name}" for name in missing(self.reference, out)]
            fault = Fault(kind, stage, not wrong, "; ".join([detail, *wrong]).strip("; "))
        except Exception as error:
            fault = Fault(kind, stage, False, f"{detail} {type(error).__name__}: {error}")
        shutil.rmtree(out, ignore_errors=True)
        print(f"{kind}, {stage}: {'survived' if fault.survived else 'LOST'} {fault.detail}", file=sys.stderr, flush=True)
        return fault


def checkpoints(out: Path, stage: str) -> list[int]:
    """The chunks of a stage for which a run has a checkpoint."""
    return CheckpointStore(out / "checkpoints" / stage).saved()


def missing(reference: Path, out: Path) -> list[str]:
    """Report files that a run lacks, or that are shorter than those of the reference run."""
    files = [reference / "report.html", *(reference / "figures").glob("*")]
    size = lambda file: file.stat().st_size if file.exists() else 0
    return [file.name for file in files if size(out / file.relative_to(reference)) < 0.9 * size(file)]


def stage_of(out: Path) -> str:
    """The stage that a run is in, from the stages it has marked as done."""
    done = {p.stem for p in (out / "stages").glob("*.json")} if (out / "stages").is_dir() else set()
    return next((stage for stage in STAGES if stage not in done), "end")


def logged(out: Path, stage: str) -> int:
    """Number of lines that a stage has in the log of a run."""
    log = out / "metrics.jsonl"
    return log.read_text().count(f'{{"stage": "{stage}"') if log.exists() else 0
