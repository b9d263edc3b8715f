"""Error of an agent's values against discounted Monte-Carlo returns of its policy."""

import numpy as np

TAIL = 0.01  # largest share of a constant reward's value that may come after the end of an episode that was cut


def value_error(
    value: np.ndarray,
    discounted: np.ndarray,
    lengths: np.ndarray,
    cut: np.ndarray,
    gamma: np.ndarray,
    *,
    scale: float = 1.0,
    shift: float = 0.0,
) -> np.ndarray:
    """Mean over episodes [S] of the values at their first states minus the discounted returns from there, [S, E] each.

    Above 0 values are overestimated. The agents have discount factors `gamma` [S] and learn from rewards
    scale * (reward + shift), in which `value` is; `discounted` are sums of gamma^t r_t of the environment's own rewards, over
    `lengths` [S, E] steps. The result is in units of the environment's rewards, whatever the scale.

    Values go on after a time limit, where the return of an episode that was `cut` [S, E] ends. With gamma 0.99 and 1,000 steps
    what is missing is 5e-5 of the value of a constant reward. Where it is above 0.01 (gamma^length, as in short episodes), the
    error is unknown: NaN for every seed that has such an episode.
    """
    rate = np.asarray(gamma, np.float64)[:, None]
    remaining = rate ** np.asarray(lengths)
    with np.errstate(divide="ignore", invalid="ignore"):
        ones = np.where(rate == 1.0, lengths, (1.0 - remaining) / (1.0 - rate))  # discounted returns of a reward of 1
    learned = scale * (np.asarray(discounted, np.float64) + shift * ones)
    error = (np.asarray(value, np.float64) - learned) / scale
    unknown = np.any(np.asarray(cut) & (remaining > TAIL), axis=1)
    return np.where(unknown, np.nan, error.mean(axis=1))
