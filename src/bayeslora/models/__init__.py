"""Base models: loading, quantisation, and where their transformer layers are."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bayeslora.models.base_model import cache_folder as cache_folder
    from bayeslora.models.base_model import load_base_model as load_base_model
    from bayeslora.models.base_model import load_tokenizer as load_tokenizer
    from bayeslora.models.base_model import locate as locate
    from bayeslora.models.base_model import offline_models as offline_models

__all__ = ["cache_folder", "load_base_model", "load_tokenizer", "locate", "offline_models"]


def __getattr__(name: str) -> Any:
    # Later: adapters need `layers` alone, and loading models imports much.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("bayeslora.models.base_model"), name)
