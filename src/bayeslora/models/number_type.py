"""The number type that a model is computed in where the user leaves it open."""

from __future__ import annotations

from functools import cache

import torch

from bayeslora.models.kinds import DtypeName
from bayeslora.system.devices import choose_device
from bayeslora.system.log import logger

_OF_16_BITS = ("offline:smollm2",)
"""Models that are stored in float32 here, but were trained in 16 bits: bfloat16 takes nothing from them."""


def number_type(dtype: DtypeName, name: str, device: str, *, say: bool = True) -> DtypeName:
    """What "auto" comes to: "auto" again where the type that the weights are stored in is the best one.

    A CPU with units for bfloat16 (AVX512_BF16, AMX) computes faster in it than in float32 (studies/cost/number_type);
    one without emulates it, about three times slower. Adapters, and sums over the vocabulary, are in float32 either
    way. What the processor says decides, and no measurement, so that a machine gives the same numbers every time.

    Args:
        dtype: What was asked for.
        name: Of the base model.
        device: A torch device name, or "auto".
        say: Whether a line in the log says what was not stored so.
    """
    if dtype != "auto" or not (device == "cpu" or (device == "auto" and choose_device("auto").type == "cpu")):
        return dtype
    if not _has_bfloat16_units():
        return "float32"
    if name not in _OF_16_BITS:
        return "auto"
    if say:
        _say(name)
    return "bfloat16"


def _has_bfloat16_units() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@cache
def _say(name: str) -> None:
    """Once: it is true of every model of the process."""
    logger.info(
        "%s is computed in bfloat16, which this processor has units for (otherwise: --model.dtype float32)", name
    )
