"""bayeslora review."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import Command, add_option, add_usual, print_result

if TYPE_CHECKING:
    from bayeslora.runs.decisions.review import Candidate

_WIDTH = 40


class Review(Command):
    """List the states of a log that a decision model would learn most from."""

    name = "review"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The model, the log, and how many."""
        parser.add_argument("run", type=str, help="Folder of the decision model.")
        said = "Records of a log, labels or none; a record may be a state alone."
        parser.add_argument("--input", type=str, required=True, help=said)
        add_option(parser, "--output", str, "JSONL file to write, whose labels can be filled in.")
        add_option(parser, "--top", int, "How many states.", 20)
        add_usual(parser, "device", "overwrite", "json")

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints a table of the states, and whether the log has drifted from the training."""
        from bayeslora.runs.decisions.review import review_file
        from bayeslora.system.console import text_table

        chosen = {name: options[name] for name in ("top", "device", "overwrite")}
        found = review_file(options.run, options.input, options.output, **chosen)
        heads = ("state", "seen", "worth", "novelty", "MI (nats)", "most in doubt")
        output = options.output
        print_result(
            options,
            {"states": [one.to_dict() for one in found.candidates], "drift": found.drift.to_dict(), "output": output},
            text_table(heads, [_row(one) for one in found.candidates]) if found.candidates else "no new state",
            f"\n{found.drift}",
            _next(options.run, output) if output else "",
        )


def _next(run: str, output: str) -> str:
    labelled = f"next     fill in the labels of {output}, then "
    if not (Path(run) / "examples.safetensors").is_file():
        return f"{labelled}train again on these and the records of before: this run is not extended"
    return f"{labelled}bayeslora train --extend {shlex.quote(run)} --task.name {shlex.quote(output)} --output_dir ..."


def _row(one: Candidate) -> list[str]:
    from bayeslora.tasks.decisions.questions import text_of

    text = " ".join(text_of(one.state).split())
    shown = text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"
    doubt = one.answers[one.in_doubt]
    numbers = [f"{one.worth:.2f}", f"{one.novelty:.2f}", f"{one.information:.3f}"]
    return [shown, str(one.seen), *numbers, f"{one.in_doubt}: {doubt.key} {max(doubt.probabilities):.2f}"]
