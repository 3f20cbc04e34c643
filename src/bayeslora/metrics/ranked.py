"""Ranked probability score: how far probabilities of ordered levels lie from the right one."""

from __future__ import annotations

import torch

from bayeslora.metrics.inputs import Array, checked, checked_probabilities


def ranked_probability_score(probabilities: Array, labels: Array) -> float:
    """Mean ranked probability score in [0, 1] of choices that stand in an order; lower is better.

    sum_k (P(level <= k) - 1[label <= k])^2 / (levels - 1), averaged over items: a proper score to which a level beside
    the right one is a smaller error than one far away. It means nothing for choices without an order, so no report
    shows it unasked. Source: Epstein (1969), A scoring system for probability forecasts of ranked categories; divided
    by the number of borders as in Murphy (1971).

    >>> beside, far = torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    >>> [ranked_probability_score(one, torch.tensor([0])) for one in (beside, far)]
    [0.5, 1.0]

    Args:
        probabilities: Of the levels, lowest first `[items, levels]`; two levels or more.
        labels: `[items]`, or probabilities of the levels `[items, levels]`, which count in expectation.

    Raises:
        ValueError: The two do not fit together, a row is no distribution, or there is one level only.
        TypeError: Labels `[items]` are not integers.
    """
    given = torch.as_tensor(labels).detach().cpu()
    if given.ndim == 2:
        rows, targets = checked_probabilities(probabilities), checked_probabilities(given)
        if rows.shape != targets.shape:
            raise ValueError(
                f"Expected labels of the probabilities' shape {list(rows.shape)}, but got {list(targets.shape)}. Pass "
                "a row per item with a column per level."
            )
    else:
        rows, hard = checked(probabilities, given)
        targets = torch.nn.functional.one_hot(hard, rows.shape[1]).double()
    if rows.shape[1] < 2:
        raise ValueError("Expected two levels or more, but got one. Pass a column per level.")
    below, right = rows.cumsum(1)[:, :-1], targets.cumsum(1)[:, :-1]
    # E[(F - 1[label <= k])^2] where the label is drawn from the target.
    return float((below.square() - 2 * below * right + right).mean())
