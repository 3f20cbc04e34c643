"""Language modelling and instruction tuning: texts to train on, perplexity, and calibration of tokens.

`predict_tokens` and `token_metrics` work on any causal language model. `train_texts` and `predict_texts`, for runs
with task.scoring text, need `pip install "bayeslora[sft]"`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from bayeslora.runs.language_modelling.metrics import token_metrics, token_reliability
from bayeslora.runs.language_modelling.tokens import TokenPrediction, predict_tokens

if TYPE_CHECKING:
    from bayeslora.runs.language_modelling.evaluation import predict_texts
    from bayeslora.runs.language_modelling.training import train_texts

__all__ = [
    "TokenPrediction",
    "predict_texts",
    "predict_tokens",
    "token_metrics",
    "token_reliability",
    "train_texts",
]

_LATER = {"predict_texts": "evaluation", "train_texts": "training"}
"""Names whose modules need TRL."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
