"""What one head on the texts of options is fitted on, kept so that more can be added without reading it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bayeslora.readouts.blocks import OptionFeatures
from bayeslora.readouts.features import read_together
from bayeslora.readouts.labels import labels_of
from bayeslora.tasks.decisions.items import DecisionItem

_CHOICE = "choice"
"""The block that says which of fixed choices one is."""


@dataclass(frozen=True)
class OptionExamples:
    """The questions of records, each with the features of its options.

    Args:
        records: Of how many the questions are.
        states: Mean of each state, by `Record.state_key` [hidden].
        features: Of the questions' options.
        labels: [questions], or where some are distributions [questions, options].
        weights: Of the questions' records [questions].
        classes: The options that all questions share, in their order; None where they differ.
    """

    readout: ClassVar[str] = "option_texts"

    records: int
    states: dict[str, Tensor]
    features: OptionFeatures
    labels: Tensor
    weights: Tensor
    classes: tuple[str, ...] | None

    @classmethod
    def of(
        cls,
        items: Sequence[DecisionItem],
        features: OptionFeatures,
        states: dict[str, Tensor],
        classes: Sequence[str] | None,
    ) -> OptionExamples:
        """Those of items whose features were read."""
        weights = torch.tensor([item.record_weight for item in items], dtype=torch.float64)
        records = len({(item.record, item.state_key) for item in items})
        return cls(records, states, features, labels_of(items), weights, None if classes is None else tuple(classes))

    @property
    def counting(self) -> Tensor | None:
        """How often each question counts, one on the average; None where all count alike."""
        relative = self.weights / self.weights.mean()
        return None if bool((relative == 1).all()) else relative

    def joined(self, other: OptionExamples) -> OptionExamples:
        """Those of `other` behind these, as if their records stood in one file."""
        classes = self.classes if self.classes == other.classes else None
        width = max(self.features.mask.shape[1], other.features.mask.shape[1])
        parts = [one.features if classes else _without_choices(one.features) for one in (self, other)]
        soft = self.labels.dim() == 2 or other.labels.dim() == 2
        labels = [_widened(one.labels, width) if soft else one.labels for one in (self, other)]
        return OptionExamples(
            self.records + other.records,
            self.states | other.states,
            read_together(parts),
            torch.cat(labels),
            torch.cat([self.weights, other.weights]),
            classes,
        )

    def to_dict(self) -> dict[str, Any]:
        """What of them is no tensor."""
        classes = None if self.classes is None else list(self.classes)
        return {"readout": self.readout, "records": self.records, "states": list(self.states), "classes": classes}

    def tensors(self) -> dict[str, Tensor]:
        """Their tensors by name."""
        features = self.features
        found = {"states": torch.stack(list(self.states.values())), "labels": self.labels, "weights": self.weights}
        found |= {"mask": features.mask, "questions": features.questions}
        found |= {f"hidden.{name}": block for name, block in features.hidden.items()}
        found |= {f"number.{name}": block for name, block in features.numbers.items()}
        return {name: tensor.contiguous() for name, tensor in found.items()}

    @classmethod
    def restored(cls, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> OptionExamples:
        """From `to_dict` and `tensors`.

        Raises:
            KeyError: A name is missing.
            ValueError: Numbers do not fit.
        """
        blocks: dict[str, dict[str, Tensor]] = {"hidden": {}, "number": {}}
        for name, tensor in tensors.items():
            kind, _, block = name.partition(".")
            if block:
                blocks[kind][block] = tensor
        features = OptionFeatures(blocks["hidden"], tensors["mask"], tensors["questions"], blocks["number"])
        own = (tensors["labels"], tensors["weights"], features.questions, *blocks["hidden"].values())
        if {len(tensor) for tensor in own} != {len(features)}:
            raise ValueError("there are labels, weights and features of different numbers of questions")
        classes = content["classes"]
        states = dict(zip(map(str, content["states"]), tensors["states"], strict=True))
        return cls(
            int(content["records"]),
            states,
            features,
            tensors["labels"],
            tensors["weights"],
            None if classes is None else tuple(map(str, classes)),
        )


def _without_choices(features: OptionFeatures) -> OptionFeatures:
    numbers = {name: block for name, block in features.numbers.items() if name != _CHOICE}
    return replace(features, numbers=numbers)


def _widened(labels: Tensor, width: int) -> Tensor:
    """Labels as distributions over so many options [questions, width]."""
    if labels.dim() == 1:
        return nn.functional.one_hot(labels, width).double()
    return nn.functional.pad(labels, (0, width - labels.shape[1]))
