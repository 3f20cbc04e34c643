"""Every adapter type: known to PEFT after `import bayeslora` alone, and the same after a save and a load anywhere."""

import json
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel, get_peft_model
from torch import Tensor

import bayeslora
import bayeslora.methods  # By itself: whether `import bayeslora` does so is what is tested.
from bayeslora.adapters import RandomLoraConfig
from conftest import (
    TARGETS,
    distance,
    logits_of,
    perturb,
    seeded,
    tiny_bert,
    tiny_llama,
    tiny_llama_classifier,
)
from other_processes import run_python


def _registered(kind: type[RandomLoraConfig] = RandomLoraConfig) -> dict[str, type[RandomLoraConfig]]:
    own = {str(kind.registered_type): kind} if "registered_type" in vars(kind) else {}
    return own | {name: config for below in kind.__subclasses__() for name, config in _registered(below).items()}


TYPES = {name: kind for name, kind in sorted(_registered().items()) if kind.__module__.startswith("bayeslora.")}


def adapted(base: Any, kind: type[RandomLoraConfig], targets: list[str], **options: Any) -> PeftModel:
    with seeded(11):
        model = get_peft_model(base, kind(r=4, lora_alpha=8, target_modules=targets, **options))
    return perturb(model).eval()  # type: ignore[return-value]


def test_there_are_fourteen_types() -> None:
    assert len(TYPES) == 14


# --- import bayeslora ------------------------------------------------------------------------------------------------

_SCRIPT = """
import json, sys
import peft
before = set(sys.modules)
import bayeslora
added = sorted(set(sys.modules) - before)
from transformers import AutoModelForCausalLM
outcomes = {}
for kind in sys.argv[1:]:
    try:
        base = AutoModelForCausalLM.from_pretrained("base")
        outcomes[kind] = str(peft.PeftModel.from_pretrained(base, kind).peft_config["default"].peft_type)
    except Exception as error:
        outcomes[kind] = repr(error)
print(json.dumps({"before": len(before), "added": added, "outcomes": outcomes}))
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a new process can load and has imported after `import peft, bayeslora` and nothing else."""
    folder = tmp_path_factory.mktemp("imported")
    tiny_llama().save_pretrained(folder / "base")
    for name, kind in TYPES.items():
        adapted(tiny_llama(), kind, TARGETS["llama"]).save_pretrained(folder / name)
    done = run_python(_SCRIPT, folder, *TYPES)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("name", TYPES)
def test_peft_loads_the_type_after_importing_bayeslora_alone(name: str, imported: dict[str, Any]) -> None:
    assert imported["outcomes"][name] == name


def test_importing_bayeslora_costs_what_importing_peft_costs(imported: dict[str, Any]) -> None:
    others = [name for name in imported["added"] if name.partition(".")[0] not in ("bayeslora", "bayeslora_cli")]
    assert others == []
    assert len(imported["added"]) < 0.03 * imported["before"]


def test_public_names_come_when_they_are_asked_for() -> None:
    assert set(bayeslora.__all__) <= set(dir(bayeslora))
    rooms = {path.parent.name for path in Path(bayeslora.__path__[0]).glob("*/__init__.py")}
    assert {"metrics", "readouts", "report"} <= rooms
    for name in (*bayeslora.__all__, *rooms):
        assert getattr(bayeslora, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = bayeslora.no_such_name  # type: ignore[attr-defined]


# --- saved, and loaded on a fresh base under another seed ------------------------------------------------------------

llama = partial(tiny_llama, num_hidden_layers=2)
llama_classifier = partial(tiny_llama_classifier, num_hidden_layers=2)
bert = partial(tiny_bert, num_hidden_layers=2)

_CASES: dict[str, tuple[Any, list[str], dict[str, Any]]] = {
    "causal": (llama, TARGETS["llama"], {"task_type": "CAUSAL_LM"}),
    "lm_head saved": (llama, TARGETS["llama"], {"task_type": "CAUSAL_LM", "modules_to_save": ["lm_head"]}),
    "lm_head adapted": (llama, ["q_proj", "lm_head"], {"task_type": "CAUSAL_LM"}),
    "decoder head": (llama_classifier, TARGETS["llama"], {"task_type": "SEQ_CLS"}),
    "encoder head": (bert, TARGETS["bert"], {"task_type": "SEQ_CLS"}),
    "encoder head and norms": (
        bert,
        TARGETS["bert"],
        {"task_type": "SEQ_CLS", "modules_to_save": ["classifier", "encoder.layer.1.output.LayerNorm"]},
    ),
}


_OPTIONS: dict[str, tuple[Any, list[str], dict[str, Any]]] = {
    "encoder biases": (bert, TARGETS["bert"], {"task_type": "SEQ_CLS", "bias": "lora_only"}),
    "trained tokens": (llama, TARGETS["llama"], {"task_type": "CAUSAL_LM", "trainable_token_indices": [5, 6]}),
    "pissa": (llama, TARGETS["llama"], {"task_type": "CAUSAL_LM", "init_lora_weights": "pissa"}),
    "olora": (llama, TARGETS["llama"], {"task_type": "CAUSAL_LM", "init_lora_weights": "olora"}),
    "dropout": (llama, TARGETS["llama"], {"task_type": "CAUSAL_LM", "lora_dropout": 0.2}),
}
"""Options of LoRA that no type has a hand in: tried on two."""


@pytest.mark.parametrize(
    ("name", "case"), [*product(TYPES, _CASES), *product(["BAYES_LORA", "MC_DROPOUT_LORA"], _OPTIONS)]
)
def test_loaded_on_a_fresh_base_under_another_seed(name: str, case: str, tmp_path: Path) -> None:
    build, targets, options = (_CASES | _OPTIONS)[case]
    model = adapted(build(), TYPES[name], targets, **options)
    model.save_pretrained(tmp_path)
    with seeded(99):
        loaded = PeftModel.from_pretrained(build(), tmp_path).eval()
    assert distance(logits_of(loaded), logits_of(model)) == 0
    assert distance(draws_of(loaded), draws_of(model)) == 0
    assert distance(logits_of(model), logits_of(build())) > 1e-3


def draws_of(model: PeftModel) -> Tensor:
    with bayeslora.sampling(model, 2, seed=3):
        return logits_of(model)
