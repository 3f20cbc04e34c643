"""bayeslora train."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from jsonargparse import ArgumentParser, Namespace

from bayeslora.options.parsing import add_config, instantiate
from bayeslora.runs.config import RunConfig
from bayeslora_cli.commands.base import Command, add_overwrite, metrics_line


class Train(Command):
    """Trains one run."""

    name: ClassVar[str] = "train"
    description: ClassVar[str] = "Train an adapter."
    distributed: ClassVar[bool] = True

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Every field of RunConfig."""
        add_config(parser, RunConfig)
        parser.add_argument("--output_dir", type=str, required=True, help="Folder of the run (created).")
        parser.add_argument("--resume", type=bool, default=False, help="Go on from the newest complete checkpoint.")
        add_overwrite(parser)

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints the metrics on dev and where the adapter is."""
        config = instantiate(parser, options, RunConfig)
        if config.task.scoring == "text":
            from bayeslora.runs.language_modelling import train_texts as train
        else:
            from bayeslora.runs import train
        chosen = {"resume": options.resume, "overwrite": options.overwrite}
        print(metrics_line(train(config, options.output_dir, **chosen).metrics))
        print(f"adapter: {Path(options.output_dir) / 'adapter'}")
