"""Methods under one protocol: what a comparison writes and reads."""

from __future__ import annotations

from bayeslora.comparison.results import Cell, Header, Items, Predictions, Results, Stage

__all__ = ["Cell", "Header", "Items", "Predictions", "Results", "Stage"]
