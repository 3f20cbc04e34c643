"""bayeslora sweep."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from jsonargparse import ArgumentParser, Namespace

from bayeslora.experiments.learning_rates.config import SweepConfig
from bayeslora.options.parsing import add_config, instantiate
from bayeslora_cli.commands.base import Command


class Sweep(Command):
    """Runs a learning-rate sweep."""

    name: ClassVar[str] = "sweep"
    description: ClassVar[str] = "Every row over a log grid of learning rates, chosen on dev; goes on where it stopped."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Every field of SweepConfig."""
        add_config(parser, SweepConfig)
        parser.add_argument("--output_dir", type=str, required=True, help="Folder for results, picture and winners.")

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints the table and where the winning configs are."""
        from bayeslora.experiments.learning_rates.run import sweep
        from bayeslora.experiments.learning_rates.table import sweep_table

        record = sweep(instantiate(parser, options, SweepConfig), options.output_dir)
        print(sweep_table(record))
        for row in record["rows"]:
            if row["best"] is not None:
                print(f"best run of {row['row']}: bayeslora train --config {Path(options.output_dir) / row['winner']}")
