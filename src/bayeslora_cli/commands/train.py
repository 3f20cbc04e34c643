"""bayeslora train."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import ConfigCommand, add_overwrite, add_switch, metrics_line

if TYPE_CHECKING:
    from bayeslora.runs.config import RunConfig


class Train(ConfigCommand):
    """Trains one run."""

    name: ClassVar[str] = "train"
    description: ClassVar[str] = "Train an adapter."
    distributed: ClassVar[bool] = True

    def config_class(self) -> type[RunConfig]:
        """What a file of it holds."""
        from bayeslora.runs.config import RunConfig

        return RunConfig

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Where to write."""
        parser.add_argument("--output_dir", type=str, required=True, help="Folder of the run (created).")
        add_switch(parser, "--resume", "Go on from the newest complete checkpoint.")
        add_overwrite(parser)

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints the metrics on dev and where the adapter is."""
        from bayeslora.options.parsing import instantiate

        config = instantiate(parser, options, self.config_class())
        if config.task.scoring == "text":
            from bayeslora.runs.language_modelling import train_texts as train
        else:
            from bayeslora.runs import train
        chosen = {"resume": options.resume, "overwrite": options.overwrite}
        print(metrics_line(train(config, options.output_dir, **chosen).metrics))
        print(f"adapter: {Path(options.output_dir) / 'adapter'}")
