"""A predictive whose items have different numbers of draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor, nn

from bayeslora.prediction.predictive import Predictive


@dataclass(frozen=True)
class UnevenPredictive(Predictive):
    """Posterior predictive of a batch in which each item has draws of its own number.

    The second item has one draw: its mean is that draw, without disagreement.

    >>> draws = torch.tensor([[[0.9, 0.1], [0.2, 0.8]], [[0.5, 0.5], [0.0, 0.0]]])  # [samples, batch, choices]
    >>> predictive = UnevenPredictive(draws.log(), counts=torch.tensor([2, 1]))
    >>> predictive.probabilities
    tensor([[0.7000, 0.3000],
            [0.2000, 0.8000]])
    >>> predictive.mutual_information[1]
    tensor(0.)

    Args:
        samples: Log-probabilities [samples, batch, choices], nats; -inf for draws that an item does not have.
        counts: Draws of each item [batch], at least 1: the first so many.
    """

    counts: Tensor = field(kw_only=True)

    @classmethod
    def of_rounds(cls, rounds: Sequence[tuple[Tensor, Tensor]], items: int) -> Self:
        """From the items' numbers and samples of each round; each item takes part in the first ones up to some."""
        width = rounds[0][1].shape[-1] if rounds else 1
        total = sum(len(samples) for _, samples in rounds)
        joined = torch.full((total, items, width), -torch.inf)
        counts, first = torch.zeros(items, dtype=torch.long), 0
        for numbers, samples in rounds:
            joined[first : first + len(samples), numbers] = samples
            counts[numbers] += len(samples)
            first += len(samples)
        return cls(joined, counts=counts)

    @property
    def present(self) -> Tensor:
        """Which draws an item has [samples, batch]."""
        return torch.arange(len(self.samples), device=self.counts.device).unsqueeze(-1) < self.counts

    @property
    def log_probabilities(self) -> Tensor:
        """log of the mean probability over an item's draws [batch, choices], nats."""
        return torch.logsumexp(self.samples, 0) - self.counts.to(self.samples).log().unsqueeze(-1)

    @property
    def mutual_information(self) -> Tensor:
        """Predictive entropy minus mean entropy of an item's draws [batch], nats; 0 where there is one."""
        entropies = torch.special.entr(self.samples.exp()).sum(-1)
        information = (self.entropy - entropies.sum(0) / self.counts).clamp_min(0)
        return torch.where(self.counts == 1, 0.0, information)

    @property
    def spread(self) -> Tensor:
        """Standard deviation over an item's draws of the predicted choice's probability [batch]."""
        top = self.log_probabilities.argmax(-1)
        chosen = self.samples.exp().gather(-1, top.expand(len(self.samples), -1).unsqueeze(-1)).squeeze(-1)
        away = torch.where(self.present, chosen - chosen.sum(0) / self.counts, 0.0)
        return (away.square().sum(0) / self.counts).sqrt()

    @property
    def further(self) -> dict[str, Tensor]:
        """`num_samples`, the draws of each item."""
        return {"num_samples": self.counts}

    def rescaled(self, factors: Tensor) -> None:
        """None: the scores are not known."""

    def tempered(self, temperature: float) -> UnevenPredictive:
        """Each draw's log-probabilities divided by `temperature` and normalised."""
        if temperature == 1:
            return self
        scaled = torch.log_softmax(self.samples / temperature, -1)
        return UnevenPredictive(scaled.masked_fill(~self.present.unsqueeze(-1), -torch.inf), counts=self.counts)

    def take(self, indices: Tensor) -> UnevenPredictive:
        """That of the items `indices`."""
        return UnevenPredictive(self.samples[:, indices], counts=self.counts[indices])

    def cpu(self) -> UnevenPredictive:
        """With its tensors on the CPU."""
        return UnevenPredictive(self.samples.cpu(), counts=self.counts.cpu())

    @classmethod
    def _joined(cls, parts: Sequence[Predictive]) -> UnevenPredictive:
        draws = max(len(part.samples) for part in parts)
        padded = [
            Predictive(nn.functional.pad(part.samples, (0, 0, 0, 0, 0, draws - len(part.samples)), value=-torch.inf))
            for part in parts
        ]
        counts = [part.counts if isinstance(part, UnevenPredictive) else _full(part) for part in parts]
        return cls(Predictive.concatenate(padded).samples, counts=torch.cat(counts))


def _full(part: Predictive) -> Tensor:
    return torch.full(part.samples.shape[1:2], len(part.samples))
