"""Option vectors: what the middle layers of a model hold at each choice's own tokens.

A choice is read behind its question, and no choice sees another: packed as cloze scoring packs them, or one row for
each choice where a model would not read packed ones right. An item gives a tensor [choices + 1, layers, poolings,
hidden]; row 0 is the question, the others are its choices; the poolings are the mean over the tokens and the last one.
Its likelihood numbers are the mean, sum and minimum of each choice's token log-likelihoods and how many tokens it has.
Without them, the layers above the last one that is read do not run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from bayeslora.models.layers import evaluating, forwards_replaced, outermost_layers
from bayeslora.readouts.together import JoinedBatch, attending_by_part
from bayeslora.scoring.cloze import ClozeBatch
from bayeslora.scoring.rows import RowBatch
from bayeslora.scoring.top_layer import head_left_out
from bayeslora.scoring.unpacked import UnpackedBatch

Result = TypeVar("Result")

POOLINGS = ("mean", "last")

_DEPTHS = (1 / 3, 1 / 2, 2 / 3, 5 / 6)


def read_layers(model: nn.Module, depths: Sequence[float] = _DEPTHS) -> list[int]:
    """How many layers lie below each place that is read, at these shares of the depth.

    Raises:
        ValueError: The model has no transformer layers that are known.
    """
    count = len(outermost_layers(model))
    if not count:
        raise ValueError(f"{type(model).__name__} has no transformer layers that are known, so there is none to read.")
    return sorted({max(1, round(depth * count)) for depth in depths})


class ItemVectors(NamedTuple):
    """What is read of one item, on the CPU.

    Args:
        hidden: [choices + 1, layers, poolings, hidden], in the model's own number type.
        likelihood: [choices, 4]: mean, sum and minimum of the tokens' log-likelihoods (nats) and their number; None
            where it was not asked for.
    """

    hidden: Tensor
    likelihood: Tensor | None


def item_vectors(
    model: nn.Module, batch: ClozeBatch, layers: Sequence[int], *, likelihood: bool = True
) -> list[ItemVectors]:
    """The vectors of each item of a batch.

    Args:
        model: A causal language model, in eval mode or not.
        batch: Of `Cloze`, on the model's device.
        layers: Of `read_layers`, rising.
        likelihood: Whether to run the layers above those and the head, for the likelihood numbers.
    """
    suited: Any = batch.suited_to(model)
    with evaluating(model), torch.no_grad():
        states, tokens = hidden_states(model, layers, lambda: suited.likelihood(model), whole=likelihood)
    pooled = by_choice(suited, torch.stack(states, 2)).cpu()
    numbers = None
    if tokens is not None:
        numbers = _likelihood_numbers(tokens, _answers(suited)).cpu()
    counts = batch["choice_mask"].sum(-1).tolist()
    return [
        ItemVectors(pooled[item, : count + 1], None if numbers is None else numbers[item, :count])
        for item, count in enumerate(counts)
    ]


def vectors_together(
    model: nn.Module, items: Sequence[ClozeBatch], layers: Sequence[int], *, likelihood: bool = True
) -> list[ItemVectors]:
    """The same of items that are batches of one, packed, in one forward: each has the numbers that it has alone.

    Args:
        model: As in `item_vectors`; one that reads packed choices right (`suited_to` gives the batches themselves).
        items: On the model's device.
        layers: As there.
        likelihood: As there.
    """
    joined, lengths = JoinedBatch.of(items), [len(item["input_ids"][0]) for item in items]
    ends = list(accumulate(lengths))
    parts = [[slice(end - length, end)] for end, length in zip(ends, lengths, strict=True)]
    with evaluating(model), torch.no_grad(), attending_by_part(parts):
        states, tokens = hidden_states(model, layers, lambda: joined.likelihood(model), whole=likelihood)
    pooled = [by_choice(*pair)[0].cpu() for pair in zip(items, torch.stack(states, 2).split(lengths, 1), strict=True)]
    if tokens is None:
        return [ItemVectors(hidden, None) for hidden in pooled]
    answers = tokens.split([len(item["target"][0]) for item in items], 1)
    numbers = [_likelihood_numbers(own, _answers(item))[0].cpu() for item, own in zip(items, answers, strict=True)]
    return [ItemVectors(*pair) for pair in zip(pooled, numbers, strict=True)]


def differentiable_vectors(model: nn.Module, batch: ClozeBatch | UnpackedBatch, layers: Sequence[int]) -> Tensor:
    """The vectors [rows, choices + 1, layers, poolings, hidden] of a batch, with their graph.

    The layers above hand on what they get. Unlike a forward that ends early, all hooks of the model run.

    Args:
        model: A causal language model, in its own mode; rows is the batch's items, or draws * items.
        batch: On the model's device, in the form that suits the model.
        layers: Of `read_layers`, rising.
    """
    every: list[nn.Module] = outermost_layers(model)
    numbers = {id(layer): number + 1 for number, layer in enumerate(every)}
    found: list[Tensor] = []
    top: list[Any] = []

    def run(layer: nn.Module, own: Any, *args: Any, **kwargs: Any) -> Any:
        number = numbers[id(layer)]
        if number > layers[-1]:
            return top[0]
        output = own(*args, **kwargs)
        if number in layers:
            found.append(output if isinstance(output, Tensor) else output[0])
        if number == layers[-1]:
            top.append(output)
        return output

    with forwards_replaced(every, run), head_left_out(model):
        model(**batch.inputs(model))
    states = torch.stack(found, 2)
    rows = len(batch["input_ids"])
    return torch.cat([by_choice(batch, part) for part in states.split(rows)])


class _Stop(Exception):
    """Ends a forward whose further layers nobody reads."""


def hidden_states(
    model: nn.Module, layers: Sequence[int], forward: Callable[[], Result], *, whole: bool = False
) -> tuple[list[Tensor], Result | None]:
    """Hidden states [rows, tokens, hidden] behind these numbers of layers in a forward, and what the forward returns.

    Args:
        model: What `forward` runs.
        layers: Of `read_layers`, rising.
        forward: Runs the model once.
        whole: Whether the layers above these run; else the forward ends behind the last of them, and returns None.
    """
    every: list[nn.Module] = outermost_layers(model)
    found: list[Tensor] = []
    numbers = {id(layer): number + 1 for number, layer in enumerate(every)}

    def run(layer: nn.Module, own: Any, *args: Any, **kwargs: Any) -> Any:
        output = own(*args, **kwargs)
        if numbers[id(layer)] in layers:
            found.append(output if isinstance(output, Tensor) else output[0])
            if len(found) == len(layers) and not whole:
                raise _Stop
        return output

    with forwards_replaced(every, run):
        try:
            return found, forward()
        except _Stop:
            return found, None


def _answers(batch: Any) -> Tensor:
    """Whether an answer token belongs to a choice [items, choices, tokens], in the form of the batch's likelihoods."""
    if isinstance(batch, UnpackedBatch):
        return batch["real"].unflatten(0, (-1, batch.rows_per_item))
    numbers = torch.arange(batch["choice_mask"].shape[1], device=batch["choice"].device)
    return batch["choice"].unsqueeze(1) == numbers.unsqueeze(-1)


def _likelihood_numbers(tokens: Tensor, member: Tensor) -> Tensor:
    """[items, choices, 4] of the tokens' log-likelihoods, [items, tokens] or [items * choices, tokens]."""
    tokens = tokens.reshape(len(member), -1, tokens.shape[-1])
    count = member.sum(-1)
    total = torch.where(member, tokens, 0).sum(-1)
    least = torch.where(member, tokens, torch.inf).amin(-1)
    least = torch.where(count > 0, least, 0)
    return torch.stack([total / count.clamp_min(1), total, least, count.to(total.dtype)], -1)


def by_choice(batch: Any, hidden: Tensor) -> Tensor:
    """[items, choices + 1, layers, poolings, hidden] of rows [rows, tokens, layers, hidden], in their number type.

    Of a `RowBatch` its groups are what choices are of the others.
    """
    if isinstance(batch, RowBatch):
        return batch.pooled(hidden).to(hidden.dtype)
    pooled = _unpacked(batch, hidden) if isinstance(batch, UnpackedBatch) else _packed(batch, hidden)
    return pooled.to(hidden.dtype)


def _packed(batch: ClozeBatch, hidden: Tensor) -> Tensor:
    """[items, choices + 1, layers, poolings, hidden] of rows [padding | question | choice 1 | ...]."""
    choice, longest, tokens = batch["choice"], batch["choice"].shape[1], hidden.shape[1]
    place = torch.arange(tokens, device=hidden.device)
    group = torch.full((len(hidden), tokens), -1, device=hidden.device)
    group[:, tokens - longest :] = choice
    begin = tokens - batch["lengths"].unsqueeze(1)
    group = torch.where(place < begin, -1, group + 1)  # 0: the question, 1, 2, ...: the choices, -1: padding.
    return _pooled(hidden, nn.functional.one_hot(group + 1, batch["choice_mask"].shape[1] + 2)[..., 1:].bool())


def _unpacked(batch: UnpackedBatch, hidden: Tensor) -> Tensor:
    """The same of rows [question | choice | padding], one for each choice; the question is that of the first."""
    inside = torch.zeros(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    inside.scatter_(1, batch["answer"], batch["real"])
    first = torch.where(batch["real"].any(-1), batch["answer"][:, 0], 0).unsqueeze(1)
    question = torch.arange(hidden.shape[1], device=hidden.device) < first
    pooled = _pooled(hidden, torch.stack([question, inside], -1)).unflatten(0, (-1, batch.rows_per_item))
    return torch.cat([pooled[:, :1, 0], pooled[:, :, 1]], 1)


def _pooled(hidden: Tensor, member: Tensor) -> Tensor:
    """Mean and last of the tokens of each group, [rows, groups, layers, poolings, hidden], in float32.

    Args:
        hidden: [rows, tokens, layers, hidden].
        member: [rows, tokens, groups], whether a token belongs to a group.
    """
    count = member.sum(1).clamp_min(1)
    mean = torch.einsum("btg,btld->bgld", member.float(), hidden.float()) / count[:, :, None, None]
    place = torch.arange(hidden.shape[1], device=hidden.device).unsqueeze(-1)
    last = torch.where(member, place, 0).amax(1)
    ends = hidden[torch.arange(len(hidden), device=hidden.device).unsqueeze(1), last].float()
    return torch.stack([mean, ends], 3)
