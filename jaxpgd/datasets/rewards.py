"""Scale and shift of the rewards that agents learn from. Reports stay in the dataset's own units."""

import dataclasses
import math

import numpy as np

from jaxpgd.dataset import Dataset, learned_reward
from jaxpgd.errors import check

RETURN_RANGE = 1000.0  # range of the returns of a dataset after normalisation


def with_learned_rewards(dataset: Dataset, scale: float = 1.0, shift: float = 0.0, normalisation: str = "none") -> Dataset:
    """The same dataset, with rewards scale * (reward + shift) in its `transitions`.

    The normalisation "return_range" multiplies the scale by 1000 / (largest - smallest return of an episode), as IQL does on
    locomotion (arXiv 2110.06169, with scale 1 and shift 0). With "standard" rewards are
    scale * ((reward - mean) / standard deviation + shift), as in Diffusion-QL on pen (arXiv 2208.06193). On antmaze, IQL uses
    shift -1 and CQL (arXiv 2006.04779) scale 4 and shift -0.5. Raises InputError for scales not above 0, equal returns under
    "return_range", equal rewards under "standard", and results that float32 cannot represent or distinguish.
    """
    check(0 < scale < math.inf, "data.reward_scale", scale, "a finite number above 0")
    check(math.isfinite(shift), "data.reward_shift", shift, "a finite number")
    known = ("none", "return_range", "standard")
    check(normalisation in known, "data.reward_normalisation", normalisation, "one of " + ", ".join(map(repr, known)))
    if normalisation == "return_range":
        returns = dataset.returns()
        span = float(returns.max() - returns.min())
        check(span > 0, "data.reward_normalisation", normalisation, "'none' where all episodes have the same return",
              f"Those of {dataset.info.name!r} are {returns.max():g}.")  # fmt: skip
        scale = scale * RETURN_RANGE / span
    if normalisation == "standard":
        rewards = np.asarray(dataset.reward, np.float64)
        mean, std = float(rewards.mean()), float(rewards.std())
        check(std > 0, "data.reward_normalisation", normalisation, "'none' where all rewards are the same",
              f"Those of {dataset.info.name!r} are {mean:g}.")  # fmt: skip
        scale, shift = scale / std, shift * std - mean
    info = dataclasses.replace(dataset.info, reward_scale=float(scale), reward_shift=float(shift))
    _check_learned(dataset, dataclasses.replace(dataset, info=info))
    return dataclasses.replace(dataset, info=info)


def _check_learned(stored: Dataset, chosen: Dataset) -> None:
    """Raise InputError if the rewards of `chosen` are not finite, or equal although those of `stored` differ."""
    info, before = chosen.info, np.asarray(stored.reward)
    if info.rewards_as_stored:
        return
    with np.errstate(over="ignore", under="ignore"):
        after = np.asarray(learned_reward(info, before))  # type: ignore[arg-type]
    named, given = "data.reward_scale, data.reward_shift", (info.reward_scale, info.reward_shift)
    finite = bool(np.isfinite(after).all())
    check(finite, named, given, "numbers with which scale * (reward + shift) is finite in float32")
    kept = len(np.unique(before)) == 1 or len(np.unique(after)) > 1
    check(kept, named, given, "numbers with which different rewards stay different in float32")
