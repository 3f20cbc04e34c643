"""Perplexity and token calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bayeslora.metrics import ReliabilityCurve, confidence_calibration_error, confidence_reliability_curve
from bayeslora.runs.language_modelling.tokens import TokenPrediction


def token_metrics(predictions: Sequence[TokenPrediction], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Scores of all target tokens of some texts, as plain numbers.

    Args:
        predictions: One per text.
        tokenizer: To count the UTF-8 bytes that the target tokens stand for, without special tokens.

    Returns:
        nll (mean of the mixture's negative log-likelihood, nats per token), perplexity (its exponential), joint_nll and
        joint_perplexity (of the joint likelihood of each text, per token), bits_per_byte and joint_bits_per_byte,
        accuracy (the most probable token is the target), ece (of that token's probability, 15 bins), brier, entropy and
        mutual_information (means, nats), num_examples (texts), num_tokens. Bits per byte are None where the
        targets stand for no text.

    Raises:
        ValueError: There are no predictions.
    """
    if not predictions:
        raise ValueError("there are no texts to score.")
    tokens = sum(len(each.targets) for each in predictions)
    lost = {name: -sum(each.log_likelihood(name) for each in predictions) for name in ("mixture", "joint")}
    size = sum(_bytes(each.targets, tokenizer) for each in predictions)
    confidence, correct = _joined(predictions, "confidence"), _joined(predictions, "correct")
    return {
        "nll": lost["mixture"] / tokens,
        "perplexity": math.exp(lost["mixture"] / tokens),
        "joint_nll": lost["joint"] / tokens,
        "joint_perplexity": math.exp(lost["joint"] / tokens),
        "bits_per_byte": lost["mixture"] / (math.log(2) * size) if size else None,
        "joint_bits_per_byte": lost["joint"] / (math.log(2) * size) if size else None,
        "accuracy": float(correct.double().mean()),
        "ece": confidence_calibration_error(confidence, correct),
        "brier": float(_joined(predictions, "brier").double().mean()),
        "entropy": float(_joined(predictions, "entropy").double().mean()),
        "mutual_information": float(_joined(predictions, "mutual_information").double().mean()),
        "num_examples": len(predictions),
        "num_tokens": tokens,
    }


def token_reliability(predictions: Sequence[TokenPrediction], bins: int = 15) -> ReliabilityCurve:
    """How often the most probable token is the target, by its probability."""
    return confidence_reliability_curve(_joined(predictions, "confidence"), _joined(predictions, "correct"), bins)


def _joined(predictions: Sequence[TokenPrediction], name: str) -> Tensor:
    return torch.cat([getattr(each, name) for each in predictions])


def _bytes(targets: Tensor, tokenizer: PreTrainedTokenizerBase) -> int:
    text = tokenizer.decode(targets.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return len(str(text).encode())
