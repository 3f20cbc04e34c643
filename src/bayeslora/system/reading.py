"""Reading the files of a run: what is cut, damaged or out of range is said with the name of the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds something else.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text ({error}); {_COPY}") from error
    return _object(text, str(path))


def read_json_lines(path: str | Path) -> list[dict[str, Any]]:
    """The JSON objects in a file, one a line.

    Raises:
        OSError: The file cannot be read.
        ValueError: A line holds something else.
    """
    return [
        _object(line, f"line {number} of {path}")
        for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1)
    ]


def _object(text: str, place: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is no valid JSON ({error}); {_COPY}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{place} must hold a JSON object of names and values, got {str(content)[:60]}; {_COPY}")
    return content


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, all of them finite.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is cut or damaged, or a number in it is NaN or infinite.
    """
    with naming_file(path):
        tensors = load_file(path)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and (bad := int((~torch.isfinite(tensor.float())).sum())):
            raise ValueError(f"{path}: {bad} of the {tensor.numel()} numbers in {name} are NaN or infinite; {_COPY}")
    return tensors


@contextmanager
def naming_file(path: str | Path) -> Iterator[None]:
    """Errors of safetensors inside name the file, as ValueError."""
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{path} is cut or damaged ({error}); {_COPY}") from error


@contextmanager
def restoring(path: str | Path) -> Iterator[None]:
    """Errors inside, where something is made of a file's content, name the file, as ValueError.

    They come of missing names, other types, shapes that do not fit, and numbers out of range.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except KeyError as error:
        raise ValueError(f"{path} lacks {error}; {_COPY}") from error
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or of a newer version ({error}); {_COPY}") from error


_COPY = "copy the file again from where it was written, or train again."
