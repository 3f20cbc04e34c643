"""The scores of a comparison for a terminal."""

from __future__ import annotations

from bayeslora.experiments.comparison.report.choices import LINK
from bayeslora.experiments.comparison.report.content import Report
from bayeslora.experiments.comparison.report.tables import ECE_FLOOR
from bayeslora.metrics import all_metrics
from bayeslora.report.table import Entry, Table
from bayeslora.system.console import text_table

_SHOWN = (
    *(metric.head for metric in all_metrics() if metric.name in ("accuracy", "nll", "ece", "auroc")),
    ECE_FLOOR,
)
"""Heads of the columns of scores; the others are in the report."""
_TITLES = ("Scores", "Learning rates")
_MARKS = {"best": "*", "tied": "≈", "": ""}


def scores_text(report: Report) -> str:
    """For each task the rows, their most important scores and what was chosen, and the rows against the baseline.

    Tasks without a final cell are left out.
    """
    tables = [
        _text(section.task, block)
        for section in report.sections
        for block in section.blocks
        if isinstance(block, Table) and block.title.startswith(_TITLES)
    ]
    paired = [] if report.paired is None else [_text("pooled", report.paired)]
    marks = ["* best of its column (learning rates: used), ≈ not to be told apart from it"]
    return "\n\n".join([*tables, *marks, *paired, *report.uninformative, *report.differences] if tables else [])


def _text(task: str, table: Table) -> str:
    scores = table.title.startswith("Scores")
    shown = [number for number, head in enumerate(table.heads) if number and (head in _SHOWN or not scores)]
    rows = [[name, *(_cell(entries[number - 1]) for number in shown)] for name, entries in table.rows.items()]
    text = text_table([table.heads[0], *(table.heads[number] for number in shown)], rows)
    said = [note for note in table.notes if note.startswith(LINK)]
    return "\n".join([f"{task}, {table.title[0].lower()}{table.title[1:]}", text, *said])


def _cell(entry: Entry) -> str:
    return f"{_MARKS[entry.mark]} {entry.text}".strip()
