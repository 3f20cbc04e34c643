"""Finds the question, choices, label and id of an item among the columns of a local file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from bayeslora.tasks.reading.hints import nearest
from bayeslora.tasks.reading.item import Item, TaskError
from bayeslora.tasks.reading.labels import LabelKind, LabelReader, is_missing

_OPTIONS = {name: f"{name}_column" for name in ("question", "choices", "label", "id", "group")}
"""The option that names the column of each field."""

_ALSO_CALLED = {
    "question_column": {"prompt", "query", "input", "text", "sentence", "stem", "instruction", "problem"},
    "choices_column": {"options", "answers", "candidates", "endings", "alternatives", "completions"},
    "label_column": {"answer", "target", "correct", "gold", "answer_key", "answerkey", "correct_answer", "class"},
    "id_column": {"idx", "index", "number", "uid", "name", "key", "item"},
    "group_column": {"passage", "document", "context", "page", "source"},
}
"""What a column for it is called in other files."""


class FileLayout(TypedDict, total=False):
    """How a file of items is read: the options of `load_items` and `LocalFile`.

    Args:
        question_column: holds the question; default: "question", as the others have the names of their fields.
        choices_column: holds a list (in CSV: a JSON list) or {"text": [...], "label": [...]}; or it
            names one column for each choice, separated by commas ("A,B,C,D").
        label_column: holds an index from 0, a letter or the exact text of a choice; nothing for None. The whole rule
            is in docs/start/data.md.
        labels: "index", "letter" or "text", where a label could be read in more than one way: 4 is the text of a choice
            and the index of another among "1" to "5"; default: "auto".
        id_column: holds an id; where there is none, the id is the file's stem and the row's index.
        group_column: holds what keeps items on one side of a split, such as their passage; default: no column.
        choices: the choices of every item, for a file that has no column of them.
    """

    question_column: str
    choices_column: str
    label_column: str
    labels: LabelKind
    id_column: str
    group_column: str | None
    choices: Sequence[str] | None


@dataclass(frozen=True)
class Columns:
    """Which column holds which field of an item."""

    question: str = "question"
    choices: str = "choices"
    label: str = "label"
    id: str = "id"
    group: str | None = None
    """Holds what keeps items on one side of a split; None: no column."""
    shared_choices: tuple[str, ...] | None = None
    """The choices of every item, for a file that has no column of them."""
    labels: LabelKind = "auto"
    """What the labels are, where they can be read in more than one way."""
    require_label: bool = False
    optional_label: bool = False
    """Whether a file may lack label, id and group columns even though they were named: items to predict often do."""

    @classmethod
    def of(cls, layout: Mapping[str, Any], *, require_label: bool = False, optional_label: bool = False) -> Columns:
        """The columns of a `FileLayout`.

        Raises:
            TypeError: it has another option.
            TaskError: the choices are one text.
        """
        options, choices = FileLayout.__annotations__, layout.get("choices")
        if unknown := [name for name in layout if name not in options]:
            raise TypeError(f"how a file is read has the options {', '.join(options)}, got {', '.join(unknown)}.")
        if isinstance(choices, str):
            raise TaskError(f"choices should be a list of texts, but it is {choices!r}; put it in a list.")
        named = {name: layout[option] for name, option in _OPTIONS.items() if option in layout}
        needs: Any = {"require_label": require_label, "optional_label": optional_label}
        shared = None if choices is None else tuple(choices)
        return cls(**named, shared_choices=shared, labels=layout.get("labels", "auto"), **needs)

    def check(self, known: Iterable[str]) -> None:
        """Raise TaskError unless every column that is needed or was named is among the known ones."""
        columns = list(known)
        missing = {name: option for name, option in self._needed(columns).items() if name not in columns}
        if missing:
            raise TaskError(self._without(missing, columns))
        if self.shared_choices is not None and self.choices in columns:
            raise TaskError(
                f"choices were given for the whole file, but it has a column {self.choices!r} too; "
                "leave the argument out, or remove or rename the column."
            )

    def item(self, row: Mapping[str, Any], fallback_id: str, read_label: LabelReader | None = None) -> Item:
        """Read an item from a row; `read_label` is that of the file the row is in.

        Raises:
            TaskError: a field is missing or wrong.
        """
        try:
            return self._item(row, fallback_id, read_label)
        except TaskError as error:
            raise type(error)(self.in_file_words(str(error))) from error

    def _item(self, row: Mapping[str, Any], fallback_id: str, read_label: LabelReader | None) -> Item:
        choices, marks = self._choices(row)
        row_id = row.get(self.id)
        item_id = fallback_id if is_missing(row_id) else str(row_id)
        # The item checks its own fields, and does it before the label is looked up among the choices.
        unlabelled = Item(item_id, row.get(self.question) or "", choices, None)
        label = (read_label or LabelReader(self.labels))(row.get(self.label), choices, marks)
        if label is None and self.require_label:
            raise TaskError("field 'label' is missing; give every item a label.")
        group = None if self.group is None else row.get(self.group)
        return Item(item_id, unlabelled.question, choices, label, None if is_missing(group) else str(group))

    def _without(self, missing: Mapping[str, str], columns: list[str]) -> str:
        """What to say of all columns that a file lacks, each with the option that names it, and of what they may be."""
        named = " and ".join(f"{name!r} (option {option})" for name, option in missing.items())
        free = [name for name in columns if name not in self._needed(columns)]
        perhaps = [
            f"{option} {name}"
            for option in dict.fromkeys(missing.values())
            for name in free
            if name.lower() in _ALSO_CALLED[option]
        ]
        many = len(missing) > 1
        return (
            f"expected {'columns' if many else 'a column'} {named}, but the columns are {', '.join(columns)}; "
            f"{''.join(dict.fromkeys(nearest(name, columns) for name in missing))}"
            f"name the right {'ones by these options' if many else 'one by this option'}"
            f"{', perhaps ' + ', '.join(perhaps) if perhaps else ''}"
            " (a training has them under task, such as --task.question_column)."
        )

    def in_file_words(self, message: str) -> str:
        """A message about a field with the column that holds it, where the file's own name is another."""
        for field, option in _OPTIONS.items():
            column = getattr(self, field)
            if column not in (field, None):
                message = message.replace(f"field '{field}'", f"column {column!r} (option {option})")
        return message

    def _needed(self, columns: list[str]) -> dict[str, str]:
        """Names of the columns there must be, with the option that gives each its name."""
        needed = {self.question: "question_column"}
        if self.shared_choices is None:
            needed |= dict.fromkeys(self._choice_columns(columns), "choices_column")
        # A file may lack the default label and id columns, but not one that was asked for by name.
        if self.require_label or (self.label != Columns.label and not self.optional_label):
            needed[self.label] = "label_column"
        if self.id != Columns.id and not self.optional_label:
            needed[self.id] = "id_column"
        if self.group is not None and not self.optional_label:
            needed[self.group] = "group_column"
        return needed

    def _choice_columns(self, columns: Iterable[str]) -> list[str]:
        if self.choices in columns:
            return [self.choices]
        return [name.strip() for name in self.choices.split(",")]

    def _choices(self, row: Mapping[str, Any]) -> tuple[tuple[str, ...], list[str] | None]:
        if self.shared_choices is not None:
            return self.shared_choices, None
        names = self._choice_columns(row)
        if len(names) > 1:
            return _texts([row.get(name) for name in names]), None
        return _listed(row.get(names[0]))


def _listed(value: object) -> tuple[tuple[str, ...], list[str] | None]:
    if isinstance(value, str):
        value = _decoded(value)
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        marks = value.get("label")
        return _texts(value["text"]), None if marks is None else [str(mark) for mark in marks]
    if isinstance(value, list):
        return _texts(value), None
    raise TaskError(
        f"field 'choices' should be a list of texts, but it is {value!r}; "
        'write a JSON list such as ["yes", "no"], or name one column for each choice ("A,B,C,D").'
    )


def _decoded(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _texts(values: list[Any]) -> tuple[str, ...]:
    return tuple(_text(value) for value in values)


def _text(value: object) -> str:
    # A JSON list of answers such as [4, 5] means the texts "4" and "5".
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if value is None or isinstance(value, str):
        return value or ""
    raise TaskError(f"field 'choices' should hold texts, but one is {value!r}; write it as a text in quotes.")
