"""Bayesian-LoRA behaves as a PEFT method: saving, loading, several adapters, merging, and clear refusals."""

import json
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    LoraConfig,
    PeftModel,
    get_peft_model,
    inject_adapter_in_model,
)
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from bayeslora import BayesianLoraConfig, random_factors, sampling
from bayeslora.adapters.random_factor import RandomFactor
from conftest import (
    CAUSAL,
    LAYERS,
    MODELS,
    POSTERIORS,
    bayesian,
    config_for,
    distance,
    logits_of,
    perturb,
    seeded,
    tiny_gpt2,
    tiny_llama,
    tiny_qwen,
    tokens,
)
from other_processes import run_copy

FAMILIES = list(product(POSTERIORS, ("lora", "inducing")))
each_family = pytest.mark.parametrize(("posterior", "mean"), FAMILIES)


def draws_of(model: nn.Module, ids: Tensor | None = None, *, seed: int = 7, num_samples: int = 2) -> Tensor:
    with sampling(model, num_samples, seed):
        return logits_of(model, ids)


def base_weights(model: nn.Module) -> dict[str, Tensor]:
    return {
        name.replace(".base_layer", ""): value.clone()
        for name, value in model.state_dict().items()
        if "lora_" not in name
    }


# --- saving and loading --------------------------------------------------------------------------------------------

IN_ANOTHER_PROCESS = """
import sys
from pathlib import Path
import torch
from conftest import logits_of, tiny_llama
import bayeslora
from peft import PeftModel

root, result = Path(sys.argv[1]), {}
for folder in sorted(root.iterdir()):
    for name in ("default", "other"):
        model = PeftModel.from_pretrained(tiny_llama(), folder, adapter_name=name)
        mean = logits_of(model)
        with bayeslora.sampling(model, 2, seed=7):
            result[folder.name, name] = mean, logits_of(model), model.training
torch.save(result, sys.argv[2])
"""


@pytest.fixture(scope="module")
def across_processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[Any, Any]]:
    """Mean and draws of each family here, and as another process that loaded the files has them."""
    root = tmp_path_factory.mktemp("families")
    here = {}
    for posterior, mean in FAMILIES:
        model = bayesian(posterior=posterior, mean=mean)
        model.save_pretrained(root / "adapters" / f"{posterior}-{mean}")
        here[f"{posterior}-{mean}"] = logits_of(model), draws_of(model)
    done = run_copy(IN_ANOTHER_PROCESS, root, str(root / "adapters"), str(root / "result.pt"))
    assert done.returncode == 0, done.stderr
    return here, torch.load(root / "result.pt")


@each_family
@pytest.mark.parametrize("name", ["default", "other"])
def test_another_process_has_the_same_mean_and_draws(
    posterior: str, mean: str, name: str, across_processes: tuple[dict[str, Any], dict[Any, Any]]
) -> None:
    here, there = across_processes
    expected_mean, expected_draws = here[f"{posterior}-{mean}"]
    found_mean, found_draws, training = there[f"{posterior}-{mean}", name]
    assert not training
    assert distance(found_mean, expected_mean) < 1e-6
    assert distance(found_draws, expected_draws) < 1e-6
    assert distance(expected_draws[:3], expected_mean) > 0.1
    assert distance(expected_draws[:3], expected_draws[3:]) > 0.1 or posterior == "ensemble"


@each_family
def test_low_memory_loading_has_the_same_mean_and_draws(posterior: str, mean: str, tmp_path: Path) -> None:
    model = bayesian(posterior=posterior, mean=mean)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path, low_cpu_mem_usage=True)
    assert not any(parameter.is_meta for parameter in loaded.parameters())
    assert distance(logits_of(loaded), logits_of(model)) < 1e-6
    assert distance(draws_of(loaded), draws_of(model)) < 1e-6


def test_auto_class_loads_base_and_adapter(saved_base: Path, tmp_path: Path) -> None:
    with seeded(3):
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(saved_base),
            config_for(task_type="CAUSAL_LM"),
        )
    perturb(model).eval()
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert type(loaded.peft_config["default"]) is BayesianLoraConfig
    assert distance(logits_of(loaded), logits_of(model)) < 1e-6
    assert distance(draws_of(loaded), draws_of(model)) < 1e-6


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_saving_and_loading_give_no_warning(posterior: str, saved_base: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(saved_base)
    model = get_peft_model(base, config_for(posterior=posterior, learn_residual_scale=True, residual_scale=0.5))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.save_pretrained(tmp_path / "adapter")
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(saved_base), tmp_path / "adapter")
    # PEFT itself asks transformers for an attribute that is called deprecated.
    messages = [str(warning.message) for warning in caught if not issubclass(warning.category, FutureWarning)]
    assert messages == []


def test_training_can_go_on_after_loading(tmp_path: Path) -> None:
    bayesian().save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path, is_trainable=True)
    trainable = {name for name, parameter in loaded.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in loaded.named_parameters() if "lora_" in name}
    frozen = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_modules_to_save_come_back(tmp_path: Path) -> None:
    model = bayesian(modules_to_save=["lm_head"])
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path, adapter_name="other")
    assert distance(logits_of(loaded), logits_of(model)) < 1e-6
    assert distance(draws_of(loaded), draws_of(model)) < 1e-6
    head = model.base_model.model.lm_head
    assert distance(head.modules_to_save["default"].weight, head.original_module.weight) > 0.1


def test_classification_head_comes_back(tmp_path: Path) -> None:
    model = bayesian("bert", task_type="SEQ_CLS")
    model.save_pretrained(tmp_path)
    other_head = MODELS["bert"]()
    with torch.no_grad():
        other_head.classifier.weight.zero_()
    loaded = PeftModel.from_pretrained(other_head, tmp_path)
    assert distance(draws_of(loaded), draws_of(model)) < 1e-6


# --- the mean is a LoRA adapter ------------------------------------------------------------------------------------


def plain_lora(model: PeftModel, base: PreTrainedModel, **options: Any) -> PeftModel:
    """A plain PEFT LoRA on `base` that holds the posterior means of `model`."""
    config = model.peft_config["default"]
    shared = {name: getattr(config, name) for name in ("r", "lora_alpha", "target_modules", "fan_in_fan_out")}
    plain = get_peft_model(base, LoraConfig(**shared, **options)).eval()
    copied = 0
    for name, module in model.named_modules():
        if isinstance(module, RandomFactor):
            linear = plain.get_submodule(name)
            assert type(linear) is nn.Linear
            linear.weight.data.copy_(module.weight)
            copied += 1
    assert copied == sum(type(m) is nn.Linear and ".lora_" in n for n, m in plain.named_modules()) > 0
    return plain


@pytest.mark.parametrize("name", MODELS)
def test_mean_is_plain_lora_bit_for_bit(name: str) -> None:
    model = bayesian(name)
    plain = plain_lora(model, MODELS[name]())
    assert torch.equal(logits_of(model), logits_of(plain))
    assert distance(logits_of(model), logits_of(MODELS[name]())) > 0.1


@each_family
def test_mean_of_each_family_is_plain_lora(posterior: str, mean: str) -> None:
    model = bayesian(posterior=posterior, mean=mean)
    # Weights are computed in batches of one shape, which rounds differently than one by one.
    assert distance(logits_of(model), logits_of(plain_lora(model, tiny_llama()))) < 2e-5


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"rank_pattern": {"layers.1.self_attn.q_proj": 2, "v_proj": 6}, "alpha_pattern": {"v_proj": 20}},
        {"layers_to_transform": [2, 3]},
        {"lora_dropout": 0.5},
        {"exclude_modules": ["v_proj"]},
    ],
    ids=lambda options: "+".join(options),
)
def test_options_of_lora_mean_what_they_mean_there(options: dict[str, Any], tmp_path: Path) -> None:
    model = bayesian(**options)
    assert torch.equal(logits_of(model), logits_of(plain_lora(model, tiny_llama(), **options)))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    assert distance(draws_of(loaded), draws_of(model)) < 1e-6
    assert distance(draws_of(model)[:3], logits_of(model)) > 0.1


def test_rank_pattern_sets_the_number_of_inducing_points() -> None:
    model = bayesian(rank_pattern={"v_proj": 6})
    ranks = {name.split(".")[-3]: f.family.inducing for name, f in model.named_modules() if isinstance(f, RandomFactor)}
    assert ranks == {"q_proj": 4, "v_proj": 6, "down_proj": 4}


def test_layers_to_transform_leaves_the_others_alone() -> None:
    model = bayesian(layers_to_transform=[2, 3])
    places = {name.split(".layers.")[1][0] for name, m in model.named_modules() if isinstance(m, RandomFactor)}
    assert places == {"2", "3"}
    assert len(random_factors(model)) == 2 * 3 * 2


def test_dropout_acts_in_training_only() -> None:
    wet, dry = bayesian(lora_dropout=0.5), bayesian()
    assert distance(draws_of(wet), draws_of(dry)) == 0
    wet.train()
    with sampling(wet, 1, seed=7), seeded(1):
        assert distance(logits_of(wet), logits_of(wet)) > 0.01


@each_family
def test_logits_at_the_start_are_the_base_models(posterior: str, mean: str) -> None:
    model = get_peft_model(tiny_llama(), config_for(posterior=posterior, mean=mean)).eval()
    assert distance(logits_of(model), logits_of(tiny_llama())) < 1e-5
    assert distance(draws_of(model, num_samples=1), logits_of(model)) > 0.01


@pytest.mark.parametrize("name", MODELS)
def test_logits_at_the_start_for_each_kind_of_model(name: str) -> None:
    model = get_peft_model(MODELS[name](), config_for(name)).eval()
    assert torch.equal(logits_of(model), logits_of(MODELS[name]()))


def test_layers_of_one_shape_start_apart() -> None:
    model = get_peft_model(tiny_llama(), config_for(posterior="ensemble", bases="free"))
    first, second = (
        dict(model.named_modules())[f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_A.default"]
        for layer in (0, 1)
    )
    for name, value in first.parameters_by_name.items():
        if name not in ("row_log_diagonal", "column_log_diagonal"):
            assert not torch.equal(value, second.parameters_by_name[name]), name


def test_half_precision_base_keeps_factors_in_single_precision(tmp_path: Path) -> None:
    base = tiny_llama().to(torch.bfloat16)
    with seeded(3):
        model = perturb(get_peft_model(base, config_for())).eval()
    assert {parameter.dtype for name, parameter in model.named_parameters() if "lora_" in name} == {torch.float32}
    mean, draws = logits_of(model), draws_of(model)
    assert mean.dtype == torch.bfloat16
    assert draws.isfinite().all()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama().to(torch.bfloat16), tmp_path)
    assert {p.dtype for name, p in loaded.named_parameters() if "lora_" in name} == {torch.float32}
    assert torch.equal(draws_of(loaded), draws)
    # The same adapter on the same base in single precision: only rounding apart.
    single = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    assert distance(logits_of(single), mean.float()) < 0.1 * logits_of(single).std()
    model.train()
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for n, p in model.named_parameters() if "lora_" in n)


# --- several adapters ----------------------------------------------------------------------------------------------


@pytest.fixture
def two_adapters() -> PeftModel:
    model = bayesian()
    with seeded(50):
        model.add_adapter("second", config_for(posterior="matrix_normal", r=2))
        model.set_adapter("second")
    perturb(model, seed=4)
    model.set_adapter("default")
    return model.eval()


def test_each_adapter_has_its_own_mean_and_draws(two_adapters: PeftModel) -> None:
    model, alone = two_adapters, bayesian()
    assert torch.equal(logits_of(model), logits_of(alone))
    assert torch.equal(draws_of(model), draws_of(alone))
    model.set_adapter("second")
    assert distance(logits_of(model), logits_of(alone)) > 0.1
    assert distance(draws_of(model), draws_of(alone)) > 0.1
    model.set_adapter("default")
    assert torch.equal(draws_of(model), draws_of(alone))


def test_deleting_an_adapter_keeps_the_other(two_adapters: PeftModel) -> None:
    model = two_adapters
    expected = draws_of(model)
    model.delete_adapter("second")
    assert torch.equal(draws_of(model), expected)
    with pytest.raises(ValueError, match="second"):
        model.set_adapter("second")


def test_two_adapters_are_saved_and_loaded_apart(two_adapters: PeftModel, tmp_path: Path) -> None:
    model = two_adapters
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    loaded.load_adapter(tmp_path / "second", adapter_name="again")
    assert distance(draws_of(loaded), draws_of(model)) < 1e-6
    loaded.set_adapter("again")
    model.set_adapter("second")
    assert distance(draws_of(loaded), draws_of(model)) < 1e-6


def test_two_active_adapters_are_both_drawn(two_adapters: PeftModel) -> None:
    model = two_adapters
    model.base_model.set_adapter(["default", "second"])
    assert len(random_factors(model)) == 2 * len(random_factors(bayesian()))
    with sampling(model, 1, seed=7):
        assert all(factor.active_noise is not None for factor in random_factors(model))
        assert distance(logits_of(model), logits_of(bayesian())) > 0.1
    assert distance(draws_of(model)[:3], draws_of(model, num_samples=1)) < 1e-5


def test_switching_inside_sampling_leaves_nothing_behind(two_adapters: PeftModel) -> None:
    model = two_adapters
    mean = logits_of(model)
    with sampling(model, 1, seed=7):
        model.set_adapter("second")
    model.set_adapter("default")
    assert torch.equal(logits_of(model), mean)


def test_switching_inside_sampling_draws_the_new_adapter_or_raises(two_adapters: PeftModel) -> None:
    model = two_adapters
    model.set_adapter("second")
    expected, mean = draws_of(model, num_samples=1), logits_of(model)
    model.set_adapter("default")
    with sampling(model, 1, seed=7):
        try:
            model.set_adapter("second")
            found = logits_of(model)
        except (ValueError, RuntimeError):
            return
    assert distance(found, mean) > 0.1, "sampling gave the mean without saying so"
    assert distance(found, expected) < 1e-5


def test_disabled_adapter_is_the_base_model() -> None:
    model, base = bayesian(), logits_of(tiny_llama())
    mean = logits_of(model)
    with model.disable_adapter():
        assert torch.equal(logits_of(model), base)
        with sampling(model, 1, seed=7):
            assert torch.equal(logits_of(model), base)
    model.train()
    with model.disable_adapter():
        assert torch.equal(logits_of(model), base)
    assert torch.equal(logits_of(model.eval()), mean)


def test_mixed_batch_of_means(two_adapters: PeftModel) -> None:
    model, ids = two_adapters, tokens()
    mixed = logits_of(model, ids, adapter_names=["default", "second", "__base__"])
    assert distance(mixed[:1], logits_of(model, ids[:1])) < 1e-5
    model.set_adapter("second")
    assert distance(mixed[1:2], logits_of(model, ids[1:2])) < 1e-5
    assert distance(mixed[2:], logits_of(tiny_llama(), ids[2:])) < 1e-5


def test_mixed_batch_of_draws(two_adapters: PeftModel) -> None:
    model, ids = two_adapters, tokens()
    expected = [draws_of(model, ids[:1], num_samples=1)]
    model.set_adapter("second")
    expected.append(draws_of(model, ids[1:2], num_samples=1))
    model.set_adapter("default")
    with sampling(model, 1, seed=7):
        mixed = logits_of(model, ids, adapter_names=["default", "second", "__base__"])
    assert distance(mixed[:1], expected[0]) < 1e-5
    assert distance(mixed[1:2], expected[1]) < 1e-5, "the adapter that is not active was not drawn"
    assert distance(mixed[2:], logits_of(tiny_llama(), ids[2:])) < 1e-5


def test_mixed_batch_refuses_several_samples(two_adapters: PeftModel) -> None:
    with sampling(two_adapters, 2, seed=7), pytest.raises(ValueError, match="adapter_names"):
        logits_of(two_adapters, adapter_names=["default", "second", "__base__"])


def test_injected_without_a_peft_model() -> None:
    with seeded(100):
        model = inject_adapter_in_model(config_for(), tiny_llama())
    perturb(model).eval()
    expected = bayesian()
    assert torch.equal(logits_of(model), logits_of(expected))
    assert torch.equal(draws_of(model), draws_of(expected))
    assert distance(draws_of(model)[:3], logits_of(model)) > 0.1


# --- merging -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CAUSAL, "bert"])
@pytest.mark.parametrize("training", [False, True])
def test_merged_mean(name: str, training: bool) -> None:
    model = bayesian(name)
    mean = logits_of(model)
    model.train(training)
    merged = model.merge_and_unload().eval()
    assert distance(logits_of(merged), mean) < 1e-4
    assert not any(isinstance(module, RandomFactor) for module in merged.modules())
    assert "bayeslora_draws" not in merged.__dict__
    with sampling(merged, 3, seed=1):
        assert torch.equal(logits_of(merged), logits_of(merged))


def test_merging_in_train_mode_ignores_the_step_s_draw() -> None:
    model = bayesian()
    mean = logits_of(model)
    model.train()
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    assert distance(logits_of(model.merge_and_unload().eval()), mean) < 1e-4


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("training", [False, True])
def test_merged_draw(name: str, training: bool) -> None:
    model = bayesian(name)
    mean, draw = logits_of(model), draws_of(model, num_samples=1)
    model.train(training)
    with sampling(model, 1, seed=7):
        merged = model.merge_and_unload().eval()
    assert distance(logits_of(merged), draw) < 2e-4
    assert distance(draw, mean) > 0.1


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_merged_draw_of_each_posterior(posterior: str) -> None:
    model = bayesian(posterior=posterior)
    draw = draws_of(model, num_samples=1)
    with sampling(model, 1, seed=7):
        merged = model.merge_and_unload()
    assert distance(logits_of(merged), draw) < 2e-4


@pytest.mark.parametrize("training", [False, True])
def test_merging_and_back(training: bool) -> None:
    model = bayesian().train(training)
    before, mean = base_weights(model), logits_of(bayesian())
    model.merge_adapter()
    assert distance(logits_of(model), mean) < 1e-4
    model.unmerge_adapter()
    assert max(distance(value, before[name]) for name, value in base_weights(model).items()) < 1e-6
    assert distance(logits_of(model.eval()), mean) < 1e-4


def test_merging_a_draw_and_back() -> None:
    model = bayesian()
    before, mean, draw = base_weights(model), logits_of(model), draws_of(model, num_samples=1)
    with sampling(model, 1, seed=7):
        model.merge_adapter()
        assert distance(logits_of(model), draw) < 2e-4
        model.unmerge_adapter()
    assert max(distance(value, before[name]) for name, value in base_weights(model).items()) < 1e-6
    assert distance(logits_of(model), mean) < 1e-4


def test_unmerging_another_draw_is_refused() -> None:
    model = bayesian()
    draw = draws_of(model, num_samples=1)
    with sampling(model, 1, seed=7):
        model.merge_adapter()
    with pytest.raises(RuntimeError, match="another draw"):
        model.unmerge_adapter()
    with sampling(model, 1, seed=8), pytest.raises(RuntimeError, match="another draw"):
        model.unmerge_adapter()
    assert distance(logits_of(model), draw) < 2e-4

    model = bayesian()
    model.merge_adapter()
    with sampling(model, 1, seed=7), pytest.raises(RuntimeError, match="another draw"):
        model.unmerge_adapter()
    model.unmerge_adapter()
    assert distance(logits_of(model), logits_of(bayesian())) < 1e-4


def test_disabling_a_merged_draw_never_corrupts_the_base() -> None:
    """PEFT unmerges inside the forward of a disabled layer, past `unmerge_adapter`."""
    model, base = bayesian(), logits_of(tiny_llama())
    with sampling(model, 1, seed=7):
        model.merge_adapter()
    try:
        with model.disable_adapter():
            found = logits_of(model)
    except RuntimeError:
        return
    assert distance(found, base) < 1e-4


def test_disabling_a_merged_mean_in_train_mode_never_corrupts_the_base() -> None:
    model, base = bayesian().train(), logits_of(tiny_llama())
    logits_of(model)
    model.merge_adapter()
    with model.disable_adapter():
        assert distance(logits_of(model), base) < 1e-4


def test_merging_several_draws_is_refused() -> None:
    model = bayesian()
    before = base_weights(model)
    with sampling(model, 2, seed=7):
        for merge in (model.merge_adapter, model.merge_and_unload):
            with pytest.raises(ValueError, match="num_samples=1"):
                merge()
    assert all(torch.equal(value, before[name]) for name, value in base_weights(model).items())


# --- what cannot work says so --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"target_parameters": ["mlp.gate_up_proj"]}, "target_parameters"),
        ({"posterior": "diagnal"}, "Did you mean 'diagonal'"),
        ({"posterior": "matrix_norm"}, "Did you mean 'matrix_normal'"),
        ({"prior_std": 0.0}, "prior_std must be above 0"),
        ({"posterior_std": -1.0}, "posterior_std must be above 0"),
        ({"residual_scale": 1.5}, "residual_scale"),
        ({"residual_scale": 0.0}, "residual_scale"),
        ({"learn_residual_scale": True}, "below maximum_residual_scale"),
        ({"mean": "lorra"}, "mean must be one of"),
        ({"bases": "tied"}, "bases must be one of"),
        ({"inducing_diagonal": 1e-3}, "inducing_diagonal"),
    ],
)
def test_config_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BayesianLoraConfig(target_modules=["q_proj"], **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["embed_tokens"]}, "embed_tokens.*Embedding"),
        ({"target_modules": ["nothing_like_it"]}, "nothing_like_it"),
        ({"num_inducing": 3}, "num_inducing=3 needs bases='free'"),
    ],
)
def test_model_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_peft_model(tiny_llama(), config_for(**options))


def test_free_bases_take_another_number_of_inducing_points() -> None:
    model = bayesian(num_inducing=3, bases="free")
    assert {factor.family.inducing for factor in random_factors(model)} == {3}
    assert distance(draws_of(model)[:3], logits_of(model)) > 0.1


def test_weighted_sums_of_posteriors_are_refused(two_adapters: PeftModel) -> None:
    with pytest.raises(NotImplementedError, match="posterior"):
        two_adapters.add_weighted_adapter(["default", "second"], [0.5, 0.5], "sum")


def test_newer_files_are_refused(tmp_path: Path) -> None:
    bayesian().save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    content = json.loads(path.read_text())
    assert content["format_version"] == 2
    assert content["peft_type"] == "BAYES_LORA"
    path.write_text(json.dumps({**content, "format_version": 3}))
    with pytest.raises(ValueError, match="upgrade"):
        PeftModel.from_pretrained(tiny_llama(), tmp_path)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (lambda: tiny_llama(seed=9), "weights"),
        (lambda: tiny_llama(num_hidden_layers=LAYERS + 1), "num_hidden_layers should be 4, got 5"),
        (lambda: tiny_llama(vocab_size=200), "vocab_size"),
        (lambda: tiny_qwen(), "model_type should be llama, got qwen3"),
    ],
    ids=["weights", "layers", "vocabulary", "type"],
)
@pytest.mark.parametrize("low_memory", [False, True])
def test_another_base_model_is_refused(base: Any, message: str, low_memory: bool, tmp_path: Path) -> None:
    bayesian().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"another base model.*{message}"):
        PeftModel.from_pretrained(base(), tmp_path, low_cpu_mem_usage=low_memory)


def test_a_second_adapter_for_another_base_model_is_refused(tmp_path: Path) -> None:
    bayesian(seed=9).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="another base model"):
        bayesian().load_adapter(tmp_path, "second")


def test_one_config_object_serves_several_base_models(tmp_path: Path) -> None:
    config = config_for()
    for seed in (0, 9):
        model = get_peft_model(tiny_llama(seed), config)
        model.save_pretrained(tmp_path / str(seed))
        PeftModel.from_pretrained(tiny_llama(seed), tmp_path / str(seed))


def test_gpt2_s_transposed_layers_are_recognised_again(tmp_path: Path) -> None:
    model = bayesian("gpt2")
    model.save_pretrained(tmp_path)
    assert distance(draws_of(PeftModel.from_pretrained(tiny_gpt2(), tmp_path)), draws_of(model)) < 1e-6
    with pytest.raises(ValueError, match="another base model"):
        PeftModel.from_pretrained(tiny_gpt2(seed=9), tmp_path)


def test_labels_in_a_forward_of_several_samples_are_refused() -> None:
    model = bayesian()
    with sampling(model, 2, seed=7), pytest.raises(ValueError, match="labels cannot be given"):
        model(input_ids=tokens(), labels=tokens())
    with sampling(model, 1, seed=7):
        assert model(input_ids=tokens(), labels=tokens()).loss.isfinite()


def test_preparing_for_a_compiled_hotswap_is_refused():
    from peft.utils.hotswap import prepare_model_for_compiled_hotswap

    model = bayesian("llama")
    with pytest.raises(NotImplementedError, match="posterior would be lost"):
        prepare_model_for_compiled_hotswap(model, target_rank=16)
