"""The YAML file that a plan is made of."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import yaml

from bayeslora.experiments.comparison.config import CompareConfig
from bayeslora.options.parsing import parse_file
from bayeslora.runs.config import RunConfig


def parse_run_or_comparison(path: str | Path) -> RunConfig | CompareConfig:
    """The config of a YAML file of `bayeslora train` or of `bayeslora compare`, told apart by their keys.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A key or value is wrong; the message has the nearest right name.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected the YAML file of a run or of a comparison, but {path} does not exist.")
    try:
        keys = set(yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {})
    except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
        raise ValueError(f"{path} is no mapping of options in YAML: {error}") from error
    own = {field.name for field in fields(CompareConfig)} - {field.name for field in fields(RunConfig)}
    return parse_file(path, CompareConfig) if keys & own else parse_file(path, RunConfig)
