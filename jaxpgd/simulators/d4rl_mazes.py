"""D4RL's maze2d and antmaze on current MuJoCo: Gymnasium-Robotics' point and Gymnasium's ant between D4RL's walls.

The same as in D4RL: observations and their coordinates, walls, masses, motors, time steps, starts, goals, rewards, ends.
Different: the version of MuJoCo, whose contacts deviate slightly, and random numbers.
"""

import os
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium.envs.mujoco
import gymnasium_robotics
import numpy as np
from gymnasium.envs.mujoco.ant_v4 import AntEnv
from gymnasium_robotics.envs.maze.point import PointEnv

from jaxpgd.simulators.d4rl_tasks import ANT_CELLS, POINT_GOALS, WALLS

Element = ElementTree.Element
Step = tuple[np.ndarray, Any, bool, bool, dict[str, Any]]

_POINT = Path(gymnasium_robotics.__file__).parent / "envs" / "assets" / "point" / "point.xml"
_ANT = Path(gymnasium.envs.mujoco.__file__).parent / "assets" / "ant.xml"
_RADIUS = 0.5  # around the goal
_ANT_CELL = 4.0  # width of a cell


@contextmanager
def _changed_model(source: Path, change: Callable[[Element], None]) -> Iterator[str]:
    """A temporary file with an XML model after `change`. Its textures are made small, because large ones load slowly."""
    tree = ElementTree.parse(source)
    for texture in tree.getroot().iter("texture"):
        texture.attrib |= {"width": "16", "height": "96" if texture.get("type") == "cube" else "16"}
    change(tree.getroot())
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, source.name)
        tree.write(path)
        yield path


def _found(root: Element, path: str) -> Element:
    element = root.find(path)
    assert element is not None, path
    return element


def _add_box(root: Element, centre: tuple[float, float, float], half: tuple[float, float, float]) -> None:
    pos, size = (" ".join(map(str, numbers)) for numbers in (centre, half))
    ElementTree.SubElement(
        _found(root, "worldbody"), "geom", {"type": "box", "pos": pos, "size": size, "contype": "1", "conaffinity": "1"}
    )


def _cells(maze: str, kind: str) -> list[tuple[int, int]]:
    """Rows and columns of the walls ("#") or of the free cells (" "), in order."""
    return [(r, c) for r, row in enumerate(WALLS[maze]) for c, cell in enumerate(row) if cell == kind]


class PointMaze(PointEnv):  # type: ignore[misc]  # gymnasium_robotics has no types
    """maze2d: a ball pushed through a maze. Observations are (x, y, vx, vy), actions are forces in [-1, 1]^2.

    x is along rows and y along columns. D4RL's origin is 0.2 beyond the centre of cell (0, 0): cell (r, c) spans
    r - 0.7 <= x <= r + 0.3, and likewise for y, while starts and goals are at (r, c). Velocities are clipped to [-5, 5] before
    each step of 0.01 s. The reward belongs to the state that a step reaches: 1 within 0.5 of the goal and 0 elsewhere, or
    exp(-distance) if `dense`. There are no terminals. Episodes start within 0.1 of a free cell, with velocities 0.1 N(0, 1).
    """

    def __init__(self, maze: str, dense: bool = False, **kwargs: Any) -> None:
        self.goal = np.array(POINT_GOALS[maze], np.float64)
        self._starts = np.array(_cells(maze, " "), np.float64)
        self._dense = dense

        def change(root: Element) -> None:
            _found(root, ".//body[@name='particle']").set("pos", "1.2 1.2 0")
            for row, column in _cells(maze, "#"):
                _add_box(root, (row + 1, column + 1, 0), (0.5, 0.5, 0.2))

        with _changed_model(_POINT, change) as path:
            super().__init__(xml_file=path, **kwargs)

    def step(self, action: np.ndarray) -> Step:
        """See `gymnasium.Env.step`."""
        obs = super().step(action)[0]
        away = float(np.linalg.norm(obs[:2] - self.goal))
        reward = float(np.exp(-away)) if self._dense else float(away <= _RADIUS)
        return obs, reward, False, False, {}

    def reset_model(self) -> np.ndarray:
        """A random start."""
        cell = self._starts[self.np_random.integers(len(self._starts))]
        self.set_state(cell + self.np_random.uniform(-0.1, 0.1, 2), 0.1 * self.np_random.standard_normal(2))
        return np.concatenate([self.data.qpos, self.data.qvel])


class AntMaze(AntEnv):
    """antmaze: an ant that walks through a maze. Observations are 15 positions, x and y first, and 14 velocities.

    Cells are 4 wide, x is along columns and y along rows, and (0, 0) is the centre of the start cell. The reward is 1, and the
    episode ends, within 0.5 of the goal; it is 0 before. Every reset draws a goal near its cell's centre, as D4RL's v2 does (v0
    and v1 draw one per environment). Observations do not show it. The ant is Gymnasium's, with D4RL's time step of 0.02 s (an
    environment step takes 0.1 s), motors of 30 N m and contact impedance.
    """

    def __init__(self, maze: str, **kwargs: Any) -> None:
        start, goal = (np.array(cell[::-1], np.float64) for cell in ANT_CELLS[maze])
        self._goal_cell = _ANT_CELL * (goal - start)
        self.goal = self._goal_cell

        def change(root: Element) -> None:
            _found(root, "option").set("timestep", "0.02")
            _found(root, "default/geom").set("solimp", ".8 .8 .01")
            for motor in _found(root, "actuator"):
                motor.set("gear", "30")
            for row, column in _cells(maze, "#"):
                x, y = _ANT_CELL * (np.array([column, row]) - start)
                _add_box(root, (x, y, 1), (_ANT_CELL / 2, _ANT_CELL / 2, 1))

        # Gymnasium checks the frame rate against the time step
        self.metadata = {**AntEnv.metadata, "render_fps": 10}
        with _changed_model(_ANT, change) as path:
            super().__init__(
                xml_file=path, terminate_when_unhealthy=False, exclude_current_positions_from_observation=False, **kwargs
            )

    def step(self, action: np.ndarray) -> Step:
        """See `gymnasium.Env.step`."""
        obs = super().step(action)[0]
        reached = bool(np.linalg.norm(obs[:2] - self.goal) <= _RADIUS)
        return obs, float(reached), reached, False, {"success": reached}

    def reset_model(self) -> np.ndarray:
        """A random start and a random goal."""
        noise = self.np_random.uniform(0, 0.25 * _ANT_CELL, 2) + self.np_random.uniform(0, 0.125 * _ANT_CELL, 2)
        self.goal = np.maximum(self._goal_cell + noise, 0)
        return np.asarray(super().reset_model())
