"""Temperature scaling of a predictive distribution (arXiv 1706.04599), shrunk towards 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from bayeslora.prediction.predictive import Predictive
from bayeslora.system.log import logger

BOUNDS = (math.exp(-3), math.exp(5))
"""Within these T is searched. At the upper one predictions are all but uniform, at the lower one all but certain."""

PRIOR_STD = 0.7
"""Standard deviation of the Gaussian prior on log T, chosen by studies/settings/temperature/simulate.py."""

FEW_ERRORS = 10
"""With fewer wrong dev items a warning says that they tell little of T."""

_MEANING = {"lower": "takes its first choice for certain", "upper": "predicts uniformly"}
_STEP = 1e-2
_AT = 0.01


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature.

    Args:
        value: T, which divides log-probabilities.
        standard_error: Of T, from the curvature of the log posterior of log T (times T); infinite where it is flat.
        errors: Dev items whose most probable choice is wrong.
        items: Dev items.
    """

    value: float
    standard_error: float
    errors: int
    items: int

    @property
    def record(self) -> dict[str, float | None]:
        """What metrics.json and results files keep of it."""
        error = self.standard_error if math.isfinite(self.standard_error) else None
        return {"temperature": self.value, "temperature_standard_error": error}

    @property
    def warning(self) -> str:
        """What to say of it: that it is at a bound of the search, or of fewer than `FEW_ERRORS` wrong items; or ""."""
        if meaning := bound_of(self.record):
            return (
                f"the temperature is {self.value:.4g}, at a bound of its search: the scaled model {meaning}; do not "
                "use it, and look at the unscaled one (the dev accuracy first)"
            )
        if self.errors < FEW_ERRORS:
            return (
                f"the temperature {self.value:.3g} ± {self.standard_error:.2g} was fitted on {self.items} dev items of "
                f"which {self.errors} are wrong; with fewer than {FEW_ERRORS} it is mostly the prior's: take more dev "
                "items, or no temperature"
            )
        return ""


def bound_of(record: Mapping[str, Any]) -> str | None:
    """What predictions do whose recorded "temperature" lies at a bound of its search; None inside or without one.

    >>> bound_of({"temperature": 148.4}), bound_of({"temperature": 1.7}), bound_of({})
    ('predicts uniformly', None, None)
    """
    value = record.get("temperature")
    if not value or value <= 0:
        return None
    low, high = (math.log(value / bound) for bound in BOUNDS)
    return _MEANING["lower"] if low < _AT else _MEANING["upper"] if high > -_AT else None


def fit_temperature(
    predictive: Predictive, labels: Tensor, prior_std: float = PRIOR_STD, *, warns: bool = True
) -> Temperature:
    """The temperature of the largest posterior given held-out items: NLL, and a Gaussian prior on its logarithm.

    Each draw's log-probabilities are divided by it before the draws are averaged (of a Gaussian over logits, the mean);
    for a single draw and no prior this is the temperature scaling of the source. The prior is centred at T = 1, no
    scaling: a few dozen items that the model has all right say no more than that T is not large, and their likelihood
    alone has its maximum at 0. It weighs as much as (log T / `prior_std`)^2 / 2 nats of all items together, so many
    items outweigh it.

    Warns (logging) at a bound of the search and where fewer than `FEW_ERRORS` items are wrong, unless not `warns`.

    Args:
        predictive: Of the dev items, never of the test items.
        labels: Right choices [items].
        prior_std: Standard deviation of log T; infinity for none.

    Raises:
        ValueError: There is no item, or `prior_std` is not positive.
    """
    if len(labels) == 0:
        raise ValueError("temperature scaling needs dev items with labels, got none; give the task a dev split.")
    if not prior_std > 0:
        raise ValueError(f"prior_std must be positive, got {prior_std}.")

    def loss(log_temperature: float) -> float:
        # Nats. Bounded below, for an item without probability for its label would make all temperatures alike.
        scores = predictive.tempered(math.exp(log_temperature)).log_probabilities.double().clamp_min(-1e4)
        nll = torch.nn.functional.nll_loss(scores, labels, reduction="sum").item()
        return nll + (log_temperature / prior_std) ** 2 / 2

    with torch.no_grad():
        best, curvature = _minimum(loss, *(math.log(bound) for bound in BOUNDS))
        errors = int((predictive.log_probabilities.argmax(-1) != labels).sum())
    value = math.exp(best)
    found = Temperature(value, value / math.sqrt(curvature) if curvature > 0 else math.inf, errors, len(labels))
    if warns and found.warning:
        logger.warning(found.warning)
    return found


def best_temperature(predictive: Predictive, labels: Tensor) -> tuple[float, float]:
    """The temperature of the lowest NLL of items, without a prior and without a word, and that NLL, nats per item.

    For a choice between predictives that differ in scale; see `fit_temperature`.
    """
    value = fit_temperature(predictive, labels, prior_std=math.inf, warns=False).value
    return value, float(torch.nn.functional.nll_loss(predictive.tempered(value).log_probabilities.double(), labels))


def _minimum(loss: Callable[[float], float], low: float, high: float) -> tuple[float, float]:
    """Where a function of few humps is smallest in [low, high], and its second derivative there."""
    grid = [low + (high - low) * step / 8 for step in range(9)]
    nearest = min(range(9), key=[loss(point) for point in grid].__getitem__)
    around = (grid[max(0, nearest - 1)], grid[min(8, nearest + 1)])
    best = float(minimize_scalar(loss, bounds=around, method="bounded", options={"xatol": 1e-4}).x)
    # The bounded search stops short of an end.
    best = min((best, *around), key=loss)
    curvature = (loss(best + _STEP) - 2 * loss(best) + loss(best - _STEP)) / _STEP**2
    return best, curvature
