"""The guided target distribution where it is known: behaviour rollouts of a built-in environment, weighted by importance."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpgd.dataset import Dataset, in_learned_units
from jaxpgd.envs.builtin import builtin_environment
from jaxpgd.envs.point2d import importance_truth
from jaxpgd.metrics.distances import sliced_wasserstein
from jaxpgd.resampling import effective_sample_size
from jaxpgd.simulators.environments import is_builtin
from jaxpgd.training.windows import Windows
from jaxpgd.types import Policy, Trajectory

ROLLOUTS = 20_000
LEAST_EFFECTIVE_SIZE = 500.0  # below it the weighted rollouts say too little of the target


@dataclasses.dataclass(frozen=True)
class ImportanceTruth:
    """Behaviour rollouts with the log-likelihood [N] of their actions under the target policy, and rewards as learned.

    `coefficient` is the one at which guided samples are compared with unguided ones: the largest of those in question at
    which the effective sample size is enough.
    """

    trajectory: Trajectory
    log_likelihood: np.ndarray
    coefficient: float

    def effective_size(self, coefficient: float) -> float:
        """Effective sample size of the weights for a coefficient."""
        return float(effective_sample_size(coefficient * jnp.asarray(self.log_likelihood)))

    def distances(self, key: Array, windows: Windows, synthetic: Trajectory, coefficient: float) -> dict[str, Any]:
        """Sliced Wasserstein distance of trajectories to the target, over normalised tokens.

        The target is that of the coefficient they were made with (unguided: `self.coefficient`); empty where it is unknown.
        """
        coefficient = coefficient or self.coefficient
        same_length = synthetic.reward.shape[1] == self.trajectory.reward.shape[1]
        if not same_length or self.effective_size(coefficient) < LEAST_EFFECTIVE_SIZE:
            return {}
        flat = [np.asarray(windows.unit.encode(t)).reshape(len(t.reward), -1) for t in (synthetic, self.trajectory)]
        weights = np.asarray(jax.nn.softmax(coefficient * jnp.asarray(self.log_likelihood)))
        return {"distance_to_truth": sliced_wasserstein(key, *flat, y_weights=weights)}

    def compared(
        self, key: Array, windows: Windows, synthetic: Trajectory, plain: Trajectory, coefficient: float
    ) -> dict[str, Any]:
        """`distances` of trajectories, and of the unguided ones `plain` to the same target: what no guidance would be worth."""
        row = self.distances(key, windows, synthetic, coefficient)
        if coefficient > 0 and row:
            row["unguided_distance_to_truth"] = self.distances(key, windows, plain, coefficient)["distance_to_truth"]
        return row

    def summary(self) -> dict[str, Any]:
        """Rollouts, the coefficient of the comparison, and the effective sample size there."""
        size = self.effective_size(self.coefficient)
        return {"rollouts": len(self.log_likelihood), "effective_sample_size": size, "coefficient": self.coefficient}


def known_truth(dataset: Dataset, policy: Policy, coefficients: list[float], key: Array) -> ImportanceTruth | None:
    """Importance-weighted truth of guidance towards `policy`, where a built-in environment makes it known; else None."""
    if not is_builtin(dataset.info):
        return None
    env = builtin_environment(dataset.info.env_id)
    trajectory, log_likelihood = importance_truth(key, env, policy, 1.0, ROLLOUTS)
    trajectory = in_learned_units(dataset.info, trajectory)
    truth = ImportanceTruth(jax.tree.map(np.asarray, trajectory), np.asarray(log_likelihood), min(coefficients))
    enough = [c for c in coefficients if truth.effective_size(c) >= LEAST_EFFECTIVE_SIZE]
    return dataclasses.replace(truth, coefficient=max(enough, default=min(coefficients)))
