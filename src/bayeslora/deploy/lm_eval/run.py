"""The harness on a run, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager

from bayeslora.prediction.likelihood import Likelihood
from bayeslora.system.devices import choose_device


def evaluate_with_harness(
    run: str | Path,
    tasks: Sequence[str],
    *,
    num_samples: int | None = None,
    likelihood: Likelihood = "joint",
    seed: int | None = None,
    include_path: str | Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Evaluate a run on tasks of lm-evaluation-harness.

    Args:
        run: Run folder, or Hub id of a pushed run.
        tasks: Names of the harness's tasks, or of those in `include_path`.
        num_samples: Draws; default: the run's; 0: the posterior mean.
        likelihood: "joint" or "mixture", see `bayeslora.prediction.likelihood`.
        seed: Of the draws; default: the run's.
        include_path: Folder with YAML tasks of your own.
        **options: For `lm_eval.simple_evaluate`: batch_size, num_fewshot, limit, log_samples, use_cache, device, ...

    Returns:
        The harness's results: `results` by task, `configs`, `versions`, `n-samples`, ...

    Raises:
        ValueError: As `PosteriorLM`; no tasks; or `device` is not here.
        KeyError: A task is unknown to the harness.
    """
    if options.get("device") is not None:
        choose_device(options["device"])
    chosen = {"num_samples": num_samples, "likelihood": likelihood, "seed": seed}
    arguments = {"pretrained": str(run), **{name: value for name, value in chosen.items() if value is not None}}
    manager = TaskManager(include_path=None if include_path is None else str(include_path), metadata=arguments)
    found = lm_eval.simple_evaluate(
        model="bayeslora", model_args=arguments, tasks=list(tasks), task_manager=manager, **options
    )
    return dict(found or {})
