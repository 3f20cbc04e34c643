"""SD-LoRA (arXiv 2501.13198): a task's LoRA beside the frozen directions of all earlier tasks, with magnitudes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.save_and_load import load_peft_weights
from torch import Tensor, nn

from bayeslora.adapters import BayesianLoraConfig, RandomLoraConfig, Side, register
from bayeslora.adapters.files import is_factor, read_adapter_config
from bayeslora.adapters.from_lora import located_adapter, lora_fields
from bayeslora.adapters.random_factor import RandomFactor
from bayeslora.adapters.starts import open_adapter, with_new
from bayeslora.methods.base import TASK_TYPES, Method
from bayeslora.methods.bayesian_lora import BayesianLora
from bayeslora.models.heads import saved_modules
from bayeslora.models.kinds import ModelKind
from bayeslora.posteriors.weights.base import WeightPosterior
from bayeslora.posteriors.weights.directions import DirectionsWeights
from bayeslora.posteriors.weights.point import PointWeights


@register("SD_LORA")
@dataclass
class SdLoraConfig(RandomLoraConfig):
    """Config of SD-LoRA after some tasks; every field of `peft.LoraConfig` works as there, and:

    Args:
        tasks: t, tasks learned so far, the current one included. `r` is the rank of all of them together, and
            `lora_alpha / r` the scale of each.

    Raises:
        ValueError: The rank is no multiple of the tasks, or an option of LoRA cannot be combined.
    """

    tasks: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        ranks = [self.r, *(self.rank_pattern or {}).values()]
        if self.tasks < 1 or any(rank % self.tasks for rank in ranks):
            raise ValueError(f"the rank must be a multiple of the number of tasks, got r={ranks}, tasks={self.tasks}.")

    def factor(self, side: Side, module: nn.Linear) -> RandomFactor:
        """The factors of all tasks in one."""
        rows, columns = module.out_features, module.in_features
        own = (rows // self.tasks, columns) if side == "A" else (rows, columns // self.tasks)
        family = DirectionsWeights(rows, columns, side=side, current=self.family(side, *own), tasks=self.tasks)
        return RandomFactor(family, module.weight.data)

    def family(self, side: Side, rows: int, columns: int) -> WeightPosterior:
        """The family of the current task's factor `[rows, columns]`."""
        return PointWeights(rows, columns)


@register("BAYES_SD_LORA")
@dataclass
class BayesianSdLoraConfig(SdLoraConfig, BayesianLoraConfig):
    """Config of SD-LoRA with the posterior of `BayesianLoraConfig` over the current task's factors."""

    family = BayesianLoraConfig.family


class SdLora(Method):
    """SD-LoRA (Wu et al., ICLR 2025, arXiv 2501.13198): continual learning without rehearsal and without task ids.

        Delta W_t = (alpha / r) (sum_{k<t} a_k B_k A_k / (|B_k| |A_k|) + a_t B_t A_t)

    `init_from` a run of SD-LoRA begins the next task: that run's B_t A_t becomes a frozen direction, and B, A and all
    magnitudes a_k are trained. Without it, or from plain LoRA, it is the first task. Norms are Frobenius norms. The
    authors' code shares each a_k between all layers and has no alpha / r; here each adapted matrix has its own.

    Args:
        old_magnitudes: Where the magnitudes of earlier tasks begin. "restart": at .8, as in the authors' code, which
            rescales what was learned when a task begins. "keep": at a_t |B_t| |A_t|, where the model is unchanged.
    """

    name = "sd_lora"
    has_draws = False
    config_class: ClassVar[type[LoraConfig]] = SdLoraConfig

    def __init__(self, old_magnitudes: Literal["restart", "keep"] = "restart", **kwargs: Any):
        super().__init__(**kwargs)
        self.old_magnitudes = old_magnitudes

    def adapt(self, model: nn.Module, kind: ModelKind) -> PeftModel:
        """As the base class, or with the directions of the run `init_from`."""
        if self.init_from is not None:
            folder = located_adapter(self.init_from)
            before = read_adapter_config(folder)
            if isinstance(before, SdLoraConfig):
                return self._next_task(model, kind, before, folder)
        return super().adapt(model, kind)

    def _next_task(self, model: nn.Module, kind: str, before: SdLoraConfig, folder: str | Path) -> PeftModel:
        """`model` with the directions of the adapter at `folder` and a fresh current factor."""
        previous = open_adapter(model, folder)
        learned = {name: _learned(layer) for name, layer in _layers(previous).items()}
        base = previous.unload()
        tasks = before.tasks + 1
        grown = {
            "task_type": TASK_TYPES[kind],
            "modules_to_save": saved_modules(base, before.modules_to_save),
            "r": before.r // before.tasks * tasks,
            "lora_alpha": before.lora_alpha / before.tasks * tasks,
            "rank_pattern": {key: rank // before.tasks * tasks for key, rank in (before.rank_pattern or {}).items()},
            "alpha_pattern": {key: alpha / before.tasks * tasks for key, alpha in (before.alpha_pattern or {}).items()},
        }
        config = self.config(**{**lora_fields(before), **grown}, tasks=tasks)
        adapted = get_peft_model(base, config)
        for name, layer in _layers(adapted).items():
            self._take_over(layer, learned[name])
        weights = load_peft_weights(str(folder), device="cpu")
        head = {key: value for key, value in weights.items() if not is_factor(key)}
        if head:
            set_peft_model_state_dict(adapted, with_new(adapted, head, before))
        return adapted

    def _take_over(self, layer: Any, learned: _Learned) -> None:
        a, b = layer.lora_A["default"], layer.lora_B["default"]
        with torch.no_grad():
            a.directions.copy_(learned.a)
            b.directions.copy_(learned.b)
            if self.old_magnitudes == "keep":
                b.magnitudes[:, :-1].copy_(learned.magnitudes)


class BayesianSdLora(SdLora, BayesianLora):
    """SD-LoRA with Bayesian-LoRA's posterior over the current task's A and B.

    The mean of B_t A_t becomes the direction that the next task freezes; earlier directions and all magnitudes are
    point estimates.
    """

    name = "bayesian_sd_lora"
    has_draws = True
    config_class = BayesianSdLoraConfig


class _Learned(NamedTuple):
    """What a layer has learned in all tasks so far."""

    a: Tensor
    """Directions `[t r, in]`."""
    b: Tensor
    """Directions `[out, t r]`."""
    magnitudes: Tensor
    """With which they give the layer's update `[1, t]`."""


def _learned(layer: Any) -> _Learned:
    a, b = layer.lora_A["default"], layer.lora_B["default"]
    with torch.no_grad():
        parts = [factor.family.current.mean_weight(factor.parameters_by_name) for factor in (a, b)]
        sizes = [part.norm() for part in parts]
        # A task that learned nothing leaves a direction of zeros.
        unit = [part / size.clamp_min(torch.finfo(part.dtype).tiny) for part, size in zip(parts, sizes, strict=True)]
        old = [[factor.directions] if factor.family.tasks > 1 else [] for factor in (a, b)]
        magnitudes = b.magnitudes.clone()
        magnitudes[:, -1] *= sizes[0] * sizes[1]
        return _Learned(torch.cat([*old[0], unit[0]], 0), torch.cat([*old[1], unit[1]], 1), magnitudes)


def _layers(model: nn.Module) -> dict[str, Any]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
