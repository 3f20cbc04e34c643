"""Commands of the command line: one file each.

Every file of this folder is imported to know its name and description, so it imports bayeslora inside its methods only,
but for modules that are light (`bayeslora_cli.light`).
"""

from bayeslora.options.registry import Registry
from bayeslora_cli.commands.base import Command

__all__ = ["COMMANDS", "Command", "command_classes"]

COMMANDS: Registry[Command] = Registry(Command, __name__)  # type: ignore[type-abstract]
"""By name."""


def command_classes() -> list[type[Command]]:
    """All commands, by name."""
    return COMMANDS.classes()
