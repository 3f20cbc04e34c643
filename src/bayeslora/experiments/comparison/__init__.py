"""Methods under one protocol: what a comparison writes and reads."""

from typing import TYPE_CHECKING

from bayeslora.options.late import late

if TYPE_CHECKING:
    from bayeslora.experiments.comparison.records import Cell as Cell
    from bayeslora.experiments.comparison.records import Header as Header
    from bayeslora.experiments.comparison.records import Items as Items
    from bayeslora.experiments.comparison.records import Predictions as Predictions
    from bayeslora.experiments.comparison.records import Stage as Stage
    from bayeslora.experiments.comparison.results import Results as Results

__all__ = ["Cell", "Header", "Items", "Predictions", "Results", "Stage"]

__getattr__ = late(__name__, {**dict.fromkeys(__all__, "records"), "Results": "results"})
