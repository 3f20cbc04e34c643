"""bayeslora report."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import Command, add_option, add_usual, print_result


class Report(Command):
    """Tables and pictures of a comparison: report.html, report.md, pictures/."""

    name = "report"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The results and where to write."""
        parser.add_argument("results", type=str, help="Results file of a comparison, or the folder with results.jsonl.")
        add_option(parser, "--output_dir", str, "Default: the folder of the results file.")
        add_usual(parser, "json")

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints where the report is."""
        from bayeslora.experiments.comparison.report.page import write_report

        page = str(write_report(options.results, options.output_dir))
        print_result(options, {"report": page}, f"report: {page}")
