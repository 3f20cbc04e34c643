"""torch.compile: one graph, the numbers of eager mode, and no compilation anew from step to step."""

import pytest
import torch
from peft import get_peft_model
from torch._dynamo.testing import CompileCounterWithBackend

import bayeslora
from bayeslora.adapters.draws import hold_draw
from bayeslora.methods.mean_field import MeanFieldConfig
from conftest import LAYERS, MODELS, VOCABULARY, seeded

CONFIGS = {
    "bayesian_lora": bayeslora.BayesianLoraConfig,
    "mean_field": MeanFieldConfig,
}
TARGETS = {"llama": ["q_proj", "v_proj"], "bert": ["query", "value"], "qwen": ["q_proj", "v_proj"]}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def adapted(kind="llama", config=bayeslora.BayesianLoraConfig, layers=None):
    task = "SEQ_CLS" if kind == "bert" else "CAUSAL_LM"
    options = {"r": 3, "target_modules": TARGETS[kind], "task_type": task, "layers_to_transform": layers}
    with seeded(1):
        return get_peft_model(MODELS[kind](), config(**options))


def inputs(rows=2, tokens=7):
    ids = torch.randint(1, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "use_cache": False}


def compiled(model):
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(model, backend=counter, fullgraph=True), counter


def gradients(model, run, step):
    hold_draw(model, seed=3, step=step)
    model.zero_grad()
    run(**inputs()).logits.square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", TARGETS)
def test_training_steps_give_the_gradients_of_eager_mode_in_one_graph(kind, name):
    model = adapted(kind, CONFIGS[name]).train()
    run, counter = compiled(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(3):
        found, expected = gradients(model, run, step), gradients(model, model, step)
        assert found.keys() == expected.keys()
        for parameter, gradient in expected.items():
            torch.testing.assert_close(found[parameter], gradient, rtol=1e-4, atol=1e-7)
        optimizer.step()
    assert counter.frame_count == 1


def test_steps_differ_and_follow_the_optimizer():
    """Neither the draw nor the parameters are baked into the graph."""
    model = adapted().train()
    run, _ = compiled(model)
    first = gradients(model, run, 0)
    assert all(torch.equal(first[name], value) for name, value in gradients(model, run, 0).items())
    changed = gradients(model, run, 1)
    assert any(not torch.allclose(first[name], value) for name, value in changed.items())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.5)
    moved = gradients(model, run, 0)
    assert any(not torch.allclose(first[name], value) for name, value in moved.items())


def test_gradient_checkpointing_inside_the_graph():
    model = adapted().train()
    expected = gradients(model, model, 0)
    base = model.base_model.model
    base.gradient_checkpointing_enable({"use_reentrant": False})
    # transformers' hook, which reentrant checkpointing needs, cannot be traced; nor can it under plain PEFT adapters.
    base.disable_input_require_grads()
    run, _ = compiled(model)
    found = gradients(model, run, 0)
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("samples", [1, 3])
@torch.no_grad()
def test_draws_in_one_graph(samples):
    model = adapted(layers=[LAYERS - 2, LAYERS - 1]).eval()
    run, counter = compiled(model)
    for seed in (0, 1):
        with bayeslora.sampling(model, samples, seed):
            expected, found = model(**inputs()).logits, run(**inputs()).logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert counter.frame_count == 1
    mean = run(**inputs()).logits
    torch.testing.assert_close(mean, model(**inputs()).logits, rtol=1e-4, atol=1e-6)
