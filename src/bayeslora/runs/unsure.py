"""From which value on a token of generated text is unsure: the exception in what a run writes for its own dev texts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from bayeslora.prediction.generation.decoding import generate
from bayeslora.prediction.generation.prompts import encode_prompts
from bayeslora.prediction.generation.result import Generation, Measure
from bayeslora.runs.config import RunConfig
from bayeslora.runs.items import task_items
from bayeslora.runs.kept import kept_or_computed, run_key
from bayeslora.runs.run import Run
from bayeslora.system.console import track
from bayeslora.system.log import logger

EXCEPTION = 0.1
"""Share of the tokens that are unsure in what a run writes for its dev texts."""

_PROMPTS, _TOKENS = 16, 24
"""Dev texts to go on from, and tokens to write for each; the share above is then known to about 0.015."""
_BATCH = 8
_NAME = "unsure_above.json"
_MEASURES: tuple[Measure, ...] = ("mutual_information", "entropy")


def unsure_above(run: Run, measure: Measure, num_samples: int, seed: int) -> float | None:
    """The value of `measure`, in nats, that a tenth of the tokens exceeds which the run writes for its dev texts.

    It is computed once for a run and kept in its folder.

    Args:
        run: A causal language model with its adapter.
        measure: What makes a token unsure.
        num_samples: Draws.
        seed: Of the draws.

    Returns:
        None where the run's task has no dev texts.
    """
    prompts, raw = _dev_prompts(run.config)
    if not prompts:
        return None
    parts: Any = {"config": run.config, "items": prompts, "num_samples": num_samples, "seed": seed}
    key = partial(run_key, **parts, share=EXCEPTION, tokens=_TOKENS)

    def compute() -> dict[str, float]:
        logger.info(
            "%d texts on dev prompts are written first, once for this run: what is unsure in its texts?", len(prompts)
        )
        written = []
        for first in track(range(0, len(prompts), _BATCH), "dev texts", "batches"):
            inputs = encode_prompts(run.scoring.tokenizer, prompts[first : first + _BATCH], raw=raw)
            written.append(generate(run.model, inputs, num_samples, seed, first_row=first, max_new_tokens=_TOKENS))
        return {name: _quantile(name, written) for name in _MEASURES}

    return float(kept_or_computed(run.folder, _NAME, key, compute)[measure])


def _quantile(measure: Measure, written: Sequence[Generation]) -> float:
    values = torch.cat([each.values(measure)[each.mask] for each in written])
    return float(torch.quantile(values, 1 - EXCEPTION))


def _dev_prompts(config: RunConfig) -> tuple[Sequence[str], bool]:
    """Texts of the dev split to go on from, and whether they are to be taken without a chat template."""
    if config.task.scoring != "text":
        return [item.question for item in task_items(config.task).dev[:_PROMPTS]], False
    from bayeslora.runs.language_modelling.texts import text_splits

    dev = text_splits(config.task).dev[:_PROMPTS]
    return [_beginning(row.values) for row in dev], config.task.raw or all("text" in row.values for row in dev)


def _beginning(values: dict[str, Any]) -> str:
    """What comes before the model's turn: the prompt, the first message, or the first half of a plain text."""
    if "text" in values:
        return values["text"][: max(1, len(values["text"]) // 2)]
    begun: Any = values.get("prompt", values.get("messages"))
    return begun if isinstance(begun, str) else str(begun[0]["content"])
