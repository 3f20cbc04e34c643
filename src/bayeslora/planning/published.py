"""Facts about public models and tasks that a plan needs where the Hub cannot be reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

_LLAMA: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}

ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    "meta-llama/Llama-2-7b-hf": {
        **_LLAMA,
        "dtype": "float16",
        "intermediate_size": 11008,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "vocab_size": 32000,
    },
    "meta-llama/Meta-Llama-3-8B": {
        **_LLAMA,
        "dtype": "bfloat16",
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "vocab_size": 128256,
    },
    "Qwen/Qwen2.5-14B": {
        "model_type": "qwen2",
        "dtype": "bfloat16",
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 48,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "vocab_size": 152064,
    },
    "Qwen/Qwen3-30B-A3B": {
        "model_type": "qwen3_moe",
        "dtype": "bfloat16",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
}
"""The fields of each model's public config.json that decide its shapes."""


class TaskSize(NamedTuple):
    """Items of a public dataset as `Task.splits(source="hub")` reads it, before the dev split is taken off."""

    train: int
    test: int


TASK_SIZES: Mapping[str, TaskSize] = {
    "arc_easy": TaskSize(2251, 2376),
    "arc_challenge": TaskSize(1119, 1172),
    "openbookqa": TaskSize(4957, 500),
    "boolq": TaskSize(9427, 3270),
    "winogrande": TaskSize(40398, 1267),
    "winogrande_s": TaskSize(640, 1267),
    "winogrande_m": TaskSize(2558, 1267),
    "mmlu_chemistry": TaskSize(0, 302),
    "mmlu_physics": TaskSize(0, 487),
    "mmlu_computer_science": TaskSize(0, 412),
    "mmlu_law": TaskSize(0, 1762),
    "mmlu_health": TaskSize(0, 1640),
    "mmlu_college_chemistry": TaskSize(0, 100),
    "mmlu_college_physics": TaskSize(0, 102),
    "mmlu_electrical_engineering": TaskSize(0, 144),
    "mmlu_health_without_genetics": TaskSize(0, 1540),
}
"""Training sizes are those of the datasets' cards; test sizes were counted (MMLU without items that repeat a choice)
where the offline data package has them, else they are the cards'."""
