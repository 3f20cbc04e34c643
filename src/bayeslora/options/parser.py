"""The parser of a command's options: it knows no class of bayeslora, so that it starts at once."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from bayeslora.options.hints import Names, hint
from bayeslora.options.wording import reworded


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
