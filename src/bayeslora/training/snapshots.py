"""Copies of an adapter at the ends of the cycles of a training."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from bayeslora.adapters.random_factor import RandomFactor
from bayeslora.posteriors.weights.point import SnapshotWeights


class Capture(TrainerCallback):
    """Copies the adapter where a cycle ends; a checkpoint has what was copied before it.

    Args:
        snapshots: Number of cycles.
    """

    def __init__(self, snapshots: int):
        self._snapshots = snapshots

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """At the last step of a cycle."""
        warmup = args.get_warmup_steps(state.max_steps)
        for number in range(self._snapshots):
            end = warmup + math.ceil((state.max_steps - warmup) * (number + 1) / self._snapshots)
            if state.global_step == end:
                _capture(model, number)


def _capture(model: nn.Module, number: int) -> None:
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, RandomFactor) and isinstance(module.family, SnapshotWeights):
                tensors = module.parameters_by_name
                tensors["snapshots"][number].copy_(tensors["mean"])
