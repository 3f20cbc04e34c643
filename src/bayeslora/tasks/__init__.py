"""Multiple-choice tasks: public ones by name and yours from files.

A new task is one new file in this folder with a named subclass of Task; nothing else needs an edit.
"""

from .base import Task
from .finder import allow_task, get_task, task_names
from .item import Item, TaskError
from .local import LocalFile, load_items
from .split import Splits, hashed_split

__all__ = [
    "Item",
    "LocalFile",
    "Splits",
    "Task",
    "TaskError",
    "allow_task",
    "get_task",
    "hashed_split",
    "load_items",
    "task_names",
]
