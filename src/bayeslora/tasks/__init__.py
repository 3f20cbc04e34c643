"""Multiple-choice tasks: public ones by name and yours from files.

A new task is one new file in this folder with a named subclass of Task; nothing else needs an edit.
"""

from bayeslora.tasks.base import Task
from bayeslora.tasks.reading.columns import FileLayout
from bayeslora.tasks.reading.finder import allow_task, get_task, task_names
from bayeslora.tasks.reading.item import Item, SoftItem, TaskError
from bayeslora.tasks.reading.local import LocalFile, load_items
from bayeslora.tasks.reading.split import Splits, hashed_split

__all__ = [
    "FileLayout",
    "Item",
    "LocalFile",
    "SoftItem",
    "Splits",
    "Task",
    "TaskError",
    "allow_task",
    "get_task",
    "hashed_split",
    "load_items",
    "task_names",
]
