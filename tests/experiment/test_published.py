"""Diffusion-QL's settings by task: its authors' table, and the datasets that it is found for."""

import pytest

from jaxpgd.datasets.d4rl import REGISTRATIONS
from jaxpgd.errors import InputError
from jaxpgd.experiment.config_files import load_config
from jaxpgd.experiment.presets.diffusion_ql import TASKS, task_of

PRESET = {"preset": "diffusion_ql"}


def config_for(name: str):
    return load_config(None, PRESET | {"data": {"name": name}})


@pytest.mark.parametrize(
    ("name", "lr", "eta", "clip", "backup", "epochs", "rewards"),
    [
        ("hopper_medium-v2.hdf5", 3e-4, 1.0, 9.0, 1, 2000, (1.0, 0.0, "none")),
        ("data/walker2d_medium_replay-v2.hdf5", 3e-4, 1.0, 4.0, 1, 2000, (1.0, 0.0, "none")),
        ("D4RL/antmaze/medium-play-v1", 1e-3, 2.0, 2.0, 10, 1000, (4.0, -0.5, "none")),
        ("D4RL/antmaze/umaze-v1", 3e-4, 0.5, 2.0, 1, 1000, (4.0, -0.5, "none")),
        ("D4RL/pen/human-v2", 3e-5, 0.15, 7.0, 1, 1000, (1.0, 0.0, "standard")),
        ("mini_kitchen_microwave_kettle_light_slider-v0.hdf5", 3e-4, 0.005, 9.0, 1, 250, (1.0, 0.0, "none")),
    ],
)
def test_a_dataset_gets_the_settings_of_its_task(name, lr, eta, clip, backup, epochs, rewards):
    config = config_for(name)
    q, data = config.agent.diffusion_ql, config.data
    assert (q.lr, q.eta, q.gradient_clip, q.max_q_backup, q.critic_lr) == (lr, eta, clip, backup, 3e-4)
    assert (config.agent.updates, config.agent.batch_size, config.agent.normalise_obs) == (1000 * epochs, 256, False)
    assert (q.ema_start, q.ema_every, q.ema, q.action_reconstruction) == (1000, 5, 0.995, "chain")
    assert (data.reward_scale, data.reward_shift, data.reward_normalisation) == rewards
    assert (config.agent.kind, config.arms) == ("diffusion_ql", ("real",))
    assert config.evaluation.episodes == config.evaluation.intermediate_episodes == (10 if eta == 1.0 else 100)
    assert q.decay_updates == 50 * config.agent.updates  # their schedule moves once in 50 epochs and counts epochs


def test_a_files_own_values_come_on_top():
    config = load_config(None, PRESET | {"data": {"name": "pen-human-v1.hdf5"}, "agent": {"diffusion_ql": {"eta": 2.0}}})
    assert (config.agent.diffusion_ql.eta, config.agent.diffusion_ql.lr) == (2.0, 3e-5)


@pytest.mark.parametrize("name", ["point2d", "hopper_expert-v2.hdf5", "mine.npz", "mujoco/hopper/simple-v0", "human-v2"])
def test_other_datasets_have_no_published_settings(name):
    with pytest.raises(InputError, match=r"data.name = .* where preset is 'diffusion_ql' .*, hopper-medium, "):
        config_for(name)


def test_every_task_is_found_by_the_names_of_its_datasets_and_files():
    found = {task_of(f"{row.file}.hdf5") for row in REGISTRATIONS} | {task_of(row.name) for row in REGISTRATIONS}
    assert found - {None} == set(TASKS)
    assert sum(row.max_q_backup for row in TASKS.values()) == 5
