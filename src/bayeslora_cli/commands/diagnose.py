"""bayeslora diagnose."""

from __future__ import annotations

from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import Command, add_usual, print_result


class Diagnose(Command):
    """Count intruder dimensions of an adapter and measure what scaling them down does."""

    name = "diagnose"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The adapter, and what to measure."""
        add = parser.add_argument
        add("run", type=str, help="Folder of a run or of a PEFT adapter, or the Hub id of one.")
        add("--output_dir", type=str | None, default=None, help="Default: diagnosis in the folder.")
        add("--base_model", type=str | None, default=None, help="Base model in place of the one that is noted.")
        add("--tasks", type=list[str] | None, default=None, help="Tasks of the repair; default: the run's own.")
        add("--scoring", type=str | None, default=None, help="How the tasks are read; default: as the run does.")
        add("--split", type=Literal["dev", "test"], default="dev", help="Split of the tasks.")
        add("--examples", type=int | None, default=None, help="Items of each task.")
        add("--scales", type=list[float], default=[0.0, 0.25, 0.5, 0.75, 1.0], help="Values of lambda.")
        add("--num_samples", type=int | None, default=None, help="Posterior draws; default: the run's; 0: the mean.")
        add("--seed", type=int | None, default=None, help="Of the draws; default: the run's.")
        add("--top", type=int, default=10, help="Singular vectors of a layer to look at.")
        add("--threshold", type=float, default=0.5, help="Cosine below which a vector is an intruder dimension.")
        add_usual(parser, "device", "overwrite", "json")

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints the table, and what to do where there is something to repair."""
        from bayeslora.experiments.intruder_dimensions import diagnose
        from bayeslora.experiments.intruder_dimensions.table import diagnosis_text, next_step

        names = ("output_dir", "base_model", "tasks", "scoring", "split", "examples", "scales", "num_samples", "seed")
        chosen = {name: options[name] for name in (*names, "top", "threshold", "device", "overwrite")}
        record = diagnose(options.run, **chosen)
        following = f"\nnext     {next_step(record)}" if record["intruders"] else ""
        print_result(options, record, diagnosis_text(record), following)
