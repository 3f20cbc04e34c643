"""bayeslora sweep."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import ConfigCommand, print_result


class Sweep(ConfigCommand):
    """Runs a learning-rate sweep."""

    name: ClassVar[str] = "sweep"
    description: ClassVar[str] = "Every row over a log grid of learning rates, chosen on dev; goes on where it stopped."
    config_path: ClassVar[str] = "bayeslora.experiments.learning_rates.config.SweepConfig"
    options_path: ClassVar[str] = "bayeslora.experiments.learning_rates.options.SweepOptions"
    output: ClassVar[str] = "Folder for results, picture and winners."

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints the table and where the winning configs are."""
        from bayeslora.experiments.learning_rates.run import sweep
        from bayeslora.experiments.learning_rates.table import sweep_table
        from bayeslora.system.console import aligned

        record = sweep(self.config(options, parser), options.output_dir)
        best = [
            f"best run of {row['row']}: bayeslora train --config {Path(options.output_dir) / row['winner']}"
            for row in record["rows"]
            if row["best"] is not None
        ]
        print_result(options, record, aligned(sweep_table(record)), *best)
