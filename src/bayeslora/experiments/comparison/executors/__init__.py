"""Where the cells of a comparison are computed: an executor is one file of this folder."""

from bayeslora.experiments.comparison.executors.base import Executor
from bayeslora.experiments.comparison.executors.local import LocalExecutor
from bayeslora.experiments.comparison.executors.ray import RayExecutor

__all__ = ["Executor", "LocalExecutor", "RayExecutor"]
