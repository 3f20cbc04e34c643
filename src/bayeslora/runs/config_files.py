"""config.yaml of a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from bayeslora.config import RunConfig
from bayeslora.differences import BEFORE
from bayeslora.parsing import dump_config, parse_config
from bayeslora.saving import atomic_file

__all__ = ["read_config", "write_config"]


def write_config(config: RunConfig, path: Path) -> None:
    """The config as YAML that `bayeslora train --config` reads."""
    with atomic_file(path) as aside:
        aside.write_text(dump_config(config), encoding="utf-8")


def read_config(path: Path) -> RunConfig:
    """The config of a run folder's YAML file, as it was meant when it was written."""
    config = parse_config(path)
    written: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name, meant in BEFORE.items():
        if name not in (written.get("task") or {}):
            setattr(config.task, name, meant)
    return config
