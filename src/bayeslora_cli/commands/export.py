"""bayeslora export."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import Command, add_device, add_json, print_result


class Export(Command):
    """Writes a run for programs that do not know this package."""

    name: ClassVar[str] = "export"
    description: ClassVar[str] = "Write a run as ordinary LoRA adapters or a merged model, for vLLM and others."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The run, what to write of it, and where."""
        parser.add_argument("run", type=str, help="Folder of the run, or its Hub id.")
        parser.add_argument(
            "--format",
            type=str,
            default="mean",
            help="Posterior mean or draws as LoRA adapters, or the base model with the mean merged in.",
        )
        parser.add_argument("--output_dir", type=str, required=True, help="Folder to write; an export is replaced.")
        parser.add_argument(
            "--num_samples", type=int | None, default=None, help="Draws of samples; default: 8, or an ensemble's all."
        )
        parser.add_argument("--seed", type=int | None, default=None, help="Seed of the draws; default: the run's.")
        parser.add_argument(
            "--draw", type=int | None, default=None, help="Number of the draw for merged; default: the mean."
        )
        parser.add_argument(
            "--dtype",
            type=Literal["float32", "bfloat16", "float16"],
            default="float32",
            help="Number type of the files.",
        )
        add_device(parser)
        add_json(parser)

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints the folders that were written."""
        from bayeslora.deploy.export import export_run

        chosen = {name: options[name] for name in ("format", "num_samples", "seed", "draw", "dtype", "device")}
        record = export_run(options.run, options.output_dir, **chosen)
        folders = [str(Path(options.output_dir) / folder) for folder in record.get("draws", ["."])]
        print_result(options, record | {"folders": folders}, *folders)
