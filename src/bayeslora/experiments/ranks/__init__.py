"""Low-rank adapters of several ranks beside full fine-tuning, on one task (a recipe after arXiv 2511.19654)."""

from __future__ import annotations

from bayeslora.experiments.ranks.config import RankStudyConfig

__all__ = ["RankStudyConfig"]
