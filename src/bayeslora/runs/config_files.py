"""The config of a run as YAML."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from bayeslora.options.parsing import file_parser, parse_file
from bayeslora.runs.config import RunConfig, describe_method
from bayeslora.runs.differences import BEFORE
from bayeslora.system.files import write_file

_END = "..."
"""The end of a document in YAML; what a run writes has it, so that a file that was cut is not read with defaults."""
_WRITTEN = f"# Every option of this run; the file ends with {_END!r}."


def parse_config(path: str | Path) -> RunConfig:
    """The RunConfig of a YAML file.

    Raises:
        ValueError: A key or value is wrong; the message has the nearest right name.
    """
    return parse_file(path, RunConfig)


def dump_config(config: RunConfig) -> str:
    """YAML that `parse_config` and `bayeslora train --config` read: every option, also those at their default.

    Raises:
        ValueError: The config was built in Python with a method whose arguments are not known.
    """
    parser = file_parser(RunConfig)
    settings = {name: getattr(config, name) for name in RunConfig.__dataclass_fields__ if name != "method"}
    settings = {
        name: value if isinstance(value, int | str) else dataclasses.asdict(value) for name, value in settings.items()
    }
    settings["method"] = describe_method(config.method)
    return str(parser.dump(parser.parse_object(settings), skip_none=False))


def write_config(config: RunConfig, path: Path) -> None:
    """The config as YAML that `bayeslora train --config` reads."""
    write_file(path, f"{_WRITTEN}\n{dump_config(config)}{_END}\n")


def read_config(path: Path) -> RunConfig:
    """The config of a run folder's YAML file, as it was meant when it was written.

    Raises:
        ValueError: A key or value is wrong, or the end of the file is missing.
    """
    config = parse_config(path)
    text = path.read_text(encoding="utf-8")
    if text.startswith(_WRITTEN) and text.rstrip().rpartition("\n")[2] != _END:
        raise ValueError(f"{path} is cut: its last line must be {_END!r}. Take a whole copy, or train the run again.")
    written: Any = yaml.safe_load(text)
    for name, meant in BEFORE.items():
        if name not in (written.get("task") or {}):
            setattr(config.task, name, meant)
    return config
