"""The scores of a comparison for a terminal."""

from __future__ import annotations

from bayeslora.report.content import Report
from bayeslora.report.tables import Entry, Table
from bayeslora.system.console import text_table

__all__ = ["scores_text"]

_SHOWN = ("accuracy", "NLL", "ECE", "AUROC")
"""Beginnings of the heads of the columns; the others are in the report."""
_MARKS = {"best": "*", "tied": "≈", "": ""}


def scores_text(report: Report) -> str:
    """For each task the rows and their most important scores; tasks without a final cell are left out."""
    tables = [
        _text(section.task, block)
        for section in report.sections
        if section.blocks and isinstance(block := section.blocks[0], Table) and block.title.startswith("Scores")
    ]
    return "\n\n".join([*tables, "* best of its column, ≈ not to be told apart from it"] if tables else [])


def _text(task: str, table: Table) -> str:
    shown = [
        number for number, head in enumerate(table.heads) if head.startswith(_SHOWN) and "\N{NO-BREAK SPACE}" in head
    ]
    shown = [number for number in shown if "coverage" not in table.heads[number]]
    rows = [[name, *(_cell(entries[number - 1]) for number in shown)] for name, entries in table.rows.items()]
    return f"{task}, {table.title[0].lower()}{table.title[1:]}\n" + text_table(
        [table.heads[0], *(table.heads[number] for number in shown)], rows
    )


def _cell(entry: Entry) -> str:
    return f"{_MARKS[entry.mark]} {entry.text}".strip()
