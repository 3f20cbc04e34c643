"""Prediction sets that hold the right choice as often as was asked for, whatever model the probabilities come from.

Split-conformal prediction: on labelled items that the model has not seen, find the threshold that the right choice's
score stays below often enough; a new item's set is all choices whose score stays below it too. If the new items and
those of the calibration are exchangeable, the sets hold the right choice with probability at least `coverage`, on
average over both. docs/guides/prediction_sets.md says what that does not promise.

Sources: Papadopoulos et al. (2002), Inductive confidence machines for regression; Vovk et al. (2005), Algorithmic
learning in a random world; Sadinle et al. (arXiv:1609.00451); Romano et al. (arXiv:2006.02544).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn import functional

from bayeslora.metrics.inputs import Array, checked, checked_labels, checked_probabilities, share_of

Score: TypeAlias = Literal["lac", "aps"]


@dataclass(frozen=True)
class ConformalSets:
    """A rule that turns probabilities into sets of choices; `calibrate` makes one.

    Nineteen labelled items, whose right choice (choice 0) has the probabilities 0.05, 0.1, ..., 0.95, and a coverage of
    0.8 give a threshold of 0.8: a set holds all choices of a probability of 0.2 or more.

    >>> right = torch.arange(1, 20) / 20
    >>> dev = torch.stack([right, 1 - right], dim=1)
    >>> rule = ConformalSets.calibrate(dev, torch.zeros(19, dtype=torch.long), coverage=0.8)
    >>> round(rule.threshold, 4)
    0.8
    >>> rule.sets(torch.tensor([[0.7, 0.25, 0.05], [0.9, 0.06, 0.04]]))
    tensor([[ True,  True, False],
            [ True, False, False]])

    Attributes:
        threshold: Largest score of a choice in a set; infinite where every set is all choices an item has.
        coverage: The share of sets that shall hold the right choice.
        score: "lac" or "aps", see `calibrate`.
        num_examples: Number of calibration items.
    """

    threshold: float
    coverage: float
    score: Score
    num_examples: int

    @classmethod
    def calibrate(
        cls,
        probabilities: Array,
        labels: Array,
        coverage: float = 0.9,
        score: Score = "lac",
        choice_mask: Array | None = None,
    ) -> ConformalSets:
        """Find the threshold: the ceil((items + 1) coverage)-th smallest score of the labels.

        Scores, small for a choice that fits:

        - "lac": 1 - p(choice) (Sadinle et al., arXiv:1609.00451). The smallest sets on average if the probabilities are
          right. A set is empty where no choice is as probable as the right ones of the calibration usually are.
        - "aps": the probability of all choices more probable than this one (Romano et al., arXiv:2006.02544, without
          their randomisation: the choice at the border always stays). The sets grow with the item's own uncertainty
          and are never empty. They over-cover: since each holds the most probable choice, they cover at least as often
          as that one is right, also where less was asked for.

        Args:
            probabilities: Of items that the model was neither trained nor chosen on `[items, choices]`.
            labels: Their right choices `[items]`.
            coverage: The share of sets that shall hold the right choice, in (0, 1).
            score: "lac" or "aps".
            choice_mask: True where an item has a choice `[items, choices]`. Default: where its probability is above
                zero; then a label of probability zero counts as one that no threshold lets in.

        Raises:
            ValueError: `coverage` or `score` is unknown, or the arrays do not fit together.
            TypeError: The labels are not integers.

        Warns:
            UserWarning: The items are too few for the coverage, which takes coverage / (1 - coverage) of them, or too
                many labels have probability zero: the threshold is infinite, each set all choices an item has.
        """
        check_coverage(coverage)
        if score not in get_args(Score):
            raise ValueError(f"Expected the score 'lac' or 'aps', but got {score!r}. Choose one of them.")
        probabilities, labels = checked(probabilities, labels)
        own = _own_choices(probabilities, choice_mask)
        if choice_mask is not None:
            _check_labels_are_own(own, labels)
        scores = _scores(probabilities, score).masked_fill(~own, math.inf)
        threshold = _order_statistic(_of_labels(scores, labels), share_of(len(labels) + 1, coverage))
        if threshold == math.inf:
            _warn_of_all_choices(len(labels), coverage)
        return cls(threshold, coverage, score, len(labels))

    @property
    def all_choices(self) -> bool:
        """Whether every set is all choices an item has, because the calibration could not set a threshold."""
        return self.threshold == math.inf

    def sets(self, probabilities: Array, choice_mask: Array | None = None) -> Tensor:
        """The sets of items: True where a choice is in its item's set, bool `[items, choices]`.

        Args:
            probabilities: `[items, choices]`; the number of choices need not be that of the calibration.
            choice_mask: As for `calibrate`. A choice that an item does not have is in no set.

        Raises:
            ValueError: A row is no distribution, or the mask does not fit.
        """
        probabilities = checked_probabilities(probabilities)
        return (_scores(probabilities, self.score) <= self.threshold) & _own_choices(probabilities, choice_mask)


def evaluate(sets: Array, labels: Array) -> dict[str, float]:
    """How often sets hold the label, and how large they are.

    >>> evaluate(torch.tensor([[True, True, False], [True, False, False]]), torch.tensor([1, 2]))
    {'coverage': 0.5, 'set_size': 1.5}

    Args:
        sets: bool `[items, choices]`.
        labels: `[items]`.

    Returns:
        `coverage`, the share of sets that hold their label, and `set_size`, the mean number of choices in a set.

    Raises:
        ValueError: The two do not fit together.
        TypeError: The sets are not bool or the labels not integers.
    """
    sets, labels = torch.as_tensor(sets).cpu(), torch.as_tensor(labels).cpu()
    if sets.dtype != torch.bool:
        raise TypeError(f"Expected bool sets, but got {sets.dtype}. Pass what `ConformalSets.sets` returns.")
    if sets.ndim != 2 or labels.shape != sets.shape[:1] or sets.numel() == 0:
        raise ValueError(
            "Expected sets [items, choices] and labels [items] with at least one item, but got "
            f"shapes {list(sets.shape)} and {list(labels.shape)}. Pass a set and a label per item."
        )
    labels = checked_labels(labels, choices=sets.shape[1])
    return {
        "coverage": _of_labels(sets, labels).double().mean().item(),
        "set_size": sets.sum(dim=1).double().mean().item(),
    }


def check_coverage(coverage: float) -> None:
    """Raise ValueError unless the coverage lies in (0, 1)."""
    if not 0 < coverage < 1:
        raise ValueError(f"Expected a coverage above 0 and below 1, but got {coverage}. Pass a share, such as 0.9.")


def _scores(probabilities: Tensor, score: Score) -> Tensor:
    """Score of every choice `[items, choices]`."""
    if score == "lac":
        return 1 - probabilities
    ranked = probabilities.sort(dim=1, descending=True).values
    mass_of_first = functional.pad(ranked.cumsum(dim=1), (1, 0))
    more_probable = torch.searchsorted(-ranked, -probabilities)
    return mass_of_first.gather(1, more_probable)


def _of_labels(values: Tensor, labels: Tensor) -> Tensor:
    """The value of each item's label `[items]` among those of its choices `[items, choices]`."""
    return values.gather(1, labels.unsqueeze(1)).squeeze(1)


def _order_statistic(scores: Tensor, rank: int) -> float:
    """The rank-th smallest of `[items]`, counted from one; infinite past the last, which is what guarantees it."""
    return math.inf if rank > len(scores) else scores.kthvalue(rank).values.item()


def _own_choices(probabilities: Tensor, choice_mask: Array | None) -> Tensor:
    """Which choices an item has, bool `[items, choices]`."""
    if choice_mask is None:
        return probabilities > 0
    own = torch.as_tensor(choice_mask).cpu()
    if own.dtype != torch.bool or own.shape != probabilities.shape:
        raise ValueError(
            f"Expected a bool choice_mask of the probabilities' shape {list(probabilities.shape)}, but got {own.dtype} "
            f"of shape {list(own.shape)}. Pass True where an item has a choice."
        )
    if (probabilities[~own] > 0).any():
        row = int(((probabilities > 0) & ~own).any(dim=1).nonzero()[0])
        raise ValueError(
            f"Expected probability zero where choice_mask is False, but row {row} is {probabilities[row].tolist()} "
            f"with mask {own[row].tolist()}. Renormalise over the choices that the item has."
        )
    return own


def _check_labels_are_own(own: Tensor, labels: Tensor) -> None:
    missing = ~_of_labels(own, labels)
    if missing.any():
        row = int(missing.nonzero()[0])
        raise ValueError(
            f"Expected labels that are choices of their items, but the label of row {row} is {int(labels[row])} and "
            f"its choice_mask {own[row].tolist()}. Correct the label or the mask."
        )


def _warn_of_all_choices(num_examples: int, coverage: float) -> None:
    share = Fraction(str(coverage))
    needed = math.ceil(share / (1 - share))
    why = (
        f"it takes at least {needed} calibration items, but there are {num_examples}; calibrate on more items, or ask "
        "for less coverage"
        if num_examples < needed
        else "the labels of too many calibration items have probability zero; pass choice_mask if they are choices of "
        "their items, and look at the model"
    )
    warnings.warn(
        f"Every prediction set will be all choices of its item: for coverage {coverage} {why}.",
        stacklevel=3,
    )
