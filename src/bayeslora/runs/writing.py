"""The folder of a finished run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from bayeslora.runs.adaptive import keep_dev_draws
from bayeslora.runs.config_files import write_config
from bayeslora.runs.dev_predictions import keep_dev_predictions
from bayeslora.runs.kept import KEPT
from bayeslora.runs.model_card import CardFacts, write_model_card
from bayeslora.runs.prediction import Prediction
from bayeslora.runs.run import Run
from bayeslora.runs.state import save_state
from bayeslora.system.files import save_adapter, write_json
from bayeslora.system.folders import replaced_together
from bayeslora.system.processes import barrier, is_main

RUN_PARTS = (
    *("adapter", "config.yaml", "metrics.json", "posterior.safetensors"),
    *("predictions.jsonl", "texts.jsonl", "reliability.png", "explanations.jsonl", "evaluation", "diagnosis"),
    *("decision.json", "heads.safetensors", "calibration.json"),
    *KEPT,
)
"""What belongs to one run in its folder; what was measured of an earlier run goes with it."""


def write_run(
    run: Run,
    output: Path,
    facts: CardFacts | None = None,
    dev_prediction: Prediction | None = None,
    dev_draws: Prediction | None = None,
    also: Callable[[Run, Path], None] | None = None,
) -> None:
    """All parts of a finished run, in the place of those of an earlier one and of its evaluations: all or none.

    All processes must call it; the main one writes.

    Args:
        run: The run, which is told its folder.
        output: That folder.
        facts: For the model card.
        dev_prediction: To be kept.
        dev_draws: That with all draws, to be kept where `dev_prediction` does not have all of them.
        also: Writes further parts into the folder that it is given.
    """
    with replaced_together(output, RUN_PARTS) if is_main() else nullcontext(output) as aside:
        save_adapter(run.model, aside / "adapter")
        if is_main():
            save_state(run.state, aside)
            write_config(run.config, aside / "config.yaml")
            write_model_card(aside / "adapter", run.config, run.metrics, facts)
            write_json(aside / "metrics.json", run.metrics)
            if dev_prediction is not None:
                keep_dev_predictions(aside, dev_prediction, run.temperature)
            if dev_draws is not None:
                keep_dev_draws(aside, dev_draws, run.temperature)
            if also is not None:
                also(run, aside)
    run.folder = output
    if is_main():
        shutil.rmtree(output / "checkpoints.previous", ignore_errors=True)
    barrier()
