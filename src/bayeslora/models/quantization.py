"""Base models whose linear layers are kept in 4 or 8 bits, by transformers' own quantisation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.models.kinds import Quantization


def quantization_config(name: Quantization, dtype: str, unpacked: Sequence[str] | None = None) -> Any | None:
    """transformers' config for `from_pretrained`, None for "none".

    "bnb_4bit" is that of QLoRA (arXiv 2305.14314): NF4 with double quantisation; "bnb_8bit" is LLM.int8()
    (arXiv 2208.07339); "torchao_int8" has int8 weights alone, one scale for each row.

    Args:
        name: Which.
        dtype: Number type of the model, in which 4-bit weights are multiplied; "auto" is bfloat16 there.
        unpacked: Names of modules to leave as they are; default: transformers' choice, the
            language-model head where it has no bias.

    Raises:
        ImportError: The package is not installed.
    """
    if name == "none":
        return None
    left_out = None if unpacked is None else list(unpacked)
    package = "torchao" if name == "torchao_int8" else "bitsandbytes"
    if find_spec(package) is None:
        raise ImportError(f'quantization {name!r} needs {package}: pip install "bayeslora[quantized]"')
    if name == "torchao_int8":
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=left_out)
    from transformers import BitsAndBytesConfig

    if name == "bnb_8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=left_out)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=left_out,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "auto" else getattr(torch, dtype),
    )


def keep_layout(model: nn.Module) -> None:
    """Have bitsandbytes leave 4-bit weights in the layout that backward passes and merging read.

    On CPUs with bfloat16 arithmetic a forward in eval mode repacks them for speed; a later backward pass or merge then
    reads them wrongly, without a word (bitsandbytes 0.50).
    """
    modules: Iterator[Any] = model.modules()
    for module in modules:
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def plain_tensors(value: Tensor) -> list[Tensor]:
    """The ordinary tensors that a quantised one of torchao is made of; another tensor alone."""
    flatten = getattr(value.detach(), "__tensor_flatten__", None)
    if flatten is None:
        return [value]
    names, _ = flatten()
    return [part for name in names for part in plain_tensors(getattr(value, name))]
