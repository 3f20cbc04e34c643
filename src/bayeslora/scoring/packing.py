"""Whether a model reads packed choices as it reads each one alone, which is tried before it is relied on.

A packed row holds all choices behind one question; an attention mask and position ids keep them apart. A model that
takes no position ids (ALiBi), has a mask of its own (local attention) or carries a state along (Mamba) does not heed
them, and most such models do not say so. Attention to near tokens alone shows in rows longer than it reaches, and
configs have many names for its reach. So a model is tried anew where rows come that are longer than those that its
trial stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from bayeslora.adapters.switching import adapters_off
from bayeslora.models.layers import base_model, evaluating, text_config
from bayeslora.system.log import logger
from bayeslora.system.processes import world_size

TOLERANCE = 0.03
"""Median difference of the tokens' log-likelihoods, in standard deviations of them. SmolLM2 in bfloat16 has 0.011 by
rounding alone; it has 0.08 to 0.11 with positions that go on from choice to choice, and 0.7 with local attention."""

_LENGTHS = (64, 4096)
"""Tokens of a probe at least; and at most, where rows are not longer themselves."""

_WRONG = -1

_known: WeakKeyDictionary[nn.Module, dict[Any, int]] = WeakKeyDictionary()
"""By attention: tokens of the longest probe that was read right, or `_WRONG` where one was not."""


def packs(model: nn.Module, length: int, likelihoods: Callable[[int], tuple[Tensor, Tensor]]) -> bool:
    """Whether packed choices can be trusted on `model` in rows of this many tokens.

    The first call for its base model tries it, and so does one with rows too long for the trials before.

    The trial runs the base model alone, in eval mode and without gradients; it draws nothing and leaves modes, held
    draws and what is trained as they were.

    Args:
        model: With or without adapters.
        length: Tokens of the longest row.
        likelihoods: Gives log-likelihoods [choices, tokens] of the answer tokens of a probe of so many tokens, packed
            and one choice per row.
    """
    base = base_model(model)
    known = _known.setdefault(base, {})
    attention = getattr(text_config(base), "_attn_implementation", None)
    for tokens in probe_lengths(model, length):
        if known.get(attention) == _WRONG:
            break
        if known.get(attention, 0) >= tokens:
            continue
        reason = _objection(model, partial(likelihoods, tokens))
        known[attention] = tokens if reason is None else _WRONG
        if reason is not None:
            logger.warning(
                "cloze: %s does not read choices that are packed behind one question as each one alone (%s); "
                "each choice gets a row of its own, which is exact and takes more time",
                type(base).__name__,
                reason,
            )
    return known[attention] != _WRONG


def probe_lengths(model: nn.Module, length: int) -> list[int]:
    """Tokens of the probes that stand for rows of `length` tokens, each twice as long as the one before.

    Attention that reaches as far as half a probe misses some of the question from most of its choices; one that
    reaches less far shows in the shorter ones, whose choices are short. So the longest has twice the tokens of the
    rows. Several processes must try at the same time, and try what all rows need.
    """
    least, most = _LENGTHS
    rows = length if world_size() == 1 else max(length, most // 2)
    bound = int(getattr(text_config(model), "max_position_embeddings", None) or 2 * max(most, rows))
    found = [min(least, bound)]
    while found[-1] < min(2 * rows, max(most, rows), bound):
        found.append(min(2 * found[-1], max(most, rows), bound))
    return found


def _objection(model: nn.Module, likelihoods: Callable[[], tuple[Tensor, Tensor]]) -> str | None:
    """Why packed choices are not to be trusted; None where they are."""
    kinds = set(getattr(text_config(base_model(model)), "layer_types", None) or ())
    if other := kinds - {"full_attention", "sliding_attention"}:
        return f"it has layers of kind {', '.join(sorted(other))}"
    with _undisturbed(model):
        try:
            packed, alone = likelihoods()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # Whatever the model raises at a mask [batch, 1, tokens, tokens].
            return f"{type(error).__name__}: {error}"
    # The first choice follows its question in a packed row too.
    off = float((packed - alone)[1:].abs().median() / alone.std())
    return None if off <= TOLERANCE else f"log-likelihoods are off by {off:.2g} standard deviations"


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """The base model alone, eager, in eval mode and without gradients; all as it was afterwards."""
    with adapters_off(model), evaluating(model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        yield
