"""A run on mostly short episodes: without padding its denoiser sees no terminal, with padding all of them."""

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from jaxpgd.errors import InputError
from jaxpgd.experiment.commands.run import run_all
from jaxpgd.experiment.commands.synthesize import export_synthetic
from jaxpgd.experiment.commands.train_denoiser import run_denoiser
from jaxpgd.experiment.config_files import load_config


class Cliff(gymnasium.Env[Any, Any]):
    """A point on a line that falls off after five steps; a step's reward is where it goes."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.steps = np.zeros(1, np.float32), 0
        return self.x, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.x, self.steps = self.x + action, self.steps + 1
        return self.x, float(self.x[0]), self.steps == 5, False, {}


gymnasium.register("jaxpgd/Cliff-v0", lambda **given: Cliff(), max_episode_steps=16)


@pytest.fixture(scope="module")
def cliff(tmp_path_factory: pytest.TempPathFactory) -> str:
    """30 episodes of 5 steps that end in a terminal, 10 of 3 that are cut, 4 of 16."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "cliff.npz"
    lengths = np.array([5] * 30 + [3] * 10 + [16] * 4)
    ends = np.cumsum(lengths) - 1
    action = rng.uniform(-1, 1, (lengths.sum(), 1)).astype(np.float32)
    obs = np.concatenate([np.cumsum(part, axis=0) - part for part in np.split(action, ends[:-1] + 1)])
    steps = np.arange(lengths.sum())
    np.savez(path, observations=obs, actions=action, rewards=(obs + action)[:, 0], terminals=np.isin(steps, ends[:30]),
             timeouts=np.isin(steps, ends[30:]), next_observations=obs + action)  # fmt: skip
    return str(path)


def settings(out: Path, name: str, arms: list[str], **data: Any) -> dict[str, Any]:
    return {
        "out": str(out), "seeds": 1, "arms": arms,
        "data": {"name": name, "env_id": "jaxpgd/Cliff-v0", "window": 8, "validation_fraction": 0.0, **data},
        "denoiser": {"features": 8, "groups": 4, "blocks": 1, "block": "plain", "steps": 4, "validate_every": 2,
                     "batch_size": 8, "validation_batches": 1},
        "sampler": {"kind": "euler", "steps": 3, "batch_size": 64},
        "synthesis": {"trajectories": 64, "interval": 2},
        "agent": {"updates": 4, "updates_per_chunk": 2, "batch_size": 16, "td3_bc": {"hidden": [8]}},
        "evaluation": {"episodes": 1, "trajectories": 64, "coefficients": []},
    }  # fmt: skip


@pytest.mark.slow
def test_a_run_with_padding_and_one_without(cliff: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_denoiser(load_config(None, settings(tmp_path / "plain", cliff, ["unguided"])))
    out, err = capsys.readouterr()
    assert "which cover 26.2 % of transitions and 0 % of terminals" in out
    assert "choose a shorter data.window, or set data.pad_short = true" in err
    run = run_all(load_config(None, settings(tmp_path / "run", cliff, ["guided"], pad_short=True)))
    out, err = capsys.readouterr()
    assert "76 training windows of 8 steps, which cover 100 % of transitions and 100 % of terminals" in out
    assert "warning: stage 'denoiser'" not in err
    quality = json.loads((run / "quality.json").read_text("utf-8"))
    assert quality["training_terminal_rate"] == pytest.approx(30 / 76)
    samples = np.load(run / "samples.npz")
    for name in ("real", "unguided", "guided"):
        used = samples[f"{name}_mask"].sum(-1)
        assert set(used) <= {2, 5, 7} if name == "real" else used.min() < 7
        assert abs((samples[f"{name}_discount"] == 0).any(-1).mean() - 30 / 76) < 0.3
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    agents = [row for row in rows if row["stage"] == "agent-guided"]
    assert all(row["synthetic_transitions"][0] < 64 * 6 and row["synthetic_terminal_rate"][0] > 0.2 for row in agents)
    export_synthetic(str(run), tmp_path / "out", trajectories=64)
    stored = np.load(tmp_path / "out" / "transitions.npz")
    assert 0.2 < stored["terminals"].sum() / 64 < 0.6 and len(stored["rewards"]) < 64 * 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance": {"kind": "smc"}}, "guidance.kind = 'smc': expected another kind where data.pad_short pads windows"),
        (
            {"synthesis": {"after_terminal": True, "interval": 2}},
            "synthesis.after_terminal = True: expected false with data.pad_short",
        ),
    ],
)
def test_what_cannot_be_padded_is_refused_before_compute(
    changes: dict[str, Any], message: str, cliff: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        run_all(load_config(None, settings(tmp_path / "run", cliff, ["guided"], pad_short=True) | changes))
    assert not (tmp_path / "run").exists()
