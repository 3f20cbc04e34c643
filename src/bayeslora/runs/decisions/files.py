"""The folder of a decision model: `decision.json` says how it reads, other files what it has learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import save_file
from torch import Tensor

from bayeslora.readouts.novelty import Novelty
from bayeslora.readouts.questions.files import head_fields, head_tensors, restored_head
from bayeslora.runs.decisions.adapted_heads import AdaptedHeads
from bayeslora.runs.decisions.answering import AnsweringModel
from bayeslora.runs.decisions.calibration import Calibration
from bayeslora.runs.decisions.config import DecisionConfig
from bayeslora.runs.decisions.examples import Examples
from bayeslora.runs.decisions.heads import Heads
from bayeslora.runs.decisions.option_examples import OptionExamples
from bayeslora.runs.finished import load_run
from bayeslora.runs.heads import HeadRun, write_head_run
from bayeslora.runs.writing import write_run
from bayeslora.scoring.codes import Template
from bayeslora.system.devices import kept_device
from bayeslora.system.files import atomic_folder, recover_folder, write_json
from bayeslora.system.reading import read_json, read_tensors, restoring
from bayeslora.tasks.decisions import parse_question
from bayeslora.tasks.decisions.questions import signature

FILE = "decision.json"
CALIBRATION = "calibration.json"
TENSORS = "heads.safetensors"
EXAMPLES = "examples.safetensors"
_FORMAT = 1

AnyModel = TypeVar("AnyModel", bound=AnsweringModel)


def is_decision_folder(folder: str | Path) -> bool:
    """Whether a decision model was saved there."""
    recover_folder(folder)
    return (Path(folder) / FILE).is_file()


def trained_states(folder: str | Path) -> frozenset[str]:
    """Digests of the states that the decision model in `folder` was fitted on; none of what is no such folder."""
    if not is_decision_folder(folder):
        return frozenset()
    return _trained_states(read_json(Path(folder) / FILE))


def _trained_states(content: Mapping[str, Any]) -> frozenset[str]:
    # Models of before kept none.
    return frozenset(map(str, content.get("trained_states") or ()))


def write_model(model: AnsweringModel, folder: Path, metrics: Mapping[str, Any] | None = None) -> None:
    """The model's folder, in the place of one that is there; for who holds `only_replacer`."""
    with atomic_folder(folder) as aside:
        if model.adapted is not None:
            own = replace(model.adapted.run)
            write_head_run(own, aside) if isinstance(own, HeadRun) else write_run(own, aside)
        if metrics is not None:
            write_json(aside / "metrics.json", dict(metrics))
        write_parts(model, aside)


def write_parts(model: AnsweringModel, folder: Path) -> None:
    """What makes a folder that of a decision model, an adapter's run apart, into one that nobody reads yet."""
    over = isinstance(model.adapted, AdaptedHeads)
    content = {
        "format": _FORMAT,
        "config": asdict(model.config),
        "template": model.reader.template.to_dict(),
        "questions": {name: question.to_dict() for name, question in model.questions.items()},
        "trained_states": sorted(model.trained_states),
        # Heads over an adapter stand with the state of its run.
        "heads": [] if over else [head_fields(head) for head in model.heads.by_signature.values()],
    }
    if model.examples is not None:
        content["examples"] = model.examples.to_dict()
        save_file(model.examples.tensors(), folder / EXAMPLES)
    if model.adapted is not None:
        content["adapter"] = True
    if model.heads.novelty is not None and not over:
        save_file(heads_tensors(model.heads), folder / TENSORS)
    save_calibration(model, folder)
    write_json(folder / FILE, content)


def save_calibration(model: AnsweringModel, folder: Path) -> None:
    """Write the model's calibration into its folder, in the place of an earlier one."""
    if model.calibration is not None:
        write_json(folder / CALIBRATION, model.calibration.to_dict())


def read_model(kind: type[AnyModel], folder: Path, device: str | None = None) -> AnyModel:
    """The model in `folder`, as one of that kind; errors as of `DecisionModel.load`."""
    if not is_decision_folder(folder):
        raise FileNotFoundError(
            f"there is no decision model in {folder}: {FILE} is missing. Expected what DecisionModel.save or "
            "`bayeslora train` on records of decisions wrote."
        )
    content = read_json(folder / FILE)
    with restoring(folder / FILE):
        config, adapted = _known(DecisionConfig, content["config"]), bool(content.get("adapter"))
        template = _known(Template, content["template"])
        questions = {name: parse_question(value) for name, value in content["questions"].items()}
    config = replace(config, device=device or kept_device(config.device))
    if adapted:
        run = load_run(folder, device=config.device)
        model = kind(config, template=template, method=run.config.method, train=run.config.train)
        model.adapt(run)
    else:
        model = kind(config, template=template)
    model.questions = questions
    model.trained_states = _trained_states(content)
    if content.get("heads") or (adapted and not isinstance(model.adapted, AdaptedHeads)):
        tensors = _tensors(folder / TENSORS)
        with restoring(f"{folder / TENSORS} (or {FILE} beside it)"):
            model.heads = restored_heads(content["heads"], tensors)
    if content.get("examples"):
        tensors = _tensors(folder / EXAMPLES)
        with restoring(f"{folder / EXAMPLES} (or {FILE} beside it)"):
            kind_of = OptionExamples if content["examples"].get("readout") == OptionExamples.readout else Examples
            model.examples = kind_of.restored(content["examples"], tensors)
    if (folder / CALIBRATION).is_file():
        calibration = read_json(folder / CALIBRATION)
        with restoring(folder / CALIBRATION):
            model.calibration = Calibration.from_dict(calibration)
    return model


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; copy the folder again, or train again.")
    return read_tensors(path)


def _known(kind: Any, values: dict[str, Any]) -> Any:
    unknown = set(values) - {field.name for field in fields(kind)}
    if unknown:
        raise TypeError(f"{kind.__name__} has no field {sorted(unknown)[0]!r}")
    return kind(**values)


def heads_tensors(heads: Heads) -> dict[str, Tensor]:
    """The tensors of all heads by name."""
    tensors: dict[str, Tensor] = {}
    for index, head in enumerate(heads.by_signature.values()):
        tensors |= {f"heads.{index}.{name}": tensor for name, tensor in head_tensors(head).items()}
    if heads.novelty is not None:
        tensors |= heads.novelty.tensors()
    return tensors


def restored_heads(fields: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> Heads:
    """Heads from their fields and tensors; errors as of `restored_head`."""
    heads = [restored_head(f"heads.{index}", one, tensors) for index, one in enumerate(fields)]
    return Heads({signature(head.question): head for head in heads}, Novelty.restored(tensors))
