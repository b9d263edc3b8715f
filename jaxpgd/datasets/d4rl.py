"""D4RL's registrations (arXiv 2004.07219): the names of its datasets and files, their sizes and reference returns.

The numbers are those of `d4rl/infos.py` and of the `register` calls in `d4rl/*/__init__.py`. Other names have no reference:
nothing is inferred from parts of a name.
"""

import functools
import re
from typing import NamedTuple

import numpy as np


class Registration(NamedTuple):
    """A dataset of D4RL."""

    name: str  # "hopper-medium-v2"
    file: str  # name of its file, without .hdf5
    environment: str  # "hopper", "maze2d-umaze-dense"
    obs_dim: int
    action_dim: int
    ref_min: float  # return of a random policy, score 0
    ref_max: float  # return of an expert, score 100


# environment: O, A, return of a random policy, return of an expert
_ENVIRONMENTS: dict[str, tuple[int, int, float, float]] = {
    "hopper": (11, 3, -20.272305, 3234.3),
    "halfcheetah": (17, 6, -280.178953, 12135.0),
    "walker2d": (17, 6, 1.629008, 4592.3),
    "ant": (111, 8, -325.6, 3879.7),
    "antmaze": (29, 8, 0.0, 1.0),
    "pen": (45, 24, 96.262799, 3076.8331017826877),
    "hammer": (46, 26, -274.856578, 12794.134825156867),
    "door": (39, 28, -56.512833, 2880.5693087298737),
    "relocate": (39, 30, -6.425911, 4233.877797728884),
    "kitchen": (60, 9, 0.0, 4.0),
}

# References of mazes depend on maze, reward and version. Version 1 has longer episodes.
_MAZE2D: dict[str, tuple[float, float]] = {
    "open-v0": (0.01, 20.66),
    "umaze-v0": (0.94, 62.6),
    "medium-v0": (5.77, 85.14),
    "large-v0": (4.83, 191.99),
    "open-dense-v0": (11.17817, 27.166538620695782),
    "umaze-dense-v0": (23.249793, 81.78995240126592),
    "medium-dense-v0": (19.47762, 96.03474232952358),
    "large-dense-v0": (27.38831, 215.09965671563742),
    "umaze-v1": (23.85, 161.86),
    "medium-v1": (13.13, 277.39),
    "large-v1": (6.7, 273.99),
    "umaze-dense-v1": (68.537689, 193.66285642381482),
    "medium-dense-v1": (44.264742, 297.4552547777125),
    "large-dense-v1": (30.569041, 303.4857382709002),
    "eval-umaze-v1": (36.63, 141.4),
    "eval-medium-v1": (13.07, 204.93),
    "eval-large-v1": (16.4, 302.22),
    "eval-umaze-dense-v1": (56.95455, 178.21373133248397),
    "eval-medium-dense-v1": (42.28578, 235.5658957482388),
    "eval-large-dense-v1": (56.95455, 326.09647655082637),
}

_ANT_MAZES = {  # dataset: maze, several starts, several goals, as in the names of version 0 and 2 files
    "umaze": ("u-maze", False, False),
    "umaze-diverse": ("u-maze", True, True),
    "medium-play": ("big-maze", True, False),
    "medium-diverse": ("big-maze", True, True),
    "large-play": ("hardest-maze", True, False),
    "large-diverse": ("hardest-maze", True, True),
}
_ANT_MAZE_EVAL = {  # files of version 0 with other mazes; here medium "play" is the one with several goals
    "eval-umaze": ("umaze_eval", True, False),
    "eval-umaze-diverse": ("umaze_eval", True, True),
    "eval-medium-play": ("medium_eval", True, True),
    "eval-medium-diverse": ("medium_eval", True, False),
    "eval-large-diverse": ("large_eval", True, False),
    "eval-large-play": ("large_eval", True, True),
}
_ANT_MAZE_ULTRA = {"ultra-diverse": ("ultra", True, True), "ultra-play": ("ultra", True, False)}
_ANT_MAZE_V1 = {"u-maze": "umaze", "big-maze": "medium", "hardest-maze": "large"}

_KITCHEN = {
    "complete": "mini_kitchen_microwave_kettle_light_slider-v0",
    "partial": "kitchen_microwave_kettle_light_slider-v0",
    "mixed": "kitchen_microwave_kettle_bottomburner_light-v0",
}
_HAND_FILES = {"human": "v0_demos_clipped", "human-longhorizon": "v0_demos_clipped", "cloned": "demos-v0-bc-combined",
               "expert": "v0_expert_clipped"}  # fmt: skip


def _row(environment: str, data: str, file: str) -> Registration:
    return Registration(f"{environment}-{data}", file, environment, *_ENVIRONMENTS[environment])


def _mujoco() -> list[Registration]:
    rows = []
    for robot in ("hopper", "halfcheetah", "walker2d", "ant"):
        mixed = f"{robot.removesuffix('2d')}_mixed"  # Walker's is called walker_mixed
        rows += [_row(robot, f"{data}-v0", mixed) for data in ("medium-replay", "mixed")]
        old = ("random", "medium", "expert", "medium-expert", *(("random-expert",) if robot == "ant" else ()))
        rows += [_row(robot, f"{data}-v0", f"{robot}_{data.replace('-', '_')}") for data in old]
        new = ("random", "medium", "expert", "medium-expert", "medium-replay", "full-replay")
        rows += [_row(robot, f"{d}-{v}", f"{robot}_{d.replace('-', '_')}-{v}") for d in new for v in ("v1", "v2")]
    return rows


def _antmaze() -> list[Registration]:
    file = lambda maze, starts, goals: f"Ant_maze_{maze}_noisy_multistart_{starts}_multigoal_{goals}_sparse"
    rows = [_row("antmaze", f"{data}-v0", file(*parts)) for data, parts in (_ANT_MAZES | _ANT_MAZE_EVAL).items()]
    for data, (maze, *parts) in _ANT_MAZES.items():
        rows.append(_row("antmaze", f"{data}-v1", file(_ANT_MAZE_V1[maze], *parts)))
        rows.append(_row("antmaze", f"{data}-v2", f"{file(maze, *parts)}_fixed"))
    return rows + [_row("antmaze", f"{data}-v2", file(*parts)) for data, parts in _ANT_MAZE_ULTRA.items()]


def _maze2d() -> list[Registration]:
    rows = []
    for key, references in _MAZE2D.items():
        maze, version = key.rsplit("-", 1)
        stem = f"maze2d-{maze}" if maze.endswith("dense") else f"maze2d-{maze}-sparse"
        file = stem if version == "v0" else f"{stem}-{version}"
        rows.append(Registration(f"maze2d-{key}", file, f"maze2d-{maze}", 4, 2, *references))
    return rows


def _adroit() -> list[Registration]:
    rows = []
    for task in ("pen", "hammer", "door", "relocate"):
        rows += [_row(task, f"{data}-v0", f"{task}-{file}") for data, file in _HAND_FILES.items()]
        rows += [_row(task, f"{data}-v1", f"{task}-{data.removesuffix('-longhorizon')}-v1") for data in _HAND_FILES]
    return rows


REGISTRATIONS: tuple[Registration, ...] = (
    *_mujoco(), *_antmaze(), *_maze2d(), *_adroit(), *(_row("kitchen", f"{data}-v0", file) for data, file in _KITCHEN.items())
)  # fmt: skip


def plain_name(name: str) -> str:
    """A name in a canonical spelling: lower case, "-" for "_"."""
    return name.lower().replace("_", "-")


@functools.cache
def _by_name() -> dict[str, Registration]:
    """Registrations by dataset name and by file name. Datasets that share a file have the same sizes and references."""
    names = {plain_name(row.name): row for row in REGISTRATIONS}
    return {plain_name(row.file): row for row in reversed(REGISTRATIONS)} | names


@functools.cache
def _by_kind() -> dict[str, Registration]:
    """Registrations by name without version, for datasets whose versions share their references."""
    found: dict[str, list[Registration]] = {}
    for row in REGISTRATIONS:
        found.setdefault(re.sub(r"-v\d+$", "", row.name), []).append(row)
    return {kind: rows[-1] for kind, rows in found.items() if len({row[2:] for row in rows}) == 1}


def registration(name: str) -> Registration | None:
    """D4RL's registration of a dataset name or of a file name (without .hdf5). None for other names.

    "NAME-local" and "NAME-local-vK" name locally collected counterparts and get the registration of NAME. The version may be
    omitted if the versions share their references.
    """
    plain = plain_name(name)
    local = re.fullmatch(r"(.+)-local(-v\d+)?", plain)
    if local is None:
        return _by_name().get(plain)
    return _by_name().get(plain.replace("-local", "")) or _by_name().get(local[1]) or _by_kind().get(local[1])


_ROBOTS = {"hopper": "Hopper-v4", "halfcheetah": "HalfCheetah-v4", "walker2d": "Walker2d-v4"}
_HANDS = ("pen", "hammer", "door", "relocate")
_CONTACTS = 27  # first entry of Ant's contact forces
NOT_RUN = {  # environments that are not supported: the reason
    "antmaze-ultra": "its maze is not that of D4RL's paper",
    "kitchen": "its successor in Gymnasium-Robotics has other observations: use Minari's D4RL/kitchen datasets",
}


def environment_id(row: Registration, obs: np.ndarray) -> str | None:
    """The Gymnasium id of a dataset's task, None for those of `NOT_RUN`. `obs` [M, O] are its observations.

    Gymnasium's v4 tasks replace gym's v2, from which the data come. Ids "d4rl/..." are those of `simulators.d4rl_tasks`. Ant's
    contact forces are zero in D4RL's data because of MuJoCo 2.0. If they are not, the environment has them too.
    """
    if row.environment == "ant":
        return "d4rl/ant-contacts-v2" if obs[:, _CONTACTS:].any() else "d4rl/ant-v2"
    if row.environment == "antmaze":
        maze = re.match(r"antmaze-((?:eval-)?(?:umaze|medium|large))-", row.name)
        return None if maze is None else f"d4rl/antmaze-{maze[1]}-v2"
    if row.environment in _HANDS:
        return f"d4rl/{row.environment}-v1"
    if row.environment.startswith("maze2d"):
        return f"d4rl/{row.name}"
    return _ROBOTS.get(row.environment)


def why_not_run(name: str) -> str | None:
    """Why the dataset or file `name` of D4RL has no environment here. None if it has one, and for other names."""
    row = registration(name)
    kind = "antmaze-ultra" if row is not None and row.name.startswith("antmaze-ultra") else getattr(row, "environment", "")
    return NOT_RUN.get(kind)
