"""bayeslora rank-study."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import ConfigCommand, add_json, print_result

if TYPE_CHECKING:
    from bayeslora.experiments.ranks.config import RankStudyConfig


class RankStudy(ConfigCommand):
    """Runs a rank study."""

    name: ClassVar[str] = "rank-study"
    description: ClassVar[str] = "Several ranks beside full fine-tuning: scores, size, time; goes on where it stopped."

    def config_class(self) -> type[RankStudyConfig]:
        """What a file of it holds."""
        from bayeslora.experiments.ranks.config import RankStudyConfig

        return RankStudyConfig

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Where to write."""
        parser.add_argument("--output_dir", type=str, required=True, help="Folder for results, runs and picture.")
        add_json(parser)

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints the table."""
        from bayeslora.experiments.ranks.run import rank_study
        from bayeslora.experiments.ranks.table import rank_study_table
        from bayeslora.options.parsing import instantiate
        from bayeslora.system.console import aligned

        config = instantiate(parser, options, self.config_class())
        record = rank_study(config, options.output_dir)
        print_result(options, record, aligned(rank_study_table(record)))
