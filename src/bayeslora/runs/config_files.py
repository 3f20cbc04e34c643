"""config.yaml of a run folder."""

from __future__ import annotations

from pathlib import Path

from bayeslora.config import RunConfig
from bayeslora.saving import atomic_file

__all__ = ["read_config", "write_config"]


def write_config(config: RunConfig, path: Path) -> None:
    """The config as YAML that `bayeslora train --config` reads."""
    from bayeslora.cli import dump_config

    with atomic_file(path) as aside:
        aside.write_text(dump_config(config), encoding="utf-8")


def read_config(path: Path) -> RunConfig:
    """The config of a YAML file."""
    from bayeslora.cli import parse_config

    return parse_config(path)
