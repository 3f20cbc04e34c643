"""bayeslora continual."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import ConfigCommand

if TYPE_CHECKING:
    from bayeslora.experiments.sequences.config import ContinualConfig


class Continual(ConfigCommand):
    """Trains methods on a sequence of tasks."""

    name: ClassVar[str] = "continual"
    description: ClassVar[str] = "Methods on a sequence of tasks (SD-LoRA): forgetting; goes on where it stopped."

    def config_class(self) -> type[ContinualConfig]:
        """What a file of it holds."""
        from bayeslora.experiments.sequences.config import ContinualConfig

        return ContinualConfig

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Where to write."""
        parser.add_argument("--output_dir", type=str, required=True, help="Folder for results.jsonl, report and runs.")

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints where the report is."""
        from bayeslora.experiments.sequences.continual import run_continual
        from bayeslora.experiments.sequences.report import write_continual_report
        from bayeslora.options.parsing import instantiate
        from bayeslora.runs.config import describe

        config = instantiate(parser, options, self.config_class())
        run_continual(config, options.output_dir, describe(config))
        print(f"report: {write_continual_report(options.output_dir)}")
