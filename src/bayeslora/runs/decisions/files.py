"""The folder of a decision model: `decision.json` says how it reads, other files what it has learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from bayeslora.runs.decisions.calibration import Calibration
from bayeslora.runs.decisions.config import DecisionConfig
from bayeslora.runs.decisions.head_files import head_fields, heads_tensors, restored_heads
from bayeslora.runs.decisions.model import DecisionModel
from bayeslora.scoring.codes import Template
from bayeslora.system.devices import kept_device
from bayeslora.system.files import atomic_folder, check_absent, recover_folder, write_json
from bayeslora.system.reading import read_json, read_tensors
from bayeslora.tasks.decisions import QuestionError, parse_question

__all__ = ["FILE", "is_decision_folder", "load_decision_model", "save_calibration", "save_decision_model"]

FILE = "decision.json"
CALIBRATION = "calibration.json"
TENSORS = "heads.safetensors"
_FORMAT = 1


def is_decision_folder(folder: str | Path) -> bool:
    """Whether a decision model was saved there."""
    recover_folder(folder)
    return (Path(folder) / FILE).is_file()


def save_decision_model(
    model: DecisionModel, folder: Path, *, overwrite: bool = False, metrics: Mapping[str, Any] | None = None
) -> None:
    """What `DecisionModel.save` does."""
    check_absent(folder, overwrite)
    with atomic_folder(folder) as aside:
        write_json(
            aside / FILE,
            {
                "format": _FORMAT,
                "config": asdict(model.config),
                "template": model.reader.template.to_dict(),
                "questions": {name: question.to_dict() for name, question in model.questions.items()},
                "heads": [head_fields(head) for head in model.heads.by_signature.values()],
            },
        )
        if metrics is not None:
            write_json(aside / "metrics.json", dict(metrics))
        save_calibration(model, aside)
        if model.heads.by_signature:
            save_file(heads_tensors(model.heads), aside / TENSORS)


def save_calibration(model: DecisionModel, folder: Path) -> None:
    """What `DecisionModel.save_calibration` does."""
    if model.calibration is not None:
        write_json(folder / CALIBRATION, model.calibration.to_dict())


def load_decision_model(folder: Path, device: str | None = None) -> DecisionModel:
    """What `DecisionModel.load` does."""
    if not is_decision_folder(folder):
        raise FileNotFoundError(
            f"there is no decision model in {folder}: {FILE} is missing. Expected what DecisionModel.save or "
            "`bayeslora train` on records of decisions wrote."
        )
    content = read_json(folder / FILE)
    try:
        config = _known(DecisionConfig, content["config"])
        template = _known(Template, content["template"])
        questions = {name: parse_question(value) for name, value in content["questions"].items()}
    except (KeyError, TypeError, AttributeError, QuestionError) as error:
        raise ValueError(
            f"{folder / FILE} is damaged, or of a newer version ({type(error).__name__}: {error}); save it again."
        ) from error
    model = DecisionModel(replace(config, device=device or kept_device(config.device)), template=template)
    model.questions = questions
    if content.get("heads"):
        model.heads = restored_heads(content["heads"], read_tensors(folder / TENSORS))
    if (folder / CALIBRATION).is_file():
        try:
            model.calibration = Calibration.from_dict(read_json(folder / CALIBRATION))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder / CALIBRATION} is damaged ({error}); calibrate the model again.") from error
    return model


def _known(kind: Any, values: dict[str, Any]) -> Any:
    unknown = set(values) - {field.name for field in fields(kind)}
    if unknown:
        raise TypeError(f"{kind.__name__} has no field {sorted(unknown)[0]!r}")
    return kind(**values)
