"""Social IQa: why people act and how they feel after it (arXiv 1904.09728)."""

from __future__ import annotations

from bayeslora.tasks.base import Item, Row, Task


class SIQA(Task):
    """The question is the context followed by what is asked about it. Items with the same context are a group."""

    name = "siqa"
    # The authors' own repository is a loading script, which datasets 4 and later no longer runs.
    hub_id = "lighteval/siqa"
    group_means = "context"
    offline_folder = "social_i_qa/none/validation"

    def parse(self, row: Row, index: int) -> Item:
        """Read a row; its label counts the three answers from "1"."""
        label = int(row["label"]) - 1 if row["label"] else None
        choices = (row["answerA"], row["answerB"], row["answerC"])
        return Item(
            f"{self.name}-{index}", f"{row['context']} {row['question']}", choices, label, row["context"].strip()
        )
