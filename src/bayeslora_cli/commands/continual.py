"""bayeslora continual."""

from __future__ import annotations

from typing import ClassVar

from jsonargparse import ArgumentParser, Namespace

from bayeslora.experiments.sequences.config import ContinualConfig
from bayeslora.options.parsing import add_config, instantiate
from bayeslora.runs.config import describe
from bayeslora_cli.commands.base import Command


class Continual(Command):
    """Trains methods on a sequence of tasks."""

    name: ClassVar[str] = "continual"
    description: ClassVar[str] = "Methods on a sequence of tasks (SD-LoRA): forgetting; goes on where it stopped."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Every field of ContinualConfig."""
        add_config(parser, ContinualConfig)
        parser.add_argument("--output_dir", type=str, required=True, help="Folder for results.jsonl, report and runs.")

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints where the report is."""
        from bayeslora.experiments.sequences.continual import run_continual
        from bayeslora.experiments.sequences.report import write_continual_report

        config = instantiate(parser, options, ContinualConfig)
        run_continual(config, options.output_dir, describe(config))
        print(f"report: {write_continual_report(options.output_dir)}")
