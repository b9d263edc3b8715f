"""A share of a dataset's episodes, as if nothing else had been collected."""

import dataclasses
import math
from typing import Any

import numpy as np

from jaxpgd.dataset import Dataset
from jaxpgd.errors import check

_STREAM = 1  # tells this draw from that of validation episodes, whose seed may be the same number


def fraction_of(dataset: Dataset, fraction: float, seed: int = 0) -> Dataset:
    """Random whole episodes of a dataset, with at least the share `fraction` of its transitions, in their order there.

    Episodes are drawn without replacement until they have that many transitions, at least one: where lengths differ, a share of
    the episodes would be another of the transitions. A smaller fraction of the same `seed` draws fewer of the same episodes, so
    that fractions are nested. With fraction 1 it is the dataset itself. Raises InputError unless 0 < fraction <= 1, seed >= 0.
    """
    check(0 < fraction <= 1, "data.fraction", fraction, "a number above 0 and at most 1")
    check(seed >= 0, "data.fraction_seed", seed, "a number not below 0")
    if fraction == 1:
        return dataset
    lengths = dataset.lengths()
    order = np.random.default_rng([seed, _STREAM]).permutation(dataset.episodes)
    needed = math.ceil(round(fraction * dataset.size, 6))  # 0.1 * 30 is 3, and not the number above it
    count = int(np.searchsorted(np.cumsum(lengths[order]), needed)) + 1
    taken = np.zeros(dataset.episodes, bool)
    taken[order[:count]] = True
    return _only(dataset, taken)


def _only(dataset: Dataset, taken: np.ndarray) -> Dataset:
    """The episodes that `taken` [E] marks."""
    lengths = dataset.lengths()
    steps = np.repeat(taken, lengths)
    names = ("obs", "action", "reward", "discount", "next_obs", "timeout")
    arrays: dict[str, Any] = {name: getattr(dataset, name)[steps] for name in names}
    whole = dataset.info.whole or (dataset.episodes, dataset.size)
    offsets = np.concatenate([[0], np.cumsum(lengths[taken])]).astype(np.int64)
    return dataclasses.replace(dataset, **arrays, offsets=offsets, info=dataclasses.replace(dataset.info, whole=whole))
