"""config.yaml of a run folder."""

from __future__ import annotations

from pathlib import Path

from bayeslora.config import RunConfig
from bayeslora.parsing import dump_config, parse_config
from bayeslora.saving import atomic_file

__all__ = ["read_config", "write_config"]


def write_config(config: RunConfig, path: Path) -> None:
    """The config as YAML that `bayeslora train --config` reads."""
    with atomic_file(path) as aside:
        aside.write_text(dump_config(config), encoding="utf-8")


def read_config(path: Path) -> RunConfig:
    """The config of a YAML file."""
    return parse_config(path)
