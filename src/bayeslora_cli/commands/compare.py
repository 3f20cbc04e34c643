"""bayeslora compare."""

from __future__ import annotations

from functools import partial

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import ConfigCommand, add_option, print_result


class Compare(ConfigCommand):
    """Methods x tasks x seeds under one protocol; goes on where it stopped."""

    name = "compare"
    config_path = "bayeslora.experiments.comparison.config.CompareConfig"
    options_path = "bayeslora.experiments.comparison.options.CompareOptions"
    output = "Folder for results.jsonl, report and runs."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Where to write, and how cells are computed."""
        from bayeslora.experiments.comparison.executors import EXECUTORS

        super().add_arguments(parser)
        said = "Compute cells in this process (local), or spread them over a Ray cluster (ray; extra: ray)."
        add_option(parser, "--executor", str, said, "local")
        for kind in EXECUTORS.classes():
            for argument, (default, meaning) in kind.options.items():
                add_option(parser, f"--{kind.name}_{argument}", type(default), meaning, default)

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints the scores and where the report is."""
        from bayeslora.experiments.comparison.executors import EXECUTORS
        from bayeslora.experiments.comparison.report.content import build_report
        from bayeslora.experiments.comparison.report.page import write_pages
        from bayeslora.experiments.comparison.report.terminal import scores_text
        from bayeslora.experiments.comparison.runner import compare
        from bayeslora.runs.config import describe

        config = self.config(options, parser)
        kind = EXECUTORS.get(options.executor)
        executor = partial(kind, **{name: options[f"{kind.name}_{name}"] for name in kind.options})
        results = compare(config, options.output_dir, describe(config), executor)
        report = build_report(results)
        page = str(write_pages(report, options.output_dir))
        cells = {"final": len(results.cells("final")), "selection": len(results.cells("selection"))}
        print_result(options, {"report": page, "cells": cells}, scores_text(report), f"report: {page}")
