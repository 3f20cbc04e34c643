"""Optimizers that treat the two matrices of a LoRA adapter as a pair: torch optimizers, one file each."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from bayeslora.options.registry import Registry
from bayeslora.training.optimizers.base import PairOptimizer, PairStack
from bayeslora.training.optimizers.lora_rite import LoraRite
from bayeslora.training.optimizers.oplora import OpLora
from bayeslora.training.optimizers.pairs import Pair, lora_pairs, parameter_groups
from bayeslora.training.optimizers.reflora import RefLora, RefLoraScalar

__all__ = [
    "PAIR_OPTIMIZERS",
    "LoraRite",
    "OpLora",
    "Pair",
    "PairOptimizer",
    "PairStack",
    "RefLora",
    "RefLoraScalar",
    "build_optimizer",
    "lora_pairs",
    "parameter_groups",
]

PAIR_OPTIMIZERS: Registry[PairOptimizer] = Registry(PairOptimizer, __name__)  # type: ignore[type-abstract]
"""By the names of the command line (`--train.optimizer`)."""


def build_optimizer(
    name: str, model: nn.Module, *, weight_decay: float = 0.0, decayed: Collection[str] = (), **options: Any
) -> PairOptimizer:
    """An optimizer for all trainable parameters of `model`: its LoRA pairs by the method, the others by AdamW.

    For transformers' Trainer: `Trainer(..., optimizers=(build_optimizer("lora_rite", model, lr=1e-3), None))`.

    Args:
        name: A name in `PAIR_OPTIMIZERS`.
        model: A PEFT model, plain or with random factors.
        weight_decay: Decoupled weight decay of the pairs and of the parameters in `decayed`.
        decayed: Names of other parameters to decay.
        options: Arguments of the optimizer, such as `lr`.

    Raises:
        ValueError: The name is unknown, the model has no trainable LoRA pair, or a value is out of range.
    """
    PAIR_OPTIMIZERS.check(name, "optimizer")
    return PAIR_OPTIMIZERS.get(name)(parameter_groups(model, weight_decay, decayed), **options)
