"""What a stage says of its time."""

import pytest

from jaxpgd.experiment.run.driver import _step_seconds


def test_seconds_of_a_step_leave_out_the_chunk_that_compiles() -> None:
    laps = [None, (1.0, 2.0), (3.0, 8.0), None, (1.0, 2.0)]  # seconds and processor seconds of chunks of ten steps
    assert _step_seconds(laps, 10) == {"step_seconds": pytest.approx(5 / 30), "step_cpu_seconds": pytest.approx(12 / 30)}
    stopped = [None, (1.0, 2.0), *[(0.0, 0.0)] * 8]  # a world model that stops after two of ten epochs
    assert 9 * _step_seconds(stopped, 1)["step_cpu_seconds"] == pytest.approx(2.0)
    assert _step_seconds(laps[:1], 10) == {}
