"""Drift: whether more states lie far from the training states than would if they came from the same source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from scipy.stats import betabinom

QUANTILE = 0.95

DRIFTED = 0.01
"""A p below is worth a word."""


@dataclass(frozen=True)
class Drift:
    """How many states lie beyond a quantile of the training states' own novelty.

    Args:
        states: How many were looked at.
        beyond: Those of them whose novelty is above `quantile`.
        expected: Mean share beyond it of states from the source of the training.
        quantile: Of the training states' novelty to each other.
        p: Probability that so many or more of such states lie beyond it.
    """

    states: int
    beyond: int
    expected: float
    quantile: float
    p: float

    @property
    def share(self) -> float:
        """Of the states that lie beyond; NaN where there are none."""
        return self.beyond / self.states if self.states else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """As plain values, with the share."""
        return asdict(self) | {"share": self.share if self.states else None}

    def __str__(self) -> str:
        if not self.states:
            return "drift: no new state"
        return (
            f"drift: {self.beyond} of {self.states} new states ({self.share:.1%}) lie farther out than "
            f"{self.quantile:.0%} of the training states; {self.expected:.1%} would without drift (one-sided "
            f"p = {self.p:.2g})"
        )


def drift(novelties: Sequence[float], trained: int, quantile: float = QUANTILE) -> Drift:
    """A one-sided test against "these states come from where the training states came from".

    The number beyond a known threshold would be binomial. This threshold is an order statistic of `trained` states, so
    the share beyond it is Beta(m, trained + 1 - m) itself, m the number of training states from there on, and the
    number is beta-binomial: of few training states no long log proves a small drift. With many it is the binomial.

    >>> drift([0.2, 0.97, 1.0, 0.99], trained=200).beyond
    3

    Args:
        novelties: Of distinct states that the model was not fitted on [states].
        trained: Training states that novelty compares with.
        quantile: Of their own novelty, in (0, 1).

    Raises:
        ValueError: There are no training states, or the quantile is out of its range.
    """
    if trained < 1 or not 0 < quantile < 1:
        raise ValueError(
            f"expected a quantile between 0 and 1 of one or more training states, got {quantile} of {trained}."
        )
    # Novelty is k / trained, k the training states that lie no farther out: above the quantile from this k on.
    least = int(Fraction(str(quantile)) * trained) + 1
    from_there_on = trained + 1 - least
    beyond = sum(novelty > quantile for novelty in novelties)
    p = float(betabinom.sf(beyond - 1, len(novelties), from_there_on, least)) if novelties else 1.0
    return Drift(len(novelties), beyond, from_there_on / (trained + 1), quantile, min(p, 1.0))
