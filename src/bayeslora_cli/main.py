"""The command line `bayeslora`; its commands are the files of `bayeslora_cli.commands`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from bayeslora_cli.light import package_later
from bayeslora_cli.verbosity import VERBOSE, hide_messages, is_verbose

if TYPE_CHECKING:
    from bayeslora.options.parser import Parser
    from bayeslora_cli.commands import Command

_DESCRIPTION = "Calibrated LoRA adapters by Bayesian-LoRA (arXiv 2601.21003)."

_ALONE = (
    "Call it without torchrun or accelerate launch; train, evaluate and predict take several processes, and the cells "
    "of a comparison are spread by `bayeslora compare --executor ray`."
)

_INTERRUPTED = (
    "interrupted. What had been written is whole: give the same command again; a training goes on at its last "
    "checkpoint with --resume."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `bayeslora` command; exits with 2 for a wrong call and 1 for a run that failed."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        _call(given)
    except KeyboardInterrupt:
        # Python ends by the signal, which stops a shell's loop too; a status of our own would not.
        if not os.environ.get("BAYESLORA_DEBUG"):
            sys.excepthook = _say_interrupted
        raise


def _say_interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """In place of a traceback, which says nothing to whoever pressed Ctrl+C."""
    print(_INTERRUPTED, file=sys.stderr)


def _call(given: Sequence[str]) -> None:
    """Does what a call says."""
    if not is_verbose(given):
        hide_messages()
    with package_later() as import_package:
        from bayeslora_cli.commands import command_classes

        commands = {command.name: command() for command in command_classes()}
        asked = next((argument for argument in given if not argument.startswith("-")), "")
        parser, parsed = _parse(given, commands, asked)
        import_package()
    try:
        _run(commands[asked], parsed[asked], parser, logging.DEBUG if is_verbose(given) else logging.INFO)
    except Exception as error:
        if os.environ.get("BAYESLORA_DEBUG") or not _is_expected(error):
            raise
        print(f"error: {_explained(error)}", file=sys.stderr)
        _name_configs(given)
        raise SystemExit(1) from error


def _parse(given: Sequence[str], commands: Mapping[str, Command], asked: str) -> tuple[Parser, Namespace]:
    """The parser of the command that was asked for, and what it was told; of the others the names are enough."""
    from bayeslora.options.parser import Parser
    from bayeslora.system.version import __version__

    parser = Parser(prog="bayeslora", description=_DESCRIPTION, version=__version__)
    parser.asked = asked if asked in commands else ""
    parser.add_argument(*VERBOSE, action="store_true", help="Show warnings of other libraries that are hidden.")
    subcommands = parser.add_subcommands(required=True, dest="command")
    try:
        # Before a file is read: only what the call names and what is built in may stand in one.
        _import_named(given)
        parsers = {name: Parser(description=command.description) for name, command in commands.items()}
        if asked in commands:
            command = commands[asked]
            parsers[asked] = command.help_parser() if _asks_for_help_alone(given) else command.parser()
    except (ImportError, TypeError, ValueError) as error:
        parser.error(str(error), error)
    for name, command in commands.items():
        _add_common(parsers[name])
        subcommands.add_subcommand(name, parsers[name], help=command.description)
    try:
        return parsers.get(asked, parser), parser.parse_args(list(given))
    except SystemExit as stopped:
        if stopped.code:
            _name_configs(given)
        raise


def _asks_for_help_alone(given: Sequence[str]) -> bool:
    """Whether the call is a command's name and --help, so that no value is to be understood."""
    rest = [argument for argument in given if argument not in VERBOSE]
    return len(rest) == 2 and rest[1] in ("-h", "--help")


def _run(command: Command, options: Namespace, parser: Parser, level: int) -> None:
    from bayeslora.system.processes import is_launched, is_main, main_speaks, world_size

    logging.getLogger("bayeslora").setLevel(level if is_main() else logging.WARNING)
    if is_launched() and not command.distributed:
        raise ValueError(f"bayeslora {command.name} runs in one process, but {world_size()} were started. {_ALONE}")
    with main_speaks():
        command.run(options, parser)


def _is_expected(error: Exception) -> bool:
    """Whether it is what wrong input, a broken file or a failed run raise; of any other the traceback is shown."""
    from safetensors import SafetensorError

    from bayeslora.system.files import disk_is_full

    expected = (ValueError, TypeError, OSError, ImportError, LookupError, ArithmeticError, RuntimeError)
    return isinstance(error, (*expected, SafetensorError)) or disk_is_full(error)


def _explained(error: BaseException) -> str:
    """What went wrong, with the remedy where only the system has spoken."""
    from bayeslora.system.files import disk_is_full

    # What was raised over another error has the remedy in its own words.
    if error.__cause__ is not None or not disk_is_full(error):
        return str(error)
    return (
        f"the disk is full ({error}). What was there before is whole. Free some space and give the same command again; "
        "a training goes on at its last checkpoint with --resume."
    )


def _name_configs(given: Sequence[str]) -> None:
    """Say which files options came from: an error in one names the option, and it may be any of them."""
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("--config", action="append", default=[])
    if configs := files.parse_known_args(given)[0].config:
        print(f"Options were read from {', '.join(configs)}.", file=sys.stderr)


def _add_common(parser: Parser) -> None:
    """The options of every command."""
    parser.add_argument(*VERBOSE, action="store_true", help="Show warnings of other libraries that are hidden.")
    for kind in ("method", "task"):
        parser.add_argument(
            f"--allow_{kind}",
            type=str,
            action="append",
            help=f"Dotted path of a {kind} outside of bayeslora that a config or run may name. May be given again.",
        )


def _import_named(arguments: Sequence[str]) -> None:
    """Import the methods and tasks that the call names.

    Raises:
        ImportError, TypeError, ValueError: One that is allowed cannot be imported, or is something else.
    """
    named = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--allow_method", "--allow_task", "--method", "--task.name"):
        named.add_argument(option, action="append", default=[])
    found = vars(named.parse_known_args(arguments)[0])
    if not any(found.values()):
        return
    from bayeslora.methods import Method
    from bayeslora.options.classes import permit
    from bayeslora.tasks import allow_task

    for path in found["allow_method"]:
        permit(Method, path)
    for path in (*found["allow_task"], *found["task.name"]):
        allow_task(path)
    for path in found["method"]:
        # What is no path of a class the parser explains.
        with suppress(ImportError, TypeError):
            permit(Method, path)


if __name__ == "__main__":
    main()
