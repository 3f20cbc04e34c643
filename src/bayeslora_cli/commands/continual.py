"""bayeslora continual."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import ConfigCommand, add_json, print_result

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
        add_json(parser)

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints the summary and where the report is."""
        from bayeslora.experiments.sequences.continual import run_continual
        from bayeslora.experiments.sequences.report import continual_summary, write_continual_report
        from bayeslora.options.parsing import instantiate
        from bayeslora.runs.config import describe
        from bayeslora.system.console import aligned

        config = instantiate(parser, options, self.config_class())
        results = run_continual(config, options.output_dir, describe(config))
        page = str(write_continual_report(options.output_dir))
        print_result(options, {"report": page}, aligned(continual_summary(results).rstrip()), f"report: {page}")
