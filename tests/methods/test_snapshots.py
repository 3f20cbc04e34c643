"""A snapshot ensemble: when its members are taken, and that they are what predicts."""

import math

import pytest
import torch
from peft import get_peft_model
from transformers import TrainerCallback, TrainingArguments

import bayeslora
from bayeslora.adapters.random_factor import RandomFactor
from bayeslora.methods.snapshots import SnapshotConfig, Snapshots
from bayeslora.scoring import Cloze
from bayeslora.tasks import Item
from bayeslora.training.trainer import BayesianLoraTrainer
from conftest import TARGETS, byte_level_tokenizer, seeded, tiny_llama

ITEMS = [Item(str(n), f"Which one ({n})?", ("iron", "wood", "glass"), n % 3) for n in range(8)]
SNAPSHOTS, STEPS, WARMUP = 3, 11, 2


class Means(TrainerCallback):
    """The trained factors after each step, and the rate of that step."""

    def __init__(self):
        self.means, self.rates = [], []

    def on_step_begin(self, args, state, control, lr_scheduler=None, **kwargs):
        self.rates.append(lr_scheduler.get_last_lr()[0])

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.means.append({name: m.mean.detach().clone() for name, m in factors(model)})


def factors(model):
    return [(name, module) for name, module in model.named_modules() if isinstance(module, RandomFactor)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    tokenizer = byte_level_tokenizer()
    with seeded(0):
        model = get_peft_model(
            tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=512),
            SnapshotConfig(r=2, target_modules=TARGETS["llama"], snapshots=SNAPSHOTS, task_type="CAUSAL_LM"),
        )
    method, seen = Snapshots(snapshots=SNAPSHOTS), Means()
    arguments = TrainingArguments(
        output_dir=str(tmp_path_factory.mktemp("out")),
        max_steps=STEPS,
        warmup_steps=WARMUP,
        learning_rate=0.05,
        per_device_train_batch_size=4,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
        **method.training_arguments(),
    )
    options = method.trainer_options(0.05, STEPS, len(ITEMS))
    options["callbacks"] = [*options["callbacks"], seen]
    scoring = Cloze(tokenizer)
    BayesianLoraTrainer(model=model, args=arguments, train_dataset=ITEMS, data_collator=scoring, **options).train()
    return model, seen, scoring(ITEMS)


def test_a_snapshot_is_the_adapter_where_a_cycle_of_the_rate_ends(trained):
    model, seen, _ = trained
    # A rate that is higher than the one before it, after the warm-up, begins a cycle.
    begins = [n for n in range(WARMUP + 1, STEPS) if seen.rates[n] > seen.rates[n - 1]]
    ends = [*begins, STEPS]
    assert len(ends) == SNAPSHOTS and ends == [
        WARMUP + math.ceil((STEPS - WARMUP) * k / SNAPSHOTS) for k in range(1, SNAPSHOTS + 1)
    ]
    for name, module in factors(model):
        for number, end in enumerate(ends):
            assert torch.equal(module.snapshots[number], seen.means[end - 1][name])
        assert not torch.equal(module.snapshots[0], module.snapshots[1])


def test_the_prediction_is_the_mean_of_the_snapshots(trained):
    model, _, batch = trained
    method = Snapshots(snapshots=SNAPSHOTS)
    found = method.predict(model, batch, method.effective_num_samples(10), seed=5)
    kept = {name: module.mean.detach().clone() for name, module in factors(model)}
    alone = []
    for number in range(SNAPSHOTS):
        for _, module in factors(model):
            module.mean.data.copy_(module.snapshots[number])
        alone.append(bayeslora.predict(model, batch, 0).probabilities)
    for name, module in factors(model):
        module.mean.data.copy_(kept[name])
    torch.testing.assert_close(found.probabilities, torch.stack(alone).mean(0), rtol=1e-4, atol=1e-6)
    assert found.mutual_information.max() > 1e-6
