"""Ways to read class logits from a model: one file each."""

from __future__ import annotations

import difflib

from bayeslora.scoring.base import ChoiceBatch, Scoring
from bayeslora.scoring.classification import Classification
from bayeslora.scoring.cloze import Cloze
from bayeslora.scoring.letter import Letter, class_token_ids
from bayeslora.scoring.text import Text

__all__ = ["ChoiceBatch", "Classification", "Cloze", "Letter", "Scoring", "Text", "class_token_ids", "get_scoring"]


def get_scoring(name: str) -> type[Scoring]:
    """The scoring called `name`.

    Raises:
        ValueError: The name is unknown; the message has the nearest right one.
    """
    families = {family.name: family for family in Scoring.__subclasses__()}
    if name in families:
        return families[name]
    nearest = difflib.get_close_matches(name, families, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"scoring must be one of {sorted(families)}, got {name!r}.{hint}")
