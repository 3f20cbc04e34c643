"""bayeslora decide."""

from __future__ import annotations

import json
import sys

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import Command, add_usual

_REQUEST = '{"state": ..., "questions": {...}}'


class Decide(Command):
    """Answer typed questions about a state: a System One request as JSON, from stdin."""

    name = "decide"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The model."""
        said = "Folder of a decision model, or a base model such as offline:smollm2, which answers without training."
        parser.add_argument("run", type=str, help=said)
        add_usual(parser, "device")

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints the answers as JSON."""
        from bayeslora.runs.decisions import DecisionModel, is_decision_folder
        from bayeslora.tasks.reading.unique_keys import read_json_text

        if sys.stdin.isatty():
            print(f"waiting for a request {_REQUEST} (Ctrl-D ends it)", file=sys.stderr)
        said = f"expected a request {_REQUEST} as JSON on the standard input"
        try:
            request = read_json_text(sys.stdin.read())
        except json.JSONDecodeError as error:
            raise ValueError(f"{said}, but it is none: {error}.") from error
        if not isinstance(request, dict) or "state" not in request:
            raise ValueError(f"{said}.")
        if is_decision_folder(options.run):
            model = DecisionModel.load(options.run, device=options.device)
        else:
            model = DecisionModel(options.run, readout="codes", device=options.device or "auto")
        draws = {"num_samples": request.get("x_num_samples"), "seed": request.get("x_seed")}
        answers = model.decide(request["state"], request.get("questions"), **draws)
        print(json.dumps({"answers": {name: answer.to_dict() for name, answer in answers.items()}}, ensure_ascii=False))
