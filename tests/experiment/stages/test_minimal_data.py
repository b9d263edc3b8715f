"""Every agent on the least data that there can be, from every source: a run to its report, or one line before any compute."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpgd.errors import InputError
from jaxpgd.experiment.commands.run import run_all
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.config_files import config_of, load_config
from jaxpgd.experiment.studies.tables import merge
from jaxpgd.experiment.used_settings import unused

WIDTH = {"hidden": [4]}
LEAST: dict[str, Any] = {
    "seeds": 1,
    "denoiser": {
        "features": 4, "blocks": 1, "block": "plain", "groups": 2, "steps": 2, "validate_every": 2, "batch_size": 8,
        "validation_batches": 1,
    },
    "sampler": {"kind": "euler", "steps": 2, "batch_size": 2, "euler": {"churn": 0.0}},
    "guidance": {"kind": "reconstruction"},
    "world_model": {"members": 1, "elites": 1, "hidden": [4], "reward_hidden": [4], "epochs": 1, "batch_size": 8},
    "synthesis": {"trajectories": 2, "interval": 2, "dydiff": {"iterations": 1}},
    "agent": {
        "updates": 4, "updates_per_chunk": 2, "batch_size": 32, "bc": WIDTH, "td3_bc": WIDTH, "iql": WIDTH,
        "cql": WIDTH | {"n_actions": 2}, "diffusion_ql": WIDTH | {"steps": 2, "candidates": 2},
        "rebrac": WIDTH,
    },
    "evaluation": {"episodes": 1, "every": 2, "intermediate_episodes": 1, "trajectories": 2, "coefficients": [1.0]},
}  # fmt: skip
ONE_WINDOW = {"name": "point2d-4", "episodes": 1, "window": 4}  # the whole episode
TWO_WINDOWS = {"name": "point2d-4", "episodes": 2, "window": 4}  # one of them held out


def flat(
    path: Path, lengths: tuple[int, ...], *, terminal: bool = False, still: bool = False, window: int = 2
) -> dict[str, Any]:
    """Settings of data in a file: episodes of these lengths, in which nothing moves or is earned where they are `still`."""
    rng, count = np.random.default_rng(0), sum(lengths)
    ends = np.isin(np.arange(count), np.cumsum(lengths) - 1)
    obs = rng.normal(size=(count + 1, 2)) * (not still)
    np.savez(
        path / "data.npz", observations=obs[:-1], next_observations=np.where(ends[:, None], obs[:-1] + (not still), obs[1:]),
        actions=rng.uniform(-1, 1, (count, 2)) * (not still), rewards=rng.normal(size=count) * (not still),
        terminals=ends & terminal, timeouts=ends & (not terminal), action_low=-np.ones(2), action_high=np.ones(2),
    )  # fmt: skip
    return {"name": str(path / "data.npz"), "env_id": "point2d", "window": 2}


def least(path: Path, kind: str, arms: list[str], data: dict[str, Any], changes: dict[str, Any] | None = None) -> Config:
    """The least of everything that has an effect under these choices."""
    own = {"out": str(path / "run"), "arms": arms, "data": data, "agent": {"kind": kind}}
    values = merge(json.loads(json.dumps(LEAST)), own)
    for name in unused(config_of(None, merge(values, changes or {}))):
        *sections, key = name.split(".")
        functools.reduce(lambda table, section: table.get(section, {}), sections, values).pop(key, None)
    return load_config(None, merge(values, changes or {}))


@pytest.mark.parametrize(
    ("kind", "arms", "data", "changes"),
    [
        pytest.param(
            "bc",
            ["real", "unguided"],
            ONE_WINDOW,
            {"synthesis": {"regime": "oneoff", "filter": {"kind": "hardmax"}}},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "td3_bc",
            ["guided"],
            ONE_WINDOW,
            {"evaluation": {"trajectories": 1}, "synthesis": {"trajectories": 1}},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "iql",
            ["world_model"],
            TWO_WINDOWS,
            {"synthesis": {"filter": {"kind": "softmax", "keep": 0.9}}},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "cql", ["dydiff"], ONE_WINDOW, {"synthesis": {"dydiff": {"conditions": "noised"}}}, marks=pytest.mark.slow
        ),
        pytest.param(
            "diffusion_ql",
            ["guided"],
            TWO_WINDOWS,
            {"guidance": {"kind": "published"}, "synthesis": {"regime": "fifo"}},
            marks=pytest.mark.slow,
        ),
        pytest.param("rebrac", ["real", "world_model"], TWO_WINDOWS, {}, marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_every_agent_and_source(
    kind: str, arms: list[str], data: dict[str, Any], changes: dict[str, Any], few_rollouts: None, tmp_path: Path
) -> None:
    path = run_all(least(tmp_path, kind, arms, data, changes))
    assert (path / "report.html").is_file() and list(json.loads((path / "returns.json").read_text(encoding="utf-8"))) == arms


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [True, False])
def test_windows_of_two_steps_in_which_nothing_happens(terminal: bool, tmp_path: Path) -> None:
    data = flat(tmp_path, (2, 2), terminal=terminal, still=True)
    arms = ["guided", "world_model"] if terminal else ["unguided", "dydiff"]
    path = run_all(least(tmp_path, "bc", arms, data, {} if terminal else {"synthesis": {"dydiff": {"iterations": 0}}}))
    quality = (path / "quality.json").read_text(encoding="utf-8")
    assert (path / "report.html").is_file() and "NaN" not in quality


@pytest.mark.parametrize(
    ("lengths", "arms", "changes", "message"),
    [
        ((1,), ["real"], {}, "data.window = 2: expected at most 1, the longest episode"),
        ((1, 1), ["dydiff"], {}, "data.window = 2: expected at most 1, the longest episode"),
        ((2,), ["world_model"], {}, "transitions that tell where they lead = 1: expected at least 2"),
        ((4,), ["dydiff"], {"synthesis": {"dydiff": {"window": 8}}}, "data.window = 8: expected at most 4"),
    ],
)  # fmt: skip
def test_data_that_is_too_little_is_refused_before_compute(
    lengths: tuple[int, ...], arms: list[str], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    data = flat(tmp_path, lengths, terminal=True)
    if arms == ["world_model"]:  # whose only terminal leads nowhere
        stored = dict(np.load(data["name"]))
        np.savez(data["name"], **{name: x for name, x in stored.items() if name != "next_observations"})
    with pytest.raises(InputError) as refused:
        run_all(least(tmp_path, "bc", arms, data, changes))
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()
