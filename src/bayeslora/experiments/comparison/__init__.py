"""Methods under one protocol: what a comparison writes and reads."""

from __future__ import annotations

from bayeslora.experiments.comparison.records import Cell, Header, Items, Predictions, Stage
from bayeslora.experiments.comparison.results import Results

__all__ = ["Cell", "Header", "Items", "Predictions", "Results", "Stage"]
