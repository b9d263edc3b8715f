"""Diffusion-QL (Wang et al., arXiv 2208.06193): what its authors set for each task, from the table in their `main.py`.

In common they have batches of 256, observations as they are, and a cosine decay of both learning rates that their code
advances once in 50 epochs although it counts epochs: after the last of them 0.999 of the rate is left.
"""

import re
from pathlib import PurePath
from typing import Any, NamedTuple

from jaxpgd.errors import check

UPDATES_PER_EPOCH = 1000
EPOCHS_PER_EVALUATION = 50
BACKUP_ACTIONS = 10  # drawn for each target under `max_q_backup`


class Task(NamedTuple):
    """A row of the table."""

    epochs: int
    lr: float  # of the actor; the critics' is 3e-4 throughout
    eta: float
    gradient_clip: float
    max_q_backup: bool = False


TASKS: dict[str, Task] = {
    "halfcheetah-medium": Task(2000, 3e-4, 1.0, 9.0),
    "hopper-medium": Task(2000, 3e-4, 1.0, 9.0),
    "walker2d-medium": Task(2000, 3e-4, 1.0, 1.0),
    "halfcheetah-medium-replay": Task(2000, 3e-4, 1.0, 2.0),
    "hopper-medium-replay": Task(2000, 3e-4, 1.0, 4.0),
    "walker2d-medium-replay": Task(2000, 3e-4, 1.0, 4.0),
    "halfcheetah-medium-expert": Task(2000, 3e-4, 1.0, 7.0),
    "hopper-medium-expert": Task(2000, 3e-4, 1.0, 5.0),
    "walker2d-medium-expert": Task(2000, 3e-4, 1.0, 5.0),
    "antmaze-umaze": Task(1000, 3e-4, 0.5, 2.0),
    "antmaze-umaze-diverse": Task(1000, 3e-4, 2.0, 3.0, True),
    "antmaze-medium-play": Task(1000, 1e-3, 2.0, 2.0, True),
    "antmaze-medium-diverse": Task(1000, 3e-4, 3.0, 1.0, True),
    "antmaze-large-play": Task(1000, 3e-4, 4.5, 10.0, True),
    "antmaze-large-diverse": Task(1000, 3e-4, 3.5, 7.0, True),
    "pen-human": Task(1000, 3e-5, 0.15, 7.0),
    "pen-cloned": Task(1000, 3e-5, 0.1, 8.0),
    "kitchen-complete": Task(250, 3e-4, 0.005, 9.0),
    "kitchen-partial": Task(1000, 3e-4, 0.005, 10.0),
    "kitchen-mixed": Task(1000, 3e-4, 0.005, 10.0),
}
DIFFUSION_QL: dict[str, Any] = {  # of every task
    "arms": ["real"],
    "agent": {
        "kind": "diffusion_ql", "batch_size": 256, "updates_per_chunk": 1000, "normalise_obs": False,
        "diffusion_ql": {
            "critic_lr": 3e-4, "ema_start": 1000.0, "choice": "softmax", "candidates": 50, "hidden": [256, 256, 256],
        },
    },
    "evaluation": {"every": 50_000},
}  # fmt: skip
_REWARDS: dict[str, dict[str, Any]] = {
    "antmaze": {"reward_scale": 4.0, "reward_shift": -0.5},  # CQL's rule
    "pen": {"reward_normalisation": "standard"},
}
_VERSION = re.compile(r"-v\d+$")


def task_of(name: str) -> str | None:
    """The task of `TASKS` that a dataset belongs to: a file of D4RL by its path, or Minari's counterpart by its id."""
    from jaxpgd.datasets.d4rl import registration

    path = PurePath(name)
    stem = path.stem if path.suffix in (".hdf5", ".h5", ".npz") else path.name
    found = registration(stem)
    parts = [part.lower() for part in path.parts]
    minari = "-".join(parts[1:]) if len(parts) == 3 and parts[0] in ("mujoco", "d4rl") else ""
    task = _VERSION.sub("", found.name if found else minari.replace("-local", ""))
    return task if task in TASKS else None


def diffusion_ql_values(name: str) -> dict[str, Any]:
    """Nested settings of `TASKS` for the dataset `name`. Raises InputError for a dataset that is none of its tasks."""
    task = task_of(name)
    expected = "where preset is 'diffusion_ql' a file of D4RL, or Minari's counterpart, of " + ", ".join(TASKS)
    check(task is not None, "data.name", name, expected)
    assert task is not None
    row, family = TASKS[task], task.split("-")[0]
    updates = row.epochs * UPDATES_PER_EPOCH
    episodes = 10 if family in ("halfcheetah", "hopper", "walker2d") else 100
    return {
        "data": _REWARDS.get(family, {}),
        "agent": {
            "updates": updates,
            "diffusion_ql": {
                "lr": row.lr,
                "eta": row.eta,
                "gradient_clip": row.gradient_clip,
                "max_q_backup": BACKUP_ACTIONS if row.max_q_backup else 1,
                "decay_updates": float(EPOCHS_PER_EVALUATION * updates),
            },
        },
        "evaluation": {"episodes": episodes, "intermediate_episodes": episodes},
    }
