"""Locks and signals."""

import dataclasses
import errno
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpgd.errors import InputError, StorageError
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.run.directory import ClaimedRun, claim, create_run
from jaxpgd.experiment.run.driver import drive
from jaxpgd.experiment.run.interruption import Interruption
from jaxpgd.experiment.run.lock import RunLock
from jaxpgd.experiment.run.view import open_run
from jaxpgd.experiment.stages.load import load_trained
from jaxpgd.experiment.stages.model_programs import Training
from jaxpgd.training.program import Program

HOST = re.escape(socket.gethostname())
HOLD = "import sys, time; from pathlib import Path; from jaxpgd.experiment.run.lock import RunLock;" \
       "lock = RunLock(Path(sys.argv[1])); lock.take(); print('held', flush=True); time.sleep(60)"  # fmt: skip


def test_two_processes_cannot_write_into_one_directory(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"another process \(number {other.pid} on {HOST}\) is writing there"):
            RunLock(tmp_path).take()
        with pytest.raises(InputError, match="another process"):
            create_run(Config(out=str(tmp_path)), resume=False)
    finally:
        other.kill()
        other.wait()
    lock = RunLock(tmp_path)  # the file of a killed process is still there, its lock is not
    lock.take()
    assert (tmp_path / "run.lock").read_text() == f"{os.getpid()} on {socket.gethostname()}"
    lock.release()


def counting(chunks: int) -> Program[Any]:
    def chunk(state: Any, data: Any, index: Any) -> Any:
        return state + 1.0, {"loss": jnp.ones(())}

    return Program(init=lambda key, data: jnp.zeros(()), chunk=chunk, chunks=chunks, steps_per_chunk=1)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_saves_and_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, error: type[BaseException]
) -> None:
    run = create_run(Config(out=str(tmp_path), checkpoint_seconds=1e9), resume=False)

    def after(done: int, state: Any) -> dict[str, Any]:
        if done == 3:
            os.kill(os.getpid(), number)
        return {}

    handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, handler)  # tests in the background are started with SIGINT ignored
    try:
        with pytest.raises(error):
            drive(run, "stage", jnp.zeros(()), counting(6), None, after_chunk=after)
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)
    assert run.checkpoints("stage").saved()[-1] == 3 and not run.is_done("stage")
    times = lambda: json.loads((tmp_path / "times" / "stage.json").read_text())
    before_it = times()
    assert float(drive(run, "stage", jnp.zeros(()), counting(6), None)) == 6.0
    assert [row["chunk"] for row in run.log.read()] == [1, 2, 3, 4, 5, 6]
    laps = times()  # of both processes, but for the chunks in which they compiled
    assert len(before_it) == 3 and laps[:3] == before_it and [lap is None for lap in laps] == [True, False, False] * 2
    seconds = np.mean([lap[0] for lap in laps if lap])
    assert json.loads((tmp_path / "stages" / "stage.json").read_text())["step_seconds"] == pytest.approx(seconds)


def test_a_signal_in_the_last_chunk_finishes_the_stage_and_leaves(tmp_path: Path) -> None:
    run = create_run(Config(out=str(tmp_path)), resume=False)
    kill = lambda done, state: os.kill(os.getpid(), signal.SIGTERM) or {} if done == 2 else {}
    with pytest.raises(SystemExit):
        drive(run, "stage", jnp.zeros(()), counting(2), None, after_chunk=kill)
    assert run.is_done("stage")


def test_an_ignored_signal_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_only_who_claims_a_run_trains_in_it(tmp_path: Path) -> None:
    run = create_run(Config(out=str(tmp_path)), resume=False)
    drive(run, "stage", jnp.zeros(()), counting(2), None)
    reader = open_run(tmp_path)
    training = Training("stage", counting(2), None, jnp.zeros(()), float)
    assert load_trained(reader, training) == 2.0
    with pytest.raises(InputError, match=r"stage 'other' cannot be read"):
        load_trained(reader, dataclasses.replace(training, stage="other"))
    unfinished = dataclasses.replace(training, program=counting(3))
    with pytest.raises(InputError, match=r"stage 'stage' cannot be read"):
        load_trained(reader, unfinished)


def test_a_run_that_has_ended_may_be_written_by_others(tmp_path: Path) -> None:
    run = create_run(Config(out=str(tmp_path / "run")), resume=False)
    with run:
        assert run.lock.file is not None
        with claim(open_run(tmp_path / "run")):  # once more in the same process, as a report within a run
            pass
        assert run.lock.file is not None
    assert not run.claimed and run.lock.file is None
    other = RunLock(tmp_path / "run")
    other.take()
    assert other.file is not None
    other.release()


def test_a_refused_run_may_be_written_by_others(tmp_path: Path) -> None:
    config = Config(out=str(tmp_path / "run"))
    with create_run(config, resume=False):
        pass
    with pytest.raises(InputError, match="unfinished run"):
        create_run(config, resume=False)
    other = RunLock(tmp_path / "run")
    other.take()
    assert other.file is not None
    other.release()


def test_the_lock_is_of_the_directory_that_is_there(tmp_path: Path) -> None:
    out = tmp_path / "run"
    create_run(Config(out=str(out)), resume=False)
    create_run(Config(out=str(tmp_path / "x" / ".." / "run")), resume=True)  # another name of it
    shutil.rmtree(out)
    create_run(Config(out=str(out)), resume=False)
    other = subprocess.run([sys.executable, "-c", HOLD, str(out)], capture_output=True, text=True, check=False)
    assert other.returncode != 0 and f"number {os.getpid()}" in other.stderr


def test_a_reader_that_looks_at_the_lock_keeps_no_writer_out(tmp_path: Path) -> None:
    reader = (tmp_path / "run.lock").open("a+")
    fcntl.flock(reader, fcntl.LOCK_SH)
    threading.Timer(0.03, reader.close).start()
    lock = RunLock(tmp_path)
    lock.take()  # waits for it
    assert lock.file is not None
    lock.release()


def test_a_full_disk_stops_a_figure_and_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run = ClaimedRun(tmp_path, Config())
    (tmp_path / "run.lock").symlink_to("/dev/full")
    run.lock.take()
    assert run.lock.file is not None
    run.lock.release()
    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(StorageError, match="figures: cannot be written, no space left on its disk"):
        run.figure("returns")


def test_threads_leave_signals_alone() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def enter() -> None:
        with Interruption() as stop:
            seen.append((signal.getsignal(signal.SIGINT), stop.requested))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(before, None)]
