"""Whether a model reads packed choices as it reads each one alone, which is tried once for each model.

A packed row holds all choices behind one question; an attention mask and position ids keep them apart. A model that
takes no position ids (ALiBi), has a mask of its own (local attention) or carries a state along (Mamba) does not heed
them, and most such models do not say so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from bayeslora.models.layers import base_model, descendants, evaluating, text_config

__all__ = ["packs", "probe_length"]

logger = logging.getLogger("bayeslora")

TOLERANCE = 0.03
"""Median difference of the tokens' log-likelihoods, in standard deviations of them. SmolLM2 in bfloat16 has 0.011 by
rounding alone; it has 0.08 to 0.11 with positions that go on from choice to choice, and 0.7 with local attention."""

_LENGTHS = (64, 1024)
"""Tokens of the probe, at least and at most."""

_known: WeakKeyDictionary[nn.Module, dict[Any, bool]] = WeakKeyDictionary()


def packs(model: nn.Module, likelihoods: Callable[[], tuple[Tensor, Tensor]]) -> bool:
    """Whether packed choices can be trusted on `model`; the first call for its base model tries it.

    The trial runs the base model alone, in eval mode and without gradients; it draws nothing and leaves modes, held
    draws and what is trained as they were.

    Args:
        model: With or without adapters.
        likelihoods: Gives log-likelihoods [choices, tokens] of a probe's answer tokens, packed and one choice per row.
    """
    base = base_model(model)
    known = _known.setdefault(base, {})
    attention = getattr(text_config(base), "_attn_implementation", None)
    if attention not in known:
        reason = _objection(model, likelihoods)
        known[attention] = reason is None
        if reason is not None:
            logger.warning(
                "cloze: %s does not read choices that are packed behind one question as each one alone (%s); "
                "each choice gets a row of its own, which is exact and takes more time",
                type(base).__name__,
                reason,
            )
    return known[attention]


def probe_length(model: nn.Module) -> int:
    """Tokens of a probe that shows local attention, by any "window" of the config but the one that the mask has."""
    config = text_config(model)
    fields = vars(config) if config is not None else {}
    windows = [
        value
        for name, value in fields.items()
        if "window" in name and "sliding_window" not in name and isinstance(value, int) and not isinstance(value, bool)
    ]
    least, most = _LENGTHS
    wanted = max(least, min(most, 2 * max(windows, default=0)))
    return min(wanted, int(getattr(config, "max_position_embeddings", None) or wanted))


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
    """The base model alone, eager, in eval mode and without gradients; all as it was afterwards.

    Adapters are switched off one by one: PEFT's own switch also changes what is trained, and the forward of a merged
    one takes it out of the weights.
    """
    adapters: list[Any] = [
        module
        for module in descendants(model)
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
        and not (module.disable_adapters or getattr(module, "merged", False))
    ]
    for adapter in adapters:
        adapter._disable_adapters = True
    try:
        with evaluating(model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for adapter in adapters:
            adapter._disable_adapters = False
