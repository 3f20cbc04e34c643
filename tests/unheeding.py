"""Tiny models that do not heed a mask for each pair of tokens, or positions; most of them do not say so."""

from collections.abc import Callable
from typing import Any

from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MptConfig,
    MptForCausalLM,
    PreTrainedModel,
)

from conftest import seeded

SIZES: dict[str, Any] = {"vocab_size": 320, "hidden_size": 32, "initializer_range": 0.2, "pad_token_id": 0}


def gpt_neo(window: int = 8) -> PreTrainedModel:
    """Every other layer looks back `window` tokens, by a mask of its own."""
    fields = {"num_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]], "attention_dropout": 0.0}
    return GPTNeoForCausalLM(GPTNeoConfig(**SIZES, **fields, window_size=window, max_position_embeddings=1024))


def bloom() -> PreTrainedModel:
    """ALiBi; raises at a mask for each pair of tokens."""
    return BloomForCausalLM(BloomConfig(**SIZES, n_layer=2, n_head=4))


def mpt() -> PreTrainedModel:
    """ALiBi; takes the mask, and no positions."""
    sizes = {"d_model": 32, "n_layers": 2, "n_heads": 4, "expansion_ratio": 2}
    return MptForCausalLM(MptConfig(vocab_size=320, initializer_range=0.2, max_seq_len=256, **sizes))


def mamba() -> PreTrainedModel:
    """Carries a state along."""
    return MambaForCausalLM(MambaConfig(**SIZES, num_hidden_layers=2))


def built(build: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    with seeded(0):
        return build().eval()
