"""What choosing a policy by a limited number of online evaluations is worth."""

import dataclasses

import numpy as np

from jaxpgd.errors import check

DRAWS = 10_000
_BLOCK = 2_000_000  # episodes drawn at once, which bounds the memory


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """Expected true return of the policy selected, for K sizes of the evaluation; see `policy_selection`.

    `evaluated` [K] is the number k of policies evaluated, `episodes` of them each, and `evaluations` [K] = k * episodes the
    online episodes spent. `value` [K] is the expected true return of the policy selected and `value_se` [K] the standard error
    of its Monte Carlo alone. `regret` [K] is `best - value`, where `best` is the true return of the best candidate.
    `noiseless` [K] is what evaluations without noise would select. Returns are in the unit given.
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
    return np.diff(at_most, axis=1, prepend=0.0) @ np.sort(values)


def policy_selection(
    returns: np.ndarray, *, episodes: int = 1, values: np.ndarray | None = None, draws: int = DRAWS, seed: int = 0
) -> Selection:
    """Selection among C candidates (seeds times settings, say) with recorded returns [C, E], for every k = 1 ... C.

    The procedure: k of the C candidates are taken at random, without replacement; each is evaluated online for `episodes` = e
    fresh episodes; the one with the highest mean return is selected, of equals one at random. It spends k e episodes. What
    counts is the expectation of the true return of the policy selected, over the choice of the k and over the episodes. With
    k = 1 it is the mean candidate; as e grows it tends to `noiseless`, the expected maximum (`expected_best`); with noise it
    need not grow with k. The idea of reporting offline RL against a budget of evaluations is that of Kurenkov and Kolesnikov
    2022 (arXiv 2110.04156) and, with noise, of Jackson et al. 2025 (arXiv 2504.11453), who let a bandit allocate the episodes;
    here all k get the same number.

    A fresh episode is drawn, with replacement, from the E recorded ones of the candidate. They stand for its distribution of
    returns, and their mean for its true return, unless `values` [C] gives returns measured in other episodes. E should
    therefore be well above e: the recorded spread is the fraction (E - 1) / E of the true variance, and without `values` the
    candidate that looks best is overrated by its luck in the recorded episodes, and `best` and `value` with it. The candidates
    are taken as given: nothing here speaks of candidates that were not trained.
    The expectation is a Monte Carlo over `draws`, the same for all k. Raises InputError for bad shapes or non-finite returns,
    and for fewer than two recorded episodes, whose noise is unknown.
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
    """The selection at budgets [B] of online episodes: with the largest k that each affords, k e <= budget and k <= C.

    `evaluations` of the result [B] is what is spent, which may be less than the budget. Raises InputError for a budget that
    does not afford one candidate.
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
