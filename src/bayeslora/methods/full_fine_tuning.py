"""Full fine-tuning: the weights themselves are trained, the row that low-rank methods are compared with."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import ModulesToSaveWrapper
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn

from bayeslora.adapters.from_lora import located_adapter
from bayeslora.adapters.merging import merged
from bayeslora.adapters.placement import linear_names
from bayeslora.adapters.starts import open_adapter
from bayeslora.methods.base import TASK_TYPES, Method
from bayeslora.models.heads import held_by, saved_modules
from bayeslora.models.kinds import ModelKind
from bayeslora.models.layers import inside_layers
from bayeslora.models.modalities import beside_text

_HEADS = ("classifier", "score")
"""Heads that PEFT trains whole in a classifier, whatever is asked for."""


class FullFineTuning(Method):
    """Maximum likelihood over all weights, as a PEFT adapter without any low-rank update.

    Every module with parameters is one of PEFT's `modules_to_save`: a trained copy of it takes its place, and is what
    is saved. So the adapter is as large as what is trained, plain PEFT loads it, and the frozen original stays in
    memory beside it. Weights that are tied in the base model stay tied.

    `r`, `lora_alpha`, `lora_dropout` and `modules_to_save` have no effect. `target_modules` trains the modules of
    these names alone, `last_layers` those of the top layers alone (and a classifier's head in both cases). With
    `init_from` training starts at the sum of the base weights and that LoRA adapter's update.

    Weight decay pulls the weights towards zero, not towards the base model's, so it should be 0 here.
    """

    name = "full_fine_tuning"
    has_draws = False

    def adapt(self, model: nn.Module, kind: ModelKind) -> PeftModel:
        """`model` with trained copies of its modules.

        Raises:
            ValueError: The target modules match nothing, `last_layers` exceeds the model's layers, or `init_from` is
                no LoRA adapter that fits the model or changes modules that are not trained here.
        """
        started = None if self.init_from is None else self._merged(copy.deepcopy(model), self.init_from)
        names = list(self._trained(model))
        if not names:
            raise ValueError(f"target_modules {self.target_modules} match no module with parameters in this model.")
        config = LoraConfig(
            target_modules=DUMMY_TARGET_MODULES,
            modules_to_save=list(names),
            ensure_weight_tying=_repeats(model, names),
            task_type=TASK_TYPES[kind],
        )
        adapted = get_peft_model(model, config)
        # PEFT takes a tied head out of the list, and would not tie it again where it loads a list without it.
        config.modules_to_save = names
        if started is not None:
            _take_over(adapted, started)
        return adapted

    def _trained(self, model: nn.Module) -> Iterator[str]:
        """Names of the outermost modules with parameters of their own."""
        chosen = self._layers(model)
        targets = linear_names(model, chosen) if self.target_modules == "all-linear" else self.target_modules
        inside = None if chosen is None else inside_layers(model, chosen)
        unread = tuple(f"{name}." for name in beside_text(model))
        heads = [*_HEADS, *(saved_modules(model, None) or [])]
        covered: list[str] = []
        for name, module in model.named_modules():
            last = name.rpartition(".")[2]
            head = next((each for each in heads if held_by(f"{name}.", [each])), None)
            allowed = (inside is None or id(module) in inside) and (
                targets is None or last in targets or name in targets
            )
            allowed = allowed and not f"{name}.".startswith(unread)
            if next(module.parameters(recurse=False), None) is None or not (allowed or head):
                continue
            if not held_by(name, covered):
                covered.append(head or name)
                yield covered[-1]

    @staticmethod
    def _merged(model: nn.Module, init_from: str) -> nn.Module:
        return merged(open_adapter(model, located_adapter(init_from)))


def _repeats(model: nn.Module, names: list[str]) -> bool:
    """Whether two of the modules share a weight."""
    parameters = [parameter for name in names for parameter in model.get_submodule(name).parameters()]
    return len({id(parameter) for parameter in parameters}) < len(parameters)


def _take_over(adapted: PeftModel, started: nn.Module) -> None:
    """Give the trained copies the weights of `started`.

    Raises:
        ValueError: `started` differs from the base model elsewhere too, or no longer shares a weight that is trained
            as one.
    """
    base: nn.Module = adapted.get_base_model()
    wrapped = {name: module for name, module in base.named_modules() if isinstance(module, ModulesToSaveWrapper)}
    for name, module in wrapped.items():
        module.modules_to_save["default"].load_state_dict(started.get_submodule(name).state_dict())
    for name, module in wrapped.items():
        given, taken = started.get_submodule(name).state_dict(), module.modules_to_save["default"].state_dict()
        if not all(torch.equal(value, given[key]) for key, value in taken.items()):
            raise ValueError(
                f"init_from changes {name} but not the module that it shares its weight with, and full fine-tuning "
                "trains them as one; start from an adapter without it, or train without init_from."
            )
    for name, value in base.state_dict().items():
        outside = not any(name.startswith(f"{inside}.") for inside in wrapped)
        if outside and not torch.equal(value, started.state_dict()[name]):
            raise ValueError(
                f"init_from changes {name}, which is not trained here; leave target_modules and last_layers out."
            )
