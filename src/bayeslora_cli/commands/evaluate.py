"""bayeslora evaluate."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import Command, add_num_samples, add_usual, print_result
from bayeslora_cli.commands.files import add_file_layout, file_layout
from bayeslora_cli.commands.scores import main_scores, scores_table


class Evaluate(Command):
    """Score a run: metrics.json, predictions.jsonl, reliability.png."""

    name = "evaluate"
    distributed = True

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The run and what to score it on."""
        parser.add_argument("run", type=str, help="Folder of the run, or its Hub id.")
        parser.add_argument("--task", type=str | None, default=None, help="Another task than the run's own.")
        said = "File of labelled items, all of which are scored, in the place of a task's split."
        parser.add_argument("--input", type=str | None, default=None, help=said)
        parser.add_argument("--split", type=str, default="test", help="test or dev.")
        add_num_samples(parser)
        parser.add_argument("--examples", type=int | None, default=None, help="Use only this many items.")
        parser.add_argument("--output_dir", type=str | None, default=None, help="Default: the run's folder.")
        add_file_layout(parser)
        add_usual(parser, "device", "overwrite", "json")

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints the scores."""
        from bayeslora.runs import evaluate

        names = ("task", "input", "split", "num_samples", "examples", "output_dir", "device", "overwrite")
        chosen = {name: options[name] for name in names}
        metrics = evaluate(options.run, **chosen, file_layout=file_layout(options))
        print_result(
            options,
            main_scores(metrics),
            f"{metrics['method']} on {metrics['task']}\n",
            scores_table(metrics),
            f"\nnext     bayeslora {_next(options.run, metrics)}".replace("RUN", shlex.quote(options.run)),
        )


def _next(run: str, metrics: Mapping[str, Any]) -> str:
    """What a run is for: answers to new items or to typed questions, or texts."""
    from bayeslora.runs.decisions.files import is_decision_folder

    if is_decision_folder(run):
        return "decide RUN < request.json"
    if "num_tokens" in metrics:
        return 'generate RUN --prompt "What is ...?"'
    return "predict RUN --input items.jsonl --output predictions.jsonl"
