"""Models of several parts, such as a language model with a vision tower: which parts text never reaches.

This package scores and writes text. An adapter on the other parts would learn nothing, while its KL and parameters were
counted all the same.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from peft import LoraConfig
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import nn
from transformers import PreTrainedModel

from bayeslora.system.log import logger


def is_tower(module: nn.Module, parent: nn.Module | None) -> bool:
    """Whether `module`, inside of `parent`, is a model of its own that does not read text."""
    if parent is None or not isinstance(module, PreTrainedModel):
        return False
    # What a head reads is no tower, whatever it says that it reads (Perceiver).
    if isinstance(parent, PreTrainedModel) and parent.base_model is module:
        return False
    # Not all say so; then their config is that of vision or sound inside of the larger model's.
    key = getattr(module.config, "base_config_key", "")
    return "text" not in _modalities(module) or key in ("vision_config", "audio_config")


def beside_text(model: nn.Module) -> list[str]:
    """Names of the outermost modules of `model` that text never reaches: towers, and what projects their output."""
    return list(_beside_text(model, ""))


def excluded_modules(
    model: nn.Module, targets: Collection[str] | str | None, excluded: Iterable[str] | str | None = None
) -> Iterable[str] | str | None:
    """`excluded` of a LoRA config, and what text never reaches of `model`, as a pattern; without it just `excluded`.

    A pattern of targets, and names of targets with the name of such a part in them, count as meant.
    """
    if isinstance(targets, str) and targets != "all-linear":
        return excluded
    meant = {part for target in ((targets or ()) if not isinstance(targets, str) else ()) for part in target.split(".")}
    names = [name for name in beside_text(model) if name.rpartition(".")[2] not in meant]
    if not names:
        return excluded
    pattern = f"({'|'.join(map(re.escape, names))})(\\..*)?"
    if not excluded:
        return pattern
    others = excluded if isinstance(excluded, str) else f"(.*\\.)?({'|'.join(map(re.escape, excluded))})"
    return others if pattern in others else f"({pattern})|({others})"


def leave_out(model: nn.Module, config: LoraConfig) -> None:
    """Have a new adapter leave out what text never reaches of `model`, and say so."""
    before: Any = config.exclude_modules
    config.exclude_modules = excluded_modules(model, config.target_modules, before)  # type: ignore[assignment]
    if config.exclude_modules is not before:
        logger.warning(
            "no adapters in %s, which text does not reach. To adapt it, name it in target_modules or give a pattern.",
            ", ".join(beside_text(model)),
        )


def _beside_text(module: nn.Module, prefix: str) -> Iterator[str]:
    children = dict(module.named_children())
    towers = {name: is_tower(child, module) for name, child in children.items() if isinstance(child, PreTrainedModel)}
    # Between a tower and the language model beside it stands what translates.
    between = any(towers.values()) and not all(towers.values())
    for name, child in children.items():
        if towers.get(name) or (between and name not in towers and not _is_head(module, name, child)):
            yield prefix + name
        elif not isinstance(child, PreTrainedModel) or _modalities(child) != {"text"}:
            yield from _beside_text(child, f"{prefix}{name}.")


def _modalities(model: PreTrainedModel) -> set[str]:
    """What `model` reads: "text", "image", "video", "audio", "time"."""
    kinds: Any = getattr(model, "input_modalities", "text")
    return {kinds} if isinstance(kinds, str) else set(kinds)


def _is_head(model: Any, name: str, child: nn.Module) -> bool:
    return name in SEQ_CLS_HEAD_NAMES or child is model.get_output_embeddings()
