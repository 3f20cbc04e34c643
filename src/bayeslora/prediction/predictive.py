"""The posterior predictive distribution and its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.adapters.draws import find_draws
from bayeslora.models.layers import evaluating, layers_below, layers_from_first, run_once, text_config
from bayeslora.scoring import ChoiceBatch
from bayeslora.scoring.trunk_cache import TrunkCache, served
from bayeslora.system.memory import keep_freed_blocks

_FAST_ACTIVATION = 8 * 2**20
"""Bytes. Several larger blocks at once go beyond what the allocator keeps (`keep_freed_blocks`), and leave the
processor's cache; below, more rows in one product gain nothing more."""


@dataclass(frozen=True)
class Predictive:
    """Posterior predictive of a batch.

    Two draws that are sure of opposite things: the mean is a coin, and all of its entropy is epistemic.

    >>> draws = torch.tensor([[[0.99, 0.01]], [[0.01, 0.99]]])  # [samples, batch, choices]
    >>> predictive = Predictive(draws.log())
    >>> predictive.probabilities
    tensor([[0.5000, 0.5000]])
    >>> predictive.entropy, predictive.mutual_information
    (tensor([0.6931]), tensor([0.6371]))

    Args:
        samples: Log-probabilities [samples, batch, choices] of each draw, nats.
        normalisers: What was subtracted from the scores of each draw [samples, batch], nats; None where not known.
    """

    samples: Tensor
    normalisers: Tensor | None = None

    @classmethod
    def of_scores(cls, scores: Tensor) -> Predictive:
        """That of scores (logits) [samples, batch, choices]."""
        return cls(torch.log_softmax(scores, -1), torch.logsumexp(scores, -1))

    def rescaled(self, factors: Tensor) -> Predictive | None:
        """With the score of each choice times its factor [batch, choices]; None where the scores are not known."""
        if self.normalisers is None:
            return None
        return Predictive.of_scores((self.samples + self.normalisers.unsqueeze(-1)) * factors)

    @property
    def log_probabilities(self) -> Tensor:
        """log of the mean probability over samples [batch, choices], nats; -inf for choices an item does not have."""
        return log_mean_exp(self.samples)

    @property
    def probabilities(self) -> Tensor:
        """Mean probability over samples [batch, choices]."""
        return self.log_probabilities.exp()

    @property
    def entropy(self) -> Tensor:
        """Entropy of the predictive [batch], nats: total uncertainty."""
        return _entropy(self.log_probabilities)

    @property
    def mutual_information(self) -> Tensor:
        """Predictive entropy minus mean entropy of the draws [batch], nats: epistemic uncertainty.

        At least 0 (Jensen); exactly 0 for one sample.
        """
        if self.samples.shape[0] == 1:
            return torch.zeros_like(self.samples[0, :, 0])
        return (self.entropy - _entropy(self.samples).mean(0)).clamp_min(0)

    @property
    def spread(self) -> Tensor:
        """Standard deviation over samples of the predicted choice's probability [batch]: do the draws differ?"""
        top = self.log_probabilities.argmax(-1)
        chosen = self.samples.exp().gather(-1, top.expand(self.samples.shape[0], -1).unsqueeze(-1)).squeeze(-1)
        return chosen.std(0, correction=0)

    @property
    def further(self) -> dict[str, Tensor]:
        """What else is known of each item, by name [batch]; a kind of predictive of its own may know something."""
        return {}

    def tempered(self, temperature: float) -> Predictive:
        """Each draw's log-probabilities divided by `temperature` and normalised (arXiv 1706.04599)."""
        if temperature == 1:
            return self
        return Predictive(torch.log_softmax(self.samples / temperature, -1))

    def take(self, indices: Tensor) -> Predictive:
        """That of the items `indices`."""
        return Predictive(self.samples[:, indices], None if self.normalisers is None else self.normalisers[:, indices])

    def cpu(self) -> Predictive:
        """With its tensors on the CPU."""
        return Predictive(self.samples.cpu(), None if self.normalisers is None else self.normalisers.cpu())

    @staticmethod
    def concatenate(parts: Sequence[Predictive]) -> Predictive:
        """One predictive of several batches of one kind; narrower batches get choices of probability 0."""
        return type(parts[0])._joined(parts)

    @classmethod
    def _joined(cls, parts: Sequence[Predictive]) -> Predictive:
        width = max(part.samples.shape[-1] for part in parts)
        padded = [
            nn.functional.pad(part.samples, (0, width - part.samples.shape[-1]), value=-torch.inf) for part in parts
        ]
        known = [part.normalisers for part in parts if part.normalisers is not None]
        return cls(torch.cat(padded, dim=1), torch.cat(known, dim=1) if len(known) == len(parts) else None)


def log_mean_exp(samples: Tensor) -> Tensor:
    """log of the mean over the first dimension of exp(samples), `[samples, ...]` to `[...]`.

    >>> log_mean_exp(torch.tensor([0.25, 0.75]).log()).exp()
    tensor(0.5000)
    """
    return torch.logsumexp(samples, 0) - math.log(samples.shape[0])


def _entropy(log_probabilities: Tensor) -> Tensor:
    return torch.special.entr(log_probabilities.exp()).sum(-1)


def predict(
    model: nn.Module,
    batch: ChoiceBatch | Mapping[str, Any],
    num_samples: int = 10,
    seed: int = 0,
    *,
    first_sample: int = 0,
    chunk_size: int | None = None,
    memory_limit: int | None = None,
    trunk_cache: TrunkCache | None = None,
) -> Predictive:
    """Posterior predictive of `batch`, in eval mode and without gradients.

    >>> import peft, transformers
    >>> import bayeslora
    >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    >>> config = transformers.LlamaConfig(vocab_size=50, num_labels=3, pad_token_id=0, **sizes)
    >>> base = transformers.LlamaForSequenceClassification(config)
    >>> model = peft.get_peft_model(base, bayeslora.BayesianLoraConfig(r=2, task_type="SEQ_CLS"))
    >>> prediction = predict(model, {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 10]])}, num_samples=4, seed=0)
    >>> prediction.samples.shape, prediction.probabilities.shape, prediction.entropy.shape
    (torch.Size([4, 2, 3]), torch.Size([2, 3]), torch.Size([2]))

    Args:
        model: A model with Bayesian-LoRA adapters. Without any, the result is the model's own prediction.
        batch: A `ChoiceBatch` (from a scoring: letter, cloze, classification), or the inputs of a model whose
            `logits` are [batch, choices].
        num_samples: Draws S from the posterior; 0 for the posterior mean alone.
        seed: Seed of the draws.
        first_sample: Number of the first draw. Draw s is the same in every call with this seed, so that the draws of
            one call can go on where those of another ended.
        chunk_size: Draws in one forward. Default: as many as `memory_limit` allows. Draws, and so results, do not
            depend on it beyond rounding.
        memory_limit: Bound in bytes for the activations of one forward, as estimated. Default: half of the free
            memory on a GPU; on a CPU 1 GiB, and no more draws than keep an activation small enough to be fast.
        trunk_cache: Serves the frozen layers' output for batches of items (`ChoiceBatch`).

    Returns:
        Log-probabilities over the choices with entropy and mutual information in nats.

    Raises:
        ValueError: `num_samples` is negative or `chunk_size` is not positive.
    """
    if num_samples < 0:
        raise ValueError(f"num_samples must be at least 0 (0: posterior mean), got {num_samples}.")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}.")
    device = next(model.parameters()).device
    if device.type == "cpu":
        keep_freed_blocks()
    batch = _on_device(batch, device)
    if isinstance(batch, ChoiceBatch):
        batch = batch.suited_to(model)
    with evaluating(model), torch.no_grad():
        draws = find_draws(model)
        if num_samples == 0 or draws is None or not draws.modules(in_use=True):
            with served(batch, trunk_cache):
                return Predictive.of_scores(_choice_logits(model, batch).unsqueeze(0))
        size = 1 if draws.one_by_one else chunk_size or affordable_samples(model, *_extent(batch), memory_limit)
        above = layers_from_first(model, draws.modules(in_use=True))
        chunks = []
        with served(batch, trunk_cache), run_once(layers_below(model, above)), draws.copies_computed_once(above[:1]):
            for first in range(0, num_samples, size):
                count = min(size, num_samples - first)
                with draws.drawing(count, seed, first_sample + first, above):
                    logits = _choice_logits(model, batch)
                chunks.append(logits.unflatten(0, (count, -1)))
    return Predictive.of_scores(torch.cat(chunks))


def _on_device(batch: ChoiceBatch | Mapping[str, Any], device: torch.device) -> ChoiceBatch | Mapping[str, Any]:
    if isinstance(batch, ChoiceBatch):
        return batch.to(device)
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def _choice_logits(model: nn.Module, batch: ChoiceBatch | Mapping[str, Any]) -> Tensor:
    if isinstance(batch, ChoiceBatch):
        return batch.choice_logits(model)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs).logits.float()
    if logits.dim() != 2:
        raise ValueError(
            f"predict needs class logits [batch, choices], but this model gives {tuple(logits.shape)} (tokens?); build "
            "the batch with bayeslora.scoring.Letter or Cloze for a causal language model."
        )
    return logits


def _extent(batch: ChoiceBatch | Mapping[str, Any]) -> tuple[Tensor, int]:
    """The ids `[batch, tokens]` of a batch, and how many positions of a row reach the head."""
    ids = batch["input_ids"] if "input_ids" in batch else next(iter(batch.values()))
    return ids, batch.logit_positions if isinstance(batch, ChoiceBatch) else 1


def affordable_samples(model: nn.Module, ids: Tensor, positions: int, memory_limit: int | None = None) -> int:
    """How many draws fit into the memory limit in one forward; at least one.

    An upper estimate of what is alive at once without gradients: a few activations of the widest layer, the attention
    scores, and the logits in their own precision and in float32.

    Args:
        model: The model.
        ids: What it reads `[batch, tokens]`.
        positions: How many tokens of a row reach the head.
        memory_limit: In bytes; default: half of the free memory on a GPU; on a CPU 1 GiB, and the widest activation at
            most 8 MiB.
    """
    rows, tokens = int(ids.shape[0]), int(ids.shape[1])
    config = text_config(model)
    hidden = getattr(config, "hidden_size", 1024)
    wide = getattr(config, "intermediate_size", None) or 4 * hidden
    heads = getattr(config, "num_attention_heads", 1)
    vocabulary = getattr(config, "vocab_size", 1)
    numbers = tokens * (6 * hidden + 3 * wide) + 2 * heads * tokens**2 + 3 * positions * vocabulary
    if memory_limit is None and ids.is_cuda:
        memory_limit = torch.cuda.mem_get_info(ids.device)[0] // 2
    fitting = (memory_limit or 2**30) // (4 * rows * numbers)
    if memory_limit is None:
        fitting = min(fitting, _FAST_ACTIVATION // (4 * rows * tokens * wide))
    return max(1, int(fitting))
