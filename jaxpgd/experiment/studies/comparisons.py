"""Which differences a study's seeds support: tests, corrected for their number, and a sentence for each that holds."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from scipy import stats

from jaxpgd.experiment.studies.results import Results, by_scale
from jaxpgd.experiment.studies.spec import Comparison
from jaxpgd.metrics.comparison import probability_of_improvement

LEVEL = 0.05  # chance that any sentence of a study is written although there is no difference


@dataclasses.dataclass(frozen=True)
class Difference:
    """`first` minus `second` in one value, for one combination of the other axes."""

    where: Mapping[str, str]
    comparison: Comparison
    first: str
    second: str
    seeds: tuple[int, int]
    difference: float
    low: float  # 95 % interval, for this comparison alone
    high: float
    p: float  # two-sided; NaN with fewer than two seeds
    corrected: float  # by Holm, for all comparisons of the study
    improvement: float  # chance that a seed of the better-named side is better


def differences(results: Results) -> list[Difference]:
    """Every comparison that the study asks for and whose cells are there."""
    found = [d for comparison in by_scale(results, results.study.comparisons) for d in _differences(results, comparison)]
    corrected = holm(np.array([d.p for d in found]))
    return [dataclasses.replace(d, corrected=float(p)) for d, p in zip(found, corrected, strict=True)]


def _differences(results: Results, comparison: Comparison) -> Iterator[Difference]:
    others = [axis for axis in results.axes() if axis != comparison.axis]
    for labels in itertools.product(*(results.labels(axis) for axis in others)):
        where = dict(zip(others, labels, strict=True))
        for first, second in zip(comparison.pairs[::2], comparison.pairs[1::2], strict=True):
            x, y = (results.by_seed(comparison.value, where | {comparison.axis: name}) for name in (first, second))
            if x and y:
                yield _difference(where, comparison, first, second, x, y)


def _difference(
    where: Mapping[str, str], comparison: Comparison, first: str, second: str, left: dict[str, float], right: dict[str, float]
) -> Difference:
    """Welch's test, or with `paired` Student's of the differences of the seeds that both sides have.

    Values without any spread have no test: nothing says how much they would move with other seeds.
    """
    common = [seed for seed in left if seed in right]
    if comparison.paired and len(common) > 1:
        left, right = ({seed: side[seed] for seed in common} for side in (left, right))
    x, y = np.array(list(left.values())), np.array(list(right.values()))
    low = high = p = np.nan
    spread = np.ptp(x - y) if comparison.paired and list(left) == list(right) else np.ptp(x) + np.ptp(y)
    if min(len(x), len(y)) > 1 and spread > 1e-9 * np.abs([*x, *y]).max():
        paired = comparison.paired and list(left) == list(right)
        test: Any = stats.ttest_rel(x, y) if paired else stats.ttest_ind(x, y, equal_var=False)
        bounds = test.confidence_interval(0.95)
        low, high, p = float(bounds.low), float(bounds.high), float(test.pvalue)
    better = (x, y) if comparison.better == "higher" else (-x, -y)
    improvement = probability_of_improvement({"all": better[0]}, {"all": better[1]}, resamples=999).probability.value
    difference = float(x.mean() - y.mean())
    return Difference(where, comparison, first, second, (len(x), len(y)), difference, low, high, p, np.nan, improvement)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's corrected p-values of [K] tests (S. Holm 1979): the chance of any false one among those below a level is that
    level at most. NaN stays, and does not count."""
    found, tested = np.full(len(p), np.nan), np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested])]
    factors = np.arange(len(order), 0, -1)
    found[order] = np.minimum(np.maximum.accumulate(factors * p[order]), 1.0)
    return found


def sentences(found: list[Difference]) -> list[str]:
    """A sentence for each difference that holds after the correction, and one that says how many were tested."""
    held = [d for d in found if d.corrected < LEVEL]
    lines = [_sentence(d) for d in held]
    tested = sum(not np.isnan(d.p) for d in found)
    if not found:
        return []
    if not tested:
        return ["No comparison is tested: that takes two seeds of each side, and some spread between them."]
    rest = tested - len(held)
    told = f"{tested} comparison{'s' * (tested > 1)} tested at {100 * LEVEL:g} % over all (Holm)"
    none = f"; for {rest} of them the seeds show no difference, which is no proof that there is none" if rest else ""
    return [*lines, f"{told}{none}."]


def _sentence(d: Difference) -> str:
    label = d.comparison.label or d.comparison.value.replace("_", " ")
    where = ", ".join(d.where.values())
    more = "higher" if d.difference > 0 else "lower"
    good = (d.difference > 0) == (d.comparison.better == "higher")
    return (
        f"{where}{': ' if where else ''}{d.first} has a {more} {label} than {d.second}, by {abs(d.difference):.3g} "
        f"(95 % interval {d.low:.3g} to {d.high:.3g}; {d.seeds[0]} and {d.seeds[1]} seeds; corrected p {d.corrected:.2g}): "
        f"{'better' if good else 'worse'}."
    )


def difference_rows(found: list[Difference]) -> list[dict[str, Any]]:
    """A table of all of them."""
    return [
        {
            **d.where,
            "value": d.comparison.label or d.comparison.value.replace("_", " "),
            "compared": f"{d.first} - {d.second}",
            "difference": d.difference,
            "95 % interval": f"[{d.low:.3g}, {d.high:.3g}]" if d.low == d.low else "not tested",
            "p": d.p,
            "p, corrected": d.corrected,
            "P(better)": d.improvement,
            "seeds": f"{d.seeds[0]}, {d.seeds[1]}",
        }
        for d in found
    ]
