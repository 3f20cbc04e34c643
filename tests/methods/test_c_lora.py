"""C-LoRA: a posterior that depends on the input, and a KL that is paid once per row."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from test_trainer import (
    SEED,
    Gradients,
    assert_same,
    collator,
    dataset,
    step_logs,
    trainer_for,
)
from torch import Tensor, nn
from torch.distributions import Normal
from torch.distributions import kl_divergence as reference_kl

from bayeslora import kl_divergence, negative_elbo, sampling
from bayeslora.adapters.draws import hold_draw, random_modules
from bayeslora.methods.c_lora import CLora, CLoraConfig, ContextualFactor, real_tokens
from bayeslora.posteriors.weights.gaussian import GaussianWeights
from bayeslora.training.parameter_groups import variational_parameters
from conftest import TARGETS, distance, logits_of, perturb, seeded, tiny_bert, tiny_llama, tokens
from helpers import generator, noise_of, normal

RANK, OUT = 3, 5


def factor(seed: int = 0, **options: Any) -> ContextualFactor:
    """Away from its start, in float64 and eval mode."""
    source = generator(seed)
    module = ContextualFactor(normal(source, OUT, RANK), GaussianWeights(RANK, RANK, std=0.2, **options), hidden=6)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * normal(source, *parameter.shape))
    return module.eval()


def by_hand(module: ContextualFactor, h: Tensor) -> tuple[Tensor, Tensor]:
    """M and Omega of one token's h `[r]`."""
    hidden = (module.input_weight @ h + module.input_bias[:, 0]).clamp_min(0)
    output = module.output_weight @ hidden + module.output_bias[:, 0]
    return output[: RANK**2].reshape(RANK, RANK), output[RANK**2 :].reshape(RANK, RANK) ** 2


def adapted(kind: str = "llama", **options: Any) -> PeftModel:
    base = tiny_bert(vocab_size=320, num_labels=5) if kind == "bert" else tiny_llama(vocab_size=320)
    fields = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS[kind], "layers_to_transform": [2, 3]}
    config = CLoraConfig(**{**fields, **options}, task_type="SEQ_CLS" if kind == "bert" else "CAUSAL_LM")
    with seeded(100):
        return get_peft_model(base, config)


def trained(kind: str = "llama", **options: Any) -> PeftModel:
    return perturb(adapted(kind, **options), scale=0.05)  # type: ignore[return-value]


# --- one layer -------------------------------------------------------------------------------------------------------


def test_the_mean_is_computed_token_by_token() -> None:
    module, value = factor(), normal(generator(1), 2, 4, RANK)
    found = module(value)
    for row in range(2):
        for token in range(4):
            mean, _ = by_hand(module, value[row, token])
            expected = module.matrix @ (torch.eye(RANK) + mean) @ value[row, token]
            torch.testing.assert_close(found[row, token], expected)


def test_draws_add_the_noise_of_their_number() -> None:
    module, value = factor(flipout=True), normal(generator(1), 2, 4, RANK)
    noise = normal(generator(2), 3, RANK, RANK)
    module.set_noise(noise_of(noise), explicit=True)
    found = module(value.repeat(3, 1, 1)).unflatten(0, (3, 2))
    for draw in range(3):
        for row in range(2):
            for token in range(4):
                mean, std = by_hand(module, value[row, token])
                inner = torch.eye(RANK) + mean + std * noise[draw]
                torch.testing.assert_close(found[draw, row, token], module.matrix @ inner @ value[row, token])
    with pytest.raises(ValueError, match="chunk_size=1"):
        module(value)


def test_flipout_gives_each_row_signs_of_its_own() -> None:
    """Of one inner dimension nothing but the sign is left."""
    module = ContextualFactor(torch.ones(1, 1), GaussianWeights(1, 1, std=0.2, flipout=True)).train()
    value = torch.ones(400, 2, 1)
    module.set_noise(noise_of(torch.full((1, 1, 1), 1.5)))
    with seeded(0):
        found = module(value)[..., 0] - 1
    torch.testing.assert_close(found.abs(), torch.full((400, 2), 0.2 * 1.5))
    assert torch.equal(found[:, 0], found[:, 1])
    assert abs(found[:, 0].sign().mean().item()) < 0.2
    module.family = GaussianWeights(1, 1, std=0.2)
    torch.testing.assert_close(module(value)[..., 0], torch.full((400, 2), 1.3))


def test_kl_is_the_mean_over_rows_of_the_mean_over_tokens() -> None:
    module, value = factor(prior_std=0.4), normal(generator(1), 2, 4, RANK)
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])

    def of(row: int, token: int) -> Tensor:
        mean, std = by_hand(module, value[row, token])
        return reference_kl(Normal(mean, std), Normal(0.0, 0.4)).sum()

    rows = [torch.stack([of(row, token) for token in range(4) if mask[row, token]]).mean() for row in range(2)]
    module.begin_forward({"attention_mask": mask})
    module(value)
    torch.testing.assert_close(module.kl().total, torch.stack(rows).mean(), rtol=1e-6, atol=0)
    # Two draws of the same batch, and a head that sees the last two tokens only.
    module.begin_forward({"attention_mask": mask})
    module(value[:, -2:].repeat(2, 1, 1))
    last = torch.stack([of(row, token) for row in range(2) for token in (2, 3)]).mean()
    torch.testing.assert_close(module.kl().total, last, rtol=1e-6, atol=0)


def test_kl_at_the_start_is_that_of_the_prior() -> None:
    value = normal(generator(1), 2, 4, RANK).float()
    for std in (0.2, 0.1):
        module = ContextualFactor(torch.zeros(OUT, RANK), GaussianWeights(RANK, RANK, std=std, prior_std=0.2))
        assert module.kl().total == 0, "before any forward"
        module(value)
        expected = RANK**2 * reference_kl(Normal(0.0, std), Normal(0.0, 0.2)).item()
        assert module.kl().total.item() == pytest.approx(expected, abs=1e-4)


def test_omega_depends_on_the_input() -> None:
    module = factor()
    log_std = module.distribution(normal(generator(3), 2, RANK))["log_std"]
    assert distance(log_std[0], log_std[1]) > 0.1
    start = ContextualFactor(torch.zeros(OUT, RANK), GaussianWeights(RANK, RANK, std=0.3))
    torch.testing.assert_close(start.distribution(torch.randn(2, RANK))["log_std"].exp(), torch.full((2, 3, 3), 0.3))


# --- padding ---------------------------------------------------------------------------------------------------------


def test_real_tokens() -> None:
    expected = torch.tensor([[False, True, True, True], [True, True, True, True]])
    allowed = torch.ones(4, 4, dtype=torch.bool).tril() & expected.unsqueeze(1)
    # The last two tokens are two choices, which do not see each other; padding sees itself.
    allowed[:, 3, 2] = False
    allowed = (allowed | torch.eye(4, dtype=torch.bool)).unsqueeze(1)
    additive = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    for mask in (expected, expected.long(), allowed, additive, {"sliding_attention": None, "full_attention": additive}):
        found = real_tokens(mask)
        assert found is not None and torch.equal(found, expected)
    assert real_tokens(None) is None


@pytest.mark.parametrize("kind", ["cloze", "bert"])
def test_kl_does_not_see_padding(kind: str) -> None:
    model = trained("bert" if kind == "bert" else "llama").eval()
    rows = dataset(kind, 6)
    assert len({len(row.question) for row in rows}) > 1
    with torch.no_grad():
        collator(kind)(rows).choice_logits(model)
        together = kl_divergence(model).total
        apart = []
        for row in rows:
            collator(kind)([row]).choice_logits(model)
            apart.append(kl_divergence(model).total)
    torch.testing.assert_close(together, torch.stack(apart).mean(), rtol=1e-5, atol=0)
    assert torch.stack(apart).std() > 1e-3 * together, "the rows are alike: the test is void"


# --- the objective ---------------------------------------------------------------------------------------------------

KINDS = ("cloze", "bert", "lm")


def build(kind: str) -> PeftModel:
    return trained("bert" if kind == "bert" else "llama", flipout=False)


def elbo_by_hand(kind: str, beta: float) -> tuple[dict[str, Tensor], float]:
    """Gradient of (sum of NLL + beta * sum over rows of KL) / observations of 8 rows, one after the other; mean KL."""
    model = build(kind).train()
    hold_draw(model, seed=SEED, step=0)
    total, observations, kls = torch.zeros(()), 0, []
    for row in dataset(kind, 8):
        batch = collator(kind)([row])
        if kind == "lm":
            scores = torch.log_softmax(model(input_ids=batch["input_ids"]).logits[0, :-1], -1)
            targets = batch["labels"][0, 1:]
            present = targets != -100
            total = total - scores[present, targets[present]].sum()
            observations += int(present.sum())
        else:
            total = total - torch.log_softmax(batch.choice_logits(model), -1)[0, row.label]
            observations += 1
        kls.append(sum(module.kl().total for module in random_modules(model)))
    ((total + beta * sum(kls)) / observations).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return gradients, torch.stack(kls).mean().item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "accumulation"), [(8, 1), (2, 4)])
def test_the_trainer_pays_the_kl_once_per_row(kind: str, size: int, accumulation: int, tmp_path: Path) -> None:
    seen = Gradients()
    trainer = trainer_for(
        kind,
        tmp_path,
        model=build(kind),
        train=dataset(kind, 8),
        beta=0.5,
        callbacks=[seen],
        max_steps=1,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
    )
    trainer.train()
    expected, mean_kl = elbo_by_hand(kind, 0.5)
    without, _ = elbo_by_hand(kind, 0.0)
    scale = max(value.abs().max().item() for value in expected.values())
    # Else a KL divided by N would pass.
    assert max(distance(value, without[name]) for name, value in expected.items()) > 0.01 * scale
    assert_same(seen.first, expected, 2e-5 * max(1.0, scale))
    (logs,) = step_logs(trainer)
    assert logs["kl"] == pytest.approx(8 * mean_kl, rel=1e-4)
    observations = 8 if kind != "lm" else sum(sum(v != -100 for v in row["labels"][1:]) for row in dataset(kind, 8))
    assert logs["loss"] == pytest.approx(logs["nll"] + 0.5 * logs["kl"] / observations, rel=1e-4)


def test_kl_divergence_counts_rows() -> None:
    model = trained().eval()
    logits_of(model)
    one, ten = kl_divergence(model), kl_divergence(model, rows=10)
    torch.testing.assert_close(ten.total, 10 * one.total)
    torch.testing.assert_close(negative_elbo(torch.zeros(()), ten, 10), one.total)


# --- checkpointing ---------------------------------------------------------------------------------------------------


def gradients(model: PeftModel) -> dict[str, Tensor]:
    """With a fresh draw and fresh signs."""
    with seeded(5):
        nll = model(input_ids=tokens(), labels=tokens()).loss
        before = [module._kl for module in random_modules(model)]
        (nll + kl_divergence(model).total).backward()
    after = [module._kl for module in random_modules(model)]
    assert all(one is other for one, other in zip(before, after, strict=True)), "the second forward left its graph"
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_with_checkpointing() -> None:
    expected = gradients(trained().train())
    model = trained().train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_same(gradients(model), expected, 2e-6 * max(1.0, *(value.abs().max().item() for value in expected.values())))


def test_reentrant_checkpointing_is_refused() -> None:
    model = trained().train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model(input_ids=tokens(), labels=tokens())
    with pytest.raises(RuntimeError, match="use_reentrant"):
        kl_divergence(model)


# --- the adapter -----------------------------------------------------------------------------------------------------


def test_the_start_is_lora() -> None:
    with seeded(100):
        plain = get_peft_model(tiny_llama(), LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS["llama"]))
    perturb(plain)
    model = get_peft_model(tiny_llama(), CLoraConfig(r=4, lora_alpha=8, target_modules=TARGETS["llama"]))
    weights = dict(plain.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_A.default.weight"):
                parameter.copy_(weights[name])
            if name.endswith("lora_B.default.matrix"):
                parameter.copy_(weights[name.replace("matrix", "weight")])
    assert distance(logits_of(model.eval()), logits_of(plain.eval())) < 1e-5
    assert distance(logits_of(plain), logits_of(tiny_llama())) > 0.1


def test_draws_in_one_forward_are_single_draws() -> None:
    model = trained().eval()
    with sampling(model, 3, seed=7):
        together = logits_of(model)
    apart = []
    for number in range(3):
        with sampling(model, 1, seed=7, first=number):
            apart.append(logits_of(model))
    assert distance(together, torch.cat(apart)) < 2e-5
    assert distance(apart[0], apart[1]) > 1e-3
    with sampling(model, 3, seed=7):
        assert torch.equal(logits_of(model), together)


def test_merging_is_refused_before_anything_changes() -> None:
    model = trained().eval()
    expected = logits_of(model)
    with pytest.raises(NotImplementedError, match="depends on the input"):
        model.merge_adapter()
    with sampling(model, 1, seed=0), pytest.raises((NotImplementedError, ValueError), match="on the input"):
        model.merge_and_unload()
    assert torch.equal(logits_of(model), expected)


def test_save_and_load(tmp_path: Path) -> None:
    model = trained().eval()
    model.save_pretrained(tmp_path)
    for options in ({}, {"low_cpu_mem_usage": True}):
        loaded = PeftModel.from_pretrained(tiny_llama(vocab_size=320), tmp_path, **options)
        assert torch.equal(logits_of(loaded), logits_of(model))
        with sampling(model, 2, seed=3), sampling(loaded, 2, seed=3):
            assert torch.equal(logits_of(loaded), logits_of(model))


def test_the_network_has_a_learning_rate_of_its_own() -> None:
    model = adapted()
    names = {name.rsplit(".", 1)[1] for name, _ in variational_parameters(model)}
    assert names == {"input_weight", "input_bias", "output_weight", "output_bias"}
    sizes = {name: p.numel() for name, p in random_modules(model)[0].named_parameters()}
    assert sizes["input_weight"] + sizes["input_bias"] == 64 * (4 + 1)
    assert sizes["output_weight"] + sizes["output_bias"] == 2 * 4**2 * (64 + 1)


def test_copies_and_pickles_in_the_middle_of_a_step() -> None:
    model = trained().train()
    loss = model(input_ids=tokens(), labels=tokens()).loss
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(random_modules(model)[0]))):
        assert all(module.kl().total == 0 for module in twin.modules() if isinstance(module, ContextualFactor))
    (loss + kl_divergence(model).total).backward()


def test_training_lowers_the_loss_and_repeats(tmp_path: Path) -> None:
    ends = []
    for number in range(2):
        model = adapted()
        rate = CLora(posterior_learning_rate_scale=0.5).trainer_options(0.01, 30, 24)["posterior_learning_rate"]
        trainer = trainer_for(
            "cloze",
            tmp_path / str(number),
            model=model,
            optim="adamw_torch",
            learning_rate=0.01,
            max_steps=30,
            posterior_learning_rate=rate,
        )
        with seeded(1):
            trainer.train()
        losses = [entry["nll"] for entry in step_logs(trainer)]
        assert sum(losses[-5:]) < sum(losses[:5]) - 0.5
        ends.append({name: p.detach() for name, p in model.named_parameters() if p.requires_grad})
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_half_precision_inputs_keep_their_type() -> None:
    module = ContextualFactor(torch.ones(OUT, RANK), GaussianWeights(RANK, RANK, std=0.2))
    assert module(torch.ones(1, 2, RANK, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert module.kl().total.dtype == torch.float32
    assert isinstance(module, nn.Module)


@pytest.mark.parametrize("options", [{"std": 0.0}, {"prior_std": 0.0}, {"hidden": 0}])
def test_values_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        CLoraConfig(**options)
