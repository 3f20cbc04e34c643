"""bayeslora compare."""

from __future__ import annotations

from typing import ClassVar

from jsonargparse import ArgumentParser, Namespace

from bayeslora.commands.base import Command
from bayeslora.comparison.config import CompareConfig
from bayeslora.parsing import add_config, described_as, instantiate


class Compare(Command):
    """Runs a comparison."""

    name: ClassVar[str] = "compare"
    description: ClassVar[str] = "Methods x tasks x seeds under one protocol; goes on where it stopped."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Every field of CompareConfig."""
        add_config(parser, CompareConfig)
        parser.add_argument("--output_dir", type=str, required=True, help="Folder for results.jsonl, report and runs.")

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints where the report is."""
        from bayeslora.comparison.runner import compare
        from bayeslora.report import write_report

        described = described_as(parser, options, CompareConfig)
        compare(instantiate(parser, options, CompareConfig), options.output_dir, described)
        print(f"report: {write_report(options.output_dir)}")
