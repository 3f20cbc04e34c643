"""A plain LoRA from the predictions of runs: nearer to them than the mean, with items without labels, after a kill."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fastapi.testclient import TestClient
from peft import PeftModel
from safetensors.torch import load_file
from test_export import refused_by_llama_cpp, refused_by_vllm, vllm_scale
from transformers import LlamaForCausalLM

import bayeslora
from bayeslora import Cloze
from bayeslora.deploy.serve.app import create_app
from bayeslora.runs import distill, evaluate, load_run, predict_file, task_items, train
from bayeslora.runs.config import DistillConfig
from bayeslora.runs.config_files import parse_config, read_config
from bayeslora.runs.distillation import lesson
from bayeslora.runs.distillation.lesson import open_teacher, taught
from bayeslora.runs.run import Run
from bayeslora.scoring.base import choice_labels
from bayeslora.scoring.unpacked import UnpackedBatch
from bayeslora.tasks import Item, SoftItem, TaskError
from bayeslora.training.cross_entropy import smoothed_cross_entropy
from bayeslora.training.trainer import BayesianLoraTrainer
from bayeslora_cli.main import main
from conftest import byte_level_tokenizer, distance, logits_of, tiny_bert, tiny_llama

# --- soft labels -------------------------------------------------------------------------------------------------


def test_cross_entropy_to_distributions_is_torchs_and_one_hot_is_that_of_labels():
    logits = torch.tensor([[1.0, -0.5, 2.0], [0.3, 0.1, -torch.inf]], requires_grad=True)
    soft = torch.tensor([[0.2, 0.3, 0.5], [0.9, 0.1, 0.0]])
    found = smoothed_cross_entropy(logits, soft)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert torch.allclose(gradient, torch.softmax(logits, -1) - soft, atol=1e-6)
    logits, found = logits.detach(), found.detach()
    assert found[0] == pytest.approx(float(torch.nn.functional.cross_entropy(logits[:1], soft[:1])))
    assert found[1] == pytest.approx(float(torch.nn.functional.cross_entropy(logits[1:, :2], soft[1:, :2])))
    labels, hard = torch.tensor([2, 0]), torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    for smoothing in (0.0, 0.2):
        assert torch.allclose(
            smoothed_cross_entropy(logits, hard, smoothing), smoothed_cross_entropy(logits, labels, smoothing)
        )


def test_a_batch_has_the_distributions_of_its_items_and_labels_as_such():
    soft = SoftItem("a", "Which?", ("x", "y", "z"), None, label_probabilities=(0.5, 0.25, 0.25))
    hard, unknown = Item("b", "Which?", ("x", "y"), 1), Item("c", "Which?", ("x", "y"), None)
    found = choice_labels([soft, hard])
    assert found["label_probabilities"].tolist() == [[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]] and "labels" not in found
    assert choice_labels([soft, unknown]) == {} and "label_probabilities" not in choice_labels([hard])
    packed = Cloze(byte_level_tokenizer())([soft, hard])
    assert UnpackedBatch.of(packed).targets is packed.targets is packed["label_probabilities"]


@pytest.mark.parametrize("values", [(0.5, 0.5), (0.7, 0.7, -0.4), (0.5, 0.4, 0.2), (float("nan"), 0.5, 0.5), ()])
def test_what_is_no_distribution_over_the_choices_is_refused(values):
    with pytest.raises(TaskError, match="'label_probabilities' should be 3 probabilities that sum to 1"):
        SoftItem("a", "Which?", ("x", "y", "z"), None, label_probabilities=values)


# --- runs --------------------------------------------------------------------------------------------------------

WORDS = ["sunlight and water", "iron", "wood", "a star", "the moon"]
ARGUMENTS: dict[str, dict[str, Any]] = {
    "BayesianLora": {"prior_std": 0.3},
    "DeepEnsemble": {"members": 3},
    "MonteCarloDropout": {},
    "LaplaceLora": {},
    "CLora": {},
}

TRAINED: dict[str, dict[str, Any]] = {
    "BayesianLora": {"epochs": 4},
    # Until the members differ.
    "DeepEnsemble": {"epochs": 8, "learning_rate": 0.05},
}


def write_rows(path: Path, count: int, label: bool = True, question: str = "question") -> Path:
    path.parent.mkdir(exist_ok=True)
    rows = [
        {question: f"What is it, {path.stem} {n}?", "choices": [WORDS[(n + k) % 5] for k in range(3 - (n % 3 == 0))]}
        | ({"label": n % 2} if label else {})
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distillation")
    tokenizer = byte_level_tokenizer()
    tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=512).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    for part, count in (("train", 24), ("dev", 8), ("test", 6)):
        write_rows(folder / "data" / f"{part}.jsonl", count)
    write_rows(folder / "more.jsonl", 8, label=False, question="text")
    return folder


def teacher(root: Path, method: str, **changes: Any) -> Path:
    """A run of this method, trained once."""
    folder = root / method
    if not (folder / "metrics.json").is_file():
        config = {
            "model": {"name": str(root / "base"), "device": "cpu"},
            "task": {"name": str(root / "data")},
            "method": {"class_path": method, "init_args": {"r": 2, "last_layers": 2, **ARGUMENTS.get(method, {})}},
            "train": {"epochs": 1, "batch_size": 4, "learning_rate": 0.02, **TRAINED.get(method, {})},
            "num_samples": 4,
            "temperature_scaling": True,
            **changes,
        }
        (root / f"{method}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        train(parse_config(root / f"{method}.yaml"), folder)
    return folder


def divergence(run: Run, other: Run, samples: int | None = None) -> float:
    """Mean KL(run | other) in nats on the training items."""
    items = task_items(run.config.task).train
    p, q = run.predict(items).predictive.probabilities, other.predict(items, samples).predictive.probabilities
    return float(torch.where(p > 0, p * (p.clamp_min(1e-12) / q.clamp_min(1e-12)).log(), 0).sum(-1).mean())


@pytest.mark.parametrize("method", ["BayesianLora", "DeepEnsemble"])
def test_the_student_is_nearer_to_the_teacher_than_its_mean(root, tmp_path, method):
    taught = load_run(teacher(root, method))
    student = distill(root / method, tmp_path / "student", epochs=4, learning_rate=0.005)
    student.temperature = 1.0  # As it was fitted to the teacher, which is tempered.
    start = distill(root / method, tmp_path / "start", epochs=0)
    assert start.metrics["teacher"]["start"] == student.metrics["teacher"]["start"] == "teacher"
    start.temperature = taught.temperature
    assert divergence(taught, student) < 0.5 * divergence(taught, start)


def test_a_student_of_no_epochs_is_the_mean_of_the_posterior(root, tmp_path):
    mean = load_run(teacher(root, "BayesianLora")).predict(items := task_items(_config(root).task).dev, 0)
    student = distill(root / "BayesianLora", tmp_path / "student", epochs=0)
    student.temperature = load_run(root / "BayesianLora").temperature
    assert distance(student.predict(items).predictive.probabilities, mean.predictive.probabilities) < 1e-5


def _config(root: Path) -> Any:
    return read_config(root / "BayesianLora" / "config.yaml")


@pytest.mark.parametrize(
    ("method", "start"), [("MonteCarloDropout", "teacher"), ("LaplaceLora", "teacher"), ("CLora", "fresh")]
)
def test_other_teachers_and_where_their_students_begin(root, tmp_path, method, start):
    student = distill(teacher(root, method), tmp_path / "student")
    assert student.config.train.epochs == 0.5 and student.config.method.name == "lora"
    assert student.metrics["teacher"] | {"predict_seconds": 0} == {
        "method": load_run(root / method).config.method.name,
        "predict_seconds": 0,
        "labelled_items": 24,
        "unlabelled_items": 0,
        "start": start,
    }


def test_a_classifiers_head_is_begun_with_too(root, tmp_path):
    tokenizer = byte_level_tokenizer()
    tiny_bert(vocab_size=len(tokenizer), max_position_embeddings=512).save_pretrained(root / "bert")
    tokenizer.save_pretrained(root / "bert")
    rows = [{"question": f"It is {n}", "choices": ["x", "y"], "label": n % 2} for n in range(8)]
    for part in ("train", "dev"):
        (path := root / "classes" / f"{part}.jsonl").parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {"name": str(root / "classes"), "scoring": "classification"}
    taught = load_run(teacher(root, "Blob", model={"name": str(root / "bert"), "device": "cpu"}, task=task))
    student = distill(root / "Blob", tmp_path / "student", epochs=0)
    student.temperature = taught.temperature
    items = task_items(taught.config.task).dev
    found, mean = student.predict(items).predictive, taught.predict(items, 0).predictive
    assert distance(found.probabilities, mean.probabilities) < 1e-5


def test_the_run_folder_serves_every_command_and_every_server(root, tmp_path, capsys):
    run, out = teacher(root, "DeepEnsemble"), tmp_path / "student"
    more = str(root / "more.jsonl")
    main(["distill", str(run), "--output_dir", str(out), "--unlabelled", more, "--question_column", "text"])
    said = capsys.readouterr().out
    assert "ensemble to lora: 32 items predicted in" in said and f"next     bayeslora evaluate {out}" in said
    config, metrics = read_config(out / "config.yaml"), json.loads((out / "metrics.json").read_text())
    assert (config.distill.teacher, config.distill.unlabelled) == (str(run), more)
    assert config.distill.layout == {"question_column": "text"} and config.task.question_column == "question"
    assert config.train.epochs == pytest.approx(4 * 24 / 32) and metrics["train_examples"] == 32
    assert metrics["teacher"]["unlabelled_items"] == 8 and metrics["temperature"] == load_run(out).temperature
    scores = evaluate(out)
    assert scores["split"] == "test" and scores["num_samples"] == 0
    rows = predict_file(out, root / "data" / "test.jsonl", tmp_path / "out.jsonl")
    with TestClient(create_app(load_run(out), "student")) as client:
        item = {"question": rows[0]["id"], "choices": ["iron", "wood"]}
        assert client.post("/v1/predict", json={"items": [item]}).status_code == 200
    main(["export", str(out), "--format", "mean", "--output_dir", str(tmp_path / "mean")])
    modules = ("q_proj", "v_proj")
    assert not refused_by_vllm(out / "adapter", modules=modules) and vllm_scale(out / "adapter") == 8
    assert not refused_by_vllm(tmp_path / "mean", modules=modules) and not refused_by_llama_cpp(tmp_path / "mean")
    expected = logits_of(load_run(out).model)
    for folder in (out / "adapter", tmp_path / "mean"):
        plain = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(root / "base"), str(folder)).eval()
        assert type(plain.peft_config["default"]).__name__ == "LoraConfig"
        assert distance(logits_of(plain), expected) < 1e-5


@pytest.mark.parametrize(("own", "asked", "drawn"), [(4, None, 4), (2, None, 2), (9, None, 4), (9, 6, 6), (0, None, 0)])
def test_a_teacher_draws_at_most_four_times_unless_told(root, tmp_path, monkeypatch, own, asked, drawn):
    counts, predict = [], Run.predict

    def counted(self, items, num_samples=None, **more):
        counts.append(num_samples)
        return predict(self, items, num_samples, **more)

    run = open_teacher(teacher(root, "BayesianLora"))
    run.config.num_samples = own
    options = DistillConfig(teacher=str(root / "BayesianLora"), num_samples=asked)
    monkeypatch.setattr(Run, "predict", counted)
    taught(run, replace(run.config, distill=options), task_items(run.config.task), [], tmp_path)
    assert counts == [drawn]


def test_the_config_of_a_student_distils_again(root, tmp_path):
    first = distill(teacher(root, "DeepEnsemble"), tmp_path / "first", unlabelled=None, num_samples=2)
    again = train(read_config(tmp_path / "first" / "config.yaml"), tmp_path / "again")
    one, other = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("first", "again"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert again.metrics["teacher"]["start"] == first.metrics["teacher"]["start"]


def test_items_without_labels_are_read_once_and_learned(root, tmp_path, monkeypatch):
    layout = {"question_column": "text"}
    read, own = [], lesson.load_items
    monkeypatch.setattr(lesson, "load_items", lambda *path, **options: read.append(path) or own(*path, **options))
    options: Any = {"epochs": 1, "start": "fresh"}
    plain = distill(teacher(root, "DeepEnsemble"), tmp_path / "plain", **options)
    options |= {"unlabelled": root / "more.jsonl", "file_layout": layout}
    more = distill(root / "DeepEnsemble", tmp_path / "more", **options)
    assert (plain.metrics["train_examples"], more.metrics["train_examples"]) == (24, 32)
    assert len(read) == 1
    soft = [item for item in more.splits.train if item.label is None]
    expected = load_run(root / "DeepEnsemble").predict(soft).predictive.probabilities
    for item, row in zip(soft, expected.tolist(), strict=True):
        assert item.label_probabilities == pytest.approx(row[: len(item.choices)], abs=1e-5)
    assert len(soft) == 8 and len({item.question for item in soft}) == 8


def test_a_kill_loses_one_part_of_the_predictions_and_training_goes_on_to_the_same_adapter(root, tmp_path, monkeypatch):
    run, out = teacher(root, "DeepEnsemble"), tmp_path / "student"
    monkeypatch.setattr(lesson, "PART", 8)
    distill(run, tmp_path / "whole", learning_rate=0.005)
    asked: list[int] = []
    own, step = Run.predict, BayesianLoraTrainer.training_step

    def predict(self: Run, items: Any, *rest: Any, **more: Any) -> Any:
        if asked == [8, 8]:
            asked.clear()
            raise KeyboardInterrupt
        asked.append(len(items))
        return own(self, items, *rest, **more)

    monkeypatch.setattr(Run, "predict", predict)
    with pytest.raises(KeyboardInterrupt):
        distill(run, out)
    assert len(list((out / "teacher").glob("predictions-*.json"))) == 2 and not asked

    def killed(self: Any, *given: Any, **options: Any) -> Any:
        if self.state.global_step == 8:
            raise KeyboardInterrupt
        return step(self, *given, **options)

    monkeypatch.setattr(BayesianLoraTrainer, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        distill(run, out, learning_rate=0.005)
    assert asked == [8]  # The third part alone.
    monkeypatch.setattr(BayesianLoraTrainer, "training_step", step)
    with pytest.raises(FileExistsError, match="the checkpoints of a run that has not ended"):
        distill(run, out)
    main(["distill", str(run), "--output_dir", str(out), "--resume", "--learning_rate", "0.005"])
    assert asked == [8, 8]  # The dev items at the end.
    one, other = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "student"))
    assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)


def test_predictions_of_another_teacher_are_not_taken(root, tmp_path):
    out = tmp_path / "student"
    distill(teacher(root, "DeepEnsemble"), out, epochs=0)
    kept = (out / "teacher" / "predictions-00000.json").read_text()
    distill(teacher(root, "BayesianLora"), out, epochs=0, overwrite=True)
    assert (out / "teacher" / "predictions-00000.json").read_text() != kept


def test_what_is_there_and_what_cannot_be_distilled(root, tmp_path, capsys, monkeypatch):
    run = teacher(root, "BayesianLora")
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    with pytest.raises(FileExistsError, match="--overwrite"):
        distill(run, copied)
    with pytest.raises(ValueError, match="is the teacher itself"):
        distill(copied, copied, overwrite=True)
    for change, said in (({"scoring": "text"}, "--format mean"), ({"scoring": "options"}, "one pass as it is")):
        loaded = load_run(run)
        vars(loaded.config.task).update(change)
        monkeypatch.setattr(lesson, "load_run", lambda *_, loaded=loaded, **__: loaded)
        with pytest.raises(ValueError, match=said):
            distill(run, tmp_path / "other")
    monkeypatch.undo()
    with pytest.raises(SystemExit):
        main(["distill", str(tmp_path / "nothing"), "--output_dir", str(tmp_path / "other")])
    assert "is not a finished run" in capsys.readouterr().err and not (tmp_path / "other" / "adapter").exists()
    assert bayeslora.distill is distill
