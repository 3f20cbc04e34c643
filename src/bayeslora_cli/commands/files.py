"""Options of commands that read a file of items which may be laid out in another way than the run's own."""

from __future__ import annotations

from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import add_option

_COLUMNS = {
    "question_column": "Column of the file that holds the question; default of all these: the run's.",
    "choices_column": "Column that holds the list of choices, or several columns separated by commas.",
    "label_column": "Column that holds the right choice.",
    "id_column": "Column that holds the item's name.",
    "group_column": "Column whose value keeps items on one side of a split.",
}


def add_file_layout(parser: ArgumentParser) -> None:
    """How the file is read."""
    for name, text in _COLUMNS.items():
        add_option(parser, f"--{name}", str, text)
    said = "What the labels are, where they could be read in more than one way."
    add_option(parser, "--labels", Literal["auto", "index", "letter", "text"], said)
    add_option(parser, "--choices", list[str], "Choices of all items, for a file without such a column.")


def file_layout(options: Namespace) -> dict[str, Any]:
    """Those of the options that were given."""
    return {name: options[name] for name in (*_COLUMNS, "labels", "choices") if options[name] is not None}
