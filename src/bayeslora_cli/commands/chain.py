"""bayeslora chain."""

from __future__ import annotations

import shlex
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import ConfigCommand, print_result


class Chain(ConfigCommand):
    """Draw, train, merge, draw again (RAC-LoRA); goes on where it stopped."""

    name = "chain"
    config_path = "bayeslora.experiments.sequences.config.ChainConfig"
    options_path = "bayeslora.experiments.sequences.options.ChainOptions"
    output = "Folder for the blocks and the merged model."

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints the table of the blocks and where the merged model is."""
        from bayeslora.experiments.sequences.chain import run_chain
        from bayeslora.system.console import aligned

        config = self.config(options, parser)
        folder = Path(options.output_dir)
        blocks = run_chain(config, folder)
        table = (folder / "chain.md").read_text(encoding="utf-8").rstrip()
        print_result(
            options,
            {"blocks": blocks},
            aligned(table),
            f"merged model: {folder / 'merged'}",
            f"next     bayeslora serve {shlex.quote(str(folder / blocks[-1]['folder']))}",
        )
