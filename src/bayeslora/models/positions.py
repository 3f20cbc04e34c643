"""How many tokens a model can read."""

from __future__ import annotations

from typing import Any

from torch import nn


def readable_tokens(model: nn.Module) -> int | None:
    """The longest sequence that `model` has positions for, in tokens; None where nothing bounds it.

    RoBERTa and its kin (XLM-R, CamemBERT, MPNet, ESM, ...) count positions from behind the padding's, so their tables
    hold more rows than they can read tokens. XLNet, whose positions are relative, gives its bound as -1.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.num_embeddings - module.padding_idx - 1
    config: Any = model.config
    bound = getattr(config.get_text_config(), "max_position_embeddings", None) or 0
    return int(bound) if bound > 0 else None
