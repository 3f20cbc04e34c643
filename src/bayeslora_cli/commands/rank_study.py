"""bayeslora rank-study."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import ConfigCommand, print_result


class RankStudy(ConfigCommand):
    """Several ranks beside full fine-tuning: scores, size, time; goes on where it stopped."""

    name = "rank-study"
    config_path = "bayeslora.experiments.ranks.config.RankStudyConfig"
    options_path = "bayeslora.experiments.ranks.options.RankStudyOptions"
    output = "Folder for results, runs and picture."

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints the table, and where the picture is."""
        from bayeslora.experiments.ranks.run import rank_study
        from bayeslora.experiments.ranks.table import rank_study_table
        from bayeslora.system.console import aligned

        config = self.config(options, parser)
        record = rank_study(config, options.output_dir)
        picture = f"picture: {Path(options.output_dir) / 'rank_study.png'}"
        print_result(options, record, aligned(rank_study_table(record)), picture)
