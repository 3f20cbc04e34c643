"""SciQ: crowdsourced science exam questions (arXiv 1707.06209)."""

from __future__ import annotations

from bayeslora.tasks.base import Item, Row, Task
from bayeslora.tasks.reading.split import stable_fraction


class SciQ(Task):
    """The closed-book form: the question alone, without its supporting passage."""

    name = "sciq"
    hub_id = "allenai/sciq"
    offline_folder = "sciq/none/validation"

    def parse(self, row: Row, index: int) -> Item:
        """Read a row and put its choices in an order that does not tell which is right."""
        columns = ("correct_answer", "distractor1", "distractor2", "distractor3")
        question = row["question"]
        # The data name the right answer by its column, so any fixed column order would give it away.
        texts = [row[column] for column in columns]
        choices = sorted(texts, key=lambda text: stable_fraction(question + text))
        return Item(f"{self.name}-{index}", question, tuple(choices), choices.index(row["correct_answer"]))
