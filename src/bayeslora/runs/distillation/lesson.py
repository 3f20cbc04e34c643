"""What a teacher says of items: soft labels, a place to begin, and the output of the layers that both share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor

from bayeslora.adapters.lora_file import lora_tensors, saved_tensors, start_at
from bayeslora.runs.adaptive import NumSamples, draws_in_words, is_adaptive
from bayeslora.runs.beginning import check_beginning
from bayeslora.runs.building import open_trunk_cache
from bayeslora.runs.config import DistillConfig, RunConfig, TaskConfig
from bayeslora.runs.finished import load_run
from bayeslora.runs.items import file_options, task_items, with_file_options
from bayeslora.runs.kept import kept_or_computed, run_key
from bayeslora.runs.run import Run
from bayeslora.scoring import get_scoring
from bayeslora.scoring.trunk_cache import TrunkCache
from bayeslora.system.locating import run_folder
from bayeslora.system.log import logger
from bayeslora.tasks import Item, SoftItem, Splits, load_items

PART = 256
"""Items whose predictions are kept together; a kill loses one part."""

MOST_DRAWS = 4
"""Draws of a teacher that has more of its own: a student of ten costs a third more and is .003 nats better
(studies/methods/distill)."""


@dataclass(frozen=True)
class Lesson:
    """What a student is trained with.

    Attributes:
        splits: The items; those of the training with the teacher's probabilities.
        start: The teacher's mean (`lora_tensors`, `saved_tensors`); empty: a fresh adapter.
        trunk_cache: The items' outputs of the layers below the first adapter, without a model.
        record: What metrics.json says of it.
    """

    splits: Splits
    start: dict[str, Tensor]
    trunk_cache: TrunkCache | None
    record: dict[str, Any]

    def begin(self, model: PeftModel) -> None:
        """Let the student begin where the teacher's mean is, if it has the shape."""
        began = bool(self.start) and start_at(model, self.start)
        self.record["start"] = "teacher" if began else "fresh"
        if self.start and not began:
            logger.info("the teacher's mean has another shape than the student: it begins fresh")


def open_teacher(teacher: str | Path, device: str | None = None) -> Run:
    """The run `teacher`, loaded.

    Raises:
        FileNotFoundError: There is no such run.
        ValueError: It has no adapter whose predictions could be distilled; the message says what to do instead.
    """
    run = load_run(teacher, device=device)
    if run.config.task.scoring == "text":
        raise ValueError(
            f"{teacher} writes texts and has no choices to distil. Serve its mean in one pass: `bayeslora export "
            f"{teacher} --format mean`; or distil a run with scoring cloze, letter or classification."
        )
    check_distils(run.config.task.scoring, str(teacher))
    if not run.config.method.adapts or get_scoring(run.config.task.scoring).by_heads:
        raise ValueError(
            f"{teacher} predicts by a head in closed form, which is one pass as it is: serve it with `bayeslora serve "
            f"{teacher}`; or distil a run with scoring cloze, letter or classification, whose method trains an adapter."
        )
    return run


def check_distils(scoring: str, what: str) -> None:
    """Whether what reads items with this scoring can teach or learn.

    Raises:
        ValueError: It reads typed decisions.
    """
    if get_scoring(scoring).of_decisions:
        raise ValueError(
            f"{what} answers typed questions (task.scoring {scoring}), which are not distilled: answer by the mean in "
            "one pass (num_samples 0), or distil a run with scoring cloze, letter or classification."
        )


def check_place(teacher: str | Path, output: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Whether a student of `teacher` may be trained into `output`, before anything is computed.

    Raises:
        FileExistsError: There is a run, and neither `resume` nor `overwrite`.
        ValueError: It is the teacher's own folder, or both are given.
    """
    if run_folder(teacher).resolve() == output.resolve():
        raise ValueError(f"{output} is the teacher itself; name another folder for the student.")
    if not resume or overwrite:
        check_beginning(RunConfig(), output, (), resume=resume, overwrite=overwrite)


def learn_from(config: RunConfig, output: Path) -> Lesson:
    """What the teacher that the student's `config` names says of the training items and of those without labels.

    Raises:
        ValueError: As `open_teacher`.
    """
    check_distils(config.task.scoring, "the student")
    splits, further = task_items(config.task), unlabelled_items(config.distill, config.task)
    return taught(open_teacher(str(config.distill.teacher), config.model.device), config, splits, further, output)


def unlabelled_items(distill: DistillConfig, task: TaskConfig) -> list[Item]:
    """The items of the file that is named, as if they had no labels."""
    if distill.unlabelled is None:
        return []
    options = file_options(with_file_options(task, distill.layout))
    return [replace(item, label=None) for item in load_items(distill.unlabelled, **options, optional_label=True)]


def taught(run: Run, config: RunConfig, splits: Splits, further: Sequence[Item], output: Path) -> Lesson:
    """The training items and `further` ones with the predictions of the teacher `run`, kept in `output/teacher`.

    Those that are kept there, of the same teacher, items and number of draws, are not predicted again.
    """
    items = [*splits.train, *further]
    if run.trunk_cache is None:
        run.trunk_cache = open_trunk_cache(config, run.model)
    folder, seconds, soft = output / "teacher", 0.0, list[Item]()
    for first in range(0, len(items), PART):
        kept = _predicted(run, config, items[first : first + PART], folder, first // PART)
        seconds += kept["seconds"]
        soft += map(_softened, items[first : first + PART], kept["probabilities"])
    start = _mean(run) if config.distill.start == "teacher" else {}
    shared = None if run.trunk_cache is None else run.trunk_cache.items_alone()
    labelled = sum(item.label is not None for item in items)
    record = {"method": run.config.method.name, "predict_seconds": round(seconds, 2), "labelled_items": labelled}
    return Lesson(replace(splits, train=soft), start, shared, record | {"unlabelled_items": len(items) - labelled})


def _predicted(run: Run, config: RunConfig, part: Sequence[Item], folder: Path, number: int) -> dict[str, Any]:
    """The probabilities of each item, and the seconds that they took."""
    asked, teacher = _draws(run, config), run_folder(str(config.distill.teacher))
    samples = draws_in_words(run.config, asked)

    def predict() -> dict[str, Any]:
        found = run.predict(part, asked)
        return {"probabilities": [row["probabilities"] for row in found.rows()], "seconds": found.seconds}

    key = run_key(teacher, run.config, part, samples, temperature=run.temperature)
    kept: dict[str, Any] = kept_or_computed(folder, f"predictions-{number:05d}.json", lambda _: key, predict)
    return kept


def _draws(teacher: Run, config: RunConfig) -> NumSamples:
    """What is asked for, else the own number, at most `MOST_DRAWS`; None: the teacher's, found item by item."""
    asked, own = config.distill.num_samples, teacher.config.num_samples
    return asked if asked is not None or is_adaptive(own) else min(own, MOST_DRAWS)


def _softened(item: Item, probabilities: Sequence[float]) -> SoftItem:
    own = {field.name: getattr(item, field.name) for field in fields(Item)}
    return SoftItem(**own, label_probabilities=tuple(probabilities))


def _mean(run: Run) -> dict[str, Tensor]:
    """The mean of the teacher as a LoRA; empty where it is none."""
    try:
        return lora_tensors(run.model) | saved_tensors(run.model)
    except ValueError as error:
        logger.info("the student begins fresh: %s", error)
        return {}
