"""Plain data: what an open option, such as `train.arguments`, may hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date
from typing import TYPE_CHECKING, Any

import yaml


def check_plain(value: Any, name: str) -> None:
    """Refuse what is not made of mappings with names, lists, strings, numbers, booleans and None.

    Args:
        value: What the option holds.
        name: The option's, for the message.

    Raises:
        TypeError: There is something else in it.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{name}: the names in a mapping must be strings, got {key!r}.")
            check_plain(inner, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for position, inner in enumerate(value):
            check_plain(inner, f"{name}[{position}]")
    elif not isinstance(value, str | int | float | bool | None):
        raise TypeError(f"{name} must be plain data (mappings, lists, numbers, strings), got {value!r}.")


def read_plain(value: Any) -> Any:
    """A text of the command line as YAML; data of a file as they are."""
    if not isinstance(value, str):
        return value
    try:
        found = yaml.safe_load(value)
    except yaml.YAMLError:
        return value
    if isinstance(found, date):
        return value
    # YAML 1.1 takes 1e-3 for a text.
    return _number(found) if isinstance(found, str) else found


def _number(text: str) -> str | float:
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


if TYPE_CHECKING:
    Plain = Any
else:

    class Plain:
        """Any plain data, as the type of an option.

        The parser would take `Any` for "an object of any class, by its class_path", import that class and build it.
        What it is told of this type (`bayeslora.options.parsing`) leaves values as they are.
        """
