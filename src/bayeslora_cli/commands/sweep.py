"""bayeslora sweep."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import ConfigCommand, print_result


class Sweep(ConfigCommand):
    """Every row over a log grid of learning rates, chosen on dev; goes on where it stopped."""

    name = "sweep"
    config_path = "bayeslora.experiments.learning_rates.config.SweepConfig"
    options_path = "bayeslora.experiments.learning_rates.options.SweepOptions"
    output = "Folder for results, picture and winners."

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
