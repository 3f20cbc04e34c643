"""What a run computes once and keeps in its folder, with a key that says what it was computed from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bayeslora.adapters.from_lora import adapter_folder
from bayeslora.runs.config import RunConfig, describe
from bayeslora.system.files import write_json
from bayeslora.system.folders import writer_within
from bayeslora.system.log import logger
from bayeslora.system.processes import is_main
from bayeslora.system.reading import read_json

KEPT = ("dev_predictions.json", "unsure_above.json", "dev_draws.json")
"""All files of this kind in a run folder."""

Key = Callable[[Path], dict[str, Any]]
"""The key of what is kept, for the run in a folder."""


def run_key(
    folder: Path, config: RunConfig, items: Sequence[Any], num_samples: float | str, **more: Any
) -> dict[str, Any]:
    """What numbers that a run predicts depend on, in JSON; where one part differs they are stale.

    Args:
        folder: Of the run, or where its adapter and config are being written.
        config: The run's, as it is read from there.
        items: What is predicted.
        num_samples: Draws, or how their number is found.
        **more: Further parts.
    """
    described = describe(config)
    del described["model"]["device"]
    parts = {name: described[name] for name in ("model", "task", "method", "seed")}
    return {
        "config": hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest(),
        "adapter": _weights_digest(folder),
        "items": items_digest(items),
        "num_samples": num_samples,
        **more,
    }


def items_digest(items: Sequence[Any]) -> str:
    """Of items or texts: others, other labels or another order have another one."""
    return hashlib.sha256("\n".join(map(repr, items)).encode()).hexdigest()


def kept_or_computed(folder: Path | None, name: str, key: Key, compute: Callable[[], Any]) -> Any:
    """The content of a kept file that is of `key`, or else what `compute` returns, which is then kept.

    Args:
        folder: Of the run; None: nothing is read or kept.
        name: One of `KEPT`.
        key: The key for the run in a folder.
        compute: Returns the content, as JSON.
    """
    if folder is None:
        return compute()
    wanted, found = key(folder), _read(folder / name)
    if found is not None:
        changed = [part for part in wanted if found["key"].get(part) != wanted[part]]
        if not changed:
            return found["content"]
        logger.info("%s is of another %s, and is computed again", folder / name, " and ".join(changed))
    content = compute()
    # A folder that another process writes to, or that is for reading only, does without.
    with suppress(RuntimeError, OSError):
        if is_main():
            with writer_within(folder):
                write_kept(folder, name, wanted, content)
    return content


def write_kept(folder: Path, name: str, key: dict[str, Any], content: Any) -> None:
    """Keep `content` in the file `name`."""
    write_json(folder / name, {"key": key, "content": content})


def _weights_digest(folder: Path) -> str:
    """Of the adapter and of what its method knows beyond it."""
    adapter, digest = Path(adapter_folder(folder)), hashlib.sha256()
    for path in [*sorted(adapter.rglob("*.safetensors")), folder / "posterior.safetensors"]:
        if path.is_file():
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _read(path: Path) -> dict[str, Any] | None:
    """A kept file; None where there is none, or a broken one, which costs time and nothing else."""
    with suppress(OSError, ValueError):
        found = read_json(path)
        return found if isinstance(found, dict) and isinstance(found.get("key"), dict) and "content" in found else None
    return None
