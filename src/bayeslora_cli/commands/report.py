"""bayeslora report."""

from __future__ import annotations

from typing import ClassVar

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import Command, add_json, print_result


class Report(Command):
    """Draws the report of a comparison."""

    name: ClassVar[str] = "report"
    description: ClassVar[str] = "Tables and pictures of a comparison: report.html, report.md, pictures/."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The results and where to write."""
        parser.add_argument("results", type=str, help="Results file of a comparison, or the folder with results.jsonl.")
        parser.add_argument(
            "--output_dir", type=str | None, default=None, help="Default: the folder of the results file."
        )
        add_json(parser)

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints where the report is."""
        from bayeslora.experiments.comparison.report.page import write_report

        page = str(write_report(options.results, options.output_dir))
        print_result(options, {"report": page}, f"report: {page}")
