"""The base model of a run, and the scoring that reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from bayeslora.config import ModelConfig, TaskConfig
from bayeslora.distributed import join
from bayeslora.models import load_base_model
from bayeslora.scoring import Scoring, get_scoring

__all__ = ["head_width", "load_model"]


def load_model(
    config: ModelConfig, task: TaskConfig, num_labels: int | None = None
) -> tuple[nn.Module, PreTrainedTokenizerBase, Scoring]:
    """The base model on this process's device, its tokenizer, and the scoring that reads it."""
    scoring = get_scoring(task.scoring)
    model, tokenizer = load_base_model(
        config.name,
        kind=scoring.kind,  # type: ignore[arg-type]
        dtype=_dtype(config),
        device=join(config.device),
        revision=config.revision,
        quantization=config.quantization,
        num_labels=num_labels if scoring.kind == "sequence_classification" else None,
    )
    positions = getattr(model.config, "max_position_embeddings", None) or task.max_length
    return model, tokenizer, scoring(tokenizer, max_length=min(task.max_length, positions))


def head_width(adapter: Path) -> int | None:
    """Classes of the saved classification head, if the adapter holds one."""
    from safetensors import safe_open

    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        for key in file.keys():  # noqa: SIM118
            if key.endswith((".classifier.weight", ".score.weight", ".out_proj.weight")):
                return int(file.get_slice(key).get_shape()[0])
    return None


def _dtype(config: ModelConfig) -> Any:
    """float32 where bfloat16 would be emulated: that is about three times slower than float32 on such a CPU."""
    on_cpu = config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available())
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "float32" if config.dtype == "auto" and on_cpu and not native else config.dtype
