"""Environments in which data can be collected."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator

from jaxpgd.dataset import DatasetInfo
from jaxpgd.datasets.checks import check_bounds
from jaxpgd.datasets.nested import leaves, obs_order
from jaxpgd.envs.builtin import is_builtin
from jaxpgd.errors import check
from jaxpgd.simulators.environments import make_environment


@dataclasses.dataclass(frozen=True)
class Task:
    """An environment to collect data in, from `collection_task`."""

    env: gymnasium.Env
    info: DatasetInfo  # action bounds, order and sizes of observations
    boxes: tuple[gymnasium.spaces.Box, ...]  # of the observation, in the order of `info.obs_keys`; one if that is empty
    spec: EnvSpec | None  # stored by Minari; None if the environment cannot be made from JSON

    @property
    def obs_dim(self) -> int:
        """O."""
        return sum(self.info.obs_sizes)


def collection_task(env_id: str, kwargs: Mapping[str, Any] | None = None) -> Task:
    """The Gymnasium environment `env_id` ("module:Id" imports the module that registers it), made with `kwargs`.

    Raises InputError unless the environment can be made, has a step limit, has actions in a Box of floats with one axis and
    finite bounds, and has observations in a Box with one axis or a Dict of such.
    """
    check(not is_builtin(env_id), "env_id", env_id, "a Gymnasium id", "point2d is no Gymnasium environment: it is generated on "
          "load, without files (data.name = \"point2d\").")  # fmt: skip
    known = DatasetInfo(name=env_id, source="minari", action_low=(), action_high=(), env_id=env_id)
    env = make_environment(known, **dict(kwargs or {}))
    try:
        return _task(env, env_id)
    except BaseException:
        env.close()
        raise


def _task(env: gymnasium.Env, env_id: str) -> Task:
    spec, actions, keys = env.spec, env.action_space, obs_order(env.observation_space)
    space: Any = env.observation_space
    boxes: list[Any] = [leaves(space)[key] for key in keys] if keys else [space]
    for key, box in zip(keys or ("",), boxes, strict=True):
        field = f"observation space of {env_id}" + (f", key {key!r}" if key else "")
        check(len(box.shape) == 1 and box.shape[0] > 0, field, box, "a Box with one axis", "Flatten it with a wrapper.")
    assert spec is not None
    limit = spec.max_episode_steps
    check(limit is not None and limit > 0, f"max_episode_steps of {env_id}", limit, "a number of steps above 0",
          "Without a limit an episode may never end: give one with --env-kwargs '{\"max_episode_steps\": 1000}'.")  # fmt: skip
    field = f"action space of {env_id}"
    check(isinstance(actions, gymnasium.spaces.Box), field, actions, "a Box", "Only continuous actions work.")
    assert isinstance(actions, gymnasium.spaces.Box)
    continuous = len(actions.shape) == 1 and np.issubdtype(actions.dtype, np.floating)
    check(continuous, field, actions, "a Box of floating-point numbers with one axis")
    check_bounds(env_id, actions.low, actions.high, actions.shape[0])
    info = DatasetInfo(
        name=env_id, source="minari", action_low=tuple(actions.low.tolist()), action_high=tuple(actions.high.tolist()),
        env_id=spec.id, obs_keys=keys, obs_sizes=tuple(box.shape[0] for box in boxes),
    )  # fmt: skip
    return Task(env, info, tuple(boxes), _storable(spec))


def _storable(spec: EnvSpec) -> EnvSpec | None:
    """The spec with its entry point as "module:name". None if it cannot be imported from there or written as JSON."""
    creator: Any = spec.entry_point
    try:
        if callable(creator):
            named = f"{creator.__module__}:{creator.__qualname__}"
            if creator.__module__ == "__main__" or load_env_creator(named) is not creator:
                return None
            spec = dataclasses.replace(spec, entry_point=named)
        EnvSpec.from_json(spec.to_json())
    except (AttributeError, ImportError, TypeError, ValueError):
        return None
    return spec
