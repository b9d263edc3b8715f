"""What the report says of a run's trajectory metrics."""

from jaxpgd.pipeline.report import verdicts


def test_a_missing_dynamics_error_is_named() -> None:
    quality = {"rows": [], "target": "seed 0", "real": {}, "arms": {"dydiff": {}}}
    assert verdicts(quality) == ["no dynamics error: no simulator replays this environment"]
    row = {"dynamics_error": 0.2, "persistence_error": 0.4, "log_likelihood": -1.0}
    (line,) = verdicts(quality | {"real": row, "arms": {"dydiff": row}})
    assert line.startswith("dydiff: one-step dynamics error 0.2000 (0.50 of persistence)")
    assert verdicts({}) == []
