"""Cloze items with one row for each choice: for models that would not read packed choices as each one alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.scoring.base import ChoiceBatch, forward_options
from bayeslora.scoring.top_layer import head_of_positions

_AS_THEY_ARE = ("labels", "label_probabilities", "length_power")
"""What a packed batch has that does not depend on how its choices are laid out."""


class UnpackedBatch(ChoiceBatch):
    """Rows [question | choice | padding], item after item, as many for each item as the most choices of the batch.

    Padding behind the text changes nothing in a causal model, whatever it does with masks and positions.
    `attention_mask` [rows, tokens]; `answer` [rows, answer tokens] are the places of a choice's tokens, where `real`
    [rows, answer tokens] (none for a choice that an item does not have).
    """

    @classmethod
    def of(cls, packed: ChoiceBatch) -> UnpackedBatch:
        """The items of a `ClozeBatch`."""
        ids, choice, mask = packed["input_ids"], packed["choice"], packed["choice_mask"]
        tokens, lengths = ids.shape[1], packed["lengths"].unsqueeze(1)
        answers = nn.functional.one_hot(choice + 1, mask.shape[1] + 1)[..., 1:].sum(1)
        context = lengths - answers.sum(1, keepdim=True)
        width, longest = int((context + answers).max()), int(answers.max())
        place = torch.arange(width, device=ids.device)
        first = (tokens - answers.flip(1).cumsum(1).flip(1)).unsqueeze(-1)
        inside, whole = context.unsqueeze(-1), (context + answers).unsqueeze(-1)
        begin = torch.where(place < inside, tokens - lengths.unsqueeze(-1), first - inside)
        shown = place < whole
        source = torch.where(shown, begin + place, 0)
        rows = ids.unsqueeze(1).expand(-1, mask.shape[1], -1).gather(-1, source)
        real = place[:longest] < answers.unsqueeze(-1)
        return cls(
            input_ids=rows.flatten(0, 1),
            attention_mask=shown.long().flatten(0, 1),
            answer=torch.where(real, context.unsqueeze(-1) + place[:longest], 1).flatten(0, 1),
            real=real.flatten(0, 1),
            choice_mask=mask,
            **{name: packed[name] for name in _AS_THEY_ARE if name in packed},
        )

    @property
    def rows_per_item(self) -> int:
        """The most choices of an item."""
        return int(self["choice_mask"].shape[1])

    @property
    def logit_positions(self) -> int:
        """The tokens of the longest choice."""
        return int(self["answer"].shape[1])

    def raw_logits(self, model: nn.Module) -> Tensor:
        """Log-likelihood of each choice over its length to the `length_power` (1: mean per token), nats; of several
        powers as in `ClozeBatch`."""
        likelihood = self.likelihood(model)
        real = self["real"].repeat(len(likelihood) // len(self["real"]), 1)
        total = likelihood.masked_fill(~real, 0).sum(-1)
        total, lengths = (rows.unflatten(0, (-1, self.rows_per_item)) for rows in (total, real.sum(-1)))
        return over_length(total, lengths, self.get("length_power"), self.batch_size)

    def inputs(self, model: nn.Module) -> dict[str, Any]:
        """What the model's forward takes."""
        options = forward_options(model, use_cache=False)
        return {"input_ids": self["input_ids"], "attention_mask": self["attention_mask"], **options}

    def likelihood(self, model: nn.Module) -> Tensor:
        """Log-likelihood of each answer token [rows, answer tokens], nats; without meaning where it is not `real`."""
        ids, answer = self["input_ids"], self["answer"]

        def choose(rows: Tensor) -> Tensor:
            index = (answer - 1).repeat(len(rows) // len(answer), 1)
            return rows.gather(1, index.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))

        with head_of_positions(model, choose) as chosen:
            logits = model(**self.inputs(model)).logits
        logits = logits if chosen else choose(logits)
        return token_likelihood(logits, ids.gather(1, answer).repeat(len(logits) // len(ids), 1))


def over_length(total: Tensor, lengths: Tensor, power: Tensor | None, batch: int) -> Tensor:
    """`total` [rows, choices] over `lengths` to the power, [rows, choices]; None is 1.

    Of several powers [powers] the result has [rows / batch, powers, batch] rows, flat.
    """
    lengths = lengths.clamp_min(1)
    if power is None or power.dim() == 0:
        return total / (lengths if power is None else lengths**power)
    total, lengths = (rows.unflatten(0, (-1, 1, batch)) for rows in (total, lengths))
    return (total / lengths ** power[:, None, None]).flatten(0, 2)


def token_likelihood(logits: Tensor, target: Tensor) -> Tensor:
    """Log-likelihood, nats, of each of `target` [rows, tokens] under its `logits` [rows, tokens, words]."""
    # A few rows at a time become float32: the vocabulary is wide.
    total = torch.cat([rows.float().logsumexp(-1) for rows in logits.split(8)])
    return logits.gather(-1, target.unsqueeze(-1)).squeeze(-1).float() - total
