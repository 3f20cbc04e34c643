"""Plain LoRA (arXiv 2106.09685): a point estimate, the row that every other method is compared with."""

from __future__ import annotations

from bayeslora.methods.base import Method


class Lora(Method):
    """Maximum likelihood with PEFT's own LoRA layers. It has no posterior: predictions are a single pass."""

    name = "lora"
    has_draws = False
