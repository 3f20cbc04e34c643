"""A threshold above which errors are rarer than alpha, with confidence 1 - delta, whatever the model.

Fixed-sequence testing of "more than alpha of what is accepted is wrong", from few accepted units to many, each by the
bound of Clopper and Pearson (1934); the first that is not rejected ends the sequence (Angelopoulos et al., "Learn then
Test", arXiv 2110.01052). What is counted are units that are independent of each other, such as states.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from scipy.stats import beta


@dataclass(frozen=True)
class Certified:
    """What could be certified.

    Args:
        threshold: Scores of at least this are accepted; None: nothing can be, so all of it is for a person.
        coverage: Share of the units that are accepted.
        errors: Of the accepted ones.
        accepted: Units.
        units: All of them.
        bound: Upper bound on the share of errors among what is accepted; 1 where nothing is.
    """

    threshold: float | None
    coverage: float
    errors: int
    accepted: int
    units: int
    bound: float


def upper_bound(errors: int, count: int, delta: float) -> float:
    """The share of errors that is exceeded with probability at most `delta` (Clopper-Pearson).

    >>> round(upper_bound(0, 22, 0.1), 4)
    0.0994
    """
    return 1.0 if errors >= count else float(beta.ppf(1 - delta, errors + 1, count - errors))


def fewest_units(alpha: float, delta: float, errors: int = 0) -> int:
    """The fewest accepted units with so many errors among them that certify `alpha`.

    >>> fewest_units(0.1, 0.1), fewest_units(0.1, 0.1, 1)
    (22, 38)

    Raises:
        ValueError: `alpha` or `delta` is not in (0, 1).
    """
    for name, value in (("alpha", alpha), ("delta", delta)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must be between 0 and 1, got {value}.")
    low, high = errors, errors + 1
    while upper_bound(errors, high, delta) > alpha:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if upper_bound(errors, middle, delta) > alpha else (low, middle)
    return high


def certified_threshold(
    scores: Sequence[float], wrong: Sequence[bool], units: Sequence[Hashable], alpha: float, delta: float
) -> Certified:
    """The lowest threshold of the sequence that is certified.

    The sequence begins where one error is allowed, if there are units enough for that, so that a single unlucky one
    does not end it at once. Rows of one unit count as one, with their lowest score and any error; only cuts between
    distinct scores are tried, so the order of rows means nothing and a threshold accepts from its own rows what it was
    certified on.

    Args:
        scores: How sure each answer is; higher is surer.
        wrong: Whether it is wrong.
        units: What it belongs to: rows of one unit are right or wrong together.
        alpha: The share of errors that is promised, in (0, 1).
        delta: Probability with which the promise may fail, in (0, 1).

    Raises:
        ValueError: There are fewer units than could certify anything, or alpha or delta is out of its range.
    """
    needed = fewest_units(alpha, delta)
    merged: dict[Hashable, tuple[float, bool]] = {}
    for score, error, unit in zip(scores, wrong, units, strict=True):
        low, any_error = merged.get(unit, (score, False))
        merged[unit] = (min(low, score), any_error or error)
    if len(merged) < needed:
        raise ValueError(
            f"to promise at most {alpha:g} errors with confidence {1 - delta:g} takes at least {needed} labelled "
            f"states, got {len(merged)}; label more, or promise less."
        )
    return _sequence(sorted(merged.values(), key=lambda row: -row[0]), needed, alpha, delta)


def _sequence(rows: Sequence[tuple[float, bool]], needed: int, alpha: float, delta: float) -> Certified:
    first = fewest_units(alpha, delta, errors=1)
    start = first if first <= len(rows) else needed
    best = Certified(None, 0.0, 0, 0, len(rows), 1.0)
    errors = 0
    for count, (score, wrong) in enumerate(rows, start=1):
        errors += wrong
        if count < start or (count < len(rows) and rows[count][0] == score):
            continue
        bound = upper_bound(errors, count, delta)
        if bound > alpha:
            break
        best = Certified(score, count / len(rows), errors, count, len(rows), bound)
    return best
