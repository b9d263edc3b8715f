"""Scores: labelled with what they are measured by, in columns that no two families of datasets share.

D4RL's table, Minari's stored references and OGBench's success rates are three scales. Datasets made locally have a fourth:
whatever they are measured by, their data is not what others publish numbers on.
"""

import re
from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
from numpy.typing import ArrayLike

from jaxpgd.data.dataset import DatasetInfo
from jaxpgd.errors import check

# what `DatasetInfo.ref_source` may say
D4RL, MINARI, OGBENCH, BUILTIN = "D4RL table", "minari metadata", "OGBench tasks", "builtin policies"
LOCAL = "local references"  # measured by whoever made the data
_FAMILIES = {D4RL: "D4RL", MINARI: "Minari", OGBENCH: "OGBench", BUILTIN: "built-in"}

# keys of Minari's metadata that jaxpgd adds: data made locally, and the `ref_source` of data it was made from
LOCAL_KEY, REFERENCE_KEY = "jaxpgd_local", "jaxpgd_ref_source"

# Return of a random policy and of an expert, as published with D4RL (arXiv 2004.07219, `d4rl/infos.py`).
# Reference scores of mazes belong to a maze and a reward, all others to the environment.
D4RL_TABLE: dict[str, tuple[float, float]] = {
    "hopper": (-20.272305, 3234.3),
    "halfcheetah": (-280.178953, 12135.0),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
    "antmaze": (0.0, 1.0),
    "maze2d-open": (0.01, 20.66),
    "maze2d-umaze": (23.85, 161.86),
    "maze2d-medium": (13.13, 277.39),
    "maze2d-large": (6.7, 273.99),
    "maze2d-open-dense": (11.17817, 27.166538620695782),
    "maze2d-umaze-dense": (68.537689, 193.66285642381482),
    "maze2d-medium-dense": (44.264742, 297.4552547777125),
    "maze2d-large-dense": (30.569041, 303.4857382709002),
    "pen": (96.262799, 3076.8331017826877),
    "hammer": (-274.856578, 12794.134825156867),
    "door": (-56.512833, 2880.5693087298737),
    "relocate": (-6.425911, 4233.877797728884),
    "kitchen": (0.0, 4.0),
}


def d4rl_reference(name: str) -> tuple[float, float] | None:
    """(minimum, maximum) for a dataset or file named like D4RL's ("hopper-medium-v2", "maze2d_umaze_dense"), else None."""
    words = [w for w in re.split(r"[-_]", name.lower()) if w]
    if not words:
        return None
    if words[0] != "maze2d":
        return D4RL_TABLE.get(words[0])
    maze = [w for w in words[1:3] if w in ("open", "umaze", "medium", "large", "dense")]
    return D4RL_TABLE.get("-".join(["maze2d", *maze]))


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
