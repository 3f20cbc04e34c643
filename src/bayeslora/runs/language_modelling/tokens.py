"""The posterior predictive of each token of given texts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.adapters.draws import find_draws
from bayeslora.adapters.sampling import sampling
from bayeslora.models.layers import evaluating, layers_below, layers_from_first, run_once
from bayeslora.prediction.likelihood import Likelihood, log_likelihood
from bayeslora.prediction.predictive import affordable_samples, log_mean_exp
from bayeslora.scoring.base import forward_options
from bayeslora.system.console import progress

_COPIES = 5
"""Float32 arrays over the vocabulary that are alive at once for each target token, at most."""

_PADDING = {"input_ids": 0, "labels": -100}


@dataclass(frozen=True)
class TokenPrediction:
    """The target tokens of one text under S draws, on the CPU. All but `samples` are of the mixture over draws.

    Args:
        targets: Their ids `[tokens]`.
        samples: Log-probability of each under each draw `[samples, tokens]`, nats.
        confidence: Probability of the most probable token `[tokens]`.
        correct: Whether that token is the target `[tokens]`.
        entropy: Entropy of the predictive distribution `[tokens]`, nats: total uncertainty.
        mutual_information: Entropy minus the draws' mean entropy `[tokens]`, nats: epistemic uncertainty.
        brier: Squared error summed over the vocabulary `[tokens]`, in [0, 2].
    """

    targets: Tensor
    samples: Tensor
    confidence: Tensor
    correct: Tensor
    entropy: Tensor
    mutual_information: Tensor
    brier: Tensor

    @property
    def log_probabilities(self) -> Tensor:
        """log of the mean probability over draws `[tokens]`, nats."""
        return log_mean_exp(self.samples)

    def log_likelihood(self, likelihood: Likelihood) -> float:
        """That of the whole text in nats, "joint" or "mixture" (`bayeslora.prediction.likelihood`)."""
        return log_likelihood(self.samples, likelihood)


def predict_tokens(
    model: nn.Module,
    rows: Sequence[Mapping[str, Any]],
    num_samples: int = 10,
    seed: int = 0,
    *,
    batch_size: int = 8,
    memory_limit: int | None = None,
) -> list[TokenPrediction]:
    """Predict every target token of `rows` with draws that are the same for all rows, in eval mode.

    What has the size of the vocabulary is kept for one forward and one draw at a time; a row leaves S + 6 numbers per
    target token.

    Args:
        model: A causal language model with adapters. Without draws (plain LoRA) the result has one sample.
        rows: `input_ids` and `labels` of each text; labels of -100, and the first one, are no targets. So are the rows
            of `BayesianSFTTrainer.train_dataset`, unless packed.
        num_samples: Draws S; 0 for the posterior mean.
        seed: Of the draws.
        batch_size: Rows in one forward at most.
        memory_limit: Bytes for what has the size of the vocabulary, and as in `bayeslora.predict`. One row and draw
            are read at once in any case. Default: half of the free memory on a GPU, 1 GiB elsewhere.

    Returns:
        One prediction per row, in their order.

    Raises:
        ValueError: `num_samples` is negative, or a row has no target token.
    """
    if num_samples < 0:
        raise ValueError(f"num_samples must be at least 0 (0: posterior mean), got {num_samples}.")
    for number, row in enumerate(rows):
        if all(label == -100 for label in row["labels"][1:]):
            raise ValueError(f"row {number} has no target token (its labels are all -100); leave it out.")
    draws = find_draws(model)
    if draws is None or not draws.modules(in_use=True):
        num_samples = 0
    found: dict[int, TokenPrediction] = {}
    with evaluating(model), torch.no_grad(), progress("predict", len(rows), "texts") as line:
        for numbers in _batches(model, rows, batch_size, memory_limit):
            batch = [rows[number] for number in numbers]
            found |= zip(numbers, _predict_batch(model, batch, num_samples, seed, memory_limit), strict=True)
            line.advance(len(numbers))
    return [found[number] for number in range(len(rows))]


def _batches(
    model: nn.Module, rows: Sequence[Mapping[str, Any]], batch_size: int, memory_limit: int | None
) -> Iterator[list[int]]:
    """Numbers of rows of similar length whose logits fit into the memory limit."""
    device = next(model.parameters()).device
    if memory_limit is None:
        memory_limit = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 2**30
    config: Any = model.config
    affordable = memory_limit // (4 * _COPIES * config.get_text_config().vocab_size)
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number]["input_ids"]))
    while order:
        longest = len(rows[order[0]]["input_ids"])
        size = max(1, min(batch_size, affordable // longest))
        yield order[:size]
        order = order[size:]


def _predict_batch(
    model: nn.Module, rows: Sequence[Mapping[str, Any]], num_samples: int, seed: int, memory_limit: int | None
) -> list[TokenPrediction]:
    device = next(model.parameters()).device
    # Padding behind a text changes nothing before it, and the places of the tokens stay those of the text alone.
    ids, labels = (_padded([row[name] for row in rows], value).to(device) for name, value in _PADDING.items())
    lengths = torch.tensor([len(row["input_ids"]) for row in rows], device=device)
    mask = (torch.arange(ids.shape[1], device=device) < lengths.unsqueeze(1)).long()
    is_target = labels[:, 1:] != -100
    first_place = int(is_target.any(0).nonzero()[0])
    is_target = is_target[:, first_place:]
    targets = labels[:, 1 + first_place :][is_target]
    kept = ids.shape[1] - first_place
    options = forward_options(model, attention_mask=mask, logits_to_keep=kept, use_cache=False)

    def logits_of(copies: int) -> Tensor:
        """Logits that predict the targets `[copies, targets, vocabulary]`."""
        logits = model(input_ids=ids, **options).logits[:, -kept:-1]
        return logits.unflatten(0, (copies, -1))[:, is_target]

    mean = _Mixture(targets, max(1, num_samples))
    if num_samples == 0:
        mean.add(logits_of(1)[0])
    else:
        draws = find_draws(model)
        assert draws is not None
        size = affordable_samples(model, ids, kept, memory_limit)
        with run_once(layers_below(model, layers_from_first(model, draws.modules(in_use=True)))):
            for first in range(0, num_samples, size):
                count = min(size, num_samples - first)
                with sampling(model, count, seed, first=first):
                    for logits in logits_of(count):
                        mean.add(logits)
    return mean.split(is_target.sum(1).tolist())


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows of numbers as `[rows, longest]`, padded behind."""
    return nn.utils.rnn.pad_sequence([torch.as_tensor(row) for row in rows], batch_first=True, padding_value=value)


class _Mixture:
    """Mean over draws of the distributions of some tokens, one draw after the other.

    Args:
        targets: Ids `[tokens]`.
        num_samples: How many draws there will be.
    """

    def __init__(self, targets: Tensor, num_samples: int):
        self._targets = targets
        self._num_samples = num_samples
        self._samples: list[Tensor] = []
        self._probabilities: Tensor | None = None
        self._entropy = torch.zeros(targets.shape, device=targets.device)

    def add(self, logits: Tensor) -> None:
        """Take a draw `[tokens, vocabulary]`."""
        log_probabilities = torch.log_softmax(logits.float(), -1)
        self._samples.append(log_probabilities.gather(-1, self._targets.unsqueeze(-1)).squeeze(-1))
        share = log_probabilities.exp_().div_(self._num_samples)
        # H[p] / S from p / S.
        self._entropy += torch.special.entr(share).sum(-1) - math.log(self._num_samples) / self._num_samples
        self._probabilities = share if self._probabilities is None else self._probabilities.add_(share)

    def split(self, counts: Sequence[int]) -> list[TokenPrediction]:
        """One prediction for each text, which has `counts` of the tokens."""
        assert self._probabilities is not None and len(self._samples) == self._num_samples
        confidence, top = self._probabilities.max(-1)
        entropy = torch.special.entr(self._probabilities).sum(-1)
        information = (entropy - self._entropy).clamp_min(0) if self._num_samples > 1 else torch.zeros_like(entropy)
        right = self._probabilities.gather(-1, self._targets.unsqueeze(-1)).squeeze(-1)
        brier = 1 - 2 * right + self._probabilities.square().sum(-1)
        samples = torch.stack(self._samples)
        columns = (self._targets, confidence, top == self._targets, entropy, information, brier)
        parts = [column.cpu().split(list(counts)) for column in columns]
        rows = zip(samples.cpu().split(list(counts), dim=1), *parts, strict=True)
        return [TokenPrediction(part[0], draws, *part[1:]) for draws, *part in rows]
