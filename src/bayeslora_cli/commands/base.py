"""What a command of the command line is."""

from __future__ import annotations

import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jsonargparse import ArgumentParser, Namespace

from bayeslora.options.parser import Parser

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Command(ABC):
    """One subcommand; its file imports what it needs of bayeslora inside `run`, so that every call starts at once."""

    name: ClassVar[str]
    description: ClassVar[str]
    """The class's docstring."""
    distributed: ClassVar[bool] = False
    """Whether several processes (torchrun, accelerate launch) can share the work."""

    def __init_subclass__(cls) -> None:
        cls.description = cls.__doc__ or ""

    def parser(self) -> Parser:
        """A parser with this command's options."""
        parser = Parser(description=self.description)
        self.add_arguments(parser)
        return parser

    def help_parser(self) -> Parser:
        """That of a call for help alone, which needs no more than what the help says."""
        return self.parser()

    @abstractmethod
    def add_arguments(self, parser: ArgumentParser) -> None:
        """Options and positional arguments."""

    @abstractmethod
    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Do it, and print what came out; `parser` is the one that parsed `options`."""


class ConfigCommand(Command):
    """A subcommand whose options are the fields of a config class, which a YAML file may hold too (`--config`)."""

    config_path: ClassVar[str]
    """Dotted path of the config class, which is imported when its options are asked for."""
    options_path: ClassVar[str]
    """That of a class with the same fields whose methods are names, so that it is imported at once."""
    output: ClassVar[str]
    """What is in the folder that it writes."""

    def parser(self) -> Parser:
        """A parser with the fields of the config, and the other options after them."""
        return self._parser(self.config_path)

    def help_parser(self) -> Parser:
        """The same options, with the methods by their names."""
        from bayeslora.options.registry import names_of_classes

        methods = ", ".join(names_of_classes("bayeslora.methods"))
        said = f"Methods: {methods}. Their options: `bayeslora train --method.help Lora`; one is set by `--method.r 4`."
        return self._parser(self.options_path, epilog=said)

    def _parser(self, path: str, **options: Any) -> Parser:
        from bayeslora.options.parsing import config_parser

        parser = config_parser(_class(path), description=self.description, **options)
        self.add_arguments(parser)
        return parser

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Where to write, and the form of the result."""
        parser.add_argument("--output_dir", type=str, required=True, help=self.output)
        add_usual(parser, "json")

    def config(self, options: Namespace, parser: ArgumentParser) -> Any:
        """The config that the options describe."""
        from bayeslora.options.parsing import instantiate

        return instantiate(parser, options, _class(self.config_path))


def _class(path: str) -> type[DataclassInstance]:
    module, _, name = path.rpartition(".")
    found: type[DataclassInstance] = getattr(importlib.import_module(module), name)
    return found


_USUAL: dict[str, tuple[Any, str]] = {
    "device": (
        str,
        "Where to compute: auto, cpu, cuda, cuda:1, mps, ...; default: where the run was trained, if that is here.",
    ),
    "resume": (bool, "Go on from the newest complete checkpoint."),
    "overwrite": (bool, "Replace what is there already."),
    "json": (bool, "Print the result as one line of JSON, and nothing else on standard output."),
}


def add_usual(parser: ArgumentParser, *names: str) -> None:
    """Options that many commands have: "device", "resume", "overwrite", "json"."""
    for name in names:
        kind, said = _USUAL[name]
        if kind is bool:
            add_switch(parser, f"--{name}", said)
        else:
            add_option(parser, f"--{name}", kind, said)


def add_num_samples(parser: ArgumentParser, usual: str = "the run's") -> None:
    """The draws of a command that predicts items."""
    said = f"Posterior draws; default: {usual}; auto: of each item until its answer is settled."
    add_option(parser, "--num_samples", int | Literal["auto"], said)


def add_option(parser: ArgumentParser, name: str, kind: Any, said: str, default: Any = None) -> None:
    """An option that may be left away; without a default it is None then."""
    parser.add_argument(name, type=kind | None if default is None else kind, default=default, help=said)


def add_switch(parser: ArgumentParser, name: str, said: str) -> None:
    """An option that is off; its name alone, or with true, turns it on."""
    parser.add_argument(name, type=bool, nargs="?", const=True, default=False, help=said)


def print_result(options: Namespace, record: Mapping[str, Any], *parts: str) -> None:
    """A command's result: `record` in one line with --json, else the parts for a person, apart from empty ones."""
    print(json.dumps(record) if options.json else "\n".join(part for part in parts if part))
