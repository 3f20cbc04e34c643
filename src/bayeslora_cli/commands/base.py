"""What a command of the command line is."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from jsonargparse import ArgumentParser, Namespace

__all__ = ["Command", "add_device", "add_overwrite", "metrics_line"]


class Command(ABC):
    """One subcommand; its file imports what it alone needs inside `run`, so that other commands start without it."""

    name: ClassVar[str]
    description: ClassVar[str]
    distributed: ClassVar[bool] = False
    """Whether several processes (torchrun, accelerate launch) can share the work."""

    @abstractmethod
    def add_arguments(self, parser: ArgumentParser) -> None:
        """Options and positional arguments."""

    @abstractmethod
    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Do it, and print what came out; `parser` is the one that parsed `options`."""


def add_device(parser: ArgumentParser) -> None:
    """The option of every command that loads a run."""
    said = "Where to compute: auto, cpu, cuda, cuda:1, mps, ...; default: where the run was trained, if that is here."
    parser.add_argument("--device", type=str | None, default=None, help=said)


def add_overwrite(parser: ArgumentParser) -> None:
    """The option of every command that could replace what is there."""
    parser.add_argument("--overwrite", type=bool, default=False, help="Replace what is there already.")


def metrics_line(metrics: Mapping[str, Any]) -> str:
    """The most important metrics as one line of JSON."""
    names = (
        *("method", "task", "split", "accuracy", "nll", "perplexity", "joint_perplexity", "bits_per_byte", "ece"),
        *("brier", "num_examples", "num_tokens", "num_samples"),
    )
    return json.dumps({name: metrics[name] for name in names if name in metrics})
