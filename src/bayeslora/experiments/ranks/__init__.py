"""Low-rank adapters of several ranks beside full fine-tuning, on one task (a recipe after arXiv 2511.19654)."""

from typing import TYPE_CHECKING

from bayeslora.options.late import late

if TYPE_CHECKING:
    from bayeslora.experiments.ranks.config import RankStudyConfig as RankStudyConfig

__all__ = ["RankStudyConfig"]

__getattr__ = late(__name__, dict.fromkeys(__all__, "config"))
