"""Commands of the command line: one file each; every file of this folder is imported."""

import importlib
import pkgutil

from bayeslora_cli.commands.base import Command

__all__ = ["Command", "command_classes"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def command_classes() -> list[type[Command]]:
    """All commands, by name."""
    return sorted(Command.__subclasses__(), key=lambda command: command.name)
