"""Which draw a forward uses: several at once, one after the other, held, fresh, or none."""

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from bayeslora import predict, random_factors, sampling
from bayeslora.adapters.draws import find_draws, hold_draw
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
    tiny_llama,
    tokens,
)

UPPER = [2, 3]


def draw(model: nn.Module, number: int = 0, *, seed: int = 7, **inputs: Any) -> Tensor:
    with sampling(model, 1, seed, first=number):
        return logits_of(model, **inputs)


def padded(ids: Tensor, *, left: bool) -> Tensor:
    """A mask that hides one token of the first row and two of the second."""
    mask = torch.ones_like(ids)
    for row, count in enumerate((1, 2)):
        mask[row, slice(0, count) if left else slice(-count, None)] = 0
    return mask


# --- S samples in one forward --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [UPPER, None], ids=["upper", "all"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("share_trunk", [True, False])
def test_samples_in_one_forward_are_single_draws(
    name: str, layers: list[int] | None, rows: int, share_trunk: bool
) -> None:
    model = bayesian(name, layers_to_transform=layers)
    ids = tokens(max(rows, 2))[:rows]
    mask = padded(tokens(3), left=name != "bert")[:rows]
    with sampling(model, 4, seed=7, share_trunk=share_trunk):
        together = logits_of(model, ids, attention_mask=mask)
    assert together.shape[0] == 4 * rows
    apart = [draw(model, number, ids=ids, attention_mask=mask) for number in range(4)]
    # Rounding: through gpt2's fixture float32 differs by 2.4e-5 of logits up to 4.3; float64 by 2.5e-14.
    assert distance(together.unflatten(0, (4, rows)), torch.stack(apart)) < (4e-5 if name == "gpt2" else 2e-5)
    assert distance(apart[0], apart[1]) > 0.01


@pytest.mark.parametrize("name", CAUSAL)
def test_samples_with_a_mask_for_each_item(name: str) -> None:
    """A 4D mask and positions, as packed choices have them."""
    model, ids = bayesian(name, layers_to_transform=UPPER), tokens(3)
    allowed = torch.ones(7, 7, dtype=torch.bool).tril().repeat(3, 1, 1, 1)
    allowed[1, :, 5:, 3:5] = False
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    positions = torch.arange(7).repeat(3, 1)
    positions[1, 5:] -= 2
    inputs = {"ids": ids, "attention_mask": mask, "position_ids": positions}
    with sampling(model, 3, seed=7):
        together = logits_of(model, **inputs)
    apart = [draw(model, number, **inputs) for number in range(3)]
    assert distance(together.unflatten(0, (3, 3)), torch.stack(apart)) < 2e-5
    plain = draw(model, 0, ids=ids)
    assert distance(apart[0][1, -1], plain[1, -1]) > 1e-3, "the mask had no effect: the test is void"


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("mean", ["lora", "inducing"])
def test_samples_in_one_forward_for_each_family(posterior: str, mean: str) -> None:
    model = bayesian(posterior=posterior, mean=mean)
    with sampling(model, 3, seed=7):
        together = logits_of(model)
    apart = torch.cat([draw(model, number) for number in range(3)])
    assert distance(together, apart) < 2e-5


def test_several_shapes_of_factors_and_saved_modules() -> None:
    model = bayesian(rank_pattern={"v_proj": 2, "layers.3.mlp.down_proj": 6}, modules_to_save=["lm_head"])
    with sampling(model, 3, seed=7):
        together = logits_of(model)
    apart = torch.cat([draw(model, number) for number in range(3)])
    assert distance(together, apart) < 2e-5


def test_a_head_outside_the_layers_can_be_random() -> None:
    model = bayesian(target_modules=["lm_head"], layers_to_transform=None)
    with sampling(model, 3, seed=7):
        together = logits_of(model)
    apart = torch.cat([draw(model, number) for number in range(3)])
    assert distance(together, apart) < 2e-5
    assert distance(apart[:3], apart[3:6]) > 0.01


def test_first_shifts_the_draws() -> None:
    model = bayesian()
    with sampling(model, 5, seed=7):
        five = logits_of(model).unflatten(0, (5, -1))
    with sampling(model, 2, seed=7, first=3):
        two = logits_of(model).unflatten(0, (2, -1))
    assert distance(five[3:], two) < 2e-5


def test_hidden_states_without_a_head() -> None:
    """A bare trunk model has no logits; its hidden states have the samples in front all the same."""
    model = bayesian()
    backbone = model.base_model.model.model
    with seeded(100):
        bare = perturb(get_peft_model(copy.deepcopy(tiny_llama().model), config_for())).eval()
    assert type(backbone) is type(bare.base_model.model)
    with torch.no_grad():
        with sampling(bare, 2, seed=7):
            together = bare(input_ids=tokens()).last_hidden_state
        singles = []
        for number in range(2):
            with sampling(bare, 1, seed=7, first=number):
                singles.append(bare(input_ids=tokens()).last_hidden_state)
    assert distance(together, torch.cat(singles)) < 2e-5


@contextmanager
def leading_dimensions(model: nn.Module) -> Iterator[list[list[int]]]:
    """Leading dimension of the hidden states that each transformer layer gives, per layer and call."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    seen: list[list[int]] = [[] for _ in layers]

    def note(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            seen[index].append((output[0] if isinstance(output, tuple) else output).shape[0])

        return hook

    handles = [layer.register_forward_hook(note(index)) for index, layer in enumerate(layers)]
    yield seen
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("name", [*CAUSAL, "bert"])
def test_trunk_below_the_first_random_layer_runs_once(name: str) -> None:
    model = bayesian(name, layers_to_transform=UPPER)
    with leading_dimensions(model) as seen, sampling(model, 5, seed=7):
        logits_of(model)
    assert seen == [[3], [3], [15], [15]]


def test_trunk_is_not_shared_without_being_asked() -> None:
    model = bayesian(layers_to_transform=UPPER)
    with leading_dimensions(model) as seen, sampling(model, 5, seed=7, share_trunk=False):
        logits_of(model)
    assert seen == [[15]] * LAYERS


def test_hooks_of_a_context_do_not_outlive_it() -> None:
    model = bayesian(layers_to_transform=UPPER)
    mean = logits_of(model)
    with pytest.raises(RuntimeError, match="on purpose"), sampling(model, 3, seed=7):
        raise RuntimeError("on purpose")
    with leading_dimensions(model) as seen:
        assert torch.equal(logits_of(model), mean)
    assert seen == [[3]] * LAYERS


def test_two_batch_sizes_in_one_context() -> None:
    model = bayesian(layers_to_transform=UPPER)
    with sampling(model, 2, seed=7):
        large, small = logits_of(model, tokens(4)), logits_of(model, tokens(4)[:2])
    assert distance(large.unflatten(0, (2, 4))[:, :2], small.unflatten(0, (2, 2))) < 2e-5


def test_disabled_adapters_inside_a_context_of_several_samples() -> None:
    """The shape must not depend on whether another forward came before."""
    model, base = bayesian(layers_to_transform=UPPER), logits_of(tiny_llama())
    with sampling(model, 2, seed=7):
        with model.disable_adapter():
            before = logits_of(model)
        logits_of(model)
        with model.disable_adapter():
            after = logits_of(model)
    assert before.shape == after.shape
    assert distance(after[:3], base) < 1e-5


def test_generation_with_one_draw() -> None:
    model = bayesian()
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}

    def generate() -> Tensor:
        return model.generate(input_ids=tokens(2), attention_mask=torch.ones(2, 7, dtype=torch.long), **options)

    mean = generate()
    with sampling(model, 1, seed=7):
        drawn, again = generate(), generate()
        merged = model.merge_and_unload()
    assert torch.equal(drawn, again)
    assert not torch.equal(drawn, mean)
    mask = torch.ones(2, 7, dtype=torch.long)
    assert torch.equal(drawn, merged.generate(input_ids=tokens(2), attention_mask=mask, **options))


# --- seeds and modes -----------------------------------------------------------------------------------------------


def test_same_seed_same_numbers_other_seed_other_numbers() -> None:
    model = bayesian()
    assert torch.equal(draw(model, seed=7), draw(model, seed=7))
    assert torch.equal(draw(bayesian(), seed=7), draw(model, seed=7))
    assert distance(draw(model, seed=7), draw(model, seed=8)) > 0.1
    # Neighbouring seeds share no draws: seed 7, draw 1 is not seed 8, draw 0.
    assert distance(draw(model, 1, seed=7), draw(model, 0, seed=8)) > 0.1


def test_factors_of_one_shape_have_noise_of_their_own() -> None:
    model = bayesian()
    with sampling(model, 1, seed=7):
        noises = [factor.noise.normal[0].flatten() for factor in random_factors(model) if factor.family.side == "A"]
    same = [noise for noise in noises if noise.shape == noises[0].shape]
    assert len(same) == 2 * LAYERS
    correlation = torch.corrcoef(torch.stack(same)) - torch.eye(len(same))
    assert correlation.abs().max() < 0.5


def test_eval_mode_is_the_mean() -> None:
    model = bayesian(lora_dropout=0.5)
    first = logits_of(model)
    assert torch.equal(logits_of(model), first)
    draw(model)
    model.train()
    logits_of(model)
    hold_draw(model, seed=0, step=3)
    logits_of(model)
    model.eval()
    assert torch.equal(logits_of(model), first)


def test_new_adapters_on_a_model_in_eval_mode_do_not_sample_unasked() -> None:
    with seeded(100):
        model = get_peft_model(tiny_llama(), config_for())
    assert not any(factor.training for factor in random_factors(model))
    assert torch.equal(logits_of(perturb(model)), logits_of(model))


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_train_mode_draws_afresh_in_each_forward(posterior: str) -> None:
    options = {"posterior_options": {"members": 50}} if posterior == "ensemble" else {}
    model = bayesian(posterior=posterior, **options)
    mean = logits_of(model)
    model.train()
    with seeded(1):
        one, two = logits_of(model), logits_of(model)
    assert distance(one, two) > 0.1
    assert distance(one, mean) > 0.1
    with seeded(1):
        assert torch.equal(logits_of(model), one)


def test_held_draw_depends_on_seed_and_step_only() -> None:
    model = bayesian().train()
    held = {}
    for seed, step in ((0, 0), (0, 1), (1, 0)):
        hold_draw(model, seed=seed, step=step)
        held[seed, step] = logits_of(model)
        assert torch.equal(logits_of(model), held[seed, step])
        assert torch.equal(logits_of(model, tokens()[:1])[0], logits_of(model, tokens()[:1])[0])
    other = bayesian().train()
    hold_draw(other, seed=0, step=1)
    assert torch.equal(logits_of(other), held[0, 1])
    assert distance(held[0, 0], held[0, 1]) > 0.1
    assert distance(held[0, 0], held[1, 0]) > 0.1
    assert distance(held[0, 1], held[1, 0]) > 0.1


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_no_prediction_takes_the_noise_of_a_training_step(posterior: str) -> None:
    options = {"posterior_options": {"members": 50}} if posterior == "ensemble" else {}
    model = bayesian(posterior=posterior, **options)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    predicted = [draw(model, number, seed=7) for number in range(3)]
    model.train()
    for step, expected in enumerate(predicted):
        hold_draw(model, seed=7, step=step)
        assert distance(logits_of(model), expected) > 0.1


def test_plain_models_pass_through() -> None:
    for model in (tiny_llama(), get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"])).eval()):
        expected = logits_of(model)
        hold_draw(model, seed=0, step=0)
        with sampling(model, 4, seed=7):
            assert torch.equal(logits_of(model), expected)
        assert find_draws(model) is None
        assert random_factors(model) == []


def test_contexts_refuse_what_they_cannot_do() -> None:
    model = bayesian()
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"), sampling(model, 0):
        pass
    with sampling(model, 1), pytest.raises(ValueError, match="nested"), sampling(model, 1):
        pass
    with sampling(model, 2), pytest.raises(ValueError, match="past_key_values"):
        model.generate(input_ids=tokens(2), attention_mask=torch.ones(2, 7, dtype=torch.long), max_new_tokens=3)


def test_copies_and_pickles_draw_the_same() -> None:
    model = bayesian().train()
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    twin = copy.deepcopy(model).eval()
    model.eval()
    assert find_draws(twin) is not find_draws(model)
    with sampling(model, 1, seed=7):
        assert torch.equal(logits_of(twin), logits_of(twin))
        assert distance(logits_of(twin), logits_of(model)) > 0.1, "a draw of the model reached its copy"
    assert torch.equal(draw(twin), draw(model))


# --- the global generators -----------------------------------------------------------------------------------------


@contextmanager
def untouched_generators() -> Iterator[None]:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    yield
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert np.random.get_state()[2] == 624
    assert random.getstate() == before[2]


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_sampling_leaves_the_global_generators_alone(posterior: str) -> None:
    model = bayesian("bert", posterior=posterior, lora_dropout=0.3)
    with untouched_generators():
        draw(model)
        with sampling(model, 3, seed=1):
            logits_of(model)
        predict(model, {"input_ids": tokens()}, 5)
        predict(model, {"input_ids": tokens()}, 5, chunk_size=2)
        hold_draw(model, seed=3, step=4)
        logits_of(model)


def test_held_training_forwards_leave_the_global_generators_alone() -> None:
    model = bayesian().train()
    with untouched_generators():
        hold_draw(model, seed=3, step=4)
        model(input_ids=tokens(), labels=tokens()).loss.backward()


def test_global_seeds_do_not_reach_the_draws() -> None:
    model = bayesian()
    torch.manual_seed(1)
    one = draw(model)
    torch.manual_seed(2)
    assert torch.equal(draw(model), one)


# --- gradients -----------------------------------------------------------------------------------------------------


def gradients(model: nn.Module, *, seed: int = 0) -> dict[str, Tensor]:
    hold_draw(model, seed=seed, step=1)
    model.zero_grad()
    # Two micro-batches: the second must not meet remains of the first.
    for ids in (tokens(), tokens(seed=6)):
        model(input_ids=ids, labels=ids).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def checkpointed(model: PreTrainedModel | Any, reentrant: bool) -> Any:
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    return model


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert len(expected) > 0
    for name, value in expected.items():
        assert distance(found[name], value) <= 1e-6 * max(1.0, value.abs().max().item()), name


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", CAUSAL)
def test_gradients_with_checkpointing(name: str, reentrant: bool) -> None:
    expected = gradients(bayesian(name).train())
    assert_same_gradients(gradients(checkpointed(bayesian(name).train(), reentrant)), expected)
    other = gradients(bayesian(name).train(), seed=1)
    assert max(distance(other[name], value) for name, value in expected.items()) > 1e-2


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_gradients_with_checkpointing_for_each_posterior(posterior: str, reentrant: bool) -> None:
    options = {
        "posterior": posterior,
        "mean": "inducing",
        "learn_residual_scale": True,
        "residual_scale": 0.5,
    }
    model = bayesian(**options).train()
    expected = gradients(model)
    assert_same_gradients(gradients(checkpointed(bayesian(**options).train(), reentrant)), expected)
    of_factors = [factor.unpacked({"variational": factor.variational.grad}) for factor in random_factors(model)]
    assert any(found["residual_logit"].abs().max() > 1e-4 for found in of_factors)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_with_checkpointing_and_a_fresh_draw(reentrant: bool) -> None:
    """No draw is held: each forward takes its own, and the backward pass has to recompute that one."""

    def fresh(model: nn.Module) -> dict[str, Tensor]:
        model.zero_grad()
        with seeded(11):
            model(input_ids=tokens(), labels=tokens()).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    assert_same_gradients(fresh(checkpointed(bayesian().train(), reentrant)), fresh(bayesian().train()))


def test_every_parameter_of_the_adapter_gets_a_gradient() -> None:
    found = gradients(bayesian(bases="free", learn_residual_scale=True, residual_scale=0.5).train())
    names = {
        name for name, _ in bayesian(bases="free", learn_residual_scale=True, residual_scale=0.5).named_parameters()
    }
    assert set(found) == {name for name in names if "lora_" in name}
    assert all(value.abs().max() > 0 for value in found.values())


def test_gradient_of_a_draw_is_right() -> None:
    """Against a central difference along a direction near the gradient (there rounding weighs least)."""
    model = bayesian(learn_residual_scale=True, residual_scale=0.5).train()
    found = gradients(model)
    parameters = {name: p for name, p in model.named_parameters() if name in found}
    with seeded(3):
        direction = {
            name: value / value.norm() + 0.3 * torch.randn_like(value) / value.numel() ** 0.5
            for name, value in found.items()
        }

    def loss(step: float) -> float:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.add_(step * direction[name])
            value = sum(model(input_ids=ids, labels=ids).loss.item() for ids in (tokens(), tokens(seed=6)))
            for name, parameter in parameters.items():
                parameter.sub_(step * direction[name])
        return value

    expected = (loss(1e-3) - loss(-1e-3)) / 2e-3
    slope = sum((found[name] * direction[name]).sum().item() for name in found)
    assert abs(slope - expected) < 0.01 * abs(expected)


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.1),
    "adamw_foreach": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, foreach=True),
    "adamw_fused": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, fused=True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weights_held_by_a_forward_are_not_used_after_a_step(optimizer: str) -> None:
    model = bayesian().train()
    hold_draw(model, seed=0, step=0)
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    before = [factor.weight.detach().clone() for factor in random_factors(model)]
    OPTIMIZERS[optimizer]([p for p in model.parameters() if p.requires_grad]).step()
    after = [factor.weight.detach().clone() for factor in random_factors(model)]
    assert all(distance(one, other) > 1e-4 for one, other in zip(before, after, strict=True))
    for factor in random_factors(model):
        factor.held = None
    assert all(distance(f.weight, value) < 1e-5 for f, value in zip(random_factors(model), after, strict=True))


def test_weights_held_by_a_forward_are_not_used_after_loading() -> None:
    model = bayesian().train()
    hold_draw(model, seed=0, step=0)
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    other = perturb(bayesian(), seed=77)
    model.load_state_dict(other.state_dict())
    other.train()
    hold_draw(other, seed=0, step=0)
    for found, expected in zip(random_factors(model), random_factors(other), strict=True):
        assert distance(found.weight, expected.weight) < 1e-6


@pytest.mark.parametrize("error", [ArithmeticError, KeyboardInterrupt])
def test_weights_held_by_a_forward_that_failed_are_not_used_after_a_change(error: type[BaseException]) -> None:
    model = bayesian().train()
    hold_draw(model, seed=0, step=0)
    head = model.get_base_model().lm_head
    head.forward = lambda *_: (_ for _ in ()).throw(error("broken off"))
    with pytest.raises(error, match="broken off"):
        model(input_ids=tokens(), labels=tokens())
    del head.forward
    factor = random_factors(model)[0]
    before = factor.weight.detach().clone()
    with torch.no_grad():
        for parameter in factor.parameters():
            parameter.add_(0.1)
    assert distance(factor.weight, before) > 1e-4


def test_weights_are_computed_once_per_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches by shape, not factor by factor."""
    from bayeslora.posteriors.weights import inducing

    model, calls = bayesian(), []
    sample_weight = inducing.InducingWeights.sample_weight
    monkeypatch.setattr(
        inducing.InducingWeights,
        "sample_weight",
        lambda self, *args: (calls.append(self), sample_weight(self, *args))[1],
    )
    with sampling(model, 3, seed=7):
        logits_of(model)
        shapes = {(factor.family.side, factor.family.rows, factor.family.columns) for factor in random_factors(model)}
        assert len(calls) == len(shapes) < len(random_factors(model))
        logits_of(model)
        assert len(calls) == 2 * len(shapes)


def test_forwards_without_gradients_keep_no_weights() -> None:
    model = bayesian()
    logits_of(model)
    with sampling(model, 3, seed=7):
        logits_of(model)
        assert all(factor.held is None for factor in random_factors(model))
    assert all(factor.noise is None for factor in random_factors(model))


def test_a_module_that_sees_packed_tokens_says_so() -> None:
    model = bayesian()
    factor = next(module for module in model.modules() if isinstance(module, RandomFactor))
    with sampling(model, 2, seed=7), pytest.raises(ValueError, match="chunk_size=1"):
        factor(torch.randn(5, factor.in_features))
