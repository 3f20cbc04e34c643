"""The parser of a command's options, and its errors in the words of somebody who has typed a command.

It knows no class of bayeslora, so that it starts at once.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from bayeslora.options.hints import Names, hint

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "list": "a list such as [a, b]",
}


class Parser(ArgumentParser):
    """Says the nearest right name where an option, key, command or method is unknown, and leaves the long usage out."""

    asked: str = ""
    """The subcommand that was called."""

    def __init__(self, **kwargs: Any):
        # An abbreviated name is mostly a misspelt one; it gets the hint instead of being guessed.
        super().__init__(**{"allow_abbrev": False, **kwargs})

    def method_options(self) -> Mapping[str, Sequence[str]]:
        """Class names of the methods that an option may name, each with the names of its options."""
        return {}

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with 2, or raise ValueError where the parser is not the command line's."""
        names = self._names()
        text = reworded(message, self.asked, names.options) + hint(message, names)
        if not self.exit_on_error:
            raise ValueError(text) from ex
        print(f"error: {text}\nSee `{self._command()} --help`.", file=sys.stderr)
        raise SystemExit(2) from ex

    def _command(self) -> str:
        command = self.prog.replace(" [options]", "")
        return f"{command} {self.asked}".strip()

    def _names(self) -> Names:
        parsers = self._subparsers_by_name()
        asked: Parser = parsers.get(self.asked, self)
        options = [action.dest for action in asked._actions if action.option_strings]
        return Names(options, list(parsers), asked.method_options())

    def _subparsers_by_name(self) -> dict[str, Any]:
        found = [action.choices for action in self._actions if isinstance(action.choices, Mapping)]
        return {str(name): parser for choices in found for name, parser in choices.items()}


def reworded(message: str, command: str = "", options: Collection[str] = ()) -> str:
    """The message without types of Python; as it was where it is none of those that are known.

    Args:
        message: Of jsonargparse.
        command: The subcommand, whose name stands before each of its options.
        options: Names of what is given with dashes.
    """
    if missing := re.match(r"the following arguments are required: (.*)", message):
        names = [name.strip().removeprefix(f"{command}.") for name in missing[1].split(",")]
        return f"missing: {', '.join(f'--{name}' if name in options else name for name in names)}"
    if 'expected "command" to be one of' in message:
        return "missing: the command"
    if unknown := re.match(r"argument command: invalid choice: '(.*?)'", message):
        return f"there is no command {unknown[1]!r}."
    if unknown := re.match(r"Subcommand '\S+' does not accept option '([\w.]+)'", message):
        return f"there is no option {unknown[1]!r}."
    if key := re.match(r"[Pp]arser key \"([\w.]+)\":\s*(.*)", message, re.DOTALL):
        return _about_option(key[1], key[2]) or message
    return message


def _about_option(name: str, said: str) -> str | None:
    if value := re.search(r"(?:Got|Given) value: (.*)", said, re.DOTALL):
        expected = _expected(said[: value.start()])
        return f"{name} must be {expected}, got {value[1].strip()!r}." if expected else None
    if unknown := re.fullmatch(r"Option '([\w.]+)' is not accepted(.*)", said):
        # The parser of the group has added a hint already, with names as it knows them.
        hinted = unknown[2].replace(" mean '", f" mean '{name}.")
        return f"{name}.{unknown[1]}: there is no such option.{hinted}"
    if unknown := re.fullmatch(r"Expected a dot import path string: (\S+)", said):
        return f"{name}: there is no {name} {unknown[1]!r}."
    if group := re.match(r"Unable to load config '(.*?)'", said):
        return f"{name} stands for a group of options, {name}.*, or a YAML file with them; {group[1]!r} is neither."
    return None


def _expected(said: str) -> str:
    """What was expected; "" where that is not said in a way that is known."""
    types = said.partition("Errors:")[0].partition("Given value type")[0]
    kinds = re.findall(r"<class '(\w+)'>|\b(list)\[", types)
    choices = re.search(r"Literal\[(.*?)\]", said)
    words = [f"one of {choices[1]}"] if choices else []
    words += [_KINDS.get(kind or listed, "") for kind, listed in kinds if kind != "NoneType"]
    return " or ".join(words) if all(words) else ""
