"""Known termination rules: whether a step ended the episode, computed from the observation that it led to.

The inequalities are those of Gymnasium 1.4 (MuJoCo v4 and v5) and Gymnasium-Robotics 1.4 (mazes). Rules see only observations,
in float32. Values within rounding (1e-7) of a bound may fall on its other side. Velocities that an environment clips at 10
never reach wider bounds. The root's x and y, which observations leave out, are assumed to be finite.

Every rule is a struct dataclass without leaves: a pytree that costs nothing in a compiled step, hashable for use as a static
argument, and equal to any other with the same settings, so that building it again causes no new trace.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.errors import InputError, check

Range = tuple[float, float]
FIELD = "world_model.termination"  # the setting that names a rule


class Rule(Protocol):
    """next_obs [O] -> whether the step that led there ended the episode, [] bool. Vmapped by its caller."""

    def __call__(self, next_obs: Array) -> Array: ...


@struct.dataclass
class Never:
    """No step ends an episode."""

    def __call__(self, next_obs: Array) -> Array:
        """As `Rule`."""
        return jnp.zeros((), bool)


@struct.dataclass
class Hopper:
    """Ends unless healthy: z and angle strictly inside their ranges, and all entries from the angle on inside `state`.

    NaN is unhealthy. Observed velocities are clipped at 10, so they never leave a wider range.
    """

    z: Range = struct.field(pytree_node=False, default=(0.7, float("inf")))
    angle: Range = struct.field(pytree_node=False, default=(-0.2, 0.2))
    state: Range = struct.field(pytree_node=False, default=(-100.0, 100.0))
    first: int = struct.field(pytree_node=False, default=0)  # entry of next_obs that holds z

    def __call__(self, next_obs: Array) -> Array:
        """As `Rule`."""
        z, angle, state = next_obs[self.first], next_obs[self.first + 1], next_obs[self.first + 1 :]
        return ~(_inside(z, self.z) & _inside(angle, self.angle) & _inside(state, self.state).all())


@struct.dataclass
class Walker2d:
    """Ends unless healthy: z and angle strictly inside their ranges. NaN is unhealthy. Other entries have no effect."""

    z: Range = struct.field(pytree_node=False, default=(0.8, 2.0))
    angle: Range = struct.field(pytree_node=False, default=(-1.0, 1.0))
    first: int = struct.field(pytree_node=False, default=0)  # entry of next_obs that holds z

    def __call__(self, next_obs: Array) -> Array:
        """As `Rule`."""
        return ~(_inside(next_obs[self.first], self.z) & _inside(next_obs[self.first + 1], self.angle))


@struct.dataclass
class Ant:
    """Ends unless healthy: z in its range, bounds included, and all entries finite."""

    z: Range = struct.field(pytree_node=False, default=(0.2, 1.0))
    first: int = struct.field(pytree_node=False, default=0)  # entry of next_obs that holds z

    def __call__(self, next_obs: Array) -> Array:
        """As `Rule`."""
        z = next_obs[self.first]
        return ~((self.z[0] <= z) & (z <= self.z[1]) & jnp.isfinite(next_obs).all())


@struct.dataclass
class InvertedPendulum:
    """Ends where the pole leans by more than 0.2 rad, or any entry is not finite."""

    def __call__(self, next_obs: Array) -> Array:
        """As `Rule`."""
        return (jnp.abs(next_obs[1]) > 0.2) | ~jnp.isfinite(next_obs).all()


@struct.dataclass
class InvertedDoublePendulum:
    """Ends where the tip of two poles of length 0.6 is at height 1 or lower. Entries 1 to 4: sines, then cosines of the angles.

    The simulator tests the tip at its solver's last stage. That differs from the observed tip by less than 1e-3 in ordinary
    motion and by a few hundredths where velocities reach 10. A state that is not finite ends no episode there, nor here.
    """

    def __call__(self, next_obs: Array) -> Array:
        """As `Rule`."""
        sin1, sin2, cos1, cos2 = next_obs[1:5]
        height: Array = 0.6 * cos1 + 0.6 * (cos1 * cos2 - sin1 * sin2)  # the second angle is relative to the first pole
        return height <= 1.0


@struct.dataclass
class MazeGoal:
    """Ends within 0.45 of the goal, bound included. `achieved` and `desired` are (start, stop) of both in the observation."""

    achieved: tuple[int, int] = struct.field(pytree_node=False)
    desired: tuple[int, int] = struct.field(pytree_node=False)

    def __call__(self, next_obs: Array) -> Array:
        """As `Rule`."""
        distance: Array = jnp.linalg.norm(next_obs[slice(*self.achieved)] - next_obs[slice(*self.desired)])
        return distance <= 0.45


def _inside(value: Array, bounds: Range) -> Array:
    return (bounds[0] < value) & (value < bounds[1])


Settings = Mapping[str, Any]  # keyword arguments of the environment
Slices = Mapping[str, slice]  # where each entry of a dict observation lies; empty for plain observations


def _first(settings: Settings, omitted: int) -> int:
    """Index of z: `omitted` where the environment includes the root's x (and y) in front of it, else 0."""
    return 0 if settings.get("exclude_current_positions_from_observation", True) else omitted


def _ranges(settings: Settings, **names: str) -> dict[str, Range]:
    """Fields of a rule from the settings of these names, where given. Raises InputError unless each is two numbers."""
    found = {field: settings[name] for field, name in names.items() if name in settings}
    for field, value in found.items():
        check(len(value) == 2, names[field], value, "two numbers")
    return {field: (float(low), float(high)) for field, (low, high) in found.items()}


def _hopper(settings: Settings, slices: Slices) -> Rule:
    ranges = _ranges(settings, z="healthy_z_range", angle="healthy_angle_range", state="healthy_state_range")
    return Hopper(**ranges, first=_first(settings, 1))


def _walker2d(settings: Settings, slices: Slices) -> Rule:
    return Walker2d(**_ranges(settings, z="healthy_z_range", angle="healthy_angle_range"), first=_first(settings, 1))


def _ant(settings: Settings, slices: Slices) -> Rule:
    return Ant(**_ranges(settings, z="healthy_z_range"), first=_first(settings, 2))


def _maze_goal(settings: Settings, slices: Slices) -> Rule:
    check(slices.keys() >= _GOALS, "obs_keys", tuple(slices), "achieved_goal and desired_goal among them",
          "The rule maze_goal compares the two.")  # fmt: skip
    achieved, desired = slices["achieved_goal"], slices["desired_goal"]
    return MazeGoal(achieved=(achieved.start, achieved.stop), desired=(desired.start, desired.stop))


_GOALS = {"achieved_goal", "desired_goal"}
RULES: dict[str, Callable[[Settings, Slices], Rule]] = {
    "never": lambda settings, slices: Never(),
    "hopper": _hopper,
    "walker2d": _walker2d,
    "ant": _ant,
    "inverted_pendulum": lambda settings, slices: InvertedPendulum(),
    "inverted_double_pendulum": lambda settings, slices: InvertedDoublePendulum(),
    "maze_goal": _maze_goal,
}
_MUJOCO = {"HalfCheetah": "never", "Hopper": "hopper", "Walker2d": "walker2d", "Ant": "ant",
           "InvertedPendulum": "inverted_pendulum", "InvertedDoublePendulum": "inverted_double_pendulum",
           **dict.fromkeys(("Swimmer", "Reacher", "Pusher", "HumanoidStandup"), "never")}  # fmt: skip
_ENVIRONMENTS = {
    "point2d": "never",
    "linear_gaussian": "never",
    "Pendulum-v1": "never",
    **{f"{task}-v{version}": rule for task, rule in _MUJOCO.items() for version in (4, 5)},
}
_D4RL = {r"d4rl/ant-(contacts-)?v2": "ant", r"d4rl/maze2d-.+": "never"}
_MAZE = re.compile(r"PointMaze_\w+-v3|AntMaze_\w+-v[345]")


def known_rule(env_id: str | None, env_kwargs: Settings | None = None, obs_slices: Slices | None = None) -> str | None:
    """Name of the rule that an environment is known to follow, or None.

    `env_kwargs` are the environment's keyword arguments, `obs_slices` where the entries of a dict observation lie. With
    terminate_when_unhealthy = False the rule is "never". A maze that ends at its goal has a rule only where observations hold
    the achieved and the desired goal.
    """
    settings = env_kwargs or {}
    if _MAZE.fullmatch(env_id or ""):
        if settings.get("continuing_task", True):
            return "never"
        return "maze_goal" if (obs_slices or {}).keys() >= _GOALS else None
    d4rl = next((rule for ids, rule in _D4RL.items() if re.fullmatch(ids, env_id or "")), None)
    rule = d4rl or _ENVIRONMENTS.get(re.sub(r"^point2d-\d+$", "point2d", env_id or ""))
    return "never" if rule and not settings.get("terminate_when_unhealthy", True) else rule


def make_rule(name: str, env_kwargs: Settings | None = None, obs_slices: Slices | None = None) -> Rule:
    """The rule of that name, with the ranges that `env_kwargs` give and Gymnasium's defaults elsewhere.

    Raises InputError for unknown names, ranges that are not two numbers, and "maze_goal" without both goals in `obs_slices`.
    """
    check(name in RULES, FIELD, name, f"one of {', '.join(RULES)}")
    return RULES[name](env_kwargs or {}, obs_slices or {})


def termination(
    choice: str, env_id: str | None, env_kwargs: Settings | None = None, obs_slices: Slices | None = None
) -> Rule | None:
    """The rule for a value of the setting `world_model.termination`; None for "learned".

    `choice` is "auto" (the environment's known rule), "learned" or the name of a rule. Raises InputError for an unknown name,
    and for "auto" where the environment has no known rule: nothing is assumed about it.
    """
    choices = f'"learned" or the name of a rule ({", ".join(RULES)})'
    if choice == "learned":
        return None
    if choice != "auto":
        check(choice in RULES, FIELD, choice, f'"auto", {choices}')
        return make_rule(choice, env_kwargs, obs_slices)
    name = known_rule(env_id, env_kwargs, obs_slices)
    if name is None:
        raise InputError(f"{FIELD} = 'auto': expected an environment whose rule is known, not {env_id!r}. Choose {choices}.")
    return make_rule(name, env_kwargs, obs_slices)
