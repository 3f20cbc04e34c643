"""Predictions of a finished run for the items of a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bayeslora.prediction.conformal import check_coverage
from bayeslora.runs.adaptive import NumSamples
from bayeslora.runs.dev_predictions import calibrated_on_dev
from bayeslora.runs.finished import load_run
from bayeslora.runs.items import file_options, with_file_options
from bayeslora.runs.prediction import write_rows
from bayeslora.runs.run import Run
from bayeslora.system.folders import to_be_written
from bayeslora.system.processes import barrier, is_main
from bayeslora.tasks import load_items
from bayeslora.tasks.reading.rows import check_there


def predict_file(
    folder: str | Path,
    input: str | Path,
    output: str | Path,
    *,
    num_samples: NumSamples = None,
    abstain_above: float | None = None,
    coverage: float | None = None,
    file_layout: Mapping[str, Any] | None = None,
    device: str | None = None,
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Predict the items of a local file and write one JSON record each, in the input's order.

    Args:
        folder: The run folder, or the Hub id of a pushed run.
        input: JSONL, CSV or Parquet file with the run's column names; labels are optional, and those that cannot be
            read are passed over with a word in the log.
        output: JSONL file to write, atomically.
        num_samples: Posterior draws; default: the run's; "auto": of each item until its answer is settled.
        abstain_above: Entropy in nats above which a record says `"abstain": true`.
        coverage: Add to each record a set of choices, `"set"` (indices) and `"set_choices"` (texts), that holds the
            right one with this probability in (0, 1): split-conformal, score "lac", calibrated on the dev split of the
            run's task (docs/guides/prediction_sets.md).
        file_layout: How the file is read where it is not laid out as the run's own: question_column, choices_column,
            label_column, labels, id_column, group_column, choices.
        device: As `load_run`.
        overwrite: Replace the file `output` if it is there.

    Returns:
        The records.

    Raises:
        FileExistsError: `output` is there and not `overwrite`.
        RuntimeError: Another process writes `output`.
        TaskError: There is no such file as `input`.
        ValueError: `coverage` is not in (0, 1), or the run's task has no dev items to calibrate on.
    """
    if coverage is not None:
        check_coverage(coverage)
    check_there(input)
    with to_be_written(output, overwrite=overwrite):
        if Path(output).exists() and Path(output).samefile(input):
            raise FileExistsError(f"{output} is the input itself, which the predictions would replace; name another.")
        rows = _predicted_rows(
            load_run(folder, device=device), input, num_samples, abstain_above, coverage, file_layout
        )
        if is_main():
            write_rows(output, rows)
    barrier()
    return rows


def _predicted_rows(
    run: Run,
    input: str | Path,
    num_samples: NumSamples,
    abstain_above: float | None,
    coverage: float | None,
    file_layout: Mapping[str, Any] | None,
) -> list[dict[str, Any]]:
    columns = run.config.task
    if columns.scoring == "text":
        raise ValueError("this run writes texts and has no choices to predict; use `bayeslora generate --input FILE`.")
    if run.scoring.of_decisions:
        raise ValueError(
            "this run answers typed questions about a state; ask it by `bayeslora decide RUN < request.json` or "
            "`bayeslora serve RUN`, and score labelled records by `bayeslora evaluate RUN --input FILE`."
        )
    items = load_items(input, **file_options(with_file_options(columns, file_layout or {})), optional_label=True)
    rule = None if coverage is None else calibrated_on_dev(run, coverage, num_samples)
    return list(run.predict(items, num_samples).rows(abstain_above, rule))
