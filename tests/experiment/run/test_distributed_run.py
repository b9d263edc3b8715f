"""`jaxpgd run --distributed` by two processes of two devices, against one process with one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpgd.experiment.config_files import to_toml


def start(config: Path, out: Path, count: int, *options: str) -> list[subprocess.Popen[str]]:
    """`count` processes of one run."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2",
    }  # fmt: skip
    command = [sys.executable, "-m", "jaxpgd.experiment.cli", "run", str(config), "--out", str(out), "--distributed", *options]
    return [
        subprocess.Popen(command, env=environment | {"JAX_PROCESS_ID": str(i)}, stderr=subprocess.PIPE, text=True)
        for i in range(count)
    ]


def finish(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        errors = process.communicate(timeout=600)[1]
        assert process.returncode == 0, errors[-3000:]


@pytest.mark.slow
def test_two_processes_give_what_one_gives_and_continue_a_run(finished: Path, make_config: Any, tmp_path: Path) -> None:
    config, out = tmp_path / "config.toml", tmp_path / "run"
    config.write_text(to_toml(make_config(tmp_path / "unused")))
    finish(start(config, out, 2))
    finish(start(config, out, 2, "--resume"))
    ours, alone = (json.loads((path / "returns.json").read_text()) for path in (out, finished))
    assert ours.keys() == alone.keys()
    for arm, result in ours.items():
        np.testing.assert_allclose(result["returns"], alone[arm]["returns"], rtol=1e-3)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len({(r["stage"], r["chunk"]) for r in rows}) == len(rows)  # one process writes
