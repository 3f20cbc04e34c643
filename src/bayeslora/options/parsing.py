"""Command line options and YAML files, generated from the config classes; errors name the nearest right name."""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import yaml
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import register_type

from bayeslora.methods import Method, method_classes
from bayeslora.options.content import check_content
from bayeslora.options.plain import Plain, read_plain

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Config = TypeVar("Config", bound=DataclassInstance)

__all__ = [
    "Parser",
    "add_config",
    "config_parser",
    "instantiate",
    "parse_file",
]

register_type(Plain, lambda value: value, read_plain, type_check=lambda value, kind: not isinstance(value, str))


class Parser(ArgumentParser):
    """Says the nearest right name where an option, key, command or method is unknown, and leaves the long usage out."""

    config_class: type | None = None
    """What the files that it reads describe."""

    method_fields: Sequence[str] = ()
    """Options whose value is a method."""

    def __init__(self, **kwargs: Any):
        # An abbreviated name is mostly a misspelt one; it gets the hint instead of being guessed.
        super().__init__(**{"allow_abbrev": False, **kwargs})

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Namespace:
        """The options in the content of a file, none of which has anything imported or built."""
        if self.config_class is not None:
            try:
                check_content(yaml.safe_load(content), self.config_class)
            except (ValueError, yaml.YAMLError) as error:
                self.error(str(error), error)
        return super().parse_string(content, *args, **kwargs)

    def get_defaults(self, *args: Any, **kwargs: Any) -> Namespace:
        """The defaults; of a method its class alone.

        What is parsed later fills in the options of the method that was chosen. Were those of the default method there,
        another method would keep each that it has under the same name, such as prior_std, at the default's value.
        """
        defaults = super().get_defaults(*args, **kwargs)
        for name in self.method_fields:
            del defaults[name]["init_args"]
        return defaults

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with 2, or raise ValueError where the parser is not the command line's."""
        hint = _nearest(message, self)
        if not self.exit_on_error:
            raise ValueError(message + hint) from ex
        command = self.prog.replace(" [options]", "")
        print(f"error: {message}{hint}\nSee `{command} --help`.", file=sys.stderr)
        raise SystemExit(2) from ex


def config_parser(config: type[DataclassInstance]) -> Parser:
    """A parser with an option for every field of `config`, which also reads them from a YAML file."""
    parser = Parser()
    add_config(parser, config)
    return parser


def add_config(parser: ArgumentParser, config: type[DataclassInstance]) -> None:
    """The options of `config_parser`, in a `Parser` that has others."""
    assert isinstance(parser, Parser)
    parser.config_class = config
    parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    parser.add_class_arguments(config, nested_key=None)
    for field in dataclasses.fields(config):
        # As an object, the default is not what `--method.r 4` alone is added to: that would be the base class.
        if isinstance(field.default_factory, type) and issubclass(field.default_factory, Method):
            path = f"{field.default_factory.__module__}.{field.default_factory.__qualname__}"
            parser.set_defaults({field.name: {"class_path": path}})
            parser.method_fields = (*parser.method_fields, field.name)


def instantiate(parser: ArgumentParser, parsed: Namespace, config: type[Config]) -> Config:
    """The `config` that the parsed options describe."""
    built = parser.instantiate_classes(parsed)
    return config(**{field.name: built[field.name] for field in dataclasses.fields(config)})


def parse_file(path: str | Path, config: type[Config]) -> Config:
    """The `config` that a YAML file describes.

    Raises:
        ValueError: A key or value is wrong; the message has the nearest right name.
    """
    parser = config_parser(config)
    parser.exit_on_error = False
    try:
        return instantiate(parser, parser.parse_path(str(path)), config)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _nearest(message: str, parser: ArgumentParser) -> str:
    """A hint for the unknown name in an error message of jsonargparse; "" where nothing is near."""
    methods = {method.__name__: method.argument_names() for method in method_classes()}
    commands = _commands(parser)
    options = [action.dest for each in (parser, *commands.values()) for action in each._actions]
    options += [name for names in methods.values() for name in names]
    named = {
        r"[Uu]nrecognized arguments: --([\w.]+)": options,
        r"(?:[Kk]ey|[Oo]ption|[Gg]roup) '([\w.]+)' is not (?:expected|accepted)": options,
        r"does not accept option '([\w.]+)'": options,
        r"dot import path string: ([\w.]+)": list(methods),
        r"class_path '([\w.]+)'": list(methods),
        r"invalid choice: '?(\w+)'?": list(commands),
    }
    for pattern, candidates in named.items():
        for found in re.findall(pattern, message):
            close = difflib.get_close_matches(found, candidates, n=1)
            if close and found not in candidates and "Did you mean" not in message:
                return f" Did you mean {close[0]!r}?"
            if not close and found not in candidates:
                return " Correct its name, or leave it out."
    return ""


def _commands(parser: ArgumentParser) -> dict[str, ArgumentParser]:
    """The parsers of its subcommands, by name."""
    found: dict[str, Any] = {}
    for action in parser._actions:
        if isinstance(action.choices, Mapping):
            found |= {str(name): choice for name, choice in action.choices.items()}
    return {name: choice for name, choice in found.items() if isinstance(choice, ArgumentParser)}
