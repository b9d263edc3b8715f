"""The guided target distribution where it is known: behaviour rollouts of a built-in environment, weighted by importance."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax import Array

from jaxpgd.data.dataset import Dataset
from jaxpgd.envs.point2d import Point2D, effective_sample_size, importance_truth
from jaxpgd.evaluation.distances import sliced_wasserstein
from jaxpgd.evaluation.environments import is_builtin
from jaxpgd.settings import Config
from jaxpgd.training.denoiser import Windows
from jaxpgd.types import Policy, Trajectory

ROLLOUTS = 20_000


@dataclasses.dataclass(frozen=True)
class ImportanceTruth:
    """Behaviour rollouts with the log-likelihood [N] of their actions under the target policy."""

    trajectory: Trajectory
    log_likelihood: np.ndarray
    coefficient: float

    def weights(self, coefficient: float) -> np.ndarray:
        """Self-normalised importance weights [N] of p_off * q^coefficient."""
        return np.asarray(jax.nn.softmax(coefficient * self.log_likelihood))

    def distances(self, key: Array, windows: Windows, made: Trajectory, coefficient: float) -> dict[str, Any]:
        """Sliced Wasserstein distance of trajectories to the target for `coefficient`, over normalised tokens."""
        if made.reward.shape[1] != self.trajectory.reward.shape[1]:
            return {}
        flat = [np.asarray(windows.codec.encode(t)).reshape(len(t.reward), -1) for t in (made, self.trajectory)]
        return {"distance_to_truth": sliced_wasserstein(key, *flat, y_weights=self.weights(coefficient))}

    def summary(self) -> dict[str, Any]:
        """Rollouts, and the effective sample size at the run's coefficient."""
        size = effective_sample_size(self.coefficient * jax.numpy.asarray(self.log_likelihood))
        return {"rollouts": len(self.log_likelihood), "effective_sample_size": float(size), "coefficient": self.coefficient}


def known_truth(config: Config, dataset: Dataset, policy: Policy, key: Array) -> ImportanceTruth | None:
    """Importance-weighted truth of guidance towards `policy`, where a built-in environment makes it known; else None."""
    if not is_builtin(dataset.info):
        return None
    trajectory, log_likelihood = importance_truth(key, Point2D(), policy, 1.0, ROLLOUTS)
    return ImportanceTruth(jax.tree.map(np.asarray, trajectory), np.asarray(log_likelihood), config.guidance.coefficient)
