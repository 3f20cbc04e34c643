"""Commands of the command line: one file each; every file of this folder is imported."""

from bayeslora.options.registry import Registry
from bayeslora_cli.commands.base import Command

__all__ = ["COMMANDS", "Command", "command_classes"]

COMMANDS: Registry[Command] = Registry(Command, __name__)  # type: ignore[type-abstract]
"""By name."""


def command_classes() -> list[type[Command]]:
    """All commands, by name."""
    return COMMANDS.classes()
