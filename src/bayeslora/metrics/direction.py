"""Which way an uncertainty points: is a large number doubt, or confidence?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bayeslora.metrics.inputs import Array


@dataclass(frozen=True)
class Measure:
    """A number per item that tells doubtful items from sure ones.

    Two items may be ranked by it only in its direction:

    >>> ENTROPY.doubt(torch.tensor([0.1, 0.6])).argmax(), CONFIDENCE.doubt(torch.tensor([0.9, 0.5])).argmax()
    (tensor(1), tensor(1))

    Attributes:
        name: Its key in records and tables.
        unit: "nats", or "" for a probability.
        higher_means: What a larger value says of an item.
    """

    name: str
    unit: str
    higher_means: Literal["more uncertain", "more confident"]

    def doubt(self, values: Array) -> Tensor:
        """The values, turned so that larger ones are the more uncertain `[items]`, float64 on the CPU."""
        turned = torch.as_tensor(values).detach().cpu().double()
        return turned if self.higher_means == "more uncertain" else -turned


CONFIDENCE = Measure("confidence", "", "more confident")
"""Probability of the top choice."""
ENTROPY = Measure("entropy", "nats", "more uncertain")
"""Of the predictive distribution: total uncertainty."""
MUTUAL_INFORMATION = Measure("mutual_information", "nats", "more uncertain")
"""Between prediction and parameters: epistemic uncertainty."""

MEASURES = {measure.name: measure for measure in (CONFIDENCE, ENTROPY, MUTUAL_INFORMATION)}
"""All uncertainties that records and tables hold, by name."""
