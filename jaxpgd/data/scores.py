"""Normalised scores: 0 at the reference minimum, 100 at the reference maximum, always labelled with their source."""

import re

import numpy as np

from jaxpgd.data.dataset import DatasetInfo
from jaxpgd.errors import check

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


def normalized_score(info: DatasetInfo, returns: np.ndarray) -> tuple[np.ndarray | None, str]:
    """Scores 100 (R - min) / (max - min) of `returns` (any shape), and a label that names the reference.

    None where the dataset has no reference returns. Raises InputError where the two references are equal.
    """
    if info.ref_min is None or info.ref_max is None:
        return None, "no reference returns: scores are not normalised"
    check(info.ref_max != info.ref_min, f"reference returns of {info.name}", info.ref_max, "two different returns")
    score = 100.0 * (np.asarray(returns, np.float64) - info.ref_min) / (info.ref_max - info.ref_min)
    return score, f"normalised score (0 = {info.ref_min:.6g}, 100 = {info.ref_max:.6g}; {info.ref_source})"
