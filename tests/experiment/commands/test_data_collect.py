"""`jaxpgd data collect` as a user calls it: what is refused, what is written, and that it loads."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import pytest

from jaxpgd.datasets import Dataset, load
from jaxpgd.experiment.cli import main
from jaxpgd.experiment.commands import data_collect as collect_module
from jaxpgd.experiment.commands.data_collect import collect_dataset
from jaxpgd.experiment.commands.data_collect_options import Collection


class Walk(gymnasium.Env):
    """Two coordinates moved by two actions within [-1, 1]; the reward is the first action; a terminal after `ends` steps."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,))
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,))

    def __init__(self, ends: int = 0):
        self.ends = ends

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.steps = self.np_random.uniform(-1, 1, 2).astype(np.float32), 0
        return self.at, {}

    def step(self, action):
        self.at, self.steps = np.clip(self.at + 0.1 * action, -1, 1).astype(np.float32), self.steps + 1
        return self.at, float(action[0]), self.steps == self.ends, False, {}


gymnasium.register("Walk-v0", Walk, max_episode_steps=10)
gymnasium.register("Dive-v0", Walk, max_episode_steps=10, kwargs={"ends": 4})


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    return tmp_path


def actor(folder: Path, action: float, inputs: int = 2) -> str:
    """A file of an actor whose two actions are always `action`, but for a spread of exp(-5)."""
    b2 = np.array([np.arctanh(action)] * 2 + [-5.0, -5.0])
    shapes = {"w0": (inputs, 3), "b0": (3,), "w1": (3, 3), "b1": (3,), "w2": (3, 4)}
    np.savez(folder / "mine.npz", **{k: np.zeros(s) for k, s in shapes.items()}, b2=b2)
    return str(folder / "mine.npz")


def collected(here: Path, env: str = "Walk-v0", **options: Any) -> tuple[Dataset, dict[str, Any]]:
    path = collect_dataset(Collection(env=env, out=str(here / "sets"), **({"measured_episodes": 4} | options)))
    name = path.relative_to(here / "sets").as_posix()
    return load(name), minari.load_dataset(name).storage.metadata


def test_a_random_dataset_loads_with_everything_it_says(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(here / "sets")
    main(["data", "collect", "Pendulum-v1", "--out", out, "--transitions", "450", "--seed", "5", "--reference-return", "-150",
          "--measured-episodes", "3"])  # fmt: skip
    printed = capsys.readouterr().out
    name = "jaxpgd/pendulum-v1/random-local-v0"
    assert f"MINARI_DATASETS_PATH={out} jaxpgd data info {name}" in printed and "450 transitions in 3 episodes" in printed
    dataset = load(name)
    assert dataset.lengths().tolist() == [200, 200, 50]
    assert dataset.discount.min() == 1 and np.flatnonzero(dataset.timeout).tolist() == [199, 399, 449]
    np.testing.assert_array_equal(dataset.obs[1:200], dataset.next_obs[:199])
    # Pendulum's reward is known from what it shows: -(angle^2 + 0.1 speed^2 + 0.001 torque^2)
    angle = np.arctan2(dataset.obs[:, 1], dataset.obs[:, 0])
    want = -(angle**2 + 0.1 * dataset.obs[:, 2] ** 2 + 0.001 * (2 * dataset.action[:, 0]) ** 2)
    np.testing.assert_allclose(dataset.reward, want, rtol=1e-3, atol=1e-4)
    info, stored = dataset.info, minari.load_dataset(name)
    random = float(re.search(r"random policy: mean return (\S+) over 3 episodes", printed)[1])
    assert info.local and info.env_id == "Pendulum-v1" and info.ref_max == -150
    assert info.ref_min == pytest.approx(random, rel=1e-5)
    assert (
        stored.storage.metadata["algorithm_name"] == "random policy" and "3 episodes" in stored.storage.metadata["description"]
    )
    mean = stored.storage.metadata["jaxpgd_collection"]["mean_return"]
    assert mean == pytest.approx(dataset.returns()[:2].mean(), rel=1e-5) and f"{mean:.6g} of 2 complete episodes" in printed
    # Minari's own reading: T + 1 observations, within the spaces, and the environment that it was
    for episode in stored.iterate_episodes():
        assert len(episode.observations) == len(episode.actions) + 1 == len(episode.rewards) + 1
        assert all(map(stored.action_space.contains, episode.actions))
        assert all(map(stored.observation_space.contains, episode.observations))
        first, _ = stored.recover_environment().reset(seed=stored.storage.get_episode_metadata([episode.id]).__next__()["seed"])
        np.testing.assert_array_equal(first, episode.observations[0])


def test_the_same_seed_gives_the_same_arrays(here: Path) -> None:
    sets = [collected(here, transitions=35, seed=seed, id=f"test/{n}-v0")[0] for n, seed in (("a", 1), ("b", 1), ("c", 2))]
    for field in ("obs", "action", "reward", "next_obs"):
        arrays = [getattr(s, field) for s in sets]
        assert np.array_equal(arrays[0], arrays[1]) and not np.array_equal(arrays[0], arrays[2])


def test_a_terminal_is_one_and_a_limit_from_the_command_line_is_none(here: Path) -> None:
    dataset, _ = collected(here, "Dive-v0", episodes=3)
    assert dataset.lengths().tolist() == [4] * 3 and not dataset.timeout.any()
    assert np.flatnonzero(dataset.discount == 0).tolist() == [3, 7, 11]
    dataset, metadata = collected(here, "Dive-v0", episodes=2, id="test/short-v0", env_kwargs='{"max_episode_steps": 3}')
    assert dataset.lengths().tolist() == [3] * 2 and dataset.discount.min() == 1 and dataset.timeout.sum() == 2
    assert metadata["jaxpgd_collection"]["env_kwargs"] == '{"max_episode_steps": 3}'


def test_an_actor_by_sample_and_by_mode_and_with_noise(here: Path) -> None:
    file = actor(here, 0.5)
    greedy, metadata = collected(here, actor=file, greedy=True, episodes=2)
    np.testing.assert_allclose(greedy.action, 0.5, atol=1e-6)
    assert greedy.info.name == "jaxpgd/walk-v0/mine-local-v0" and greedy.info.ref_max is None
    assert metadata["algorithm_name"] == "actor mine.npz" and str(here) not in json.dumps(metadata, default=str)
    sampled, _ = collected(here, actor=file, episodes=20, id="test/sampled-v0")
    spread = 0.75 * math.exp(-5)  # the slope of tanh there is 1 - 0.5^2
    assert sampled.action.std() == pytest.approx(spread, rel=4 / math.sqrt(2 * 400))
    noisy, _ = collected(here, actor=file, greedy=True, noise=0.1, episodes=20, id="test/noisy-v0")
    assert noisy.action.std() == pytest.approx(0.1, rel=4 / math.sqrt(2 * 400))


def test_fractions_of_the_policy_s_own_return(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The return is the sum of the first actions, so that epsilon must be 1 - F but for the luck of the episodes measured."""
    options = {"actor": actor(here, 0.9), "expert_fraction": (0.25, 1.0), "transitions": 800, "measured_episodes": 40}
    dataset, metadata = collected(here, **options)
    told = metadata["jaxpgd_collection"]
    quarter, own = told["blends"]
    assert own["epsilon"] == 0 and own["return"] == told["own_return"] == pytest.approx(9.0, abs=0.02)
    assert abs(told["random_return"]) < 4 * math.sqrt(10 / 3 / 40)
    reached = (quarter["return"] - told["random_return"]) / (told["own_return"] - told["random_return"])
    assert quarter["measured_fraction"] == pytest.approx(reached) == pytest.approx(0.25, abs=0.02)
    assert quarter["epsilon"] == pytest.approx(0.75, abs=0.1)
    # half of the episodes are the policy's own, half a mixture
    plain = (np.abs(dataset.action[:, 0] - 0.9) < 0.05).reshape(80, 10).mean(1)
    assert (plain[1::2] == 1).all() and plain[::2].mean() == pytest.approx(1 - quarter["epsilon"] * 0.975, abs=0.1)
    printed = capsys.readouterr().out
    assert f"the actor mine.npz: mean return {told['own_return']:.6g} over 40 episodes" in printed
    assert f"gives mean return {quarter['return']:.6g}, fraction {reached:.3f}" in printed
    assert f"measured return {quarter['return']:.6g}" in metadata["description"]
    assert dataset.info.name == "jaxpgd/walk-v0/mine-25-100-local-v0"


def test_an_agent_of_a_run(here: Path, finished: Path) -> None:
    dataset, metadata = collected(here, policy="guided:1", run=str(finished), episodes=2)
    assert dataset.info.name == "jaxpgd/walk-v0/guided-1-local-v0" and metadata["algorithm_name"] == "guided:1 of whole"
    other, _ = collected(here, policy="guided:0", run=str(finished), episodes=2)
    again, _ = collected(here, policy="guided:1", run=str(finished), episodes=2, id="test/again-v0")
    np.testing.assert_array_equal(dataset.action, again.action)
    assert not np.array_equal(dataset.action, other.action)


def test_help_is_of_the_one_command_or_of_both(capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "collect", "--help"])
    one = capsys.readouterr().out
    assert one.startswith("usage: jaxpgd data collect ENV_ID") and "data info" not in one
    options = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Collection)} - {"--env"}
    assert {option for option in options if f"{option} " in one or f"{option}]" in one} == options
    main(["data", "--help"])
    both = capsys.readouterr().out
    assert both.startswith("usage: jaxpgd data info NAME") and "usage: jaxpgd data collect ENV_ID" in both


def refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--policy", "real"], "--run = '': expected the run directory of --policy real"),
        (["--policy", "real", "--actor", "a.npz"], "--policy, --actor = ('real', 'a.npz'): expected one of them"),
        (["--run", "runs/x"], "--policy = '': expected ARM[:SEED] of --run"),
        (["--run", "{tmp}", "--policy", "real"], "expected a run directory made by `jaxpgd run`"),
        (["--greedy"], "--greedy = True: expected a policy with it. Give --actor, or --run and --policy."),
        (["--noise", "0.1"], "--noise = 0.1: expected a policy with it"),
        (["--expert-fraction", "0"], "--expert-fraction = (0.0,): expected a policy with it"),
        (["--actor", "a.npz", "--expert-fraction", "1.5"], "--expert-fraction = (1.5,): expected fractions in [0, 1]"),
        (["--actor", "a.npz", "--expert-fraction", "1", "--epsilon", "1"], "--epsilon, --expert-fraction = (1.0, (1.0,))"),
        (["--actor", "a.npz", "--noise", "nan"], "--noise = nan: expected a standard deviation, not below 0"),
        (["--actor", "a.npz", "--epsilon", "-1"], "--epsilon = -1.0: expected a probability in [0, 1]"),
        (["--actor", "{tmp}/none.npz"], "expected an npz file with w0"),
        (["--actor", "{wrong}"], "expected 2 inputs and 4 outputs, not 3 and 4"),
        (["--actor", "{good}", "--expert-fraction", "0.5"], "a policy that does better than the random one"),
        (["--transitions", "0"], "--transitions = 0: expected a number above 0"),
        (["--episodes", "-1"], "--episodes = -1: expected a number above 0"),
        (["--episodes", "1", "--transitions", "1"], "--transitions, --episodes = (1, 1): expected one of them"),
        (["--seed", "-1"], "--seed = -1: expected a number not below 0"),
        (["--measured-episodes", "0"], "--measured-episodes = 0: expected a number above 0"),
        (["--reference-return", "inf"], "--reference-return = inf: expected a finite number"),
        (["--reference-return", "-100"], "--reference-return = -100.0: expected more than the random policy's mean return"),
        (["--env-kwargs", "[1]"], "--env-kwargs = '[1]': expected a JSON object such as"),
        (["--env-kwargs", "{"], "--env-kwargs = '{': expected a JSON object such as"),
        (["--id", "walk"], "dataset_id = 'walk': expected a Minari id"),
    ],
)
def test_refusals(args: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = {"{tmp}": str(here), "{good}": actor(here, -0.9)}
    if "{wrong}" in args:
        words["{wrong}"] = actor(here, 0.5, inputs=3)
    for old, new in words.items():
        args = [a.replace(old, new) for a in args]
    printed = refused(["data", "collect", "Walk-v0", "--out", str(here / "sets"), *args], capsys)
    assert message in printed and len(printed.splitlines()) == 1
    assert not (here / "sets").exists() or not list((here / "sets").iterdir())


def test_other_refusals(here: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(here / "sets")
    assert "expected ENV_ID as well" in refused(["data", "collect"], capsys)
    assert "--out = None: expected the folder of Minari datasets" in refused(["data", "collect", "Walk-v0"], capsys)
    assert "env_id = 'point2d': expected a Gymnasium id" in refused(["data", "collect", "point2d", "--out", out], capsys)
    run = ["--run", str(finished), "--policy", "real"]
    assert "as the agents of" in refused(["data", "collect", "Pendulum-v1", "--out", out, *run], capsys)
    assert "expected a seed below 2" in refused(["data", "collect", "Walk-v0", "--out", out, *run[:3], "real:2"], capsys)


def test_an_existing_dataset_is_refused_before_anything_is_stepped(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    collected(here, episodes=1)
    before = (here / "sets/jaxpgd/walk-v0/random-local-v0/data/main_data.hdf5").read_bytes()
    monkeypatch.setattr(collect_module, "collection_task", lambda *args: pytest.fail("made the environment"))
    printed = refused(["data", "collect", "Walk-v0", "--out", str(here / "sets")], capsys)
    assert "expected no existing dataset" in printed
    assert (here / "sets/jaxpgd/walk-v0/random-local-v0/data/main_data.hdf5").read_bytes() == before


def test_an_interrupted_collection_leaves_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = Walk.step

    def step(self: Walk, action: np.ndarray) -> Any:
        if next(counter) > 60:
            raise KeyboardInterrupt
        return real(self, action)

    counter = iter(range(1000))
    monkeypatch.setattr(Walk, "step", step)
    with pytest.raises(SystemExit) as ended:
        main(["data", "collect", "Walk-v0", "--out", str(here / "sets"), "--transitions", "100", "--measured-episodes", "3"])
    assert ended.value.code == 130 and next(counter) == 62  # 30 steps were measured, 31 collected
    assert "interrupted; nothing was written" in capsys.readouterr().err
    assert list((here / "sets").iterdir()) == []
