"""bayeslora continual."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import ConfigCommand, print_result


class Continual(ConfigCommand):
    """Methods on a sequence of tasks (SD-LoRA): forgetting; goes on where it stopped."""

    name = "continual"
    config_path = "bayeslora.experiments.sequences.config.ContinualConfig"
    options_path = "bayeslora.experiments.sequences.options.ContinualOptions"
    output = "Folder for results.jsonl, report and runs."

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints the summary and where the report is."""
        from bayeslora.experiments.sequences.continual import run_continual
        from bayeslora.experiments.sequences.report import continual_summary, write_continual_report
        from bayeslora.runs.config import describe
        from bayeslora.system.console import aligned

        config = self.config(options, parser)
        results = run_continual(config, options.output_dir, describe(config))
        page = str(write_continual_report(options.output_dir))
        print_result(options, {"report": page}, aligned(continual_summary(results).rstrip()), f"report: {page}")
