"""Collection of episodes in a Gymnasium environment, in Minari's format."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import gymnasium
import jax
import numpy as np
from jax import Array
from minari.data_collector import EpisodeBuffer

from jaxpgd.dataset import to_env_action
from jaxpgd.datasets.checks import check_finite
from jaxpgd.datasets.nested import leaves, nest
from jaxpgd.simulators.collection_task import Task
from jaxpgd.simulators.environments import answering, seeded_numpy
from jaxpgd.types import Policy

Ended = bool  # whether an episode came to its own end, rather than to a limit of steps
COLLECTED, MEASURED = 0, 1  # streams of random numbers: episodes of a dataset, and episodes that measure a return
_HALVINGS, _NEAR = 10, 0.02


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """How actions are chosen: uniformly with probability `epsilon` (always, without a policy), otherwise by the policy.

    `greedy` takes its mode instead of a sample. `noise` is the standard deviation of Gaussian noise added to its action in
    [-1, 1], which is then clipped.
    """

    policy: Policy | None = None
    greedy: bool = False
    noise: float = 0.0
    epsilon: float = 0.0


def collect(
    task: Task, behaviours: Sequence[Behaviour], total: int, unit: str, seed: int
) -> Iterator[tuple[EpisodeBuffer, Ended]]:
    """Episodes until there are `total` of the `unit` ("transitions" or "episodes"), with equal shares of each behaviour.

    The next episode is of the behaviour with the least so far. The last one is truncated at `total` transitions. Episode i
    depends only on `seed`, i, its behaviour and its limit. Yields episodes, and whether each came to its own end. Raises
    InputError for values that are not finite.
    """
    given = [0] * len(behaviours)
    index = 0
    while sum(given) < total:
        turn = given.index(min(given))
        limit = total - sum(given) if unit == "transitions" else None
        episode, ended = run_episode(task, behaviours[turn], (seed, COLLECTED, index), limit)
        given[turn] += len(episode) if unit == "transitions" else 1
        index += 1
        yield episode, ended


def measure(task: Task, behaviour: Behaviour, episodes: int, seed: int) -> np.ndarray:
    """Undiscounted returns [episodes] of a behaviour. All behaviours see the same random numbers for the same seed."""
    return np.array([np.sum(run_episode(task, behaviour, (seed, MEASURED, i))[0].rewards) for i in range(episodes)])


def run_episode(
    task: Task, behaviour: Behaviour, seed: tuple[int, ...], limit: int | None = None
) -> tuple[EpisodeBuffer, Ended]:
    """One episode of T steps and T + 1 observations, truncated after `limit` steps, and whether it came to its own end.

    `seed` determines all random numbers, including the seed of the environment.
    """
    rng = np.random.default_rng(seed)
    start, key = int(rng.integers(2**31)), jax.random.key(int(rng.integers(2**31)))
    steps: list[tuple[np.ndarray, float, bool, bool]] = []
    with seeded_numpy(start):  # some environments draw from it
        with answering(task.info.env_id):
            observation, _ = task.env.reset(seed=start)
        seen, ended = [_parts(task, observation)], False
        while not ended and len(steps) != limit:
            action = _choose(task, behaviour, key, len(steps), seen[-1], rng)
            with answering(task.info.env_id):
                observation, reward, terminated, truncated, _ = task.env.step(action.copy())
                reward = float(reward)
            ended = bool(terminated) or bool(truncated)
            seen.append(_parts(task, observation))
            steps.append((action, reward, bool(terminated), bool(truncated)))
    parts = [np.stack(column) for column in zip(*seen, strict=True)]
    actions, rewards, terminations, truncations = (np.array(column) for column in zip(*steps, strict=True))
    truncations[-1] |= not ended
    named = dict(zip(task.info.obs_keys or ("observation",), parts, strict=True))
    check_finite(f"{task.info.name}, episode of seed {seed}", {**named, "action": actions, "reward": rewards})
    episode = EpisodeBuffer(
        seed=start,
        observations=nest(task.info.obs_keys, parts) if task.info.obs_keys else parts[0],
        actions=actions,
        rewards=rewards,  # type: ignore[arg-type]  # arrays are stored like lists
        terminations=terminations,  # type: ignore[arg-type]
        truncations=truncations,  # type: ignore[arg-type]
    )
    return episode, ended


def _parts(task: Task, observation: Any) -> list[np.ndarray]:
    """Copies of an observation's entries: environments may overwrite their own arrays."""
    parts = leaves(observation) if task.info.obs_keys else {"": observation}
    return [np.array(parts[k], box.dtype) for k, box in zip(task.info.obs_keys or ("",), task.boxes, strict=True)]


def _choose(
    task: Task, behaviour: Behaviour, key: Array, step: int, parts: list[np.ndarray], rng: np.random.Generator
) -> np.ndarray:
    """The next action, in the environment's bounds and dtype."""
    size, space = len(task.info.action_low), task.env.action_space
    # drawn whether needed or not, so that compared behaviours see the same random numbers
    switch, action, normal = rng.random(), rng.uniform(-1.0, 1.0, size), rng.normal(size=size)
    if behaviour.policy is not None and switch >= behaviour.epsilon:
        obs = np.concatenate(parts).astype(np.float32)
        chosen = _act(behaviour.policy, key, step, obs, behaviour.greedy)
        action = np.asarray(chosen, np.float64) + behaviour.noise * normal
    assert isinstance(space, gymnasium.spaces.Box)
    # clipped again in the dtype of the actions, in which rounding may leave the bounds
    return np.asarray(np.clip(to_env_action(task.info, action).astype(space.dtype), space.low, space.high))


@partial(jax.jit, static_argnames="greedy")
def _act(policy: Policy, key: Array, step: int, obs: Array, greedy: bool) -> Array:
    return policy.mode(obs) if greedy else policy.sample(jax.random.fold_in(key, step), obs)


def blend(mean_return: Callable[[float], float], random: float, own: float, fraction: float) -> tuple[float, float]:
    """The probability epsilon of random actions at which a policy's mean return is `random` + `fraction` (`own` - `random`).

    `mean_return(epsilon)` measures it. `random` and `own` are its values at epsilon 1 and 0. Bisects [0, 1] at most 10 times,
    assuming that more random actions earn less, and stops within 2 % of `own` - `random`. Returns the best measured epsilon and
    its mean return.
    """
    aim, near = random + fraction * (own - random), _NEAR * abs(own - random)
    found = {0.0: own, 1.0: random}
    low, high = 0.0, 1.0
    while min(abs(value - aim) for value in found.values()) > near and len(found) < 2 + _HALVINGS:
        middle = (low + high) / 2
        found[middle] = mean_return(middle)
        low, high = (middle, high) if found[middle] > aim else (low, middle)
    epsilon = min(found, key=lambda e: abs(found[e] - aim))
    return epsilon, found[epsilon]
