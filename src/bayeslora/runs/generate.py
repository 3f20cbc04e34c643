"""Generation with the adapter of a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bayeslora.adapters.draws import find_draws
from bayeslora.options.ranges import Draws, Size, check_value
from bayeslora.prediction.generation.decoding import generate
from bayeslora.prediction.generation.prompts import encode_prompts
from bayeslora.prediction.generation.result import Measure
from bayeslora.runs import Run
from bayeslora.runs.adaptive import NumSamples, is_adaptive
from bayeslora.runs.unsure import unsure_above
from bayeslora.system.console import track
from bayeslora.system.log import logger
from bayeslora.tasks.reading.rows import read_rows

_WITHOUT_DEV = 0.02
"""Nats."""


def read_prompts(path: str | Path) -> list[dict[str, str]]:
    """`id` and `prompt` of every row of a JSONL, CSV or Parquet file; without an id, the file's stem and the row.

    Raises:
        ValueError: The file is missing or broken, or a row has no text as `prompt`.
    """
    found = []
    for number, row in enumerate(read_rows(Path(path))):
        prompt = row.values.get("prompt")
        if not isinstance(prompt, str) or not prompt:
            raise ValueError(f'{path}, {row.place}: expected a text as "prompt", got {prompt!r}; add it to this row.')
        found.append({"id": str(row.values.get("id", f"{Path(path).stem}-{number}")), "prompt": prompt})
    return found


def generate_records(
    run: Run,
    prompts: Sequence[dict[str, str]],
    num_samples: NumSamples = None,
    seed: int | None = None,
    *,
    raw: bool = False,
    batch_size: int = 8,
    threshold: float | None = None,
    measure: Measure = "mutual_information",
    **options: Any,
) -> list[dict[str, Any]]:
    """Generate for each prompt; a record is that of `Generation.records` after the prompt's own fields.

    Args:
        run: A causal language model with its adapter.
        prompts: Dicts with `prompt`, as of `read_prompts`.
        num_samples: Draws; default: the run's. A method that always takes all its members takes them here too.
        seed: Of draws and tokens; default: the run's.
        raw: Do not use the tokenizer's chat template.
        batch_size: Prompts at once.
        threshold: Measure in nats above which a token is unsure; default: what a tenth of the tokens exceeds that the
            run writes for its own dev texts (`bayeslora.runs.unsure`), said in the log.
        measure: What makes a token unsure.
        **options: For `model.generate`.

    Raises:
        ValueError: The run is not that of a causal language model, or a number is out of its range.
    """
    check_value(batch_size, Size, "batch_size")
    if is_adaptive(num_samples):
        raise ValueError(
            'num_samples "auto" is for items with choices: a draw goes on from its own keys and values of the text so '
            "far, so one that stopped at a settled token would be missing at the next one; give a number."
        )
    check_value(num_samples, Draws | None, "num_samples")
    if run.scoring.by_heads:
        raise ValueError(
            "a head reads this run's choices, and nothing was trained to write text; generate needs a run that was "
            "trained with task.scoring cloze, letter or text."
        )
    if run.scoring.kind != "causal_lm":
        raise ValueError(
            f"this run has a {run.scoring.kind} head and writes no text; generate needs a run that was trained with "
            "task.scoring cloze or letter."
        )
    samples = run.config.samples_used(num_samples)
    seed = run.config.seed if seed is None else seed
    if threshold is None:
        threshold = _threshold(run, measure, samples, seed)
    tokenizer = run.scoring.tokenizer
    records: list[dict[str, Any]] = []
    for first in track(range(0, len(prompts), batch_size), "generate", "batches"):
        batch = prompts[first : first + batch_size]
        inputs = encode_prompts(tokenizer, [entry["prompt"] for entry in batch], raw=raw)
        generation = generate(run.model, inputs, samples, seed, tokenizer=tokenizer, first_row=first, **options)
        records += [
            {**entry, **record} for entry, record in zip(batch, generation.records(threshold, measure), strict=True)
        ]
    return records


def _threshold(run: Run, measure: Measure, num_samples: int, seed: int) -> float:
    """What is unsure in a text of this run, said in the log."""
    draws = find_draws(run.model)
    if measure == "mutual_information" and (not num_samples or draws is None or not draws.modules(in_use=True)):
        return 0.0  # of the point estimate it is 0 everywhere
    found = unsure_above(run, measure, num_samples, seed)
    words = measure.replace("_", " ")
    if found is None:
        logger.info("the run's task has no dev texts: unsure is %s above %g nats", words, _WITHOUT_DEV)
        return _WITHOUT_DEV
    logger.info(
        "unsure: %s above %.3g nats, as of a tenth of the tokens that this run writes for its dev texts", words, found
    )
    return found
