"""bayeslora demo."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import Command, add_option, add_usual


class Demo(Command):
    """LoRA, Bayesian-LoRA and a Bayesian head on few items of ARC-Easy, compared."""

    name = "demo"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Where to write, and the seed."""
        add_option(parser, "--output_dir", str, "Folder for results, report and runs.", "runs/demo")
        add_usual(parser, "overwrite")
        add_option(parser, "--seed", int, "Seed of initialisation, data order and draws.", 0)

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints the table."""
        from bayeslora.experiments.demo import demo

        print(demo(options.output_dir, seed=options.seed, overwrite=options.overwrite))
