"""bayeslora distill."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import Command, add_num_samples, add_option, add_usual, print_result
from bayeslora_cli.commands.files import add_file_layout, file_layout
from bayeslora_cli.commands.scores import main_scores, scores_table


class Distill(Command):
    """Train a plain LoRA on the predictions of a run, for servers that know no other."""

    name = "distill"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The teacher, the further items, and how long to train."""
        parser.add_argument("run", type=str, help="Folder of the teacher's run, or its Hub id.")
        parser.add_argument("--output_dir", type=str, required=True, help="Folder of the student's run (created).")
        said = "JSONL, CSV or Parquet file of further items to learn on; labels in it are not read."
        add_option(parser, "--unlabelled", str, said)
        add_file_layout(parser)
        add_num_samples(parser, "the run's, at most 4")
        said = "Passes over all items; default: those of half of the teacher's optimizer steps."
        add_option(parser, "--epochs", float, said)
        said = "Peak learning rate; default: the teacher's, where its optimizer is one that the student has."
        add_option(parser, "--learning_rate", float, said)
        said = "Begin with the mean of the teacher's adapter, where that is a LoRA, or with a new one."
        add_option(parser, "--start", Literal["teacher", "fresh"], said, "teacher")
        add_usual(parser, "device", "resume", "overwrite", "json")

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints the scores on dev, where things are, and what to do next."""
        from bayeslora.runs import distill
        from bayeslora.system.console import duration

        names = ("unlabelled", "num_samples", "epochs", "learning_rate", "start", "device", "resume", "overwrite")
        chosen = {name: options[name] for name in names}
        metrics = distill(options.run, options.output_dir, file_layout=file_layout(options), **chosen).metrics
        adapter, learned = str(Path(options.output_dir) / "adapter"), metrics["teacher"]
        print_result(
            options,
            main_scores(metrics) | {"adapter": adapter, "teacher": learned},
            f"{learned['method']} to {metrics['method']}: {metrics['train_examples']:,} items predicted in "
            f"{duration(learned['predict_seconds'])}, learned in {duration(metrics['train_seconds'])}",
            f"\n{scores_table(metrics)}\n" if "split" in metrics else "",
            f"adapter  {adapter}",
            f"next     bayeslora evaluate {shlex.quote(options.output_dir)}",
        )
