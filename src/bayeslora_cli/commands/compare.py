"""bayeslora compare."""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

from jsonargparse import ArgumentParser, Namespace

from bayeslora.experiments.comparison.config import CompareConfig
from bayeslora.options.parsing import add_config, instantiate
from bayeslora.runs.config import describe
from bayeslora_cli.commands.base import Command


class Compare(Command):
    """Runs a comparison."""

    name: ClassVar[str] = "compare"
    description: ClassVar[str] = "Methods x tasks x seeds under one protocol; goes on where it stopped."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Every field of CompareConfig."""
        add_config(parser, CompareConfig)
        parser.add_argument("--output_dir", type=str, required=True, help="Folder for results.jsonl, report and runs.")

        parser.add_argument(
            "--executor",
            type=Literal["local", "ray"],
            default="local",
            help="Compute cells in this process, or spread them over a Ray cluster (extra: ray).",
        )
        parser.add_argument(
            "--ray_address",
            type=str,
            default="auto",
            help='Ray cluster: "auto" (the one of this machine), host:6379, ray://host:10001, or "local" (start one).',
        )
        parser.add_argument("--ray_cpus", type=float, default=1, help="CPUs of a cell, and its threads.")
        parser.add_argument("--ray_gpus", type=float, default=0, help="GPUs of a cell; may be a part of one.")

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints where the report is."""
        from bayeslora.experiments.comparison.executors import LocalExecutor, RayExecutor
        from bayeslora.experiments.comparison.runner import compare
        from bayeslora.report import write_report

        config = instantiate(parser, options, CompareConfig)
        resources = {"address": options.ray_address, "cpus": options.ray_cpus, "gpus": options.ray_gpus}
        executor = partial(RayExecutor, **resources) if options.executor == "ray" else LocalExecutor
        compare(config, options.output_dir, describe(config), executor)
        print(f"report: {write_report(options.output_dir)}")
