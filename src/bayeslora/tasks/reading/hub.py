"""Reads datasets from the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bayeslora.tasks.reading.item import TaskError
from bayeslora.tasks.reading.offline import INSTALL
from bayeslora.tasks.reading.parse_rows import Row


def hub_splits(hub_id: str, config: str | None) -> Mapping[str, Iterable[Row]]:
    """Return a Hub dataset's splits by name.

    Raises:
        TaskError: the dataset could not be loaded, most often because there is no network.
    """
    import datasets

    try:
        return datasets.load_dataset(hub_id, config)
    # datasets, huggingface_hub and httpx each raise a family of their own when a download fails.
    except Exception as error:
        where = hub_id if config is None else f"{hub_id} ({config})"
        raise TaskError(
            f"source 'hub' expects to load {where} from the Hugging Face Hub, but got "
            f"{type(error).__name__}: {error}; check the network, or use source 'offline' "
            f"('{INSTALL}') or a local file."
        ) from error


def hub_rows(parts: Mapping[str, Iterable[Row]], name: str, hub_id: str) -> Iterable[Row]:
    """Return one split's rows.

    Raises:
        TaskError: the dataset has no such split.
    """
    if name not in parts:
        raise TaskError(
            f"{hub_id} is expected to have a split {name!r}, but it has {', '.join(parts)}; "
            "use source 'offline' or a local file, or override splits in the task."
        )
    return parts[name]
