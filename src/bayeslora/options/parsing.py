"""Command line options and YAML files, generated from the config classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import register_type

from bayeslora.options.classes import subclasses
from bayeslora.options.content import check_content, named_by_path
from bayeslora.options.parser import Parser
from bayeslora.options.plain import Plain, read_plain

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Config = TypeVar("Config", bound=DataclassInstance)

register_type(Plain, lambda value: value, read_plain, type_check=lambda value, kind: not isinstance(value, str))


class ConfigParser(Parser):
    """Reads the options of a config class, also from files, of which none decides what is imported."""

    config_class: type | None = None
    """What the files that it reads describe."""

    method_fields: Sequence[str] = ()
    """Options whose value is a method."""

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

    def method_options(self) -> dict[str, tuple[str, ...]]:
        """The methods that are known so far, each with the names of its options."""
        bases: Any = set() if self.config_class is None else set(named_by_path(self.config_class))
        kinds = (kind for base in bases for kind in subclasses(base) if vars(kind).get("name"))
        return {kind.__name__: tuple(kind.argument_names()) for kind in kinds}


def config_parser(config: type[DataclassInstance], **options: Any) -> ConfigParser:
    """A parser with an option for every field of `config`, which also reads them from a YAML file.

    Args:
        config: The config class.
        options: Of jsonargparse's parser, such as its description.
    """
    parser = ConfigParser(**options)
    parser.config_class = config
    parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    parser.add_class_arguments(config, nested_key=None)
    for field in dataclasses.fields(config):
        # As an object, the default is not what `--method.r 4` alone is added to: that would be the base class.
        made: Any = field.default_factory
        if hasattr(made, "argument_names"):
            path = f"{made.__module__}.{made.__qualname__}"
            parser.set_defaults({field.name: {"class_path": path}})
            parser.method_fields = (*parser.method_fields, field.name)
    return parser


@cache
def file_parser(config: type[DataclassInstance]) -> ConfigParser:
    """The parser of files that describe `config`, which raises ValueError; to build one takes longer than to parse."""
    parser = config_parser(config)
    parser.exit_on_error = False
    return parser


def instantiate(parser: ArgumentParser, parsed: Namespace, config: type[Config]) -> Config:
    """The `config` that the parsed options describe."""
    built = parser.instantiate_classes(parsed)
    return config(**{field.name: built[field.name] for field in dataclasses.fields(config)})


def parse_file(path: str | Path, config: type[Config]) -> Config:
    """The `config` that a YAML file describes.

    Raises:
        ValueError: A key or value is wrong; the message has the nearest right name.
    """
    parser = file_parser(config)
    try:
        return instantiate(parser, parser.parse_path(str(path)), config)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
