"""`bayeslora plan`: its estimate against real steps, its advice, and the configs of the paper's runs."""

import dataclasses
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import BertModel

from bayeslora.experiments.comparison.config import CompareConfig
from bayeslora.methods import BayesianLora, Lora, Method, method_classes, trainable_parameters
from bayeslora.models import load_base_model
from bayeslora.options.parsing import config_parser, instantiate
from bayeslora.planning import (
    Budget,
    Estimator,
    PlanOptions,
    Setting,
    Shape,
    as_record,
    as_text,
    base_on_meta,
    find_architecture,
    known_architectures,
    make_plan,
    parse_bytes,
)
from bayeslora.planning.advice import Change, advise
from bayeslora.planning.config_files import parse_run_or_comparison
from bayeslora.planning.memory import Weights
from bayeslora.planning.plan import as_options
from bayeslora.planning.tracing import phase_peaks
from bayeslora.prediction.predictive import predict
from bayeslora.readouts.hidden import differentiable_vectors
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.runs.cross_fitting import below_head
from bayeslora.scoring import get_scoring
from bayeslora.scoring.options import Options
from bayeslora.system.memory import keep_freed_blocks
from bayeslora.tasks import Item, get_task
from bayeslora_cli.main import main
from conftest import TARGETS, byte_level_tokenizer, seeded, tiny_bert, tiny_llama, tiny_llama_classifier

ROOT = Path(__file__).parents[2]
PAPER = sorted((ROOT / "studies" / "methods" / "paper").glob("*.yaml"))
sys.path.insert(0, str(ROOT))
from studies.cost.plan import measure as check  # noqa: E402


def estimator(method: Method, shape: Shape, samples: int = 4, **changes) -> Estimator:
    config = tiny_llama(**changes).config
    return Estimator(partial(base_on_meta, config, "causal_lm", "float32"), method, shape, samples)


# --- counting bytes ----------------------------------------------------------------------------------------------


def test_peak_is_that_of_what_lives_at_once() -> None:
    def work() -> None:
        one = torch.empty(1024, device="meta")
        del one
        two = torch.empty(2048, device="meta")
        three = two.view(2, 1024) + 1
        del two, three

    assert max(phase_peaks(lambda _: work(), [])) == 2 * 2048 * 4


def test_backward_pass_of_gather_adds_in_place() -> None:
    """While operators are watched, autograd takes a version of it that makes one more tensor of the same size."""
    logits, index = torch.zeros(16, 4096, requires_grad=True), torch.zeros(16, 1, dtype=torch.long)
    measured = check.allocated(lambda: logits.gather(1, index).sum().backward())
    logits.grad = None
    found = phase_peaks(lambda _: logits.gather(1, index).sum().backward(), [logits, index], "cpu")
    assert max(found) == pytest.approx(measured, rel=0.1)


def test_what_was_there_before_does_not_count() -> None:
    before = torch.empty(4096, device="meta")
    assert phase_peaks(lambda _: before.add_(1), [before]) == [0]


@pytest.mark.parametrize(
    ("text", "size"), [("80GB", 80 * 10**9), ("24 GiB", 24 * 2**30), ("512mb", 512 * 10**6), ("1.5g", 15 * 10**8)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["80 gigs", "GB", "-1GB", "0GB", "10I"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="expected a memory size such as 80GB"):
        parse_bytes(text)


# --- the estimate against real work ------------------------------------------------------------------------------

TINY = {"hidden_size": 64, "intermediate_size": 160, "vocab_size": 2048, "num_hidden_layers": 6}
"""Wide enough that what kernels and the Trainer hold beside the tensors is small."""
BATCH = [
    Item(str(n), "what is the mass of a stone that falls? " * 3, ("one kg", "two kg", "a ton"), 0) for n in range(3)
]


CASES = [
    ("training", "letter"),
    ("checkpointing", "cloze"),
    ("training", "classification"),
    ("S=1", "letter"),
    ("S=4", "letter"),
    ("S=4", "cloze"),
    ("S=4", "classification"),
]


@pytest.mark.parametrize(("work", "scoring"), CASES, ids=[" ".join(case) for case in CASES])
def test_estimate_against_real_work(work: str, scoring: str) -> None:
    """What torch's allocator hands out to the real Trainer and to `predict` beyond the weights, within 15 %."""
    classifies, samples = scoring == "classification", int(work[2:]) if work[0] == "S" else 0
    kind = "sequence_classification" if classifies else "causal_lm"
    method = BayesianLora(r=16, target_modules=["q_proj", "v_proj", "down_proj"])
    model = method.adapt((tiny_llama_classifier if classifies else tiny_llama)(**TINY), kind)  # type: ignore[arg-type]
    base = partial(base_on_meta, model.config, kind, "float32", 3)
    reader = get_scoring(scoring)(byte_level_tokenizer())
    # A shorter item, as in most batches: there is padding, and so a mask.
    shorter = [] if scoring == "cloze" else [dataclasses.replace(BATCH[0], question="what is it?")]
    batch = [*BATCH, *shorter]
    planned = Estimator(base, method, Shape.measured(reader, batch), samples)
    setting = Setting(len(batch), len(batch), work == "checkpointing")
    case = check.Case("", scoring, len(batch))
    if samples:
        keep_freed_blocks()  # Its own block, once in a process, is not the prediction's.
        measured = check.allocated(lambda: predict(model, reader(batch), samples, chunk_size=samples))
        estimate = planned.prediction(setting, samples)
    else:
        if setting.checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        measured = check.allocated(lambda: check.train(model, reader, batch, case))
        estimate = planned.training(setting)
    on_top = estimate.gradients + estimate.optimizer + estimate.activations
    assert on_top == pytest.approx(measured, rel=0.15)


def test_adapters_below_a_head_take_the_layers_that_run() -> None:
    method, setting = Lora(target_modules=["q_proj", "v_proj"], last_layers=2), Setting(3, 3)
    shapes = {name: Shape.measured(get_scoring(name)(byte_level_tokenizer()), BATCH) for name in ("options", "cloze")}
    planned, cloze = (estimator(method, shapes[name], 0, **TINY) for name in ("options", "cloze"))
    # Six layers are read behind the second to the fifth; the adapters lie below the fourth.
    names = [name for name, parameter in planned.model.named_parameters() if parameter.requires_grad]
    assert {name.split(".layers.")[1][0] for name in names} == {"2", "3"}
    model: Any = below_head(method, tiny_llama(**TINY)).adapt(tiny_llama(**TINY), "causal_lm")
    batch = Options(byte_level_tokenizer())(BATCH)
    measured = check.allocated(lambda: differentiable_vectors(model.train(), batch, [3, 4]).sum().backward())
    found = planned.training(setting)
    assert found.gradients + found.activations == pytest.approx(measured, rel=0.15)
    assert found.activations < 0.95 * cloze.training(setting).activations
    # The frozen model is read whole, likelihoods included.
    assert planned.prediction(setting, 0).activations >= cloze.prediction(setting, 0).activations


def test_encoders() -> None:
    base = partial(base_on_meta, tiny_bert().config, "sequence_classification", "float32", 3)
    method = BayesianLora(target_modules=TARGETS["bert"])
    found = Estimator(base, method, Shape("classification", 16, choices=3), 4)
    assert found.training(Setting(4, 4)).activations > found.prediction(Setting(4, 4), 4).activations > 0


def test_a_head_that_the_checkpoint_lacks_is_counted_and_said(tmp_path: Path) -> None:
    """BERT without its pooler: 16 * 16 + 16 numbers beside the classifier."""
    base = BertModel(tiny_bert().config, add_pooling_layer=False)
    base.save_pretrained(tmp_path / "base")
    byte_level_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "train.jsonl").write_text('{"question": "what?", "choices": ["no", "yes"], "label": "yes"}\n' * 20)
    task = TaskConfig(str(tmp_path / "train.jsonl"), scoring="classification")
    config = RunConfig(ModelConfig(str(tmp_path / "base"), device="cpu"), task, Lora(target_modules=TARGETS["bert"]))
    plan = make_plan(config, PlanOptions(Budget(10**9)))
    model, _ = load_base_model(str(tmp_path / "base"), kind="sequence_classification", num_labels=2, device="cpu")
    assert plan.rows[0].trainable == trainable_parameters(config.method.adapt(model, "sequence_classification"))
    assert plan.head == dict.fromkeys(["classifier", "bert.pooler"], "not in the checkpoint")
    assert "bert.pooler, trained whole: not in the checkpoint" in as_text(plan)


@pytest.mark.parametrize("method", [one for one in method_classes() if one.adapts], ids=lambda method: method.name)
def test_every_method_can_be_planned_with_an_adapter_on_the_head(method: type[Method]) -> None:
    found = estimator(method(target_modules=["q_proj", "v_proj", "lm_head"]), Shape("letter", 12))
    setting = Setting(4, 4)
    training, prediction = found.training(setting), found.prediction(setting, 2)
    numbers = sum(parameter.numel() for parameter in found.model.parameters() if parameter.requires_grad)
    assert training.gradients == training.adapters == training.optimizer / 2 == 4 * numbers > 0
    assert training.total > prediction.total > prediction.weights
    assert not found.model.training and all(parameter.grad is None for parameter in found.model.parameters())


def test_memory_moves_as_it_should() -> None:
    found = estimator(BayesianLora(target_modules=["q_proj"]), Shape("letter", 64), 8)
    whole = found.training(Setting(8, 8)).activations
    assert found.training(Setting(4, 8)).activations == pytest.approx(whole / 2, rel=0.2)
    assert found.training(Setting(8, 8, checkpointing=True)).activations < 0.6 * whole
    assert found.training(Setting(8, 8)).activations == whole
    four, one = (found.prediction(Setting(8, 8), draws).activations for draws in (4, 1))
    assert 2 * one < four < 5 * one


def test_all_samples_of_a_chunk_count_beyond_the_limit_of_a_cpu() -> None:
    """Without a device to ask, `predict` by itself would keep to 1 GiB."""
    found = estimator(BayesianLora(target_modules=["q_proj"]), Shape("letter", 128), 10)
    many, one = (found.prediction(Setting(8, 2048), draws).activations for draws in (10, 1))
    assert many > 2**30 and many > 5 * one


def test_four_bits_and_sharding() -> None:
    found = estimator(Lora(target_modules=["q_proj"]), Shape("letter", 8), 0)
    plain, setting = found.training(Setting(2, 2)), Setting(2, 2, four_bit=True)
    linear = sum(
        module.weight.numel()
        for name, module in found.model.named_modules()
        if isinstance(module, torch.nn.Linear) and "lora_" not in name and "lm_head" not in name
    )
    saved = plain.weights - found.training(setting).weights
    assert saved == pytest.approx(linear * (4 - 4.127 / 8), rel=1e-3)
    shared = found.training(Setting(2, 2, devices=4))
    assert shared.weights == plain.weights // 4 and shared.optimizer == plain.optimizer // 4
    weights = Weights.of(found.model)
    assert shared.activations == plain.activations + weights.outside_layers + 2 * weights.largest_layer


def test_the_automatic_chunk_follows_the_device() -> None:
    found = estimator(BayesianLora(target_modules=["q_proj"]), Shape("letter", 64), 10)
    large, small = (found.chunk(Setting(8, 8), Budget(parse_bytes(size))) for size in ("80GB", "30MB"))
    assert large == 10 and 1 <= small < 10


@pytest.mark.parametrize("checkpointing", [False, True])
def test_few_layers_tell_of_many(checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    method, shape = BayesianLora(target_modules=["q_proj"]), Shape("letter", 48)
    setting = Setting(8, 8, checkpointing)
    few = estimator(method, shape, num_hidden_layers=6)
    every = estimator(method, shape, num_hidden_layers=6)
    monkeypatch.setattr(every, "_alike", lambda: False)
    assert few._alike() and not estimator(BayesianLora(target_modules=["q_proj"], last_layers=1), shape)._alike()
    assert few.training(setting).activations == pytest.approx(every.training(setting).activations, rel=0.01)
    assert few.prediction(setting, 3).activations == pytest.approx(every.prediction(setting, 3).activations, rel=0.01)


def test_another_phase_may_have_the_peak_with_many_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 5 layers the first forward has it, with 16 the drawing of the samples' weights."""
    method, shape = BayesianLora(target_modules=["q_proj", "v_proj"]), Shape("letter", 12)
    few, every = (estimator(method, shape, num_hidden_layers=16) for _ in range(2))
    monkeypatch.setattr(every, "_alike", lambda: False)
    found, traced = (each.prediction(Setting(3, 3), 4).activations for each in (few, every))
    assert found == pytest.approx(traced, rel=0.01)


# --- advice ------------------------------------------------------------------------------------------------------


def advice(training, prediction=lambda change: True) -> list[Change]:
    return advise(Setting(8, 8), training, prediction)


def test_what_fits_is_left_alone() -> None:
    assert advice(lambda change: True) == [Change()]


def test_checkpointing_comes_before_small_batches() -> None:
    both = advice(lambda change: change.checkpointing or change.accumulation == 2)
    assert both[0] == Change(checkpointing=True)
    assert advice(lambda change: change.accumulation >= 4)[0] == Change(accumulation=4)


def test_weights_that_are_too_large() -> None:
    assert advice(lambda change: change.four_bit or change.devices >= 4) == [Change(four_bit=True), Change(devices=4)]
    assert advise(Setting(8, 8), lambda change: change.devices > 1, lambda change: True, shareable=False) == []
    assert advice(lambda change: False) == []


def test_weights_in_four_bits_are_not_shared() -> None:
    """FSDP2 leaves them whole on each device."""
    assert advice(lambda change: change.four_bit and change.devices > 1) == []
    assert advise(Setting(8, 8, four_bit=True), lambda change: change.devices > 1, lambda change: True) == []


def test_no_way_only_adds_to_another() -> None:
    """Checkpointing is needed with 4 bits and on several devices too, and is enough alone."""
    assert advice(lambda change: change.checkpointing) == [Change(checkpointing=True)]
    found = advice(lambda change: change.accumulation == 8 or (change.four_bit and change.checkpointing))
    assert found == [Change(accumulation=8), Change(checkpointing=True, four_bit=True)]


def test_smaller_forwards_are_for_prediction() -> None:
    assert advice(lambda change: True, lambda change: change.smaller_forwards >= 4)[0] == Change(smaller_forwards=4)


# --- configs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> Path:
    architecture = tmp_path / "config.json"
    architecture.write_text(json.dumps(tiny_llama().config.to_dict()), encoding="utf-8")
    content = {
        "model": {"name": "nobody/unknown"},
        "task": {"name": "openbookqa", "source": "hub", "scoring": "letter", "max_length": 32, "train_examples": 80},
        "method": {"class_path": "BayesianLora", "init_args": {"r": 2, "target_modules": ["q_proj"]}},
        "train": {"epochs": 2, "batch_size": 4, "gradient_accumulation_steps": 2},
        "num_samples": 3,
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_the_command(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    architecture, output = tmp_path / "config.json", tmp_path / "plan.json"
    given = ["plan", str(config), "--architecture", str(architecture), "--output", str(output)]
    main([*given, "--gpu_memory", "1GB"])
    printed = capsys.readouterr().out
    assert "up to 32 tokens per item (max_length)" in printed and printed.rstrip().endswith("It fits.")
    record = json.loads(output.read_text(encoding="utf-8"))
    # 80 items in 20 micro-batches and 10 steps, twice; 20 % of 4957 items in dev and 500 in test, three draws each.
    assert record["passes"] == {"optimizer_steps": 20, "training": 160, "prediction": 3 * (991 + 500)}
    row = record["rows"][0]
    parts = ("weights", "adapters", "gradients", "optimizer", "activations")
    assert row["training"]["total"] == sum(row["training"][part] for part in parts)
    assert record["fits"] and record["proposals"] == [{}]
    main([*given, "--gpu_memory", "1GB", "--json"])
    assert json.loads(capsys.readouterr().out) == record
    tight = (row["training"]["total"] - 1) / 0.9
    main([*given, "--gpu_memory", str(int(tight))])
    assert "Any of these makes it fit:\n  - model.gradient_checkpointing: true" in capsys.readouterr().out


def test_sharing_is_a_way_to_launch_a_run() -> None:
    words = as_options(Change(devices=4), Setting(8, 8), TrainConfig())["launch"].split()
    assert words[:3] == ["accelerate", "launch", "--config_file"] and words[4:] == ["--num_processes", "4"]
    assert (ROOT / words[3]).is_file()


def test_the_options_proposed_make_it_fit(config: Path, tmp_path: Path) -> None:
    run, architecture = parse_run_or_comparison(config), tmp_path / "config.json"
    assert isinstance(run, RunConfig)
    with seeded(3):
        before = torch.random.get_rng_state()
        need = make_plan(run, PlanOptions(Budget(10**9), architecture)).rows[0]
        assert torch.equal(before, torch.random.get_rng_state()), "planning drew from torch's global generator"
    budget = Budget(int((need.training.weights + 0.45 * need.training.activations) / 0.9))
    proposal = make_plan(run, PlanOptions(budget, architecture)).proposals[0]
    content = yaml.safe_load(config.read_text(encoding="utf-8"))
    for name, value in proposal.items():
        place, _, leaf = name.rpartition(".")
        (content.setdefault(place, {}) if place else content)[leaf] = value
    parser = config_parser(RunConfig)
    again = instantiate(parser, parser.parse_object(content), RunConfig)
    plan = make_plan(again, PlanOptions(budget, architecture))
    assert proposal and plan.fits, (proposal, as_text(plan))
    assert plan.passes is not None and plan.passes.optimizer_steps == 20


def test_what_train_arguments_win_over_is_planned_as_it_will_be_trained(config: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(config.read_text(encoding="utf-8"))

    def planned(train: dict[str, object], memory: int = 10**9) -> Any:
        config.write_text(yaml.safe_dump(content | {"train": train}), encoding="utf-8")
        options = PlanOptions(Budget(memory), tmp_path / "config.json")
        return make_plan(parse_run_or_comparison(config), options)

    fields = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1, "num_train_epochs": 3}
    by_fields, by_options = planned({"arguments": fields}), planned({"batch_size": 16, "epochs": 3})
    assert by_fields.rows == by_options.rows and by_fields.passes.optimizer_steps == 15
    assert planned({"arguments": {**fields, "max_steps": 4}}).passes.optimizer_steps == 4
    assert planned({"arguments": {**fields, "max_steps": -1}, "max_steps": 4}).passes.optimizer_steps == 15
    checkpointed = planned({"arguments": {**fields, "gradient_checkpointing": True}})
    assert checkpointed.setting.checkpointing and checkpointed.rows[0].training.total < by_fields.rows[0].training.total
    # What is proposed would change nothing under a name that the arguments win over.
    need = checkpointed.rows[0].training
    memory = int((need.weights + 0.45 * need.activations) / 0.9)
    proposal = planned({"arguments": {**fields, "gradient_checkpointing": True}}, memory).proposals[0]
    assert set(proposal) == {f"train.arguments.{name}" for name in [*fields][:2]}
    changed = {name.rpartition(".")[2]: value for name, value in proposal.items()}
    assert planned({"arguments": {**fields, "gradient_checkpointing": True, **changed}}, memory).fits


def test_unknown_architectures(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", str(config), "--gpu_memory", "1GB"])
    error = capsys.readouterr().err
    assert "nobody/unknown" in error and "--architecture" in error and known_architectures()[0] in error


# --- the paper's runs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_paper_configs(path: Path) -> None:
    config = parse_run_or_comparison(path)
    assert isinstance(config, CompareConfig)
    assert list(config.tasks) == ["wg_s", "wg_m", "arc_challenge", "arc_easy", "openbookqa", "boolq"]
    assert config.model.name in known_architectures() and config.seeds == [0, 1, 2]
    assert len(config.outside("openbookqa")) == 7 and config.outside("boolq") == {}
    assert {"q_proj", "v_proj", "lm_head"} == set(config.adapter.target_modules or ())
    for task in config.tasks.values():
        assert task.source == "hub" and task.scoring == "letter" and get_task(task.name).hub_id


def test_there_is_a_config_for_every_known_architecture() -> None:
    assert len(PAPER) == len(known_architectures()) == 4


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("meta-llama/Llama-2-7b-hf", 6_738_415_616),
        ("meta-llama/Meta-Llama-3-8B", 8_030_261_248),
        ("Qwen/Qwen2.5-14B", 14_770_033_664),
        ("Qwen/Qwen3-30B-A3B", 30_532_122_624),
    ],
)
def test_architectures_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    assert sum(weight.numel() for weight in base_on_meta(find_architecture(name)).parameters()) == parameters


def test_a_paper_config_is_planned_without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse_run_or_comparison(ROOT / "studies" / "methods" / "paper" / "llama2_7b.yaml")
    assert isinstance(config, CompareConfig)
    config.rows = {"bayesian_lora": config.rows["bayesian_lora"]}
    monkeypatch.setattr("datasets.load_dataset", lambda *_: pytest.fail("the Hub was asked"))
    plan = make_plan(config, PlanOptions(Budget(parse_bytes("80GB"))))
    assert plan.parameters == 6_738_415_616 and plan.fits and plan.proposals == [{}]
    # LoRA of rank 8 on q, v (4096 wide) and the head (32000 rows), and Bayesian-LoRA's V on top.
    assert plan.rows[0].trainable - plan.rows[0].extra == 8 * (2 * 32 * 2 * 4096 + 4096 + 32000)
    assert json.loads(json.dumps(as_record(plan)))["rows"][0]["title"] == "bayesian_lora"


def test_wrong_titles_of_out_of_distribution_tasks() -> None:
    with pytest.raises(ValueError, match="'obqa' is no task"):
        CompareConfig(out_of_distribution_from=["obqa"])


def test_winogrande_subsets_come_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(*arguments: str) -> dict[str, list]:
        asked.append(arguments)
        row = {"option1": "a", "option2": "b", "answer": "1"}
        return {part: [{**row, "sentence": f"{part} {n} _"} for n in range(5)] for part in ("train", "validation")}

    monkeypatch.setattr("datasets.load_dataset", load)
    for size in "sm":
        assert len(get_task(f"winogrande_{size}").splits().test) == 5
    assert asked == [("allenai/winogrande", "winogrande_s"), ("allenai/winogrande", "winogrande_m")]
