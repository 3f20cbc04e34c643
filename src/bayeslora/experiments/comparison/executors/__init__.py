"""Where the cells of a comparison are computed: an executor is one file of this folder."""

from bayeslora.experiments.comparison.executors.base import Executor
from bayeslora.experiments.comparison.executors.local import LocalExecutor
from bayeslora.experiments.comparison.executors.ray import RayExecutor
from bayeslora.options.registry import Registry

__all__ = ["EXECUTORS", "Executor", "LocalExecutor", "RayExecutor"]

EXECUTORS: Registry[Executor] = Registry(Executor, __name__)  # type: ignore[type-abstract]
"""By name, as `--executor` has it."""
