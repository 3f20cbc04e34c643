"""A deep ensemble in one adapter: each member is the LoRA adapter that it would be alone."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from test_trainer import assert_same, collator, items, step_logs, trained_parameters, trainer_for
from torch import Tensor, nn

import bayeslora
from bayeslora.adapters.draws import hold_draw, random_factors
from bayeslora.methods.ensemble import DeepEnsemble, EnsembleConfig
from bayeslora.methods.lora import Lora
from bayeslora.posteriors.weights.point import MembersWeights
from bayeslora.scoring import ChoiceBatch
from conftest import distance, logits_of, perturb, seeded, tiny_llama
from helpers import generator, normal

MEMBERS = 3
OPTIONS: dict[str, Any] = {"r": 4, "lora_alpha": 8, "last_layers": 2}
METHOD = DeepEnsemble(members=MEMBERS, **OPTIONS)


def base(dtype: torch.dtype = torch.float32) -> nn.Module:
    return tiny_llama(vocab_size=320).to(dtype)  # type: ignore[return-value]


def ensemble(dtype: torch.dtype = torch.float32) -> PeftModel:
    """As it starts."""
    with seeded(3):
        return METHOD.adapt(base(dtype), "causal_lm")


def different_ensemble() -> PeftModel:
    """As if trained: no member has its B at zero."""
    return perturb(ensemble()).eval()  # type: ignore[return-value]


def exported(model: PeftModel, index: int) -> PeftModel:
    """Member `index` as a plain LoRA adapter on its own base model, as docs/methods/ensemble.md describes."""
    plain = Lora(**OPTIONS).adapt(base(next(model.parameters()).dtype), "causal_lm")
    state = get_peft_model_state_dict(model)
    weights = {key.replace(".members", ".weight"): value[index].clone() for key, value in state.items()}
    result = set_peft_model_state_dict(plain, weights)
    assert not result.unexpected_keys and not any("lora_" in key for key in result.missing_keys)
    return plain.eval()


@pytest.fixture(scope="module")
def batch() -> ChoiceBatch:
    return collator("cloze")(items(6))


# --- the family ------------------------------------------------------------------------------------------------------


def test_a_draw_is_the_member_of_its_number() -> None:
    family = MembersWeights(2, 4, members=3)
    members = normal(generator(0), 5, 3, 2, 4)
    noise = bayeslora.posteriors.weights.Noise(torch.zeros(4, 0), (), torch.zeros(4), torch.tensor([0, 2, 3, 7]))
    found = family.sample_weight({"members": members}, noise)
    assert torch.equal(found, torch.stack([members[:, number] for number in (0, 2, 0, 1)]))
    assert torch.equal(family.mean_weight({"members": members}), members[:, 0])
    assert family.kl({"members": members}, None).total.tolist() == [0.0] * 5


def test_members_start_apart_as_pefts_own_adapters_do() -> None:
    for name, module in ensemble().named_modules():
        if name.endswith("lora_B.default"):
            assert not module.members.any()
        elif name.endswith("lora_A.default"):
            members = module.members.detach()
            assert members.shape == (MEMBERS, 4, 32)
            assert distance(members[0], members[1]) > 0.1 and distance(members[1], members[2]) > 0.1
            for member in members:
                # PEFT: uniform up to 1 / sqrt(in), so of standard deviation 1 / sqrt(3 in); 128 numbers.
                assert 0.9 * 32**-0.5 < member.abs().max() <= 32**-0.5
                assert member.std().item() == pytest.approx(96**-0.5, rel=0.2)


# --- training --------------------------------------------------------------------------------------------------------


def test_members_trained_together_are_those_trained_alone(tmp_path: Path) -> None:
    """In float64, and with an epsilon of AdamW so small that it cannot see the factor 1 / K either."""
    options: dict[str, Any] = {"optim": "adamw_torch", "learning_rate": 0.01, "max_steps": 9, "weight_decay": 0.1}
    options["adam_epsilon"] = 1e-12
    model = ensemble(torch.float64)
    alone = [exported(model, index).train() for index in range(MEMBERS)]
    trainer = trainer_for("cloze", tmp_path, model=model, **options)
    trainer.train_samples = METHOD.trainer_options(0.01, 9, 24)["train_samples"]
    start = trained_parameters(trainer)
    trainer.train()
    end = trained_parameters(trainer)
    assert all(value.dtype == torch.float64 for value in end.values())
    losses = torch.zeros(9)
    for index, single in enumerate(alone):
        other = trainer_for("cloze", tmp_path, model=single, **options)
        other.train()
        expected = trained_parameters(other)
        found = {name.replace(".members", ".weight"): value[index] for name, value in end.items()}
        assert_same(found, expected, 1e-6)
        assert all(distance(value[index], start[name][index]) > 1e-2 for name, value in end.items())
        losses += torch.tensor([entry["nll"] for entry in step_logs(other)]) / MEMBERS
    together = torch.tensor([entry["nll"] for entry in step_logs(trainer)])
    assert distance(together, losses) < 1e-5
    assert together[-3:].mean() < 0.8 * together[:3].mean()


def test_each_member_gets_its_own_gradient(batch: ChoiceBatch) -> None:
    model = different_ensemble().train()
    alone = [exported(model, index).train() for index in range(MEMBERS)]

    def gradients(one: nn.Module, copies: int) -> dict[str, Tensor]:
        labels = batch.labels
        assert labels is not None
        nn.functional.cross_entropy(batch.choice_logits(one), labels.repeat(copies)).backward()
        return {name: p.grad for name, p in one.named_parameters() if p.grad is not None}

    # Whatever the step: the numbers of the draws do not go on counting.
    hold_draw(model, seed=0, step=5, num_samples=METHOD.train_samples)
    together = gradients(model, MEMBERS)
    for index, single in enumerate(alone):
        expected = gradients(single, 1)
        found = {name.replace(".members", ".weight"): MEMBERS * value[index] for name, value in together.items()}
        assert max(value.abs().max() for value in expected.values()) > 1e-2
        assert_same(found, expected, 1e-5)


def test_accumulated_batches_give_the_same_update(tmp_path: Path) -> None:
    results = []
    for size, accumulation in ((8, 1), (2, 4)):
        trainer = trainer_for(
            "cloze",
            tmp_path,
            model=ensemble(),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )
        trainer.train_samples = MEMBERS
        trainer.train()
        results.append(trained_parameters(trainer))
    assert_same(results[1], results[0])


# --- prediction ------------------------------------------------------------------------------------------------------


def test_prediction_is_the_mean_of_the_members_predictions(batch: ChoiceBatch) -> None:
    model = different_ensemble()
    alone = torch.stack([bayeslora.predict(exported(model, k), batch, 0).samples[0] for k in range(MEMBERS)])
    for asked in (0, 1, 10):
        used = METHOD.effective_num_samples(asked)
        for seed in (0, 1):
            found = METHOD.predict(model, batch, used, seed)
            present = alone.isfinite()
            assert distance(found.samples[present], alone[present]) < 1e-5
            assert distance(found.probabilities, alone.exp().mean(0)) < 1e-5
    assert alone.exp().std(0).max() > 1e-2


@pytest.mark.parametrize("chunk_size", [1, 2])
def test_chunks_go_on_counting(chunk_size: int) -> None:
    model = different_ensemble()
    with bayeslora.sampling(model, MEMBERS):
        expected = logits_of(model).unflatten(0, (MEMBERS, -1))
    for first in range(0, MEMBERS, chunk_size):
        with bayeslora.sampling(model, chunk_size, seed=9, first=first):
            found = logits_of(model).unflatten(0, (chunk_size, -1))
        for offset in range(chunk_size):
            assert distance(found[offset], expected[(first + offset) % MEMBERS]) < 2e-5


def test_eval_mode_is_the_first_member() -> None:
    model = different_ensemble()
    assert distance(logits_of(model), logits_of(exported(model, 0))) < 1e-5
    assert distance(logits_of(model), logits_of(exported(model, 1))) > 1e-2


@pytest.mark.parametrize("index", [None, 0, 2])
def test_a_merged_draw_is_a_member(index: int | None) -> None:
    model = different_ensemble()
    expected = logits_of(exported(model, index or 0))
    if index is None:
        merged = model.merge_and_unload()
    else:
        with bayeslora.sampling(model, 1, first=index):
            merged = model.merge_and_unload()
    assert distance(logits_of(merged), expected) < 1e-4


# --- files and options -----------------------------------------------------------------------------------------------


def test_one_file_holds_all_members(tmp_path: Path, batch: ChoiceBatch) -> None:
    model = different_ensemble()
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == ["adapter_model.safetensors"]
    loaded = PeftModel.from_pretrained(base(), tmp_path)
    assert {factor.family.members for factor in random_factors(loaded)} == {MEMBERS}
    expected = bayeslora.predict(model, batch, MEMBERS).probabilities
    assert distance(bayeslora.predict(loaded, batch, MEMBERS).probabilities, expected) < 1e-6


def test_starting_from_one_adapter(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Every member is that adapter, and a warning says that they stay alike."""
    plain = exported(different_ensemble(), 1)
    plain.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, logger="bayeslora"):
        model = DeepEnsemble(members=MEMBERS, init_from=str(tmp_path)).adapt(base(), "causal_lm").eval()
    assert "all 3 members start at the adapter" in caplog.text
    with bayeslora.sampling(model, MEMBERS):
        found = logits_of(model).unflatten(0, (MEMBERS, -1))
    assert distance(found, logits_of(plain).expand_as(found)) < 1e-5


def test_no_members() -> None:
    with pytest.raises(ValueError, match="members must be at least 1 and at most 65536, got 0"):
        EnsembleConfig(members=0)


def test_an_initialisation_of_which_there_is_only_one() -> None:
    with pytest.raises(ValueError, match=r"init_lora_weights must be True .* got 'pissa'"):
        EnsembleConfig(init_lora_weights="pissa")
