"""The command line `bayeslora`; its commands are the files of `bayeslora.commands`."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence

from safetensors import SafetensorError

from bayeslora.commands import command_classes
from bayeslora.distributed import is_launched, is_main, main_speaks, world_size
from bayeslora.parsing import Parser

__all__ = ["main"]

_EXPECTED = (ValueError, TypeError, OSError, ImportError, LookupError, ArithmeticError, RuntimeError, SafetensorError)
"""What wrong input, a broken file or a failed run raise; with BAYESLORA_DEBUG=1 the traceback is shown."""

_ALONE = (
    "Call it without torchrun or accelerate launch; train, evaluate and predict take several processes, and the cells "
    "of a comparison are spread by `bayeslora compare --executor ray`."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `bayeslora` command; exits with 2 for a wrong call and 1 for a run that failed."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("bayeslora").setLevel(logging.INFO if is_main() else logging.WARNING)
    # Renamings inside PEFT and transformers that a user of the command can do nothing about.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # It says for each layer and forward that int8 products go through float16.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    parser = Parser(prog="bayeslora", description="Calibrated LoRA adapters by Bayesian-LoRA (arXiv 2601.21003).")
    subcommands = parser.add_subcommands(required=True, dest="command")
    commands = {command.name: command() for command in command_classes()}
    parsers = {name: Parser(description=command.description) for name, command in commands.items()}
    for name, command in commands.items():
        command.add_arguments(parsers[name])
        subcommands.add_subcommand(name, parsers[name], help=command.description)
    parsed = parser.parse_args(None if arguments is None else list(arguments))
    command = commands[parsed.command]
    try:
        if is_launched() and not command.distributed:
            raise ValueError(f"bayeslora {command.name} runs in one process, but {world_size()} were started. {_ALONE}")
        with main_speaks():
            command.run(parsed[parsed.command], parsers[parsed.command])
    except _EXPECTED as error:
        if os.environ.get("BAYESLORA_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
