"""The Gymnasium environment of a dataset, with clear errors if it cannot be made."""

import dataclasses
import importlib.util
import io
import signal
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import PurePath
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from jaxpgd.dataset import DatasetInfo
from jaxpgd.datasets.d4rl import why_not_run
from jaxpgd.datasets.env_specs import spec_from_json, stored_spec
from jaxpgd.datasets.nested import leaves
from jaxpgd.datasets.ogbench_store import import_ogbench
from jaxpgd.datasets.scores import D4RL
from jaxpgd.envs import builtin
from jaxpgd.errors import EnvironmentFailure, InputError, check
from jaxpgd.simulators import d4rl_tasks
from jaxpgd.simulators.stepping import described, quiet_mujoco

_ROBOTICS = ("PointMaze", "AntMaze", "Fetch", "Hand", "Adroit", "FrankaKitchen", "d4rl/")
_INSTALL = 'Install it with: pip install "jaxpgd[mujoco]"'

d4rl_tasks.register()


def is_builtin(info: DatasetInfo) -> bool:
    """Whether the dataset's environment is one of jaxpgd's own JAX environments."""
    return builtin.is_builtin(info.env_id)


def evaluated_in(info: DatasetInfo) -> DatasetInfo:
    """`info` with the environment of its reference returns: Minari's evaluation environment, if the dataset stores one."""
    if info.eval_env_spec is None:
        return info
    found = dataclasses.replace(info, env_spec=info.eval_env_spec, eval_env_spec=None)
    return dataclasses.replace(found, env_id=str(_stored_spec(found).get("id", info.env_id)))


def with_environment(info: DatasetInfo, env_id: str) -> DatasetInfo:
    """`info` with the environment `env_id`, "Id" or "module:Id", that the user chose.

    If the module registers the environment of the stored spec, the spec is kept, and with it the arguments of that time.
    Reference returns are kept only if they belong to this environment. Raises InputError if the module cannot be imported.
    """
    plain = dataclasses.replace(info, env_id=env_id, env_spec=None, eval_env_spec=None)
    if not _refers_to(info, env_id.rpartition(":")[2]):
        plain = dataclasses.replace(plain, ref_min=None, ref_max=None, ref_source=None)
    if info.env_spec is None or ":" not in env_id or info.env_id != env_id.rpartition(":")[2]:
        return plain
    _registered_spec(env_id)
    try:
        stored_spec(info.env_spec, info.name)
    except InputError:
        return plain
    return info


def _refers_to(info: DatasetInfo, env_id: str) -> bool:
    """Whether the reference returns of `info` belong to this environment. If `info` names none, the user's word counts."""
    try:
        home = evaluated_in(info).env_id
    except InputError:  # a stored spec that is not trusted
        home = info.env_id
    return info.ref_source != D4RL if home is None else home == env_id


def require_environment(info: DatasetInfo, obs_dim: int | None = None) -> None:
    """Check that policies can be evaluated: the environment can be made, and has the dataset's sizes and action bounds.

    Call this at the start of a run, before compute is spent. Raises InputError if the dataset names no environment, the
    environment is unknown, or an extra is not installed.
    """
    why = why_not_run(PurePath(info.name).stem) if info.ref_source == D4RL else None
    check(info.env_id is not None, "env_id", info.env_id, f"the environment that dataset {info.name!r} was collected in",
          (f"D4RL's task is not run here: {why}. " if why else "")
          + "Evaluation needs it: name a Gymnasium id with data.env_id.")  # fmt: skip
    info = evaluated_in(info)
    if is_builtin(info):
        return
    env = make_environment(info)
    shape, space, seen = env.action_space.shape, env.action_space, env.observation_space
    with suppress(Exception):
        env.close()
    if obs_dim is not None:
        _check_observations(info, seen, obs_dim)
    check(shape == (len(info.action_low),), "env_id", info.env_id,
          f"an environment with {len(info.action_low)} action entries as in the dataset, not {shape}")  # fmt: skip
    if not isinstance(space, gymnasium.spaces.Box):
        return
    for name, ours, theirs in (("action_low", info.action_low, space.low), ("action_high", info.action_high, space.high)):
        same = np.isclose(ours, theirs, rtol=1e-4, atol=1e-6) | ~np.isfinite(theirs)
        check(bool(np.all(same)), f"{name} of {info.name}", list(ours), f"that of {info.env_id}, {theirs.tolist()}",
              f"Store action_low and action_high, [{len(ours)}] each, with the data: actions are scaled by them.")  # fmt: skip


def _check_observations(info: DatasetInfo, space: gymnasium.Space[Any], obs_dim: int) -> None:
    """Raise InputError unless observations of the space flatten to the dataset's [obs_dim]."""
    if isinstance(space, gymnasium.spaces.Dict):
        parts = leaves(space)
        missing = [k for k in info.obs_keys if k not in parts]
        check(bool(info.obs_keys) and not missing, "obs_keys", info.obs_keys, f"names among {sorted(parts)}",
              f"{info.env_id} has these observations.")  # fmt: skip
        space = gymnasium.spaces.Dict({k: parts[k] for k in info.obs_keys})
    size = gymnasium.spaces.flatdim(space)
    check(size == obs_dim, "env_id", info.env_id, f"an environment with {obs_dim} observation entries as in the dataset, "
          f"not {size}")  # fmt: skip


def make_environment(info: DatasetInfo, **kwargs: Any) -> gymnasium.Env:
    """A new Gymnasium environment, from the stored spec or else from the id. Raises InputError if it cannot be made.

    `kwargs` are arguments of `gymnasium.make`, such as `max_episode_steps`, and of the environment.
    """
    spec = environment_spec(info)
    try:
        with quiet_mujoco():
            return gymnasium.make(spec, **kwargs)
    except ImportError as error:
        raise InputError(f"env_id = {info.env_id!r}: expected its packages to be installed ({error}). {_INSTALL}") from error
    except Exception as error:  # environments raise exceptions of any type
        raise InputError(
            f"env_id = {info.env_id!r}: expected an environment that can be made, by these versions of its packages "
            f"({described(error)})."
        ) from error


@contextmanager
def answering(env_id: str | None) -> Iterator[None]:
    """A context that turns any exception of an environment into an EnvironmentFailure that names it."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM:
            raise
        raise EnvironmentFailure(f"An environment {env_id} failed: {described(error)}") from error


def environment_spec(info: DatasetInfo) -> EnvSpec:
    """The Gymnasium spec of the dataset's environment. Raises InputError if it is unknown or an extra is missing."""
    entry = _stored_entry_point(info)
    needs_robotics = entry.startswith("gymnasium_robotics") or str(info.env_id).startswith(_ROBOTICS)
    _require_package("gymnasium_robotics", needs_robotics, info)
    if entry.startswith("ogbench") or "-singletask-" in str(info.env_id):
        import_ogbench(f"env_id = {info.env_id!r}")
    try:
        spec = spec_from_json(info.env_spec, info.name) if info.env_spec else _registered_spec(str(info.env_id))
    except (gymnasium.error.Error, TypeError, ValueError, KeyError) as error:
        raise InputError(f"env_id = {info.env_id!r}: expected an environment known to Gymnasium ({error}).") from error
    _require_package("mujoco", needs_robotics or str(spec.entry_point).startswith("gymnasium.envs.mujoco"), info)
    return spec


def _registered_spec(env_id: str) -> EnvSpec:
    """The spec registered as "Id", or as "module:Id" after an import of the module."""
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except Exception as error:  # modules raise exceptions of any type
            why = str(error) if isinstance(error, ImportError) else described(error)
            raise InputError(f"env_id = {env_id!r}: expected a module that can be imported ({why}). PYTHONPATH names the "
                             "folders that are searched.") from error  # fmt: skip
    return gymnasium.spec(name)


def environment_kwargs(info: DatasetInfo) -> dict[str, Any]:
    """Keyword arguments of the dataset's environment: those stored, or else those registered with its id.

    Empty for environments that are unknown or not installed. Raises InputError if the stored spec is invalid.
    """
    if info.env_spec:
        return dict(_stored_spec(info).get("kwargs") or {})
    try:
        return {} if is_builtin(info) else dict(environment_spec(info).kwargs)
    except InputError:
        return {}


def _stored_entry_point(info: DatasetInfo) -> str:
    return str(_stored_spec(info).get("entry_point", "")) if info.env_spec else ""


def _stored_spec(info: DatasetInfo) -> dict[str, Any]:
    return stored_spec(info.env_spec or "", info.name)


def _require_package(package: str, needed: bool, info: DatasetInfo) -> None:
    if not needed:
        return
    if importlib.util.find_spec(package) is None:
        raise InputError(f"env_id = {info.env_id!r}: expected the package {package} to be installed. {_INSTALL}")
    if package == "gymnasium_robotics":
        with redirect_stderr(io.StringIO()):  # it prints a notice about unrelated environments
            gymnasium.register_envs(importlib.import_module(package))


@contextmanager
def seeded_numpy(seed: int) -> Iterator[None]:
    """A context with NumPy's global generator seeded, from which OGBench's mazes draw starts. Restores its state afterwards."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def flatten_obs(info: DatasetInfo, obs: np.ndarray | dict[str, Any]) -> np.ndarray:
    """Observations in the dataset's form, [..., O] float32: (nested) dicts are joined in the order of `info.obs_keys`."""
    if not isinstance(obs, dict):
        return np.asarray(obs, np.float32)
    parts = leaves(obs)
    missing = [k for k in info.obs_keys if k not in parts]
    check(bool(info.obs_keys) and not missing, "obs_keys", info.obs_keys, f"names among {sorted(parts)}",
          "Load the dataset with the observation keys of its environment.")  # fmt: skip
    return np.concatenate([np.asarray(parts[k], np.float32) for k in info.obs_keys], axis=-1)
