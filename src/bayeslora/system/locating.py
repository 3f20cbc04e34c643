"""Where a run is: a run folder, or a repository of the Hub that `bayeslora push` filled."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

RUN_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "config.yaml",
    "metrics.json",
    "posterior.safetensors",
    "README.md",
)
"""What a run is made of, and all that is downloaded of a repository: data, no code and no pickles."""

_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def is_hub_run(run: str | Path) -> bool:
    """Whether `run` can only be a Hub id: `user/name` or `user/name@revision`, and no folder here."""
    return isinstance(run, str) and not Path(run).exists() and _HUB_ID.fullmatch(run) is not None


def require_place(run: str | Path) -> None:
    """Refuse a run that has no folder here, in which results could be written.

    Raises:
        ValueError: It can only be a Hub id, or a folder whose name is wrong.
    """
    if is_hub_run(str(run)):
        raise ValueError(
            f"there is no folder {str(run)!r} here; check its name. If it is a run on the Hub, say where to write the "
            "results: --output_dir FOLDER (in Python: output_dir=FOLDER)."
        )


def run_folder(run: str | Path, revision: str | None = None) -> Path:
    """The folder of a run; of a Hub id, its newest snapshot, which is downloaded into the Hub's cache.

    Args:
        run: A folder, or a Hub id `user/name`, or `user/name@revision`.
        revision: Branch, tag or commit of a Hub id; wins over one behind `@`.

    Raises:
        FileNotFoundError: There is no such folder, and no such repository or revision, or it cannot be reached.
        OSError: The download failed otherwise.
    """
    if not is_hub_run(run):
        return Path(run)
    found = _HUB_ID.fullmatch(str(run))
    assert found is not None
    revision = revision or found["revision"]
    try:
        return Path(snapshot_download(found["id"], revision=revision, allow_patterns=list(RUN_FILES)))
    # huggingface_hub, its HTTP library and the file system each raise a family of their own when a download fails.
    except Exception as error:
        raise _failure(str(run), found["id"], revision, error) from error


def _failure(run: str, repo_id: str, revision: str | None, error: Exception) -> OSError:
    start = f"there is no folder {run!r} here, and as a Hub id {repo_id}"
    if isinstance(error, GatedRepoError):
        return FileNotFoundError(f"{start} is gated; ask for access on its page, then `hf auth login`.")
    if isinstance(error, RepositoryNotFoundError):
        return FileNotFoundError(
            f"{start} does not exist, or is private and you are not logged in; check the spelling, or `hf auth login`."
        )
    if isinstance(error, RevisionNotFoundError):
        return FileNotFoundError(f"{start} has no revision {revision!r}; leave it out for the newest.")
    if isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
        return FileNotFoundError(
            f"{start} cannot be reached and is not in the cache; check the folder's name, the connection, and that "
            "HF_HUB_OFFLINE is not set. Once downloaded, a run loads without a connection."
        )
    return OSError(f"{start} could not be downloaded: {type(error).__name__}: {error}")
