"""bayeslora rank-study."""

from __future__ import annotations

from typing import ClassVar

from jsonargparse import ArgumentParser, Namespace

from bayeslora.experiments.ranks.config import RankStudyConfig
from bayeslora.options.parsing import add_config, instantiate
from bayeslora_cli.commands.base import Command


class RankStudy(Command):
    """Runs a rank study."""

    name: ClassVar[str] = "rank-study"
    description: ClassVar[str] = "Several ranks beside full fine-tuning: scores, size, time; goes on where it stopped."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Every field of RankStudyConfig."""
        add_config(parser, RankStudyConfig)
        parser.add_argument("--output_dir", type=str, required=True, help="Folder for results, runs and picture.")

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints the table."""
        from bayeslora.experiments.ranks.run import rank_study
        from bayeslora.experiments.ranks.table import rank_study_table

        config = instantiate(parser, options, RankStudyConfig)
        print(rank_study_table(rank_study(config, options.output_dir)))
