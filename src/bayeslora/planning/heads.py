"""What heads over adapters run of a model: the layers up to the one that is read, and no language-model head."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from peft import PeftModel
from torch import Tensor, nn

from bayeslora.readouts.hidden import differentiable_vectors, read_layers
from bayeslora.readouts.option_reading import OptionReading
from bayeslora.runs.cross_fitting import read_above_adapters
from bayeslora.scoring.base import ChoiceBatch
from bayeslora.scoring.cloze import ClozeBatch


def as_heads_read(model: PeftModel, batch: ChoiceBatch) -> ChoiceBatch:
    """A batch of `ClozeBatch`, full rows, whose logits take the forward and backward of one that heads read.

    Raises:
        ValueError: An adapter is above the layers that are read, or there is none.
    """
    reading = OptionReading(read_layers(model), lambda items: None)  # type: ignore[arg-type]
    read_above_adapters(model, reading)
    kind = type("PlannedBatch", (_PlannedBatch,), {"layers": reading.layers})
    lengths = torch.full_like(batch["input_ids"][:, 0], batch["input_ids"].shape[1])
    planned: ChoiceBatch = kind(**batch, lengths=lengths)
    return planned


class _PlannedBatch(ClozeBatch):
    layers: ClassVar[list[int]]

    @property
    def logit_positions(self) -> int:
        return 1

    def raw_logits(self, model: nn.Module) -> Tensor:
        vectors: Any = differentiable_vectors(model, self, self.layers)
        return vectors[:, 1:].float().sum((2, 3, 4))
