"""bayeslora chain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import ConfigCommand, add_json, print_result

if TYPE_CHECKING:
    from bayeslora.experiments.sequences.config import ChainConfig


class Chain(ConfigCommand):
    """Trains a chain of blocks."""

    name: ClassVar[str] = "chain"
    description: ClassVar[str] = "Draw, train, merge, draw again (RAC-LoRA); goes on where it stopped."

    def config_class(self) -> type[ChainConfig]:
        """What a file of it holds."""
        from bayeslora.experiments.sequences.config import ChainConfig

        return ChainConfig

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Where to write."""
        parser.add_argument("--output_dir", type=str, required=True, help="Folder for the blocks and the merged model.")
        add_json(parser)

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints the table of the blocks and where the merged model is."""
        from bayeslora.experiments.sequences.chain import run_chain
        from bayeslora.options.parsing import instantiate
        from bayeslora.system.console import aligned

        config = instantiate(parser, options, self.config_class())
        folder = Path(options.output_dir)
        blocks = run_chain(config, folder)
        table = (folder / "chain.md").read_text(encoding="utf-8").rstrip()
        print_result(options, {"blocks": blocks}, aligned(table), f"merged model: {folder / 'merged'}")
