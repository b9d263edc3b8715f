"""The expected return of a policy selected by a limited number of online evaluations."""

import dataclasses

import numpy as np

from jaxpgd.errors import check

DRAWS = 10_000
_BLOCK = 2_000_000  # episodes drawn at once, which bounds the memory


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """Expected true return of the selected policy for K sizes of the evaluation. See `policy_selection`.

    `evaluated` [K] is the number k of evaluated policies, `episodes` the episodes of each, and `evaluations` [K] = k * episodes
    the online episodes spent. `value` [K] is the expected true return of the selected policy, and `value_se` [K] its Monte
    Carlo standard error. `regret` [K] is `best - value`, where `best` is the true return of the best candidate. `noiseless` [K]
    is the value under evaluations without noise. Returns are in the unit of the input.
    """

    evaluated: np.ndarray
    episodes: int
    evaluations: np.ndarray
    value: np.ndarray
    value_se: np.ndarray
    regret: np.ndarray
    noiseless: np.ndarray
    best: float
    candidates: int


def expected_best(values: np.ndarray) -> np.ndarray:
    """Expected maximum [C] of k = 1 ... C of the values [C], drawn without replacement. In closed form.

    The maximum of k draws has at most rank i with probability (i choose k) / (C choose k). This is the expected online
    performance (Kurenkov and Kolesnikov 2022, arXiv 2110.04156) for evaluations without noise, with the unbiased estimator of
    Tang et al. 2020 and Dodge et al. 2021 (arXiv 2110.00613). Raises InputError for empty or non-finite values.
    """
    values = np.asarray(values, np.float64)
    check(values.ndim == 1 and values.size > 0, "values", values.shape, "shape [C], not empty")
    check(bool(np.isfinite(values).all()), "values", values.tolist(), "finite numbers")
    count = len(values)
    drawn, ranks = np.arange(count)[:, None], np.arange(1, count + 1)
    at_most = np.cumprod(np.maximum(ranks - drawn, 0) / (count - drawn), axis=0)  # [k - 1, i - 1]
    return np.asarray(np.diff(at_most, axis=1, prepend=0.0) @ np.sort(values))


def policy_selection(
    returns: np.ndarray, *, episodes: int = 1, values: np.ndarray | None = None, draws: int = DRAWS, seed: int = 0
) -> Selection:
    """Selection among C candidates (for example, seeds times settings) with recorded returns [C, E], for every k = 1 ... C.

    The procedure takes k of the C candidates at random without replacement, evaluates each online for `episodes` = e fresh
    episodes, and selects the one with the highest mean return (ties at random). It spends k e episodes. `value` is the expected
    true return of the selected policy, over the choice of the k and over the episodes. For k = 1 it is the mean over
    candidates. As e grows it tends to `noiseless`, the expected maximum (`expected_best`). With noise it need not increase with
    k. Reporting offline RL against an evaluation budget follows Kurenkov and Kolesnikov 2022 (arXiv 2110.04156) and, with
    noise, Jackson et al. 2025 (arXiv 2504.11453), who allocate episodes by a bandit; here all k get the same number.

    A fresh episode is drawn, with replacement, from the E recorded episodes of the candidate. These represent its distribution
    of returns, and their mean its true return, unless `values` [C] holds returns measured in other episodes. E should be well
    above e: the recorded variance is the fraction (E - 1) / E of the true one, and without `values` the winner is overrated by
    its luck in the recorded episodes, and with it `best` and `value`. The result holds for these candidates only.
    The expectation is a Monte Carlo estimate over `draws`, shared by all k. Raises InputError for bad shapes or non-finite
    returns, and for fewer than two recorded episodes, whose noise is unknown.
    """
    returns = np.asarray(returns, np.float64)
    check(returns.ndim == 2 and returns.size > 0, "returns", returns.shape, "shape [C, E], not empty")
    check(bool(np.isfinite(returns).all()), "returns", returns.tolist(), "finite numbers")
    check(returns.shape[1] > 1, "returns", returns.shape, "at least two episodes of each candidate",
          "Use expected_best for true returns alone.")  # fmt: skip
    check(episodes >= 1, "episodes", episodes, "at least 1")
    check(draws >= 2, "draws", draws, "at least 2")
    truth = returns.mean(axis=1) if values is None else np.asarray(values, np.float64)
    check(truth.shape == returns.shape[:1], "values", truth.shape, f"one true return for each of {len(returns)} candidates")
    noiseless = expected_best(truth)
    value, value_se = _selected(returns, truth, episodes, draws, np.random.default_rng(seed))
    evaluated, best = np.arange(1, len(returns) + 1), float(truth.max())
    return Selection(evaluated, episodes, evaluated * episodes, value, value_se, best - value, noiseless, best, len(returns))


def within_budget(selection: Selection, budgets: np.ndarray) -> Selection:
    """The selection at budgets [B] of online episodes, with the largest k <= C such that k e <= budget.

    `evaluations` [B] of the result is the number of episodes spent, which may be below the budget. Raises InputError for a
    budget below the episodes of one candidate.
    """
    budgets = np.asarray(budgets)
    check(budgets.ndim == 1 and budgets.size > 0, "budgets", budgets.shape, "shape [B], not empty")
    rows = np.searchsorted(selection.evaluations, budgets, side="right") - 1
    check(bool((rows >= 0).all()), "budgets", budgets.tolist(), f"at least {selection.evaluations[0]} episodes each")
    names = ("evaluated", "evaluations", "value", "value_se", "regret", "noiseless")
    return dataclasses.replace(selection, **{name: getattr(selection, name)[rows] for name in names})


def _selected(
    returns: np.ndarray, truth: np.ndarray, episodes: int, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error [C] over draws of the true return of the best by sample mean among the first k of a shuffle."""
    count, recorded = returns.shape
    total, squares = np.zeros(count), np.zeros(count)
    centre = truth.mean()
    size = max(1, _BLOCK // (count * episodes))
    for start in range(0, draws, size):
        rows = min(size, draws - start)
        order = rng.permuted(np.tile(np.arange(count), (rows, 1)), axis=1)
        chosen = rng.integers(recorded, size=(rows, count, episodes))
        measured = returns[order[..., None], chosen].mean(axis=2)
        leader = np.maximum.accumulate(measured, axis=1)
        ahead = np.concatenate([np.ones((rows, 1), bool), leader[:, 1:] > leader[:, :-1]], axis=1)
        position = np.maximum.accumulate(np.where(ahead, np.arange(count), 0), axis=1)
        value = truth[np.take_along_axis(order, position, axis=1)] - centre
        total += value.sum(axis=0)
        squares += (value**2).sum(axis=0)
    mean = total / draws
    variance = np.maximum(squares / draws - mean**2, 0) * draws / (draws - 1)
    return centre + mean, np.sqrt(variance / draws)
