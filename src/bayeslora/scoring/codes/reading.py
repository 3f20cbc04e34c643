"""Typed questions read by codes: the probability of an option is that of its code as the next token."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedTokenizerBase

from bayeslora.models.layers import base_model, evaluating
from bayeslora.models.positions import readable_tokens
from bayeslora.scoring.base import forward_options
from bayeslora.scoring.codes.prompts import NO_LIMIT, CodePrompts, rotations
from bayeslora.scoring.codes.template import Template
from bayeslora.scoring.top_layer import head_at_ends
from bayeslora.tasks.decisions.questions import Question

_ROWS = 16_384
"""Tokens, those of the state included, that one forward of a question's orders holds; more orders go one by one."""

_LONG = 1024
"""Tokens of a question from which on attention with a mask costs more than to read a shorter state again."""


class CodeReader(CodePrompts):
    """Reads probabilities of options off a causal language model, zero-shot or adapted.

    The state is read once: its keys and values are kept while the questions are read, each in a forward of its own, so
    that no answer depends on the other questions of a request, their order or their number, to the last bit.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        max_length: Longest prompt in tokens; default: what the model has positions for.
        **options: Of `CodePrompts`; log-probabilities are averaged over the orders.
    """

    def __init__(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None, **options: Any
    ):
        longest = min(filter(None, (max_length, readable_tokens(model))), default=NO_LIMIT)
        super().__init__(tokenizer, max_length=longest, **options)
        self.model = model

    def in_prompt(self, template: Template) -> CodeReader:
        """The same model, read in another prompt."""
        options: Any = {"orders": self.orders, "max_length": self.max_length, "chat": self.in_chat}
        return CodeReader(self.model, self.tokenizer, template=template, **options)

    def __call__(self, state: Any, questions: Sequence[Question]) -> list[Tensor]:
        """Log-probabilities [options] of each question, nats, in float64.

        Raises:
            TooLongError: A prompt does not fit.
            ValueError: A question has more options than there are codes.
        """
        shared = self.state_tokens(state)
        return self.read(shared, [(question, self.prompts(shared, question)) for question in questions])

    def read(self, state: list[int], asked: Sequence[tuple[Question, list[list[int]]]]) -> list[Tensor]:
        """Log-probabilities [options] of each question, nats, in float64.

        Args:
            state: Its tokens.
            asked: The questions, each with its `prompts` behind that state.
        """
        with torch.inference_mode(), evaluating(self.model):
            before = Prefix(self.model, state)
            return [self._averaged(before, question, rows) for question, rows in asked]

    def _averaged(self, before: Prefix, question: Question, rows: list[list[int]]) -> Tensor:
        count = len(question.options)
        logits = before.next_logits(rows, self.codes.tokens[:count])
        placed = torch.log_softmax(logits, -1)
        # Row r has option order[place] at a place: back to the options' own order.
        orders = torch.tensor(rotations(count, self.orders))
        by_option = torch.empty_like(placed).scatter_(1, orders, placed)
        return torch.log_softmax(by_option.mean(0), -1)


class Prefix:
    """Tokens that stand before several rows, and their keys and values.

    Args:
        model: What reads.
        tokens: The prefix.
        read: Whether it is read now; else by `forward` with its `cache`.
    """

    def __init__(self, model: nn.Module, tokens: list[int], *, read: bool = True):
        self.model, self.tokens = model, tokens
        self.device = next(base_model(model).parameters()).device
        self.cache = DynamicCache()
        # transformers has renamed the argument.
        names = inspect.signature(base_model(model).forward).parameters
        self.argument = "cache" if "cache" in names else "past_key_values"
        if read:
            self.forward([tokens], self.cache, logits_to_keep=1)

    def next_logits(self, rows: list[list[int]], words: list[int]) -> Tensor:
        """Logits [rows, words] of the next token behind each row, in float64 on the CPU."""
        if min(map(len, rows)) > max(_LONG, len(self.tokens)):
            # Read anew: plain causal attention needs no mask.
            parts = [self._logits([self.tokens + row], None, words) for row in rows]
        else:
            together = max(1, _ROWS // (len(self.tokens) + max(map(len, rows))))
            chunks = [rows[first : first + together] for first in range(0, len(rows), together)]
            parts = [self._logits(chunk, self._copies(len(chunk)), words) for chunk in chunks]
        return torch.cat(parts).double().cpu()

    def _copies(self, count: int) -> DynamicCache:
        cache = copy.deepcopy(self.cache)
        if count > 1:
            cache.batch_repeat_interleave(count)
        return cache

    def _logits(self, rows: list[list[int]], cache: DynamicCache | None, words: list[int]) -> Tensor:
        """[rows, words] at the last token of each row; padding stands behind, where no token looks."""
        ends = torch.tensor([len(row) - 1 for row in rows], device=self.device)
        codes = torch.tensor(words, device=self.device)
        with head_at_ends(self.model, ends, codes) as chosen:
            logits = self.forward(rows, cache)
        if chosen:
            return logits[:, 0]
        return logits[torch.arange(len(rows), device=self.device), ends].index_select(-1, codes).float()

    def forward(self, rows: list[list[int]], cache: DynamicCache | None, **options: Any) -> Tensor:
        """Logits of rows behind what `cache` holds, which is extended by them; padding stands behind."""
        longest, past = max(map(len, rows)), 0 if cache is None else cache.get_seq_length()
        ids = torch.tensor([row + [row[-1]] * (longest - len(row)) for row in rows], device=self.device)
        if past:
            mask = torch.tensor([[1] * (past + len(row)) + [0] * (longest - len(row)) for row in rows])
            positions = torch.arange(past, past + longest, device=self.device).expand(len(rows), -1)
            options |= {"attention_mask": mask.to(self.device), "position_ids": positions}
        options |= {"use_cache": False} if cache is None else {"use_cache": True, self.argument: cache}
        return self.model(input_ids=ids, **forward_options(self.model, **options)).logits
