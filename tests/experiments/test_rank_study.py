"""Full fine-tuning as a method, and rank studies: rows, sizes, text overlap, resuming."""

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from test_cli import data, fails, tiny_base  # noqa: F401
from torch import nn

from bayeslora.experiments.comparison import Results
from bayeslora.experiments.comparison.cells import cell_folder
from bayeslora.experiments.intruder_dimensions.layers import layer_spectra
from bayeslora.experiments.learning_rates import SweepConfig
from bayeslora.experiments.ranks import RankStudyConfig
from bayeslora.experiments.ranks.explanations import reference_texts, text_overlap
from bayeslora.methods.full_fine_tuning import FullFineTuning
from bayeslora.options.parsing import config_parser, instantiate
from bayeslora.runs import going_on
from bayeslora.runs.config import TaskConfig
from bayeslora.system.console import aligned
from bayeslora_cli.main import main
from conftest import MODELS, distance, logits_of, perturb, seeded, tiny_gpt2, tiny_llama

ROOT = Path(__file__).parents[2]

# --- full fine-tuning -------------------------------------------------------------------------------------------------


def trained(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def full(name: str, **options) -> PeftModel:
    kind = "sequence_classification" if name in ("bert", "llama_classifier") else "causal_lm"
    return FullFineTuning(**options).adapt(MODELS[name](), kind)


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_is_trained_once_and_comes_back_from_the_file(name, tmp_path):
    base, model = MODELS[name](), full(name)
    assert trained(model) == sum(parameter.numel() for parameter in base.parameters())
    perturb(model).eval().save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(MODELS[name](), str(tmp_path)).eval()
    assert distance(logits_of(loaded), logits_of(model)) == 0
    assert distance(logits_of(model), logits_of(base)) > 0.1
    with model.disable_adapter():
        assert distance(logits_of(model), logits_of(base)) == 0
    assert distance(logits_of(loaded.merge_and_unload()), logits_of(model)) == 0


def test_a_tied_head_stays_tied():
    model = FullFineTuning().adapt(tiny_llama(tie_word_embeddings=True), "causal_lm")
    embedding = model.get_base_model().model.embed_tokens.modules_to_save["default"].weight
    assert model.get_base_model().lm_head.modules_to_save["default"].weight is embedding


def test_top_layers_and_named_modules_alone():
    base = tiny_gpt2()
    layers = sum(parameter.numel() for layer in base.transformer.h[-2:] for parameter in layer.parameters())
    assert trained(full("gpt2", last_layers=2)) == layers
    names = sum(layer.attn.c_attn.weight.numel() + layer.attn.c_attn.bias.numel() for layer in base.transformer.h)
    assert trained(full("gpt2", target_modules=["c_attn"])) == names
    with pytest.raises(ValueError, match="match no module"):
        full("gpt2", target_modules=["nothing"])
    with pytest.raises(ValueError, match="last_layers"):
        full("gpt2", last_layers=9)


def test_starting_from_an_adapter_that_changes_other_layers_is_refused(tmp_path):
    from peft import LoraConfig, get_peft_model

    with seeded(0):
        lora = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    perturb(lora).eval().save_pretrained(tmp_path)
    model = FullFineTuning(init_from=str(tmp_path)).adapt(tiny_llama(), "causal_lm").eval()
    assert distance(logits_of(model), logits_of(lora)) < 1e-4
    with pytest.raises(ValueError, match="which is not trained here"):
        FullFineTuning(init_from=str(tmp_path), last_layers=1).adapt(tiny_llama(), "causal_lm")


def test_its_layers_can_be_diagnosed():
    model = full("gpt2", last_layers=1)
    found = layer_spectra(model)
    assert [layer.name.rpartition(".")[2] for layer in found] == ["c_attn", "c_proj", "c_fc", "c_proj"]
    assert all(layer.mean.count == 0 and layer.update_norm == 0 for layer in found)
    assert found[2].shape == (48, 32)


# --- text overlap -----------------------------------------------------------------------------------------------------


def test_text_overlap_of_known_texts():
    same = text_overlap(["the bill has a wrong tax on it"] * 2, ["the bill has a wrong tax on it"] * 2)
    assert same == {name: pytest.approx(100) for name in ("chrf", "bleu", "rouge_l")}
    other = text_overlap(["xyz"], ["the bill has a wrong tax"])
    assert all(value < 5 for value in other.values())
    # Longest common subsequence 2 of 4 and 4 words: precision and recall are one half.
    assert text_overlap(["a bill b tax"], ["the bill wrong tax"])["rouge_l"] == pytest.approx(50)


def write_csv(path: Path, reasons: bool = True) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "team", "reason"])
        for number in range(24):
            team = ("billing", "shipping")[number % 2]
            reason = f"it is about {team}" if reasons and number % 3 else ""
            writer.writerow([f"t{number}", f"Please help with {team} ({number})", team, reason])
    return path


def columns(path: Path) -> TaskConfig:
    return TaskConfig(name=str(path), question_column="text", label_column="team", choices=["billing", "shipping"])


def test_references_are_those_of_the_rows_that_have_one(tmp_path):
    task = columns(write_csv(tmp_path / "items.csv"))
    found = reference_texts(task, "reason")
    assert len(found) == 16 and found["Please help with shipping (1)"] == "it is about shipping"
    with pytest.raises(ValueError, match="no row"):
        reference_texts(task, "explanation")
    with pytest.raises(ValueError, match="built-in task"):
        reference_texts(TaskConfig(name="arc_easy"), "reason")
    with open(tmp_path / "items.csv", "a", encoding="utf-8") as file:
        file.write("again,Please help with shipping (1),shipping,another reason\n")
    with pytest.raises(ValueError, match="two texts"):
        reference_texts(task, "reason")


# --- the study --------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path, tiny_base: Path) -> Path:  # noqa: F811
    content = {
        "model": {"name": str(tiny_base), "device": "cpu"},
        "task": {
            "name": str(write_csv(tmp_path / "items.csv")),
            "question_column": "text",
            "label_column": "team",
            "choices": ["billing", "shipping"],
        },
        "ranks": [4, 1],
        "last_layers": 1,
        "train": {"max_steps": 1, "batch_size": 4, "save_steps": 1000},
        "seeds": [0],
        "explanation_column": "reason",
        "max_new_tokens": 3,
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def study(config: Path, output: Path, *options: str) -> dict:
    main(["rank-study", "--config", str(config), "--output_dir", str(output), *options])
    return json.loads((output / "rank_study.json").read_text())


def test_a_study_has_its_ranks_and_the_full_row_and_is_not_repeated(config, tmp_path, capsys, monkeypatch):
    output = tmp_path / "out"
    record = study(config, output)
    printed = capsys.readouterr().out
    assert aligned((output / "rank_study.md").read_text().strip()) in printed
    assert printed.splitlines()[-1] == f"picture: {output / 'rank_study.png'}"
    assert (output / "rank_study.png").read_bytes().startswith(b"\x89PNG")
    one, four, whole = record["rows"]
    assert [row["row"] for row in record["rows"]] == ["rank 1", "rank 4", "full, top 1 layers"]
    assert four["trainable_parameters"] == 4 * one["trainable_parameters"]
    layer = tiny_llama().model.layers[0]
    assert whole["trainable_parameters"] == sum(parameter.numel() for parameter in layer.parameters())
    assert whole["adapter_bytes"] > 4 * whole["trainable_parameters"] > four["adapter_bytes"]
    assert whole["trainable_share"] == pytest.approx(whole["trainable_parameters"] / record["base_parameters"])
    assert one["relative_train_time"] == 1
    results = Results.read(output / "results.jsonl")
    cell = results.cells("final", method="rank 4")[0]
    test = torch.tensor(cell.predictions["test"].padded())
    hits = test.argmax(-1) == torch.tensor(results.items("task", "test").labels)
    assert four["accuracy"] == {"mean": pytest.approx(float(hits.double().mean())), "std": None}
    run = yaml.safe_load((cell_folder(output, "task", "rank 4", 1e-3, 0) / "config.yaml").read_text())
    assert run["method"]["init_args"]["r"] == 4 and run["method"]["init_args"]["lora_alpha"] == 8
    texts = cell_folder(output, "task", "rank 4", 1e-3, 0) / "explanations.jsonl"
    assert len(texts.read_text().splitlines()) == record["texts"] > 0
    assert set(four["text_overlap"]) == {"chrf", "bleu", "rouge_l"}
    # Again: nothing is trained or generated; another rank is added.
    monkeypatch.setattr("bayeslora.runs.generate.generate_records", lambda *_, **__: pytest.fail("generated again"))
    trained_now, original = [], going_on.train
    monkeypatch.setattr(
        going_on, "train", lambda run, folder, **o: trained_now.append(run.method.r) or original(run, folder, **o)
    )
    assert study(config, output) == record and trained_now == []
    more = study(config, output, "--ranks", "[1, 2, 4]", "--explanation_column", "null")
    assert trained_now == [2] and [row["row"] for row in more["rows"]][:3] == ["rank 1", "rank 2", "rank 4"]
    assert more["texts"] == 0 and "chrF" not in (output / "rank_study.md").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ranks": []}, "ranks must be"),
        ({"ranks": [2, 2]}, "ranks must be"),
        ({"scale": 0}, "scale"),
        ({"explanation_column": "x", "task": TaskConfig(scoring="classification")}, "writes text"),
        ({"explanation_column": "x", "prompt": "why?"}, "prompt must hold"),
    ],
)
def test_a_study_that_would_fail_later_fails_at_once(change, message):
    with pytest.raises(ValueError, match=message):
        RankStudyConfig(**change)


def test_a_wrong_column_is_said_before_the_training(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(going_on, "train", lambda *_, **__: pytest.fail("trained"))
    error = fails(
        capsys, "rank-study", "--config", config, "--output_dir", tmp_path / "out", "--explanation_column", "why"
    )
    assert "'why'" in error


SHIPPED = {
    RankStudyConfig: [*ROOT.glob("studies/*/*/rank_study.yaml"), *ROOT.glob("examples/rank_study/*.yaml")],
    SweepConfig: [*ROOT.glob("studies/*/*/sweep.yaml")],
}


@pytest.mark.parametrize(
    ("kind", "path"), [(kind, path) for kind, paths in SHIPPED.items() for path in paths], ids=lambda value: str(value)
)
def test_what_is_shipped_can_be_read(kind, path):
    parser = config_parser(kind)
    config = instantiate(parser, parser.parse_args(["--config", str(path)]), kind)
    comparison = config.comparison() if kind is RankStudyConfig else config
    for title in comparison.rows:
        assert comparison.run(next(iter(comparison.tasks)), title, 0, 0.1).train.learning_rate == 0.1
