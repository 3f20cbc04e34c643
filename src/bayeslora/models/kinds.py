"""The words for number types and quantisations that options take; what they mean is in files that import torch."""

from __future__ import annotations

from typing import Literal

__all__ = ["DtypeName", "Quantization"]

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]

Quantization = Literal["none", "bnb_4bit", "bnb_8bit", "torchao_int8"]
