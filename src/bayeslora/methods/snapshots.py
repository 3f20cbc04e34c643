"""A snapshot ensemble (arXiv 1704.00109): the ends of the learning rate's cycles of one LoRA training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bayeslora.adapters import RandomLoraConfig, Side, register
from bayeslora.methods.base import Method
from bayeslora.options.from_config import options_of
from bayeslora.options.ranges import Size
from bayeslora.posteriors.weights.point import SnapshotWeights


@register("SNAPSHOT_LORA")
@dataclass
class SnapshotConfig(RandomLoraConfig):
    """Config of LoRA adapters taken on the way of one training; every field of `peft.LoraConfig` works as there, and:

    Args:
        snapshots: K, the number of cycles and of snapshots.

    Raises:
        ValueError: `snapshots` is not positive, or an option of LoRA that cannot be combined.
    """

    snapshots: Size = 4

    def family(self, side: Side, rows: int, columns: int) -> SnapshotWeights:
        """A factor `[rows, columns]` and its snapshots."""
        return SnapshotWeights(rows, columns, snapshots=self.snapshots)


@options_of(SnapshotConfig)
class Snapshots(Method):
    """One LoRA training whose learning rate falls K times, and the mean of the probabilities of the K ends.

    Huang et al., arXiv 1704.00109: after the warm-up the rate follows K cosines from its peak to zero, whatever
    `train.lr_scheduler` says, and the adapter is copied where a cycle ends. It costs one training, and the ends differ
    as far as a cycle at the peak rate leads away from the last one. `modules_to_save`, such as a new head, are those of
    the last step.

    A prediction always takes every snapshot once, whatever the number of samples or the seed. In eval mode without
    `bayeslora.sampling`, and so when merged, the model is its last one.
    """

    name = "snapshots"
    of_whole_training = True
    snapshots: int

    def training_arguments(self) -> dict[str, Any]:
        """K cosine cycles."""
        return {
            "lr_scheduler_type": "cosine_with_restarts",
            "lr_scheduler_kwargs": {"num_cycles": self.snapshots},
        }

    def trainer_options(self, learning_rate: float, total_steps: int, num_examples: int) -> dict[str, Any]:
        """What takes the snapshots."""
        # Later: a trainer's callbacks import much, and this module is imported with the package.
        from bayeslora.training.snapshots import Capture

        return {"callbacks": [Capture(self.snapshots)]}

    def effective_num_samples(self, num_samples: int) -> int:
        """Always K."""
        return self.snapshots
