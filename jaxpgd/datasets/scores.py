"""Scores: labelled with what they are measured by, in columns that no two families of datasets share.

D4RL's table, Minari's stored references and OGBench's success rates are three scales. Datasets made locally have a fourth:
whatever they are measured by, their data is not what others publish numbers on.
"""

import re
from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
from numpy.typing import ArrayLike

from jaxpgd.dataset import DatasetInfo
from jaxpgd.datasets.d4rl import registration
from jaxpgd.errors import check

# what `DatasetInfo.ref_source` may say
D4RL, MINARI, OGBENCH, BUILTIN = "D4RL table", "minari metadata", "OGBench tasks", "builtin policies"
LOCAL = "local references"  # measured by whoever made the data
_FAMILIES = {D4RL: "D4RL", MINARI: "Minari", OGBENCH: "OGBench", BUILTIN: "built-in"}

# keys of Minari's metadata that jaxpgd adds: data made locally, and the `ref_source` of data it was made from
LOCAL_KEY, REFERENCE_KEY = "jaxpgd_local", "jaxpgd_ref_source"


def d4rl_reference(name: str) -> tuple[float, float] | None:
    """(minimum, maximum) for the name of a dataset or file of D4RL ("hopper-medium-v2", "walker_mixed"), else None."""
    found = registration(name)
    return None if found is None else (found.ref_min, found.ref_max)


def is_local_name(name: str) -> bool:
    """Whether an id or a file name says "local", as in `mujoco/hopper/medium-local-v0` or `hopper_random-local.hdf5`."""
    return re.search(r"-local(-|\.|$)", PurePath(name).name) is not None


def normalized_score(
    info: DatasetInfo, returns: np.ndarray, successes: np.ndarray | None = None
) -> tuple[np.ndarray | None, str]:
    """Scores of episodes, and a label that says what they are measured by.

    OGBench: 100 per success of `successes` (any shape, bool), so that means are success rates in percent. Others: 100 (R -
    min) / (max - min) of `returns` (any shape). None where the dataset has no reference returns, or OGBench's successes are
    not known. Raises InputError where the two references are equal.
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
    """The heading under which a dataset's scores may stand in a table. Datasets of different families get different ones.

    "score (D4RL)", "score (Minari)", "success rate % (OGBench)", "score (built-in)"; "score (local)" for data made locally,
    and such as "score (local, D4RL references)" or "success rate % (local, OGBench tasks)" where another's scale measures it.
    Without references "return of NAME": returns of different datasets stand in different columns.
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
    """The mean over datasets of each one's mean score, and its column.

    Raises InputError where there are none, or where they belong to different columns (`score_column`).
    """
    columns = sorted({score_column(info) for info, _ in scores})
    check(len(columns) > 0, "scores", [], "at least one dataset")
    check(len(columns) == 1, "columns of scores", columns, "one of them", "A mean over different scales means nothing.")
    return float(np.mean([np.mean(np.asarray(values, np.float64)) for _, values in scores])), columns[0]
