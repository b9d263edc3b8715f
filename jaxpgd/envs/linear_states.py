"""Later states of linear dynamics, in closed form, given the first state and either all actions or all innovations.

If a behaviour policy reacts to states, its actions are evidence about the states in which it took them. The distribution of
states given actions under the behaviour is therefore wrong about another policy's actions. Its innovations
e_t = a_t - E[a_t | s_t] are independent of the states up to t, hence no evidence: given them, states follow the dynamics.
"""

import dataclasses
from typing import Literal

import numpy as np

from jaxpgd.envs.linear_gaussian import LinearGaussian, linear_policy, trajectory_moments
from jaxpgd.types import Policy

Given = Literal["actions", "innovations"]


@dataclasses.dataclass(frozen=True)
class LaterStates:
    """The Gaussian of the states s_1 ... s_{T-1} given s_0 and all actions or innovations, in float64."""

    gain: np.ndarray  # [(T - 1) O, O + T A]
    offset: np.ndarray  # [(T - 1) O]
    cov: np.ndarray  # [(T - 1) O, (T - 1) O]
    obs_dim: int

    def mean(self, start: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Mean [N, T - 1, O] given start [N, O] and actions or innovations [N, T, A]."""
        known = np.concatenate([start, values.reshape(len(values), -1)], axis=1, dtype=np.float64)
        mean: np.ndarray = (known @ self.gain.T + self.offset).reshape(len(values), -1, self.obs_dim)
        return mean

    @property
    def std(self) -> np.ndarray:
        """Standard deviation [T - 1, O]."""
        return np.sqrt(np.diag(self.cov)).reshape(-1, self.obs_dim)


def later_states(env: LinearGaussian, behaviour: Policy, given: Given) -> LaterStates:
    """Gaussian conditioning in the joint distribution of trajectories under a `linear_policy`."""
    mean, cov = trajectory_moments(env, behaviour)
    features, obs_dim = env.obs_dim + env.action_dim, env.obs_dim
    entry = np.arange(len(mean)).reshape(-1, features)
    if given == "innovations":  # a_t - K s_t - k in the place of a_t
        K, k = (np.asarray(x, np.float64) for x in (behaviour.params.K, behaviour.params.k))
        step = np.eye(features)
        step[obs_dim:, :obs_dim] = -K
        change = np.kron(np.eye(len(entry)), step)
        mean, cov = change @ mean, change @ cov @ change.T
        mean[entry[:, obs_dim:]] -= k
    states = entry[1:, :obs_dim].ravel()
    known = np.concatenate([entry[0, :obs_dim], entry[:, obs_dim:].ravel()])
    gain = np.linalg.solve(cov[np.ix_(known, known)], cov[np.ix_(known, states)]).T
    left = cov[np.ix_(states, states)] - gain @ cov[np.ix_(known, states)]
    return LaterStates(gain, mean[states] - gain @ mean[known], left, obs_dim)


def states_of_dynamics(env: LinearGaussian) -> LaterStates:
    """The states given actions that tell nothing about states: those of the dynamics alone."""
    return later_states(env, linear_policy(np.zeros((env.action_dim, env.obs_dim)), np.zeros(env.action_dim), 1.0), "actions")


def innovations(behaviour: Policy, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """e_t = a_t - E[a_t | s_t], [N, T, A], of a `linear_policy` at states [N, T, O]."""
    K, k = (np.asarray(x, np.float64) for x in (behaviour.params.K, behaviour.params.k))
    return actions - states @ K.T - k
