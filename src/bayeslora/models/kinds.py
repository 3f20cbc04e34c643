"""The words for models, number types and places in options; what they mean is in files that import torch."""

from __future__ import annotations

from typing import Literal

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]

ModelKind = Literal["causal_lm", "sequence_classification"]
"""What a base model ends in: a head over the vocabulary, or one over classes."""

Quantization = Literal["none", "bnb_4bit", "bnb_8bit", "torchao_int8"]

Placement = Literal["all", "top_half", "top_quarter"]
"""The layers that are adapted: shares counted from the top."""

Targets = list[str] | Literal["all-linear"] | None
"""The modules that are adapted; "all-linear": all linear maps but the head; None: PEFT's choice for the model."""
