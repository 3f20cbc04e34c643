"""bayeslora export."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import Command, add_option, add_usual, print_result


class Export(Command):
    """Write a run as ordinary LoRA adapters or a merged model, for vLLM and others."""

    name = "export"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The run, what to write of it, and where."""
        parser.add_argument("run", type=str, help="Folder of the run, or its Hub id.")
        said = "Posterior mean or draws as LoRA adapters, or the base model with the mean merged in."
        add_option(parser, "--format", str, said, "mean")
        parser.add_argument("--output_dir", type=str, required=True, help="Folder to write; an export is replaced.")
        add_option(parser, "--num_samples", int, "Draws of samples; default: 8, or an ensemble's all.")
        add_option(parser, "--seed", int, "Seed of the draws; default: the run's.")
        add_option(parser, "--draw", int, "Number of the draw for merged; default: the mean.")
        add_option(parser, "--dtype", Literal["float32", "bfloat16", "float16"], "Number type of the files.", "float32")
        add_usual(parser, "device", "json")

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints the folders that were written, and what to do with them."""
        from bayeslora.deploy.export import export_run
        from bayeslora.deploy.export.run import FORMATS

        chosen = {name: options[name] for name in ("format", "num_samples", "seed", "draw", "dtype", "device")}
        record = export_run(options.run, options.output_dir, **chosen)
        folders = [str(Path(options.output_dir) / folder) for folder in record.get("draws", ["."])]
        use = FORMATS.get(options.format).use
        print_result(options, record | {"folders": folders}, *folders, f"next     {use}" if use else "")
