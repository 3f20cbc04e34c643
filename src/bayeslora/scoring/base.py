"""How a model's output becomes class logits: what a scoring has to offer."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from bayeslora.models.kinds import ModelKind
from bayeslora.models.layers import base_model
from bayeslora.scoring.chat import chat_frame
from bayeslora.scoring.fitting import fit
from bayeslora.system.log import logger


class ChoiceItem(Protocol):
    """What a scoring reads of an item (`bayeslora.tasks.Item` has it)."""

    @property
    def id(self) -> str:
        """Name of the item."""

    @property
    def question(self) -> str:
        """Text before the choices."""

    @property
    def choices(self) -> tuple[str, ...]:
        """The answers to choose from."""

    @property
    def label(self) -> int | None:
        """Index of the right choice, None where unknown."""


class ChoiceBatch(dict[str, Any], ABC):
    """Tensors of a batch of items, and how to read their class logits from a model.

    Keys: what the scoring needs, `choice_mask` [batch, choices] (True where an item has that choice), `labels` [batch]
    where all items have one, `label_probabilities` [batch, choices] where items have them, and `lengths` [batch], the
    tokens of each item, where the padding is on the left.
    """

    @abstractmethod
    def raw_logits(self, model: nn.Module) -> Tensor:
        """Class logits [rows, choices], unmasked; rows is batch, or samples * batch inside `bayeslora.sampling`."""

    def choice_logits(self, model: nn.Module) -> Tensor:
        """Class logits [rows, choices] in float32, -inf for the choices that an item does not have."""
        logits = self.raw_logits(model).float()
        mask = self["choice_mask"]
        return logits.masked_fill(~mask.repeat(logits.shape[0] // mask.shape[0], 1), -torch.inf)

    @property
    def labels(self) -> Tensor | None:
        """Right choices [batch], or None."""
        return self.get("labels")

    @property
    def targets(self) -> Tensor | None:
        """What training fits: distributions [batch, choices] where items have them, else the `labels`."""
        return self.get("label_probabilities", self.labels)

    @property
    def batch_size(self) -> int:
        """Number of items."""
        return int(self["choice_mask"].shape[0])

    @property
    def logit_positions(self) -> int:
        """How many positions per row of `input_ids` reach the language-model head (for memory estimates)."""
        return 1

    @property
    def rows_per_item(self) -> int:
        """How many rows of `input_ids` an item has; those of an item follow each other."""
        return 1

    def suited_to(self, model: nn.Module) -> ChoiceBatch:
        """The batch in the form that `model` can read; to be asked for before parts of the model are stood in for."""
        return self

    def to(self, device: torch.device | str) -> ChoiceBatch:
        """The batch on `device`."""
        batch: type[dict[str, Any]] = type(self)
        return cast(ChoiceBatch, batch({name: value.to(device) for name, value in self.items()}))


class Scoring(ABC):
    """Turns items into batches; usable as a collator.

    Args:
        tokenizer: The model's tokenizer; it needs a padding token.
        max_length: Longest sequence in tokens, of a question with one choice (letter: with all); of a longer question
            the middle is cut.
        chat_template: Put prompts into the tokenizer's chat template (letter and cloze).

    Attributes:
        cut: Ids of the items whose questions were cut so far.
        extensible: Whether a larger `max_length` would be read; False where the model has no more positions.
    """

    name: ClassVar[str]
    kind: ClassVar[ModelKind] = "causal_lm"
    """Head of the model that this scoring reads: "causal_lm" or "sequence_classification"."""
    templated: ClassVar[bool] = False
    """Whether its prompts can be put into the tokenizer's chat template."""
    templated_by_default: ClassVar[bool] = False
    """Whether they are, where the tokenizer has one and nothing is said."""
    shares_trunk: ClassVar[bool] = True
    """Whether the output of frozen layers below the first adapter can be kept from epoch to epoch."""
    by_heads: ClassVar[bool] = False
    """Whether heads in closed form read its batches, whose tensors hold what the model reads in training items."""
    of_decisions: ClassVar[bool] = False
    """Whether it reads records of typed decisions, whose prompts are never cut."""
    takes_classes: ClassVar[bool] = False
    """Whether the texts of its head's classes are its argument `classes`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int = 1024, *, chat_template: bool = False):
        if tokenizer.pad_token_id is None:
            raise ValueError(
                "the tokenizer has no padding token; set one, for example `tokenizer.pad_token = tokenizer.eos_token`."
            )
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.chat_template = chat_template
        self._frame = chat_frame(tokenizer) if chat_template else None
        self.cut: set[str] = set()
        self.extensible = True

    @abstractmethod
    def __call__(self, items: Sequence[ChoiceItem]) -> ChoiceBatch:
        """The batch of `items`."""

    def dataset(self, items: Sequence[ChoiceItem], seed: int) -> Any:
        """What a training draws its batches from: here the items as they are."""
        return items

    def prompt(self, item: ChoiceItem, question: str | None = None) -> str:
        """The text that is read: here the item's question, or `question` in its place."""
        return item.question if question is None else question

    def fitted(self, item: ChoiceItem, whole: list[int], room: int) -> list[int]:
        """Tokens of an item's prompt, at most `room`; the middle of a question that is too long is cut.

        Args:
            item: The item.
            whole: Tokens of its whole prompt.
            room: The most tokens.

        Raises:
            ValueError: The prompt does not fit without any question.
        """
        if len(whole) <= room:
            return whole
        tokens = fit(item.question, lambda question: self.encode(self.prompt(item, question)), room)
        remedy = "raise max_length, or " if self.extensible else ""
        if tokens is None:
            raise ValueError(
                f"item {item.id!r} does not fit into {self.max_length} tokens even without its question; {remedy}give "
                "it fewer or shorter choices."
            )
        if not self.cut:
            logger.warning(
                "item %r is cut in the middle of its question to fit into %d tokens; %sshorten such questions "
                "yourself. How many are cut stands in the metrics.",
                item.id,
                self.max_length,
                remedy,
            )
        self.cut.add(item.id)
        return tokens

    @property
    def separator(self) -> str:
        """What stands between a prompt and its answer."""
        return " " if self._frame is None else self._frame.separator

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, with the tokenizer's own special tokens in front but no end mark."""
        if self._frame is not None:  # A template has special tokens of its own.
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        ids = list(self.tokenizer(text)["input_ids"])
        end = self.tokenizer.eos_token_id
        return ids[:-1] if len(ids) > 1 and ids[-1] == end and not text.endswith(str(self.tokenizer.eos_token)) else ids


def pad_right(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and mask [batch, tokens] with the padding behind the tokens."""
    ids, mask, _ = pad_left([row[::-1] for row in rows], pad)
    return ids.flip(-1), mask.flip(-1)


def pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and positions [batch, tokens] with the padding in front, so that all rows end together."""
    length = max(map(len, rows))
    ids = torch.tensor([[pad] * (length - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return ids, mask, (mask.cumsum(-1) - 1).clamp_min(0)


def choice_mask(items: Sequence[ChoiceItem]) -> Tensor:
    """[batch, choices], True where an item has that choice."""
    width = max(len(item.choices) for item in items)
    return torch.tensor([[index < len(item.choices) for index in range(width)] for item in items])


def choice_labels(items: Sequence[ChoiceItem]) -> dict[str, Tensor]:
    """`labels` [batch] where every item has one, else nothing; where items have them, `label_probabilities` too.

    These are [batch, choices], 0 where an item has no such choice, and all on the label of an item without.
    """
    labels = [item.label for item in items]
    soft = [getattr(item, "label_probabilities", None) for item in items]
    found = {} if any(label is None for label in labels) else {"labels": torch.tensor(labels)}
    known = all(label is not None or row is not None for label, row in zip(labels, soft, strict=True))
    if known and any(row is not None for row in soft):
        rows = [torch.tensor(_target(item, row)) for item, row in zip(items, soft, strict=True)]
        found["label_probabilities"] = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return found


def _target(item: ChoiceItem, probabilities: Sequence[float] | None) -> Sequence[float]:
    if probabilities is not None:
        return probabilities
    return [float(index == item.label) for index in range(len(item.choices))]


def forward_options(model: nn.Module, **options: Any) -> dict[str, Any]:
    """Those of `options` that the model's forward has a parameter for."""
    names = inspect.signature(base_model(model).forward).parameters
    return {name: value for name, value in options.items() if name in names}
