"""Ways to read class logits from a model: one file each."""

from __future__ import annotations

from bayeslora.options.registry import Registry
from bayeslora.scoring.base import ChoiceBatch, Scoring
from bayeslora.scoring.classification import Classification
from bayeslora.scoring.cloze import Cloze
from bayeslora.scoring.letter import Letter, class_token_ids
from bayeslora.scoring.options import Options
from bayeslora.scoring.text import Text

__all__ = [
    "SCORINGS",
    "ChoiceBatch",
    "Classification",
    "Cloze",
    "Letter",
    "Options",
    "Scoring",
    "Text",
    "class_token_ids",
    "get_scoring",
]

SCORINGS: Registry[Scoring] = Registry(Scoring, __name__)  # type: ignore[type-abstract]
"""By name, as `task.scoring` has it."""

get_scoring = SCORINGS.get
