"""bayeslora lm-eval."""

from __future__ import annotations

import json
from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import Command, add_usual


class EvaluationHarness(Command):
    """Evaluate a run on tasks of lm-evaluation-harness (the extra lm-eval)."""

    name = "lm-eval"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The run, the tasks, and how to average over draws."""
        add = parser.add_argument
        add("run", type=str, help="Folder of the run, or its Hub id.")
        add("--tasks", type=str, required=True, help="Names of the harness's tasks, separated by commas.")
        add("--num_samples", type=int | None, default=None, help="Posterior draws; default: the run's; 0: the mean.")
        said = "Average over draws of a whole continuation's probability, or of each token's."
        add("--likelihood", type=Literal["joint", "mixture"], default="joint", help=said)
        add("--seed", type=int | None, default=None, help="Seed of the draws; default: the run's.")
        add("--num_fewshot", type=int | None, default=None, help="Examples in the prompt; default: the task's.")
        add("--limit", type=float | None, default=None, help="Items per task, or below 1 their share, for a try.")
        add("--batch_size", type=int | str, default=1, help='Requests in one forward, each with its draws, or "auto".')
        add_usual(parser, "device", "overwrite")
        add("--include_path", type=str | None, default=None, help="Folder with YAML tasks of your own.")
        add("--output", type=str | None, default=None, help="JSON file for the results.")

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints the harness's table."""
        from bayeslora.deploy.lm_eval import evaluate_with_harness
        from bayeslora.system.files import write_json
        from bayeslora.system.folders import to_be_written

        names = ("num_samples", "likelihood", "seed", "num_fewshot", "limit", "batch_size", "device", "include_path")
        with to_be_written(options.output, overwrite=options.overwrite):
            results = evaluate_with_harness(
                options.run,
                [name.strip() for name in options.tasks.split(",")],
                log_samples=False,
                **{name: options[name] for name in names},
            )
            from lm_eval.utils import handle_non_serializable, make_table

            if options.output is not None:
                write_json(options.output, json.loads(json.dumps(results, default=handle_non_serializable)))
        print(make_table(results))
