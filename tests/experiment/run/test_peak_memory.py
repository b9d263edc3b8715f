import jax
import numpy as np
import pytest

from jaxpgd.experiment.run import peak_memory as memory


def test_the_peak_counts_what_was_taken() -> None:
    before = memory.peak_memory()
    assert before is not None and before > 2**20
    block = np.ones(2**25)  # 256 MiB, written to
    after = memory.peak_memory()
    assert after is not None and after >= before and after >= block.nbytes
    del block
    assert memory.peak_memory() == pytest.approx(after, rel=0.05)


def test_a_device_that_tells_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Device:
        def memory_stats(self) -> dict[str, int]:
            return {"peak_bytes_in_use": 77}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert memory.peak_memory() == 77
