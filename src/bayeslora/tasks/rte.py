"""RTE of GLUE: whether a sentence follows from a text (arXiv 1804.07461)."""

from __future__ import annotations

from bayeslora.tasks.base import Item, Row, Task


class RTE(Task):
    """The question is the premise and the hypothesis, each with its name in front, as one text.

    GLUE keeps the test labels private, so from the Hub its validation split is the test split.
    """

    name = "rte"
    hub_id = "nyu-mll/glue"
    hub_config = "rte"
    offline_folder = "glue/rte/validation"

    def parse(self, row: Row, index: int) -> Item:
        """Read a row; its label is 0, 1 or, in the public test split, -1."""
        label = row["label"] if row["label"] >= 0 else None
        # Without the names, a tokenizer that drops line breaks would leave no mark between the two.
        question = f"Premise: {row['sentence1']}\nHypothesis: {row['sentence2']}"
        return Item(f"{self.name}-{index}", question, ("entailment", "not entailment"), label)
