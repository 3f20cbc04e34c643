"""The parser's error messages, in the words of somebody who has typed a command."""

from __future__ import annotations

import re
from collections.abc import Collection

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "list": "a list such as [a, b]",
}


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
