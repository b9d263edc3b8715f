"""D4RL's ant and hands (Adroit), derived from those of Gymnasium and Gymnasium-Robotics.

The hands have the models, observations and starts of Gymnasium-Robotics, and D4RL's rewards. Gymnasium-Robotics' rewards for
door, hammer and relocate depend on its version: 1.2.1 to 1.4.2 add 0.1 times the distance between palm and object, which D4RL
subtracts. A fallen pen ends D4RL's episodes, but not those of Gymnasium-Robotics.
"""

from typing import Any

import numpy as np
from gymnasium.envs.mujoco.ant_v4 import AntEnv
from gymnasium.spaces import Box
from gymnasium_robotics.envs.adroit_hand.adroit_door import AdroitHandDoorEnv
from gymnasium_robotics.envs.adroit_hand.adroit_hammer import AdroitHandHammerEnv
from gymnasium_robotics.envs.adroit_hand.adroit_pen import AdroitHandPenEnv
from gymnasium_robotics.envs.adroit_hand.adroit_relocate import AdroitHandRelocateEnv

Step = tuple[np.ndarray, float, bool, bool, dict[str, Any]]

_CONTACTS = 84  # entries of contact forces
_FALLEN = 0.075  # height of the pen's centre
_LIFTED = 0.04  # height above which an object is off the table


class AntWithoutContacts(AntEnv):
    """gym's Ant-v2 under MuJoCo 2.0, as in D4RL's data: observed contact forces are zero and cost nothing."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(use_contact_forces=False, **kwargs)
        self.observation_space = Box(-np.inf, np.inf, (27 + _CONTACTS,), np.float64)

    def _get_obs(self) -> np.ndarray:
        return np.concatenate([super()._get_obs(), np.zeros(_CONTACTS)])


class Pen(AdroitHandPenEnv):  # type: ignore[misc]  # gymnasium_robotics has no types
    """Pen. An episode ends when the pen falls."""

    def step(self, a: np.ndarray) -> Step:
        """See `gymnasium.Env.step`."""
        obs, reward, _, _, about = super().step(a)
        return obs, float(reward), bool(obs[26] < _FALLEN), False, about


class Door(AdroitHandDoorEnv):  # type: ignore[misc]  # gymnasium_robotics has no types
    """Door. The reward depends on the angle of the hinge, in rad, and on the distance from palm to handle."""

    def step(self, a: np.ndarray) -> Step:
        """See `gymnasium.Env.step`."""
        obs, _, _, _, about = super().step(a)
        hinge, away = obs[28], obs[35:38]
        reward = -0.1 * _norm(away) - 0.1 * (hinge - 1.57) ** 2 - 1e-5 * np.square(self.data.qvel).sum()
        return obs, float(reward + 2 * (hinge > 0.2) + 8 * (hinge > 1.0) + 10 * (hinge > 1.35)), False, False, about


class Hammer(AdroitHandHammerEnv):  # type: ignore[misc]  # gymnasium_robotics has no types
    """Hammer. The reward depends on the depth of the nail and on the distances palm to hammer and head to nail."""

    def step(self, a: np.ndarray) -> Step:
        """See `gymnasium.Env.step`."""
        obs, _, _, _, about = super().step(a)
        palm, hammer, nail = obs[33:36], obs[36:39], obs[42:45]
        head, goal = (self.data.site_xpos[site] for site in (self.tool_site_id, self.goal_site_id))
        left = _norm(nail - goal)
        reward = -0.1 * _norm(palm - hammer) - _norm(head - nail) - 10 * left - 0.01 * _norm(self.data.qvel)
        reward += 2 * (min(hammer[2], head[2]) > _LIFTED) + 25 * (left < 0.02) + 75 * (left < 0.01)
        return obs, float(reward), False, False, about


class Relocate(AdroitHandRelocateEnv):  # type: ignore[misc]  # gymnasium_robotics has no types
    """Relocate. The reward depends on the distances of ball and palm to the target, and of the palm to the ball."""

    def step(self, a: np.ndarray) -> Step:
        """See `gymnasium.Env.step`."""
        obs, _, _, _, about = super().step(a)
        to_ball, to_target, left = _norm(obs[30:33]), _norm(obs[33:36]), _norm(obs[36:39])
        lifted = self.data.xpos[self.obj_body_id][2] > _LIFTED
        reward = -0.1 * to_ball + lifted * (1 - 0.5 * to_target - 0.5 * left) + 10 * (left < 0.1) + 20 * (left < 0.05)
        return obs, float(reward), False, False, about


def _norm(vector: np.ndarray) -> float:
    return float(np.linalg.norm(vector))
