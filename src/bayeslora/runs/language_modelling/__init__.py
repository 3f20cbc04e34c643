"""Language modelling and instruction tuning: texts to train on, perplexity, and calibration of tokens.

`predict_tokens` and `token_metrics` work on any causal language model. `train_texts` and `predict_texts`, for runs
with task.scoring text, need `pip install "bayeslora[sft]"`.
"""

from typing import TYPE_CHECKING

from bayeslora.options.late import late
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

# Their modules need TRL.
__getattr__ = late(__name__, {"predict_texts": "evaluation", "train_texts": "training"})
