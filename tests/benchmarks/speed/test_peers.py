"""The suite `peers` with scripts made up here, which have the names of the peers' and nothing else of them."""

import functools
import json
import os
import sys

import jax
import pytest

from benchmarks import __main__ as cli
from benchmarks.speed import agents, peer_programs, peer_scripts, peers

TINY = peer_programs.Size(transitions=50, obs_dim=3, action_dim=2, batch=4, hidden=(4,), updates=4, rounds=3)

IMPORTS = """
import os
from collections import namedtuple
from dataclasses import dataclass

import d4rl
import gym
import jax
import jax.numpy as jnp
import wandb
from omegaconf import OmegaConf
from pydantic import BaseModel

os.environ["XLA_FLAGS"] = "--made-up"


def play(env: gym.Env):
    wandb.log(d4rl.score(env))
"""

LIKE_JAX_CORL = """
class TD3BCConfig(BaseModel):
    batch_size: int = 1
    hidden_dims: tuple = ()
    policy_freq: int = 1
    n_jitted_updates: int = 4

    def __hash__(self):
        return hash(repr(self))


config = TD3BCConfig(**OmegaConf.from_cli())
Transition = namedtuple("Transition", "observations actions rewards next_observations dones")


def create_td3bc_train_state(key, observation, action, config):
    return {"calls": 0, "sum": 0.0 * action.sum(), "sizes": jnp.array([config.batch_size, *config.hidden_dims])}


class TD3BC:
    def update_n_times(self, state, data, key, config):
        total = state["sum"] + data.rewards.sum() + jax.random.normal(key)
        return {**state, "calls": state["calls"] + 1, "sum": total}, {"loss": total}
"""

LIKE_UNIFLORAL = """
@dataclass
class Args:
    batch_size: int = 1
    num_critic_updates_per_step: int = 1


class Network:
    def __init__(self, *sizes):
        self.apply = lambda scale, *inputs: scale * sum(x.sum() for x in inputs)


DualQNetwork = DeterministicTanhActor = TanhGaussianActor = StateValueFunction = Network
AgentTrainState = namedtuple("AgentTrainState", "actor STATES dual_q dual_q_target")
Transition = namedtuple("Transition", "obs action reward next_obs done")


def create_train_state(args, key, network, inputs):
    return network.apply(1.0, *inputs)


def make_train_step(args, actor, *networks_and_data):
    *networks, data = networks_and_data

    def step(carry, _):
        key, state = carry
        return (key, state._replace(actor=state.actor + args.batch_size)), data.done.sum()

    return step
"""


@pytest.fixture
def data():
    return agents.make_data(jax.random.key(0), agents.Size(transitions=50, obs_dim=3, action_dim=2))


@pytest.fixture
def checkout(tmp_path):
    """A directory with made-up scripts of both peers, those of JAX-CORL of one algorithm only."""
    scripts = {"algos/td3bc.py": LIKE_JAX_CORL}
    for name, state in (("td3_bc", "actor_target"), ("iql", "value")):
        scripts[f"algorithms/{name}.py"] = LIKE_UNIFLORAL.replace("STATES", state)
    for name, text in scripts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(IMPORTS + text, encoding="utf-8")
    return tmp_path


@pytest.fixture
def small(monkeypatch):
    """The suite at sizes that take a moment, with nothing where Python finds modules."""
    monkeypatch.setattr(peers, "matmul_peak", lambda: 1.0)
    monkeypatch.setattr(peers, "run", functools.partial(peers.run, TINY))
    monkeypatch.setattr(peer_scripts, "_places", list)


def test_a_script_is_loaded_as_it_is_and_leaves_nothing_behind(checkout):
    before = dict(os.environ), list(sys.argv), set(sys.modules)
    script = peer_scripts.load(checkout / "algos/td3bc.py")
    assert (dict(os.environ), sys.argv) == before[:2]
    assert not {"d4rl", "gym", "omegaconf", "wandb"} & (set(sys.modules) - before[2])
    assert not list(checkout.rglob("__pycache__"))
    assert script.config.n_jitted_updates == 4 and script.TD3BCConfig(batch_size=3).batch_size == 3


def test_settings_stand_in_for_those_of_pydantic():
    made = type("Config", (peer_scripts._Settings,), {"steps": 2, "__hash__": lambda self: hash(repr(self))})
    assert (made().steps, made(steps=3).steps) == (2, 3) and hash(made(steps=3)) == hash(made(steps=3)) != hash(made())


@pytest.mark.parametrize("algorithm", ["td3_bc", "iql"])
def test_a_scan_of_steps_makes_the_stated_updates(algorithm, checkout, data):
    script = peer_scripts.load(checkout / peer_scripts.UNIFLORAL.scripts[algorithm])
    program = peer_programs.unifloral(script, algorithm, data, TINY)
    (_, state), sums = program.run()
    assert sums.shape == (TINY.updates,)
    assert float(state.actor) == pytest.approx(float(data.obs[0].sum()) + TINY.updates * TINY.batch, rel=1e-5)
    assert program.compile_seconds > 0


def test_a_loop_of_calls_makes_the_stated_updates(checkout, data):
    script = peer_scripts.load(checkout / "algos/td3bc.py")
    state = peer_programs.jax_corl(script, "td3_bc", data, TINY).run()
    assert int(state["calls"]) == 2  # of four critic steps, which are two updates
    assert state["sizes"].tolist() == [TINY.batch, *TINY.hidden]


def test_programs_take_turns_and_are_compared_round_by_round(checkout, small):
    found = peers.run(jax_corl=checkout)
    rows = {(row["algorithm"], row["program"]): row for row in found["rows"]}
    names = {"jaxpgd", "jaxpgd, critic_norm=layer", "JAX-CORL"}
    assert {name for (algorithm, name), row in rows.items() if "rate" in row} == names
    for name in names:
        row = rows["td3_bc", name]
        assert 0 < row["lowest"] <= row["rate"] <= row["highest"] and row["compile_seconds"] > 0
    assert rows["iql", "JAX-CORL"]["skipped"] == f"no algos/iql.py in {checkout}"
    assert {(ratio["ours"], ratio["theirs"]) for ratio in found["ratios"]} == {
        (name, "JAX-CORL") for name in names - {"JAX-CORL"}
    }
    for ratio in found["ratios"]:
        assert 0 < ratio["lowest"] <= ratio["ratio"] <= ratio["highest"]
        fastest = rows["td3_bc", ratio["ours"]]["highest"] / rows["td3_bc", "JAX-CORL"]["highest"]
        assert ratio["ratio_of_fastest"] == pytest.approx(fastest)


def test_absent_peers_are_skipped_with_the_reason(small, capsys):
    cli.main(["peers"])
    found = json.loads(capsys.readouterr().out)
    assert found["ratios"] == [] and len(found["rows"]) == 4
    assert found["rows"][0]["skipped"] == "no algorithms/td3_bc.py on Python's module path; name a checkout with --unifloral"


def test_an_installed_script_is_found(checkout, monkeypatch):
    monkeypatch.syspath_prepend(str(checkout))
    assert peer_scripts.find(peer_scripts.UNIFLORAL, "iql", None) == checkout / "algorithms/iql.py"


def test_a_script_of_another_version_is_skipped_with_the_reason(checkout, small):
    (checkout / "algos/td3bc.py").write_text("from math import nothing", encoding="utf-8")
    reasons = [row["skipped"] for row in peers.run(jax_corl=checkout)["rows"]]
    assert any(reason.startswith("algos/td3bc.py cannot be used: ImportError: cannot import name") for reason in reasons)


@pytest.mark.parametrize("option", ["--unifloral", "--jax-corl"])
def test_a_wrong_path_is_refused_in_one_line(option, small, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(["peers", option, str(tmp_path / "nowhere")])
    printed = capsys.readouterr().err
    assert error.value.code == 2 and printed.count("\n") == 1
    assert printed.startswith(f"error: {option} = '{tmp_path / 'nowhere'}': expected a checkout of ")


def test_options_with_two_words_are_named_as_they_are_written(capsys):
    with pytest.raises(SystemExit):
        cli.main(["agents", "--jax-corl", "somewhere"])
    assert "--jax-corl: not an option of agents" in capsys.readouterr().err
