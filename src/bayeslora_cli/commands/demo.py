"""bayeslora demo."""

from __future__ import annotations

from typing import ClassVar

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import Command, add_overwrite


class Demo(Command):
    """Runs the demo."""

    name: ClassVar[str] = "demo"
    description: ClassVar[str] = "LoRA, Bayesian-LoRA and a Bayesian head on few items of ARC-Easy, compared."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Where to write, and the seed."""
        parser.add_argument("--output_dir", type=str, default="runs/demo", help="Folder for results, report and runs.")
        add_overwrite(parser)
        parser.add_argument("--seed", type=int, default=0, help="Seed of initialisation, data order and draws.")

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints the table."""
        from bayeslora.experiments.demo import demo

        print(demo(options.output_dir, seed=options.seed, overwrite=options.overwrite))
