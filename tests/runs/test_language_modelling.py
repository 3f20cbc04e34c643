"""Texts: reading them, the posterior predictive of their tokens, and a run from the command line."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bayeslora import sampling
from bayeslora.metrics import brier, entropy, expected_calibration_error, reliability_curve
from bayeslora.runs.config import TaskConfig
from bayeslora.runs.language_modelling import TokenPrediction, predict_tokens, token_metrics, token_reliability
from bayeslora.runs.language_modelling.texts import read_texts, text_splits
from bayeslora.tasks import TaskError
from conftest import bayesian, byte_level_tokenizer, tiny_llama

VOCABULARY = 96


def sequences(count: int = 5) -> list[dict[str, list[int]]]:
    """Texts of different lengths, whose targets begin at different places and have a gap."""
    source = torch.Generator().manual_seed(0)
    rows = []
    for index in range(count):
        ids = torch.randint(4, VOCABULARY, (5 + 3 * index,), generator=source).tolist()
        labels = [-100] * (index % 4) + ids[index % 4 :]
        labels[-2] = -100
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def by_hand(row: dict[str, list[int]], num_samples: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities `[samples, targets, vocabulary]` of one text's targets, draw by draw, and the targets."""
    model = bayesian()
    ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
    places = (labels[1:] != -100).nonzero().flatten()
    draws = []
    for first in range(num_samples):
        with torch.no_grad(), sampling(model, 1, seed, first=first):
            draws.append(torch.softmax(model(input_ids=ids).logits[0, places], -1))
    return torch.stack(draws), labels[1:][places]


@pytest.fixture(scope="module")
def predictions() -> list[TokenPrediction]:
    return predict_tokens(bayesian(), sequences(), num_samples=4, seed=2)


def test_each_token_as_by_hand(predictions: list[TokenPrediction]) -> None:
    for row, found in zip(sequences(), predictions, strict=True):
        draws, targets = by_hand(row, 4, 2)
        mean = draws.mean(0)
        assert found.targets.tolist() == targets.tolist()
        chosen = draws[:, torch.arange(len(targets)), targets]
        torch.testing.assert_close(found.samples, chosen.log(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.confidence, mean.max(-1).values, atol=1e-5, rtol=1e-4)
        assert found.correct.tolist() == (mean.argmax(-1) == targets).tolist()
        total = entropy(mean / mean.sum(-1, keepdim=True))
        each = torch.stack([entropy(draw / draw.sum(-1, keepdim=True)) for draw in draws]).mean(0)
        torch.testing.assert_close(found.entropy.double(), total, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.mutual_information.double(), total - each, atol=1e-5, rtol=1e-3)
        assert found.mutual_information.max() > 0.01
        assert float(found.brier.mean()) == pytest.approx(brier(mean, targets), rel=1e-4)


def test_metrics_as_by_hand(predictions: list[TokenPrediction]) -> None:
    mixture, joint, means, labels = 0.0, 0.0, [], []
    for row in sequences():
        draws, targets = by_hand(row, 4, 2)
        chosen = draws[:, torch.arange(len(targets)), targets].double()
        mixture -= chosen.mean(0).log().sum().item()
        joint -= chosen.prod(1).mean().log().item()
        means.append(draws.mean(0))
        labels.append(targets)
    probabilities, targets = torch.cat(means), torch.cat(labels)
    tokenizer = byte_level_tokenizer()
    found = token_metrics(predictions, tokenizer)
    tokens = len(targets)
    size = sum(len(tokenizer.decode(row, skip_special_tokens=True).encode()) for row in labels)
    assert found["num_tokens"] == tokens
    assert found["num_examples"] == 5
    assert found["perplexity"] == pytest.approx(math.exp(mixture / tokens), rel=1e-4)
    assert found["joint_perplexity"] == pytest.approx(math.exp(joint / tokens), rel=1e-4)
    assert found["bits_per_byte"] == pytest.approx(mixture / math.log(2) / size, rel=1e-4)
    assert found["ece"] == pytest.approx(expected_calibration_error(probabilities, targets), abs=1e-4)
    curve, expected = token_reliability(predictions), reliability_curve(probabilities, targets)
    assert curve.count.tolist() == expected.count.tolist()


def test_bits_per_byte_count_the_text_and_not_the_marks() -> None:
    tokenizer = byte_level_tokenizer()
    targets = torch.tensor(tokenizer("the quick brown fox é</s>")["input_ids"])
    zeros = torch.zeros(len(targets))
    bits = torch.full((1, len(targets)), -math.log(2))
    predictions = [TokenPrediction(targets, bits, zeros, zeros.bool(), zeros, zeros, zeros)]
    size = len("the quick brown fox é".encode())
    assert size > len(targets)
    assert token_metrics(predictions, tokenizer)["bits_per_byte"] == pytest.approx(len(targets) / size)


def test_memory_limit_and_batches_change_nothing(predictions: list[TokenPrediction]) -> None:
    model = bayesian()
    seen: list[int] = []
    model.get_base_model().lm_head.register_forward_hook(lambda *call: seen.append(call[2].numel()))
    small = predict_tokens(model, sequences(), num_samples=4, seed=2, memory_limit=1)
    longest = max(len(row["input_ids"]) for row in sequences())
    assert max(seen) <= longest * VOCABULARY, "one row and one draw at a time"
    assert len(seen) == 4 * 5
    for one, other in zip(predictions, small, strict=True):
        torch.testing.assert_close(one.samples, other.samples, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one.entropy, other.entropy, atol=1e-5, rtol=1e-4)


def test_the_mean_has_one_sample_and_no_mutual_information() -> None:
    for model, samples in ((bayesian(), 0), (tiny_llama(), 4)):
        for found in predict_tokens(model, sequences(2), samples):
            assert found.samples.shape[0] == 1
            assert found.mutual_information.abs().max() == 0
            assert found.log_likelihood("joint") == pytest.approx(found.log_likelihood("mixture"))


def test_refusals_of_predict_tokens() -> None:
    with pytest.raises(ValueError, match="row 0 has no target token"):
        predict_tokens(tiny_llama(), [{"input_ids": [5, 6], "labels": [5, -100]}])
    with pytest.raises(ValueError, match="at least 0"):
        predict_tokens(tiny_llama(), sequences(1), -1)


# --- files ---------------------------------------------------------------------------------------------------------


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


BAD_ROWS: list[tuple[list[Any], str]] = [
    (
        [{"question": "a"}],
        "line 1: expected columns messages, or prompt and completion, or text, but there are question; rename them\\.$",
    ),
    ([{"Question": "a", "answer": "b"}], "rename them, perhaps 'Question' to 'prompt' and 'answer' to 'completion'"),
    ([{"promt": "a", "completion": "b"}], "rename them, perhaps 'promt' to 'prompt'\\."),
    ([{"id": "a", "Text": "b"}], "rename them, perhaps 'Text' to 'text'\\."),
    ([{"text": "a"}, {"text": ""}], "line 2: field 'text' should be a text that is not empty"),
    ([{"text": "a"}, {"prompt": "a", "completion": "b"}], "line 2: expected text as in the first row"),
    ([{"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}], "both be texts"),
    ([{"messages": "hello"}], "field 'messages' should be a list of messages"),
]


@pytest.mark.parametrize(("rows", "message"), BAD_ROWS)
def test_a_bad_row_is_named(rows: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=message):
        read_texts(write_lines(tmp_path / "texts.jsonl", rows))


def test_splits_do_not_overlap_and_a_task_of_choices_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "texts.jsonl", [{"text": f"text {index}"} for index in range(60)])
    splits = text_splits(TaskConfig(name=str(path), train_examples=10))
    parts = [{row.id for row in part} for part in (splits.train, splits.dev, splits.test)]
    assert len(parts[0]) == 10
    assert min(map(len, parts)) > 3
    assert len(set().union(*parts)) == sum(map(len, parts))
    grouped = [{"text": f"text {index}", "source": index % 20} for index in range(100)]
    path = write_lines(tmp_path / "grouped.jsonl", grouped)
    splits = text_splits(TaskConfig(name=str(path), group_column="source"))
    groups = [{row.group for row in part} for part in (splits.train, splits.dev, splits.test)]
    assert len(set().union(*groups)) == sum(map(len, groups)) == 20
    with pytest.raises(TaskError, match=r"expected a column 'page' \(option group_column\)"):
        read_texts(path, "page")
    with pytest.raises(TaskError, match=r"name a file, or use task\.scoring cloze"):
        text_splits(TaskConfig(name="arc_easy"))


# --- the command line ----------------------------------------------------------------------------------------------

WORDS = ["iron", "wood", "the sun", "a plant", "the moon", "paper and glass", "water", "a quick brown fox"]
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model that has a chat template, and prompts with completions."""
    folder = tmp_path_factory.mktemp("world")
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tiny_llama(vocab_size=320).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    for name, count in (("train", 12), ("dev", 4), ("test", 6)):
        rows = [{"id": f"{name}{i}", "prompt": f"What is {i}?", "completion": WORDS[i % 8]} for i in range(count)]
        write_lines(folder / "data" / f"{name}.jsonl", rows)
    return folder


def arguments(world: Path, output: Path, *more: str, method: str = "BayesianLora") -> list[str]:
    return [
        "train",
        f"--model.name={world / 'base'}",
        f"--task.name={world / 'data'}",
        "--task.scoring=text",
        f"--method={method}",
        "--method.init_args.last_layers=2",
        "--train.epochs=2",
        "--train.batch_size=4",
        "--train.learning_rate=0.01",
        "--num_samples=3",
        f"--output_dir={output}",
        *more,
    ]


@pytest.fixture(scope="module")
def command() -> Callable[..., None]:
    pytest.importorskip("trl")
    from bayeslora_cli.main import main

    return lambda *options: main(list(options))


@pytest.fixture(scope="module")
def trained(world: Path, command: Callable[..., None]) -> Path:
    command(*arguments(world, world / "run"))
    return world / "run"


def test_a_run_from_a_file(trained: Path, world: Path, command: Callable[..., None], tmp_path: Path) -> None:
    metrics = json.loads((trained / "metrics.json").read_text())
    tokenizer = byte_level_tokenizer()
    count = sum(len(tokenizer(f" {WORDS[i % 8]}</s>")["input_ids"]) for i in range(12))
    assert metrics["train_tokens"] == count
    assert metrics["split"] == "dev"
    assert metrics["num_examples"] == 4
    assert metrics["mutual_information"] > 0
    last = metrics["history"][-1]
    assert last["loss"] == pytest.approx(last["nll"] + last["kl"] / count, rel=1e-4)
    command("evaluate", str(trained))
    scored = json.loads((trained / "metrics.json").read_text())
    assert scored["split"] == "test"
    assert scored["dev"]["perplexity"] == metrics["perplexity"]
    records = [json.loads(line) for line in (trained / "texts.jsonl").read_text().splitlines()]
    assert [record["id"] for record in records] == [f"test{index}" for index in range(6)]
    total = sum(record["nll"] * record["num_tokens"] for record in records)
    assert scored["perplexity"] == pytest.approx(math.exp(total / scored["num_tokens"]))
    assert (trained / "reliability.png").stat().st_size > 10_000
    command("evaluate", str(trained), f"--input={world / 'data' / 'test.jsonl'}")
    again = json.loads((trained / "evaluation" / "test" / "metrics.json").read_text())
    assert again["perplexity"] == pytest.approx(scored["perplexity"])
    command("generate", str(trained), "--prompt=What is 1?", "--max_new_tokens=4")
    command("export", str(trained), f"--output_dir={tmp_path / 'export'}")
    assert (tmp_path / "export" / "adapter_model.safetensors").is_file()


def test_a_loaded_run_scores_as_the_trained_one(trained: Path, world: Path) -> None:
    from bayeslora.runs import load_run
    from bayeslora.runs.language_modelling import predict_texts

    run = load_run(trained)
    scores = predict_texts(run, text_splits(run.config.task).dev).metrics(run)
    metrics = json.loads((trained / "metrics.json").read_text())
    known = metrics.get("dev", metrics)
    for name in ("perplexity", "joint_perplexity", "ece", "mutual_information"):
        assert scores[name] == known[name], name


def test_a_killed_run_resumes_to_the_same_adapter(
    trained: Path, world: Path, command: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    from bayeslora.training.sft import BayesianSFTTrainer

    step = BayesianSFTTrainer.training_step

    def killed(self: Any, *given: Any, **options: Any) -> Any:
        if self.state.global_step == 4:
            raise KeyboardInterrupt
        return step(self, *given, **options)

    monkeypatch.setattr(BayesianSFTTrainer, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        command(*arguments(world, tmp_path / "run"))
    assert not (tmp_path / "run" / "adapter").exists()
    monkeypatch.setattr(BayesianSFTTrainer, "training_step", step)
    command(*arguments(world, tmp_path / "run", "--resume=true"))
    found = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    expected = load_file(trained / "adapter" / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("method", ["Lora", "Ivon", "Snapshots"])
def test_other_methods_and_sft_options(method: str, world: Path, command: Callable[..., None], tmp_path: Path) -> None:
    if method == "Ivon":
        pytest.importorskip("ivon")
    options = ["--train.arguments.packing=true", "--task.max_length=64", "--task.raw=true"]
    command(*arguments(world, tmp_path, *options, method=method))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["train_rows"] < metrics["train_examples"] == 12
    assert metrics["num_samples"] == {"Lora": 0, "Ivon": 3, "Snapshots": 4}[method]
    if method == "Snapshots":  # Its schedule and what takes them are the method's, as with choices.
        from safetensors.torch import load_file

        taken = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
        ends = [tensor for name, tensor in taken.items() if "lora_B" in name and "snapshots" in name]
        assert ends and all(end.flatten(1).any(1).all() for end in ends)


@pytest.mark.parametrize(
    ("method", "message"), [("Tfb", "reads items with choices"), ("DeepEnsemble", "several draws")]
)
def test_methods_that_need_choices_are_refused(
    method: str, message: str, world: Path, command: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        command(*arguments(world, tmp_path, method=method))
    assert message in capsys.readouterr().err
