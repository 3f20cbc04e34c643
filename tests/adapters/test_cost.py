"""What training steps and predictions cost, counted in operations: no clock, so it holds on any machine."""

from collections import Counter

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import bayeslora
from bayeslora.adapters.draws import hold_draw
from bayeslora.adapters.random_factor import materialise
from bayeslora.methods.blob import BlobConfig
from bayeslora.methods.mean_field import MeanFieldConfig
from bayeslora.scoring.letter import LetterBatch
from bayeslora.training.elbo import kl_divergence
from conftest import HIDDEN, VOCABULARY, seeded, tiny_llama

CONFIGS = {
    "bayesian_lora": bayeslora.BayesianLoraConfig,
    "blob": BlobConfig,
    "mean_field": MeanFieldConfig,
}


class Operations(TorchDispatchMode):
    """Counts the operations that launch a kernel: views are free, and each stack takes all factors at once."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.counts[str(func.overloadpacket)] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self):
        return sum(self.counts.values())


def adapted(layers, config=bayeslora.BayesianLoraConfig, only=None):
    options = {"r": 3, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "layers_to_transform": only}
    with seeded(1):
        return get_peft_model(tiny_llama(num_hidden_layers=layers), config(**options))


def ids(rows=2, tokens=7):
    return torch.randint(1, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_and_kl_take_as_many_kernels_for_many_layers_as_for_few(name):
    totals = []
    for layers in (2, 6):
        model = adapted(layers, CONFIGS[name]).train()
        hold_draw(model, seed=0, step=0)
        factors = bayeslora.random_factors(model)
        with Operations() as weights:
            materialise(factors)
        with Operations() as divergence:
            kl_divergence(model)
        totals.append((weights.total, divergence.total))
    assert totals[0] == totals[1]


def test_a_held_draw_takes_its_normal_numbers_from_one_call():
    model = adapted(4).train()
    with Operations() as operations:
        hold_draw(model, seed=0, step=0)
    drawn = {name: count for name, count in operations.counts.items() if "rand" in name or "normal" in name}
    assert sum(count for name, count in drawn.items() if "randn" in name or "normal" in name) == 1, drawn


def step_operations(layers, config):
    """Operations of forward, KL and backward."""
    model = adapted(layers, config).train()
    hold_draw(model, seed=0, step=0)
    with Operations() as operations:
        loss = model(input_ids=ids(), labels=ids()).loss
        bayeslora.negative_elbo(loss, kl_divergence(model), 100).backward()
    return operations.total


def test_what_a_training_step_launches_beyond_plain_lora_does_not_grow_with_the_layers():
    """Weights and KL share one stack of parameters, so not even their gradients are added factor by factor."""
    config = bayeslora.BayesianLoraConfig
    few, many = (step_operations(layers, config) - step_operations(layers, LoraConfig) for layers in (2, 6))
    assert few == many


def test_a_training_step_never_waits_for_a_number_on_the_host():
    model = adapted(3).train()
    hold_draw(model, seed=0, step=0)
    with Operations() as operations:
        loss = model(input_ids=ids(), labels=ids()).loss
        bayeslora.negative_elbo(loss, kl_divergence(model), 100).backward()
    assert "aten._local_scalar_dense" not in operations.counts
    assert "aten.nonzero" not in operations.counts


def multiplications(model, samples, share_trunk=True):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if samples == 0:
            model(input_ids=ids(), use_cache=False)
        else:
            with bayeslora.sampling(model, samples, share_trunk=share_trunk):
                model(input_ids=ids(), use_cache=False)
    return counter.get_total_flops()


def test_samples_repeat_only_what_lies_above_the_first_adapter():
    """S samples cost S times the adapted layers and the head, and once the trunk."""
    layers, adapted_layers, samples = 6, 2, 5
    model = adapted(layers, only=[4, 5]).eval()
    deterministic = multiplications(model, 0)
    head = 2 * ids().numel() * HIDDEN * VOCABULARY
    layer = multiplications(adapted(layers + 1, only=[4, 5]).eval(), 0) - deterministic
    trunk = (layers - adapted_layers) * layer
    limit = trunk + samples * (deterministic - trunk)
    found = multiplications(model, samples)
    assert limit > samples * head
    # Beyond the limit there is the making of the weights, which does not grow with the batch.
    assert limit <= found < 1.25 * limit
    assert found < 0.75 * multiplications(model, samples, share_trunk=False)


def scored(model, samples, rows=3, chunk_size=None):
    """Multiplications of a letter prediction of one prompt per row."""
    batch = LetterBatch(
        input_ids=ids(rows),
        attention_mask=torch.ones(rows, 7, dtype=torch.long),
        position_ids=torch.arange(7).repeat(rows, 1),
        lengths=torch.full((rows,), 7),
        class_token_ids=torch.tensor([5, 6, 7]),
        choice_mask=torch.ones(rows, 3, dtype=torch.bool),
    )
    with FlopCounterMode(display=False) as counter:
        bayeslora.predict(model, batch, samples, chunk_size=chunk_size)
    return counter.get_total_flops()


def test_another_sample_costs_the_upper_layers_where_they_are_read():
    """Of the top layer, all positions' queries, keys and values and no more; of the head, a few words."""
    model, taller = adapted(6, only=[4, 5]).eval(), adapted(7, only=[4, 5, 6]).eval()
    layer = scored(adapted(7, only=[4, 5]).eval(), 0) - scored(model, 0)
    two_layers, three_layers = (scored(one, 5) - scored(one, 4) for one in (model, taller))
    # The making of a draw's weights comes on top of a layer; the top layer and the head are what is left.
    assert layer < three_layers - two_layers < 1.1 * layer
    assert 0 < two_layers - (three_layers - two_layers) < 0.5 * layer


def test_chunks_of_samples_share_the_trunk():
    model = adapted(6, only=[4, 5]).eval()
    layer = scored(adapted(7, only=[4, 5]).eval(), 0) - scored(model, 0)
    # Each further trunk would cost four layers; the first random layer shares its projections within a chunk only.
    assert scored(model, 4, chunk_size=1) - scored(model, 4, chunk_size=4) < layer
