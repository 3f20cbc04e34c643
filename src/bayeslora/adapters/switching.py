"""The base model alone, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from bayeslora.models.layers import descendants


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The base model without its adapters; all as it was afterwards.

    Adapters are switched off one by one: PEFT's own switch also changes what is trained, and the forward of a merged
    one takes it out of the weights.
    """
    adapters: list[Any] = [
        module
        for module in descendants(model)
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
        and not (module.disable_adapters or getattr(module, "merged", False))
    ]
    for adapter in adapters:
        adapter._disable_adapters = True
    try:
        yield
    finally:
        for adapter in adapters:
            adapter._disable_adapters = False
