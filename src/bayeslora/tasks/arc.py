"""AI2 Reasoning Challenge: grade-school science questions (arXiv 1803.05457)."""

from __future__ import annotations

from bayeslora.tasks.base import Item, Row, Task
from bayeslora.tasks.reading.parse_rows import marked_item


class _Arc(Task):
    hub_id = "allenai/ai2_arc"

    def parse(self, row: Row, index: int) -> Item:
        """Read a row; its marks are letters or, in some exams, digits."""
        return marked_item(row, row["question"])


class ArcEasy(_Arc):
    """The questions that retrieval or word co-occurrence can answer."""

    name = "arc_easy"
    hub_config = "ARC-Easy"
    offline_folder = "ai2_arc/ARC-Easy/validation"
    offline_test = "arc_easy/test_rc_5shot"


class ArcChallenge(_Arc):
    """The questions that neither retrieval nor word co-occurrence answers."""

    name = "arc_challenge"
    hub_config = "ARC-Challenge"
    offline_folder = "ai2_arc/ARC-Challenge/validation"
    offline_test = "arc_challenge/test_rc_5shot"
