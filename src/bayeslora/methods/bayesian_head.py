"""A Bayesian head on frozen option vectors, in closed form (`bayeslora.readouts`)."""

from __future__ import annotations

from typing import Any, Literal

from peft import PeftModel
from torch import nn

from bayeslora.methods.base import Method
from bayeslora.models.kinds import ModelKind
from bayeslora.options.ranges import ShareBelowOne, check_value

READS = ("both", "hidden", "likelihood")


class BayesianHead(Method):
    """No adapter: one pass for the features, then a Gaussian process regression on them; for scoring "options".

    The evidence chooses the weights of the layers and the noise, leave-one-out the temperature, both on the training
    items; a dev set is not needed. Predictions are in closed form: without draws and without a seed. The options of
    adapters (r, target_modules, ...) and of optimisation change nothing.

    Args:
        reads: "hidden" (what the middle layers hold at each choice; those above do not run), "likelihood" (four
            numbers of the likelihood of each choice, for which all layers and the language-model head run), or "both".
        label_noise: The share of training labels that are random, where it is known; or whether to ask if any are:
            where leave-one-out says clearly that some are, items that look wrong count less. Off by default: where the
            features say little it can take most labels for wrong.
        prior: Run folder of a head fitted before, on other tasks or older data with the same base model; what it says
            is one more feature, whose weight the evidence chooses.
    """

    name = "bayesian_head"
    has_draws = False  # The posterior is integrated in closed form.
    adapts = False
    needs_items = True

    def __init__(
        self,
        reads: Literal["both", "hidden", "likelihood"] = "both",
        label_noise: bool | ShareBelowOne = False,
        prior: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if reads not in READS:
            raise ValueError(f"reads must be one of {READS}, got {reads!r}.")
        if not isinstance(label_noise, bool):
            check_value(label_noise, ShareBelowOne, "label_noise")
        self.reads = reads
        self.label_noise = label_noise
        self.prior = prior

    def adapt(self, model: nn.Module, kind: ModelKind) -> PeftModel:
        """There is none.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "the method BayesianHead adapts no weights: train it with scoring options (--task.scoring options)."
        )
