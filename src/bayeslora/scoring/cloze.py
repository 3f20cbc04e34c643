"""Cloze scoring: each choice is scored by its length-normalised log-likelihood after the question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from bayeslora.models.layers import text_config, unwrapped
from bayeslora.scoring.base import (
    ChoiceBatch,
    ChoiceItem,
    Scoring,
    choice_labels,
    choice_mask,
    forward_options,
    pad_left,
)
from bayeslora.scoring.packing import packs
from bayeslora.scoring.top_layer import head_of_positions, last_positions
from bayeslora.scoring.unpacked import UnpackedBatch, over_length
from bayeslora.system.log import logger

_PROBE_CHOICES = 4


class ClozeBatch(ChoiceBatch):
    """Items packed as [padding | question | choice 1 | choice 2 | ...], so that the choices share their question.

    `attention_mask` [batch, 1, tokens, tokens] lets a choice see the question and itself only. The head reads `read`
    [batch, positions], the positions of all items that predict something, each once and spread evenly over the rows:
    they are indices into the last positions of the items one after the other. `source`, `target`, `choice` [batch,
    answer tokens] say which of `read` predicts which token of which choice (`choice` is -1 for padding).
    """

    @property
    def logit_positions(self) -> int:
        """Positions that the head reads, per item."""
        return int(self["read"].shape[1])

    @property
    def kept(self) -> int:
        """How many last positions of each row `read` counts: the longest answer part of the batch, and the last token
        of its question."""
        return int(self["source"].shape[1]) + 1

    def suited_to(self, model: nn.Module) -> ChoiceBatch:
        """One row per choice for a model that would not read packed choices right, or has too few positions for them.

        A model is tried at its first batch, and again at longer rows (`bayeslora.scoring.packing`).
        """
        if self["input_ids"].is_meta:  # Memory is planned for packed choices; there are no numbers to compare.
            return self
        return self if self.reads_packed(model) else UnpackedBatch.of(self)

    def reads_packed(self, model: nn.Module) -> bool:
        """Whether a model reads rows as long as these right, and has the positions for them."""
        positions = getattr(text_config(unwrapped(model)), "max_position_embeddings", None)
        length = self["input_ids"].shape[1]
        fits = positions is None or length <= positions
        return fits and packs(model, length, lambda tokens: self._probe(model, tokens))

    def raw_logits(self, model: nn.Module) -> Tensor:
        """Log-likelihood of each choice over its length to the `length_power` (1: mean per token), nats.

        Of several powers [powers] every draw has that many times the items, one power after the other.
        """
        suited = self.suited_to(model)
        if suited is not self:
            return suited.raw_logits(model)
        likelihood = self.likelihood(model)
        choice = self["choice"].repeat(likelihood.shape[0] // self.batch_size, 1)
        member = nn.functional.one_hot(choice + 1, self["choice_mask"].shape[1] + 1)[..., 1:].to(likelihood.dtype)
        total = (member * likelihood.unsqueeze(-1)).sum(1)
        return over_length(total, member.sum(1), self.get("length_power"), self.batch_size)

    def inputs(self, model: nn.Module) -> dict[str, Any]:
        """What the model's forward takes, its logits at the last positions alone."""
        # Additive in the weights' precision: what every attention implementation of transformers takes.
        mask = attention_mask(model, self["attention_mask"], self["position_ids"])
        tensors = {"input_ids": self["input_ids"], "attention_mask": mask, "position_ids": self["position_ids"]}
        return tensors | forward_options(model, logits_to_keep=self.kept, use_cache=False)

    def likelihood(self, model: nn.Module) -> Tensor:
        """Log-likelihood of each answer token [rows, answer tokens], nats."""
        keep = self.kept

        def choose(rows: Tensor) -> Tensor:
            items = rows[:, -keep:].reshape(-1, self.batch_size * keep, rows.shape[-1])
            return items.index_select(1, self["read"].flatten()).reshape(rows.shape[0], -1, rows.shape[-1])

        with last_positions(model, keep), head_of_positions(model, choose) as chosen:
            logits = model(**self.inputs(model)).logits
        return self._likelihood(logits if chosen else choose(logits))

    def _likelihood(self, logits: Tensor) -> Tensor:
        """Log-likelihood of each answer token [rows, answer tokens], nats, from the logits [rows, positions, words]."""
        words, copies = logits.shape[-1], logits.shape[0] // self.batch_size
        source = self["source"].flatten().expand(copies, -1)
        # Only the targets' logits are gathered, and a few rows at a time become float32: the vocabulary is wide.
        token = logits.reshape(copies, -1).gather(1, source * words + self["target"].flatten()).float()
        total = torch.cat([rows.float().logsumexp(-1) for rows in logits.flatten(0, 1).split(8)])
        return (token - total.reshape(copies, -1).gather(1, source)).unflatten(1, self["source"].shape).flatten(0, 1)

    def _probe(self, model: nn.Module, length: int) -> tuple[Tensor, Tensor]:
        """Log-likelihoods [choices, tokens] of answers made of this batch's tokens: packed, and one choice per row."""
        ids, lengths = self["input_ids"].cpu(), self["lengths"].tolist()
        known = torch.cat([row[-length:] for row, length in zip(ids, lengths, strict=True)]).unique()
        shuffled = torch.randint(len(known), (length,), generator=torch.Generator().manual_seed(0))
        tokens = known[shuffled].tolist()
        size = len(tokens) // (2 * _PROBE_CHOICES)
        question, rest = tokens[: -size * _PROBE_CHOICES], tokens[-size * _PROBE_CHOICES :]
        choices = [rest[first : first + size] for first in range(0, len(rest), size)]
        every = torch.ones(1, len(choices), dtype=torch.bool)
        tensors = packed_rows([(question, choices)], pad=0) | {"choice_mask": every}
        probe = ClozeBatch({name: value.to(self["input_ids"].device) for name, value in tensors.items()})
        inner = unwrapped(model)
        return probe.likelihood(inner).reshape(len(choices), -1), UnpackedBatch.of(probe).likelihood(inner)


def _compute_dtype(model: nn.Module) -> torch.dtype:
    """Precision of the base model's activations: that of its (often frozen, 16-bit) embeddings."""
    dtype: torch.dtype = unwrapped(model).get_input_embeddings().weight.dtype
    return dtype if dtype.is_floating_point else torch.float32


def attention_mask(model: nn.Module, allowed: Tensor, positions: Tensor) -> Any:
    """The additive mask, one per kind of attention where some layers look back `sliding_window` tokens only."""
    dtype = _compute_dtype(model)
    config = text_config(unwrapped(model))
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    full = _additive(allowed, dtype)
    if window is None or (kinds and "sliding_attention" not in kinds):
        return full
    near = (positions.unsqueeze(-1) - positions.unsqueeze(-2) < window).unsqueeze(1)
    sliding = _additive(allowed & near, dtype)
    return {kind: sliding if kind == "sliding_attention" else full for kind in kinds} if kinds else sliding


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


class Cloze(Scoring):
    """Works with small models too; the choices need not be listed in the prompt.

    Args:
        tokenizer: As in `Scoring`.
        max_length: As in `Scoring`.
        chat_template: As in `Scoring`.
        length_power: k: a choice's log-likelihood is divided by its number of tokens to the k. 1 is the mean per token,
            as in the papers; 0 the sum, whose noise grows with the length as that of the mean falls with it. Several
            powers give the logits of each.
    """

    name = "cloze"
    templated = True
    _equal_said = False

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int = 1024,
        *,
        chat_template: bool = False,
        length_power: float | Sequence[float] = 1.0,
    ):
        super().__init__(tokenizer, max_length, chat_template=chat_template)
        self.length_power: float | Sequence[float] = length_power

    def prompt(self, item: ChoiceItem, question: str | None = None) -> str:
        """Question (another text in its place: `question`) and "Answer:"; as a chat, the question alone."""
        asked = item.question if question is None else question
        return f"Question: {asked}\nAnswer:" if self._frame is None else self._frame.prompt(asked)

    def __call__(self, items: Sequence[ChoiceItem]) -> ClozeBatch:
        """Batch of `items`."""
        encoded = [self._encode(item) for item in items]
        power = {} if self.length_power == 1 else {"length_power": torch.tensor(self.length_power)}
        packed = packed_rows(encoded, self.tokenizer.pad_token_id)
        return ClozeBatch(**packed, choice_mask=choice_mask(items), **choice_labels(items), **power)

    def lengths(self, items: Sequence[ChoiceItem]) -> Tensor:
        """Tokens of each choice [items, choices]; 1 where an item has no such choice."""
        rows = [torch.tensor([len(choice) for choice in self._encode(item)[1]]) for item in items]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=1)

    def _encode(self, item: ChoiceItem) -> tuple[list[int], list[list[int]]]:
        """Tokens of the question and of each choice as they continue it."""
        prompt = self.prompt(item)
        context = self.encode(prompt)
        choices = [self._continuation(prompt, context, choice) for choice in item.choices]
        if len(set(map(tuple, choices))) < len(choices):
            self._say_equal(item)
        # Each choice is read behind the question alone, so the longest one decides.
        return self.fitted(item, context, self.max_length - max(map(len, choices))), choices

    def _say_equal(self, item: ChoiceItem) -> None:
        if not self._equal_said:
            self._equal_said = True
            logger.warning(
                "two of the choices %s are the same tokens to this tokenizer and get the same probability, here and in "
                "other items; word them differently.",
                list(item.choices),
            )

    def _continuation(self, prompt: str, context: list[int], choice: str) -> list[int]:
        whole = self.encode(f"{prompt}{self.separator}{choice}")
        if whole[: len(context)] == context and len(whole) > len(context):
            return whole[len(context) :]
        # The tokenizer merges across the border: take the choice alone.
        return list(self.tokenizer(f"{self.separator}{choice}", add_special_tokens=False)["input_ids"])


def packed_rows(encoded: Sequence[tuple[list[int], list[list[int]]]], pad: int) -> dict[str, Tensor]:
    """Tensors of a `ClozeBatch` from the tokens of each item's question and choices; but for what its items say."""
    answers = [sum(map(len, choices)) for _, choices in encoded]
    longest = max(answers)
    rows = [[*context, *(token for choice in choices for token in choice)] for context, choices in encoded]
    ids, mask, _ = pad_left(rows, pad)
    layouts = [
        _layout(len(context), [len(choice) for choice in choices], ids.shape[1], longest)
        for context, choices in encoded
    ]
    target = [[0] * (longest - count) + row[len(row) - count :] for row, count in zip(rows, answers, strict=True)]
    columns = {name: torch.stack([layout[name] for layout in layouts]) for name in layouts[0]}
    columns["read"], columns["source"] = _read(columns["source"], columns["choice"] >= 0)
    return {"input_ids": ids, **columns, "target": torch.tensor(target), "lengths": mask.sum(-1)}


def _read(source: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """`ClozeBatch`'s `read`, and `source` as indices into it, from each item's own positions [batch, answer tokens]."""
    batch, longest = source.shape
    positions = source + torch.arange(batch).unsqueeze(1) * (longest + 1)
    read, place = positions[real].unique(return_inverse=True)
    return nn.functional.pad(read, (0, -len(read) % batch)).reshape(batch, -1), source.masked_scatter(real, place)


def _layout(context: int, choices: Sequence[int], length: int, longest: int) -> dict[str, Tensor]:
    """Mask, positions, and the source and choice of each answer token, of one packed row."""
    padding = length - context - sum(choices)
    group = torch.full((length,), -2)
    group[padding : padding + context] = -1
    position = torch.zeros(length, dtype=torch.long)
    position[padding : padding + context] = torch.arange(context)
    start = padding + context
    source = torch.zeros(longest, dtype=torch.long)
    choice = torch.full((longest,), -1)
    offset = longest - sum(choices)
    for index, size in enumerate(choices):
        group[start : start + size] = index
        position[start : start + size] = context + torch.arange(size)
        # Positions are counted from `longest + 1` before the end: what logits_to_keep leaves.
        first = start - (length - longest - 1)
        source[offset : offset + size] = torch.arange(first - 1, first - 1 + size)
        source[offset] = padding + context - 1 - (length - longest - 1)
        choice[offset : offset + size] = index
        start, offset = start + size, offset + size
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    visible = (group.unsqueeze(1) == group.unsqueeze(0)) | (group.unsqueeze(0) == -1)
    allowed = causal & visible & (group >= -1).unsqueeze(0)
    # A padding row must see something, or its softmax is not a number.
    allowed |= torch.eye(length, dtype=torch.bool)
    return {
        "attention_mask": allowed.unsqueeze(0),
        "position_ids": position,
        "source": source,
        "choice": choice,
    }
