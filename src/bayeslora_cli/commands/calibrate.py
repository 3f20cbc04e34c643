"""bayeslora calibrate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar, Literal

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import Command, add_device


class Calibrate(Command):
    """Learns temperatures and certified thresholds of a decision model."""

    name: ClassVar[str] = "calibrate"
    description: ClassVar[str] = "Calibrate a decision model on labelled records: temperatures, certified thresholds."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The model, the records, and what is promised."""
        parser.add_argument("run", type=str, help="Folder of the decision model; its calibration is replaced.")
        parser.add_argument("--data", type=str, required=True, help="Labelled records that it was not trained on.")
        parser.add_argument(
            "--alpha", type=float | None, default=None, help="Errors to promise among automated answers; default: none."
        )
        parser.add_argument("--delta", type=float, default=0.1, help="Probability with which the promise may fail.")
        signals = Literal["confidence", "entropy", "novelty"]
        parser.add_argument("--signal", type=signals, default="confidence", help="What the threshold is on.")
        add_device(parser)

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints what was learned."""
        from bayeslora.runs.decisions import DecisionModel

        model = DecisionModel.load(options.run, device=options.device)
        model.calibrate(options.data, alpha=options.alpha, delta=options.delta, signal=options.signal)
        model.save_calibration(Path(options.run))
        assert model.calibration is not None
        print(json.dumps({"temperatures": model.calibration.temperatures}))
        for policy in model.calibration.policies.values():
            found = policy.certified
            line = {"question": policy.question, "coverage": found.coverage, "threshold": found.threshold}
            print(json.dumps({**line, "errors": found.errors, "states": found.units, "bound": found.bound}))
