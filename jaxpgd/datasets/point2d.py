"""The dataset of the built-in environment `point2d`."""

import jax
import numpy as np

from jaxpgd.dataset import Dataset, DatasetInfo
from jaxpgd.datasets.assemble import assemble
from jaxpgd.datasets.scores import BUILTIN
from jaxpgd.envs.point2d import Point2D, behaviour_policy, collect

# Mean returns of the behaviour and the target policy over 16 steps (100,000 episodes each, standard error below 0.01).
REF_MIN = -18.34
REF_MAX = -8.05


def point2d_dataset(episodes: int, seed: int, env: Point2D | None = None) -> Dataset:
    """`episodes` rollouts of the behaviour policy in `env` (default: `Point2D()`), each `env.horizon` steps long.

    Its name is "point2d", followed by the number of steps if that is not the default ("point2d-100"). There are no timeouts: an
    episode ends with its task, not before, and windows may end there. Discounts are 1. The score is 0 at the behaviour policy's
    mean return and 100 at the target policy's, for the default environment only.
    """
    env = Point2D() if env is None else env
    standard, length = env == Point2D(), "" if env.horizon == Point2D().horizon else f"-{env.horizon}"
    trajectory, next_obs = collect(jax.random.key(seed), env, behaviour_policy(env), episodes)
    steps = episodes * env.horizon
    flat = lambda x: np.asarray(x).reshape(steps, *x.shape[2:])
    info = DatasetInfo(
        name=f"point2d{length}",
        source="builtin",
        action_low=(-1.0, -1.0),
        action_high=(1.0, 1.0),
        env_id=f"point2d{length}",
        ref_min=REF_MIN if standard else None,
        ref_max=REF_MAX if standard else None,
        ref_source=BUILTIN if standard else None,
    )
    none = np.zeros(steps, bool)
    offsets = np.arange(0, steps + 1, env.horizon)
    return assemble(
        info, flat(trajectory.obs), flat(trajectory.action), flat(trajectory.reward), flat(next_obs), none, none, offsets
    )
