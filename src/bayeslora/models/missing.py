"""What a classifier's checkpoint lacks, known without reading a weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoModelForSequenceClassification

from bayeslora.models.base_model import drawn_weights, load_failure, locate, quiet_transformers, shared_options


def weights_to_draw(name: str, num_labels: int | None = None, revision: str | None = None) -> dict[str, str] | None:
    """Which weights `load_base_model` would draw for a classifier, by name, and why; no weight is read.

    None where the checkpoint is not on this machine.

    Raises:
        OSError: The folder is no model.
    """
    source = locate(name)
    if not Path(source).is_dir():
        return None
    head = {} if num_labels is None else {"num_labels": num_labels}
    options: dict[str, Any] = {"device_map": "meta", "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        with quiet_transformers(progress_bars=False):
            _, report = AutoModelForSequenceClassification.from_pretrained(
                source, **options, **head, **shared_options(revision)
            )
    except OSError as error:
        raise OSError(load_failure(name, source, error)) from error
    return drawn_weights(report)
