"""Code scoring: items of typed decisions read by codes, in one order of the options or averaged over several."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerCallback

from bayeslora.scoring.base import ChoiceItem, Scoring, choice_labels, choice_mask, pad_left
from bayeslora.scoring.codes.prompts import NO_LIMIT, CodePrompts, rotations
from bayeslora.scoring.codes.template import Template
from bayeslora.scoring.letter import LetterBatch
from bayeslora.tasks.decisions.items import DecisionItem


class CodeBatch(LetterBatch):
    """Prompts [batch * orders, tokens], those of an item behind each other, and the codes as `class_token_ids`.

    Keys beside those of letters: `places` [batch * orders, choices], where in a prompt each option stands;
    `order_weights` [batch * orders], whose sum over an item's prompts is 1; `weights` [batch], of the items' labels in
    training; with a ranked probability score in the loss its weight `ranked` [batch], 0 where options have no order.
    """

    @property
    def rows_per_item(self) -> int:
        """Orders of an item."""
        return len(self["places"]) // self.batch_size

    def raw_logits(self, model: nn.Module) -> Tensor:
        """Mean log-probability of each option over the orders [rows, choices], nats, in the options' own order."""
        logits = super().raw_logits(model).float()
        copies, orders = len(logits) // len(self["places"]), self.rows_per_item
        mask = self["choice_mask"].repeat_interleave(orders, 0).repeat(copies, 1)
        # An item with fewer options has its codes in the first places, as the mask has its options.
        placed = torch.log_softmax(logits.masked_fill(~mask, -torch.inf), -1).masked_fill(~mask, 0)
        by_option = placed.gather(-1, self["places"].repeat(copies, 1))
        weighted = by_option * self["order_weights"].repeat(copies).unsqueeze(-1)
        return weighted.unflatten(0, (-1, orders)).sum(1)


class DecisionScoring(Scoring):
    """Reads `DecisionItem`s in the prompt of `CodePrompts`; one that is too long is refused, and never cut.

    Args:
        tokenizer: The model's.
        max_length: Longest prompt in tokens.
        chat_template: As of every scoring.
        template: The prompt.
        ranked: Weight of the ranked probability score beside the NLL in the loss of score questions.
        orders: As of `CodePrompts`.
    """

    templated = True
    templated_by_default = True
    of_decisions = True
    announces = False
    """Whether states are read behind the questions that training items ask (`Template.announcing`)."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int = NO_LIMIT,
        *,
        chat_template: bool = False,
        template: Template | None = None,
        ranked: float = 0.0,
        orders: int = 1,
    ):
        super().__init__(tokenizer, max_length, chat_template=chat_template)
        options: Any = {"orders": orders, "max_length": max_length, "chat": chat_template}
        self.prompts = CodePrompts(tokenizer, template=template, **options)
        self.ranked = ranked


class CodeScoring(DecisionScoring):
    """Reads the options by their codes.

    Args:
        tokenizer: The model's.
        max_length: Longest prompt in tokens.
        orders: Rotations of the options that an item without an order of its own is averaged over.
        shuffles: Orders of an item in training; default: another one each epoch.
        **options: Of `DecisionScoring`.
    """

    name = "codes"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int = NO_LIMIT,
        *,
        orders: int = 2,
        shuffles: int | None = None,
        **options: Any,
    ):
        super().__init__(tokenizer, max_length, orders=orders, **options)
        self.shuffles = shuffles

    def dataset(self, items: Sequence[ChoiceItem], seed: int) -> ShuffledItems:
        """The items to train on."""
        return ShuffledItems(items, seed, self.shuffles)

    def __call__(self, items: Sequence[ChoiceItem]) -> CodeBatch:
        """Batch of `items`.

        Raises:
            TooLongError: A prompt does not fit.
            ValueError: An item is no typed decision, or has more options than there are codes.
        """
        asked = [typed(item) for item in items]
        orders, rows = [], []
        for item in asked:
            state, question = self.prompts.state_tokens(item.state), item.asked
            own = rotations(len(item.choices), self.prompts.orders) if item.order is None else [item.order]
            orders.append([list(order) for order in own])
            rows.append([state + self.prompts.prompt(state, question, order) for order in own])
        return self.batch(asked, rows, orders)

    def batch(
        self, items: Sequence[DecisionItem], rows: Sequence[list[list[int]]], orders: Sequence[list[list[int]]]
    ) -> CodeBatch:
        """The batch of items whose prompts are in tokens.

        Args:
            items: The items.
            rows: Of each item its prompts.
            orders: Of each of these, which option stands in each place.
        """
        mask, most = choice_mask(items), max(map(len, rows))
        width = mask.shape[1]
        # Every item has as many rows: those of one with fewer orders are repeated, and count nothing then.
        weights = [[1 / len(own)] * len(own) + [0.0] * (most - len(own)) for own in rows]
        every = [own[number % len(own)] for own in rows for number in range(most)]
        places = [_places(own[number % len(own)], width) for own in orders for number in range(most)]
        ids, attention, positions = pad_left(every, self.tokenizer.pad_token_id)
        further = ranked_weights(items, self.ranked)
        return CodeBatch(
            input_ids=ids,
            attention_mask=attention,
            position_ids=positions,
            lengths=attention.sum(-1),
            class_token_ids=torch.tensor(self.prompts.codes.tokens[:width]),
            places=torch.tensor(places),
            order_weights=torch.tensor(weights).flatten(),
            choice_mask=mask,
            weights=torch.tensor([item.weight for item in items]),
            **further,
            **choice_labels(items),
        )


class ShuffledItems(TrainerCallback):
    """Items to train on, whose options stand in another order each epoch; the order hangs on seed, epoch and id alone.

    Scores are shuffled too: predictions average over rotations of theirs. As a callback it is told the epoch.

    Args:
        items: The items.
        seed: The run's.
        shuffles: Orders of an item, after which they come again; None: they do not.
    """

    def __init__(self, items: Sequence[ChoiceItem], seed: int, shuffles: int | None = None):
        self.items, self.seed, self.shuffles, self.epoch = items, seed, shuffles, 0

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> DecisionItem:
        item = typed(self.items[index])
        order = list(range(len(item.choices)))
        number = self.epoch % self.shuffles if self.shuffles else self.epoch
        random.Random(f"{self.seed} {number} {item.id}").shuffle(order)
        return replace(item, order=tuple(order))

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the epoch over; after a resume within one it is that one."""
        self.epoch = math.floor(state.epoch or 0)


def ranked_weights(items: Sequence[DecisionItem], ranked: float) -> dict[str, Tensor]:
    """`ranked` of a batch [batch]: the weight of score questions, 0 for others; nothing where it is 0."""
    return {"ranked": torch.tensor([ranked * (item.asked.kind == "score") for item in items])} if ranked else {}


def typed(item: Any, scoring: str = "codes") -> DecisionItem:
    """`item`, which is a typed decision.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(item, DecisionItem):
        raise ValueError(
            f"scoring {scoring} reads records of typed decisions (state, questions, labels), but item {item.id!r} is "
            "none; use letter or cloze for items with choices, and `bayeslora decide` or `serve` for requests."
        )
    return item


def _places(order: Sequence[int], width: int) -> list[int]:
    """Where each option stands; options that there are not stand behind."""
    places = list(range(width))
    for place, option in enumerate(order):
        places[option] = place
    return places
