"""Normalised scores, labelled by their references. Each family of datasets has its own column in tables.

D4RL's table, Minari's stored references and OGBench's success rates are three scales. Datasets collected locally have a fourth,
whatever their references: published numbers refer to other data.
"""

import re
from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
from numpy.typing import ArrayLike

from jaxpgd.dataset import DatasetInfo
from jaxpgd.datasets.d4rl import registration
from jaxpgd.errors import check

# values of `DatasetInfo.ref_source`
D4RL, MINARI, OGBENCH, BUILTIN = "D4RL table", "minari metadata", "OGBench tasks", "builtin policies"
LOCAL = "local references"  # measured by whoever collected the data
_FAMILIES = {D4RL: "D4RL", MINARI: "Minari", OGBENCH: "OGBench", BUILTIN: "built-in"}

# keys that jaxpgd adds to Minari's metadata: local data, and the `ref_source` of its origin
LOCAL_KEY, REFERENCE_KEY = "jaxpgd_local", "jaxpgd_ref_source"


def d4rl_reference(name: str) -> tuple[float, float] | None:
    """D4RL's (minimum, maximum) for the name of a dataset or file ("hopper-medium-v2", "walker_mixed"). None for others."""
    found = registration(name)
    return None if found is None else (found.ref_min, found.ref_max)


def is_local_name(name: str) -> bool:
    """Whether an id or a file name says "local", as in `mujoco/hopper/medium-local-v0` or `hopper_random-local.hdf5`."""
    return re.search(r"-local(-|\.|$)", PurePath(name).name) is not None


def normalized_score(
    info: DatasetInfo, returns: np.ndarray, successes: np.ndarray | None = None
) -> tuple[np.ndarray | None, str]:
    """Scores of episodes, and a label that names their references.

    OGBench: 100 for each success in `successes` (any shape, bool), so that means are success rates in percent. Others:
    100 (R - min) / (max - min) of `returns` (any shape). The scores are None if the dataset has no reference returns, or if
    OGBench's successes are not given. Raises InputError if both references are equal.
    """
    note = "; made locally, not comparable with published scores" if info.local else ""
    if info.ref_source == OGBENCH:
        score = None if successes is None else 100.0 * np.asarray(successes, np.float64)
        return score, f"success rate in percent ({OGBENCH}){note}"
    if info.ref_min is None or info.ref_max is None:
        return None, f"no reference returns: scores are not normalised{note}"
    check(info.ref_max != info.ref_min, f"reference returns of {info.name}", info.ref_max, "two different returns")
    score = 100.0 * (np.asarray(returns, np.float64) - info.ref_min) / (info.ref_max - info.ref_min)
    return score, f"normalised score (0 = {info.ref_min:.6g}, 100 = {info.ref_max:.6g}; {info.ref_source}{note})"


def score_column(info: DatasetInfo) -> str:
    """The column of a dataset's scores in tables. Families of datasets do not share columns.

    "score (D4RL)", "score (Minari)", "success rate % (OGBench)", "score (built-in)". Data collected locally gets "score
    (local)" or, on the scale of another family, "score (local, D4RL references)" or "success rate % (local, OGBench tasks)".
    Datasets without references get a column each, "return of NAME".
    """
    if info.ref_source != OGBENCH and (info.ref_min is None or info.ref_max is None):
        return f"return of {info.name}"
    what = "success rate %" if info.ref_source == OGBENCH else "score"
    family = _FAMILIES.get(str(info.ref_source), str(info.ref_source))
    if not info.local:
        return f"{what} ({family})"
    if info.ref_source == LOCAL:
        return f"{what} (local)"
    return f"{what} (local, {family} {'tasks' if info.ref_source == OGBENCH else 'references'})"


def mean_score(scores: Sequence[tuple[DatasetInfo, ArrayLike]]) -> tuple[float, str]:
    """The mean over datasets of their mean scores, and its column.

    Raises InputError for no datasets, and for datasets with different columns (`score_column`).
    """
    columns = sorted({score_column(info) for info, _ in scores})
    check(len(columns) > 0, "scores", [], "at least one dataset")
    check(len(columns) == 1, "columns of scores", columns, "one of them", "A mean over different scales means nothing.")
    return float(np.mean([np.mean(np.asarray(values, np.float64)) for _, values in scores])), columns[0]
