"""Every option of a config and of a method has a range or a type that is checked where the config is made."""

import dataclasses
import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
import yaml

from bayeslora.experiments.comparison.config import AdapterConfig, CompareConfig, RowConfig
from bayeslora.experiments.learning_rates.config import SweepConfig
from bayeslora.experiments.ranks.config import RankStudyConfig
from bayeslora.experiments.sequences.config import ChainConfig, ContinualConfig
from bayeslora.methods import BayesianLora, Lora, method_classes
from bayeslora.options.ranges import Range, check_options
from bayeslora.options.ranges import _argument_hints as argument_hints
from bayeslora.planning.config_files import parse_run_or_comparison
from bayeslora.runs.beginning import check_config, note_batches
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.runs.config_files import parse_config
from bayeslora.training.arguments import _hints, check_arguments
from bayeslora.training.non_finite import likely_cause
from bayeslora.training.sft import SFTConfig

CONFIGS = [RunConfig, CompareConfig, SweepConfig, RankStudyConfig, ChainConfig, ContinualConfig]
METHODS = [method for method in method_classes() if method.__module__.startswith("bayeslora.")]


def run(**train: Any) -> RunConfig:
    return RunConfig(train=TrainConfig(**train))


@pytest.mark.parametrize("kind", [*CONFIGS, TrainConfig, TaskConfig, AdapterConfig, *METHODS])
def test_every_number_has_a_range(kind: type) -> None:
    """But for the seed of a subset, which may be any."""
    hints = get_type_hints(kind, include_extras=True) if dataclasses.is_dataclass(kind) else argument_hints(kind)
    numbers = {name for name, hint in hints.items() if int in bare(hint) or float in bare(hint)}
    assert numbers <= {"subset_seed"}


def bare(hint: Any) -> set[Any]:
    """The types in an annotation that no range stands at."""
    if get_origin(hint) is Annotated:
        return set()
    inner = [bare(each) for each in get_args(hint) if get_origin(hint) is not Literal]
    return {hint}.union(*inner)


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("learning_rate", [0, -1e-3, 1e6, math.nan, math.inf, None, "fast", True]),
        ("gradient_accumulation_steps", [0, -1, 1.5, None, 10**12]),
        ("max_grad_norm", [-1.0, math.nan, None, 1e300]),
        ("epochs", [-1, math.inf, None]),
        ("max_steps", [0, -5]),
        ("batch_size", [0, -8, None, 10**9]),
        ("warmup", [-0.1, 1.0, 10]),
        ("weight_decay", [-0.1, 1e9]),
        ("label_smoothing", [-0.1, 1.0]),
        ("logging_steps", [0, None]),
        ("save_steps", [0]),
        ("cache_trunk_limit", [-1, None]),
        ("cache_trunk", [None, "yes"]),
        ("optimizer", [None, "muon"]),
        ("lr_scheduler", [None, 3]),
        ("report_to", [None, "wandb", [3]]),
        ("arguments", [None, [], {"x": object()}, {3: 4}]),
        ("optimizer_options", [None, {"pair_lr": Path("x")}]),
    ],
)
def test_options_of_the_training(option: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises((ValueError, TypeError), match=rf"train\.{option}"):
            run(**{option: value})


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("lora_dropout", [-0.1, 1.0, math.nan, None]),
        ("lora_alpha", [-16, 0, math.nan, None, 1e12]),
        ("r", [0, -1, None, 2.5, 10**9]),
        ("kl_warmup", [-0.5, 1.5]),
        ("posterior_learning_rate_scale", [-5, math.nan, None]),
        ("beta", [-1]),
        ("train_samples", [0]),
        ("last_layers", [0, -2]),
        ("prior_std", [0, -1, None, [0.1, -1], [math.nan]]),
        ("mean_std", [0, [None, -1.0]]),
        ("residual_scale", [0, 1.5]),
        ("placement", ["middle", None]),
        ("learn_residual_scale", [None, 1]),
        ("posterior_options", [{"members": object()}]),
    ],
)
def test_options_of_a_method(option: str, values: list[Any]) -> None:
    for value in values:
        method = BayesianLora(**{option: value})
        with pytest.raises((ValueError, TypeError), match=rf"method\.{option}"):
            RunConfig(method=method)


@pytest.mark.parametrize(
    ("part", "match"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"num_samples": -1}, "num_samples"),
        ({"batch_size": 0}, "batch_size"),
        ({"temperature_scaling": None}, "temperature_scaling"),
        ({"train": None}, "train must not be null"),
        ({"model": None}, "model must not be null"),
        ({"method": None}, "method must not be null"),
        ({"model": ModelConfig(name=None)}, r"model\.name must not be null"),
        ({"model": ModelConfig(dtype="int3")}, r"model\.dtype must be one of"),
        ({"task": TaskConfig(max_length=0)}, r"task\.max_length"),
        ({"task": TaskConfig(test_examples=-2)}, r"task\.test_examples"),
    ],
)
def test_options_of_a_run(part: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        RunConfig(**part)


def test_what_is_allowed_passes() -> None:
    run(learning_rate=10, max_grad_norm=0, epochs=0, label_smoothing=0, arguments={"a": [1, {"b": None}]})
    check_arguments(
        {"warmup_steps": 0.1, "optim": "sgd", "save_strategy": "no", "adam_beta2": 0, "eval_steps": None, "seed": 3}
        | {"logging_steps": 0.5, "lr_scheduler_kwargs": {"num_cycles": 2}, "report_to": ["wandb"], "debug": ""}
    )
    check_arguments({"packing": True, "max_length": None, "pad_to_multiple_of": 8}, texts=True)
    for kind in CONFIGS:
        kind()
    for method in METHODS:
        RunConfig(method=method())
    method = BayesianLora(prior_std=[0.1, 0.2], mean_std=[None, 0.3], inducing_std=None, kl_warmup=1)
    RunConfig(method=method, num_samples=0)


def test_values_of_a_file_are_checked_before_anything_is_done(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for content, match in (
        ({"train": {"batch_size": None}}, r"train\.batch_size must not be null"),
        ({"method": {"class_path": "BayesianLora", "init_args": {"kl_warmup": -1}}}, r"method\.kl_warmup"),
        ({"method": {"class_path": "Lora", "init_args": {"lora_alpha": None}}}, r"method\.lora_alpha must not be null"),
        ({"task": {"max_length": -5}}, r"task\.max_length must be at least 1"),
        ({"train": None}, "train"),
    ):
        path.write_text(yaml.safe_dump(content))
        with pytest.raises(ValueError, match=match):
            parse_config(path)


def test_a_config_that_was_changed_is_checked_again() -> None:
    config = RunConfig(method=Lora())
    config.method.r = -1
    with pytest.raises(ValueError, match=r"method\.r"):
        check_options(config)


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"learning_rate": 1e-3}, r"rows\.x\.train\.learning_rate: .* rows\.x\.learning_rates: \[0\.001\]"),
        ({"batch_size": 0}, r"rows\.x\.train\.batch_size"),
        ({"batch_size": "many"}, r"rows\.x\.train\.batch_size"),
        ({"optimizer": "muon"}, r"rows\.x\.train\.optimizer must be one of"),
        ({"cache_trunk": None}, r"rows\.x\.train\.cache_trunk must not be null"),
        ({"report_to": "wandb"}, r"rows\.x\.train\.report_to must be a list"),
        ({"batch": 8}, r"rows\.x\.train has no field 'batch'"),
    ],
)
def test_the_options_of_a_row_are_checked_with_the_comparison(row: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match):
        CompareConfig(rows={"x": RowConfig(Lora(), train=row)})
    path = tmp_path / "comparison.yaml"
    path.write_text(yaml.safe_dump({"rows": {"x": {"method": {"class_path": "Lora"}, "train": row}}}))
    with pytest.raises(ValueError, match=match):
        parse_run_or_comparison(path)


def test_other_options_of_a_comparison() -> None:
    good = CompareConfig(rows={"x": RowConfig(Lora(), train={"label_smoothing": 0.05, "batch_size": 4})})
    assert good.run("arc_easy", "x", 0, 1e-3).train.batch_size == 4
    for change, match in (
        ({"learning_rates": [1e-3, 0]}, r"learning_rates\[1\]"),
        ({"rows": {"x": RowConfig(Lora(), learning_rates=[-1])}}, r"rows\.x\.learning_rates\[0\]"),
        ({"rows": {"x": RowConfig(Lora(r=-1))}}, r"rows\.x\.method\.r"),
        ({"adapter": AdapterConfig(lora_alpha=-1)}, r"adapter\.lora_alpha"),
        ({"tasks": {"x": TaskConfig(max_length=0)}}, r"tasks\.x\.max_length"),
        ({"seeds": [-1]}, r"seeds\[0\]"),
    ):
        with pytest.raises(ValueError, match=match):
            replace(good, **change)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("warmup_steps", [-1, math.nan, "10", True, None]),
        ("weight_decay", [-1, 1e9, math.inf]),
        ("max_grad_norm", [-1, math.nan]),
        ("gradient_accumulation_steps", [0, 1.5, -2]),
        ("per_device_train_batch_size", [0, 2.5]),
        ("adam_beta1", [1, -0.1, math.nan]),
        ("adam_beta2", [1.5]),
        ("adam_epsilon", [-1e-8]),
        ("learning_rate", [0, -1, 1e6]),
        ("num_train_epochs", [-1, math.inf]),
        ("max_steps", [-2, 3.5]),
        ("save_total_limit", [0]),
        ("disable_tqdm", ["yes", 1]),
        ("optim", ["adamx", 3]),
        ("save_strategy", ["sometimes"]),
        ("lr_scheduler_type", ["lineer", None]),
        ("lr_scheduler_kwargs", [[1]]),
        ("seed", [-1, 2**32]),
        ("output_dir", ["elsewhere"]),
        ("resume_from_checkpoint", [True]),
        ("weigth_decay", [0.1]),
        ("packing", [True]),
        ("_n_gpu", [2]),
    ],
)
def test_fields_of_training_arguments(field: str, values: list[Any]) -> None:
    for value in values:
        config = run(arguments={field: value})
        with pytest.raises(ValueError, match=rf"train\.arguments\.{field} (must|is no field of)"):
            check_config(config, dev_items=1)
        with pytest.raises(ValueError, match=rf"rows\.x\.train\.arguments\.{field} "):
            CompareConfig(rows={"x": RowConfig(Lora(), train={"arguments": {field: value}})})


def test_every_number_of_training_arguments_has_a_range() -> None:
    hints = _hints(SFTConfig)
    assert not {name for name, hint in hints.items() if int in bare(hint) or float in bare(hint)}


@pytest.mark.parametrize(
    ("kind", "field", "option"),
    [
        *((kind, "learning_rate", "learning_rates") for kind in (CompareConfig, SweepConfig)),
        *((kind, "seed", "seeds") for kind in (CompareConfig, SweepConfig, ContinualConfig)),
        (ChainConfig, "seed", "seed"),
    ],
)
def test_procedures_choose_rates_and_seeds_by_themselves(kind: type, field: str, option: str) -> None:
    with pytest.raises(ValueError, match=rf"train\.arguments\.{field} would win over {option} in every run"):
        kind(train=TrainConfig(arguments={field: 1}))
    with pytest.raises(ValueError, match=r"train\.arguments\.weight_decay must be"):
        kind(train=TrainConfig(arguments={"weight_decay": -1}))


def test_a_batch_size_that_may_be_meant_for_training_is_explained(caplog: pytest.LogCaptureFixture) -> None:
    for config in (RunConfig(), RunConfig(batch_size=32, train=TrainConfig(batch_size=32)), run(batch_size=4)):
        note_batches(config)
    assert not caplog.messages
    note_batches(RunConfig(batch_size=32))
    assert caplog.messages == [
        "batch_size 32 counts items of a prediction's forward; a step of training has 8: train.batch_size"
    ]


def test_a_range_says_what_it_holds() -> None:
    assert str(Range(0, 10, above=True)) == "above 0 and at most 10"
    assert 0 not in Range(0, 10, above=True) and 10 in Range(0, 10) and 10 not in Range(0, 10, below=True)
    assert math.nan not in Range(0, 10)


def test_a_loss_that_is_not_finite_names_the_likely_option() -> None:
    first = likely_cause(0, 1e-3, 5e-3, 1.0)
    assert "float16" in first and "(0.001)" not in first
    later = likely_cause(7, 1e-3, 5e-3, 0.0)
    assert "learning rate (0.001)" in later and "(a rate of 0.005)" in later and "max_grad_norm" in later
    assert "posterior" not in likely_cause(7, 1e-3, None, 1.0) and "clipped" not in likely_cause(7, 1e-3, None, 1.0)
