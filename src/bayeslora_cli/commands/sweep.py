"""bayeslora sweep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import ConfigCommand, add_json, print_result

if TYPE_CHECKING:
    from bayeslora.experiments.learning_rates.config import SweepConfig


class Sweep(ConfigCommand):
    """Runs a learning-rate sweep."""

    name: ClassVar[str] = "sweep"
    description: ClassVar[str] = "Every row over a log grid of learning rates, chosen on dev; goes on where it stopped."

    def config_class(self) -> type[SweepConfig]:
        """What a file of it holds."""
        from bayeslora.experiments.learning_rates.config import SweepConfig

        return SweepConfig

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Where to write."""
        parser.add_argument("--output_dir", type=str, required=True, help="Folder for results, picture and winners.")
        add_json(parser)

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints the table and where the winning configs are."""
        from bayeslora.experiments.learning_rates.run import sweep
        from bayeslora.experiments.learning_rates.table import sweep_table
        from bayeslora.options.parsing import instantiate
        from bayeslora.system.console import aligned

        record = sweep(instantiate(parser, options, self.config_class()), options.output_dir)
        best = [
            f"best run of {row['row']}: bayeslora train --config {Path(options.output_dir) / row['winner']}"
            for row in record["rows"]
            if row["best"] is not None
        ]
        print_result(options, record, aligned(sweep_table(record)), *best)
