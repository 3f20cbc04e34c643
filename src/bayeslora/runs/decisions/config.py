"""What a decision model is made of, as it stands in its folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bayeslora.models.kinds import DtypeName
from bayeslora.options.ranges import Draws, check_value

READOUTS = ("auto", "codes", "heads", "option_texts")


@dataclass(frozen=True)
class DecisionConfig:
    """The base model, and how questions are read.

    Args:
        model: Hub id, local folder, or "offline:smollm2".
        dtype: Number type of its weights; "auto" as in `bayeslora.runs.config.ModelConfig`.
        device: "auto", "cpu", "cuda", ...
        revision: Branch, tag or commit of a Hub id.
        readout: "codes" (zero-shot, or over an adapter that a method trains), "heads" (one for each question that has
            labels), "option_texts" (one head for all questions, which reads the texts of their options: for questions
            that vary), or "auto": heads for questions with 25 labels or more and codes for the others; where
            questions vary (more of them than labels of any, and 25 labels in all), one head on the texts of options.
        orders: Rotations of the options that codes average over.
        shuffles: Orders of an item's options in an adapter's training, one each epoch; default: always a new one.
        ranked: Weight of the ranked probability score in the loss of its score questions.
        max_length: Longest prompt in tokens; default: what the model has positions for.
        label_noise: Whether heads estimate a share of wrong labels.
        seed: Of an adapter's training, and of its posterior draws.
        num_samples: Posterior draws of an answer over an adapter; 0 answers with the posterior mean. Default: 10 with
            codes, below heads the mean.

    Raises:
        ValueError: A field is out of its range.
    """

    model: str = "offline:smollm2"
    dtype: DtypeName = "auto"
    device: str = "auto"
    revision: str | None = None
    readout: Literal["auto", "codes", "heads", "option_texts"] = "auto"
    orders: int = 2
    shuffles: int | None = None
    ranked: float = 0.0
    max_length: int | None = None
    label_noise: bool = True
    seed: int = 0
    num_samples: Draws | None = None

    def __post_init__(self) -> None:
        if self.readout not in READOUTS:
            raise ValueError(f"readout must be one of {', '.join(READOUTS)}, got {self.readout!r}.")
        check_value(self.num_samples, Draws | None, "num_samples")
        if self.orders < 1:
            raise ValueError(f"orders must be at least 1, got {self.orders}.")
