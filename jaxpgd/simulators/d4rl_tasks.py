"""D4RL's tasks (arXiv 2004.07219) as Gymnasium environments: their ids and parameters.

D4RL's own code needs gym and mujoco-py. Gymnasium's v4 tasks replace gym's v2: they have the same dynamics and rewards. Ids
"d4rl/..." are tasks that Gymnasium has only with other rewards, sizes, ends or lengths. `d4rl_mazes` and `d4rl_robots` hold the
classes, and state what equals D4RL. They are imported when an environment is made.
"""

from typing import Any

import gymnasium

# "#" is a wall. Rows and columns count from 0. D4RL's point mazes and ant mazes have the same walls.
WALLS: dict[str, tuple[str, ...]] = {
    "open": ("#######", "#     #", "#     #", "#     #", "#######"),
    "umaze": ("#####", "#   #", "### #", "#   #", "#####"),
    "medium": ("########", "#  ##  #", "#  #   #", "##   ###", "#  #   #", "# #  # #", "#   #  #", "########"),
    "large": ("############", "#    #     #", "# ## # # # #", "#      #   #", "# #### ### #", "#  # #     #", "## # # # ###",
              "#  #   #   #", "############"),
    "eval-umaze": ("#####", "#   #", "# ###", "#   #", "#####"),
    "eval-medium": ("########", "#      #", "# # ## #", "#    # #", "###  ###", "#      #", "#  ##  #", "########"),
    "eval-large": ("############", "#  #   #   #", "## ### # # #", "#  # #     #", "# ## #  ## #", "#      #   #",
                   "# ## # # ###", "#    #     #", "############"),
}  # fmt: skip
POINT_GOALS = {
    "open": (2, 3), "umaze": (1, 1), "medium": (6, 6), "large": (7, 9),
    "eval-umaze": (1, 3), "eval-medium": (1, 6), "eval-large": (1, 9),
}  # fmt: skip
ANT_CELLS = {  # start and goal
    "umaze": ((1, 1), (3, 1)), "medium": ((1, 1), (6, 6)), "large": ((1, 1), (7, 9)),
    "eval-umaze": ((1, 3), (3, 3)), "eval-medium": ((1, 1), (1, 6)), "eval-large": ((1, 1), (1, 9)),
}  # fmt: skip

_POINT_STEPS = {
    "v0": {"open": 150, "umaze": 150, "medium": 250, "large": 600},
    "v1": {maze: {"umaze": 300, "medium": 600, "large": 800}[maze.removeprefix("eval-")] for maze in ANT_CELLS},
}
_HAND_STEPS = {"pen": 100, "hammer": 200, "door": 200, "relocate": 200}

_MAZES, _ROBOTS = "jaxpgd.simulators.d4rl_mazes", "jaxpgd.simulators.d4rl_robots"


def register() -> None:
    """Register the ids "d4rl/..." with Gymnasium. This imports no simulator."""
    for version, lengths in _POINT_STEPS.items():
        for maze, steps in lengths.items():
            for dense in (False, True):
                name = f"maze2d-{maze}{'-dense' if dense else ''}-{version}"
                _register(name, f"{_MAZES}:PointMaze", steps, maze=maze, dense=dense)
    for maze in ANT_CELLS:
        _register(f"antmaze-{maze}-v2", f"{_MAZES}:AntMaze", 700 if maze.endswith("umaze") else 1000, maze=maze)
    for task, steps in _HAND_STEPS.items():
        _register(f"{task}-v1", f"{_ROBOTS}:{task.capitalize()}", steps)
    _register("ant-v2", f"{_ROBOTS}:AntWithoutContacts", 1000)
    _register("ant-contacts-v2", "gymnasium.envs.mujoco.ant_v4:AntEnv", 1000, use_contact_forces=True)


def _register(name: str, entry_point: str, steps: int, **kwargs: Any) -> None:
    if f"d4rl/{name}" not in gymnasium.registry:
        gymnasium.register(f"d4rl/{name}", entry_point, max_episode_steps=steps, kwargs=kwargs)
