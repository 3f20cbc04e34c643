"""bayeslora chain."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from jsonargparse import ArgumentParser, Namespace

from bayeslora.experiments.sequences.config import ChainConfig
from bayeslora.options.parsing import add_config, instantiate
from bayeslora_cli.commands.base import Command


class Chain(Command):
    """Trains a chain of blocks."""

    name: ClassVar[str] = "chain"
    description: ClassVar[str] = "Draw, train, merge, draw again (RAC-LoRA); goes on where it stopped."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Every field of ChainConfig."""
        add_config(parser, ChainConfig)
        parser.add_argument("--output_dir", type=str, required=True, help="Folder for the blocks and the merged model.")

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints the table of the blocks and where the merged model is."""
        from bayeslora.experiments.sequences.chain import run_chain

        config = instantiate(parser, options, ChainConfig)
        run_chain(config, options.output_dir)
        print((Path(options.output_dir) / "chain.md").read_text(encoding="utf-8"), end="")
        print(f"merged model: {Path(options.output_dir) / 'merged'}")
