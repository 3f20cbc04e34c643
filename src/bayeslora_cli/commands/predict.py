"""bayeslora predict."""

from __future__ import annotations

from typing import ClassVar

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import Command, add_device, add_overwrite
from bayeslora_cli.commands.files import add_file_layout, file_layout


class Predict(Command):
    """Predicts the items of a file."""

    name: ClassVar[str] = "predict"
    description: ClassVar[str] = "Predict the items of a local file."
    distributed: ClassVar[bool] = True

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The run, the files, and when to abstain."""
        parser.add_argument("run", type=str, help="Folder of the run, or its Hub id.")
        parser.add_argument("--input", type=str, required=True, help="JSONL, CSV or Parquet file of items.")
        parser.add_argument("--output", type=str, required=True, help="JSONL file to write.")
        add_file_layout(parser)
        parser.add_argument("--num_samples", type=int | None, default=None, help="Posterior draws; default: the run's.")
        parser.add_argument(
            "--abstain_above",
            type=float | None,
            default=None,
            help="Entropy (nats) above which an item says abstain.",
        )
        parser.add_argument(
            "--coverage",
            type=float | None,
            default=None,
            help="Add sets of choices that hold the right one with this probability (conformal, calibrated on dev).",
        )
        add_device(parser)
        add_overwrite(parser)

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints how many items there were, and how many sets of one choice."""
        from bayeslora.runs import predict_file

        rows = predict_file(
            options.run,
            options.input,
            options.output,
            num_samples=options.num_samples,
            abstain_above=options.abstain_above,
            coverage=options.coverage,
            file_layout=file_layout(options),
            device=options.device,
            overwrite=options.overwrite,
        )
        print(f"{len(rows)} predictions: {options.output}")
        if options.coverage is not None:
            alone = sum(len(row["set"]) == 1 for row in rows)
            print(f"{alone} of {len(rows)} items have a set of one choice (coverage {options.coverage})")
