"""What a method is: how it adapts a model, trains it and predicts with it."""

from __future__ import annotations

import dataclasses
import inspect
from abc import ABC
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from bayeslora.adapters import RandomLoraConfig, default_targets
from bayeslora.adapters.from_lora import from_lora, located_adapter
from bayeslora.adapters.placement import Placement, Targets, adapted_layers, linear_names
from bayeslora.adapters.starts import continue_adapter
from bayeslora.models.heads import saved_modules
from bayeslora.models.kinds import ModelKind
from bayeslora.models.modalities import excluded_modules
from bayeslora.options.ranges import AtLeastZero, Count, Positive, Range, RateScale, Share, Size
from bayeslora.prediction.predictive import Predictive, predict
from bayeslora.scoring import ChoiceBatch
from bayeslora.scoring.trunk_cache import TrunkCache

TASK_TYPES = {"causal_lm": "CAUSAL_LM", "sequence_classification": "SEQ_CLS"}


_RENAMED = {"finish": "fit_posterior", "samples_used": "effective_num_samples"}
"""Hooks of 0.1.0's drafts: a method that still overrides one would be passed over without a word."""

State = dict[str, Tensor]
"""What a method knows beyond its adapter; saved as posterior.safetensors."""


@dataclass(frozen=True)
class TrainingResult:
    """A training run at its end, for methods that go on from there."""

    batches: Callable[[], Iterable[ChoiceBatch]]
    """The training items in batches on the model's device, each time anew and in the same order."""
    num_examples: int
    """N."""
    optimizer: Any
    """The torch optimizer as it ended; None where nothing was trained."""
    trunk_cache: TrunkCache | None
    """To serve the batches with."""
    seed: int
    """The run's."""


class Method(ABC):
    """A way to adapt a base model with low-rank adapters, to train it and to predict with it.

    A subclass keeps each argument of its `__init__` as an attribute of the same name.

    Args:
        r: Rank of the adapters.
        lora_alpha: Scale of the update is lora_alpha / r.
        lora_dropout: Dropout probability on the adapters' input while training.
        target_modules: Names of the linear layers to adapt, or "all-linear"; default: query and value. What text does
            not reach, such as a vision tower, is left out.
        last_layers: Adapt only this many layers, counted from the top; default: all.
        placement: Adapt the upper share of the layers: "top_half" or "top_quarter" (docs/results/speed.md: the costs).
        modules_to_save: Further modules to train and save whole. Those with weights that the base model's checkpoint
            does not hold, such as a new head, need not be named.
        init_from: Run folder, adapter folder or Hub id of a trained LoRA adapter to start from. Its own rank, scale,
            targets, layers and saved modules count, not the options above. Default: a fresh adapter.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[LoraConfig]] = LoraConfig
    """The PEFT config; arguments of the method that are fields of it are handed on."""
    draws_depend_on_batch: ClassVar[bool] = False
    """Whether an item's draws depend on the shape of its batch, beside the seed."""
    closed_form: ClassVar[bool] = False
    """Whether predictions are integrals that no seed changes."""
    has_draws: ClassVar[bool] = True
    """Whether predictions can be made of posterior draws; else they are always the point estimate's."""
    train_samples: int = 1
    """Draws per training forward; the loss is their mean."""
    adapts: ClassVar[bool] = True
    """Whether the method trains an adapter; a head on frozen features does not."""
    of_whole_training: ClassVar[bool] = False
    """Whether what it predicts with comes from the training as a whole, so that no earlier epoch's end can be taken."""
    top: int | None = None
    """The number of layers from whose top `last_layers` and `placement` count; None: all of the model. A run whose
    heads read a layer in the middle sets it."""
    needs_items: ClassVar[bool] = False
    """Whether `fit_posterior` or `predict` reads batches of items with choices, so that texts will not do."""

    def __init__(
        self,
        r: Size = 8,
        lora_alpha: Positive = 16,
        lora_dropout: Annotated[float, Range(0, 1, below=True)] = 0.0,
        target_modules: Targets = None,
        last_layers: Count | None = None,
        modules_to_save: list[str] | None = None,
        init_from: str | None = None,
        placement: Placement = "all",
    ):
        self.r = r
        self.lora_alpha = lora_alpha
        self.lora_dropout = lora_dropout
        self.target_modules = target_modules
        self.last_layers = last_layers
        self.placement = placement
        self.modules_to_save = modules_to_save
        self.init_from = init_from

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse hooks of an earlier name.

        Raises:
            TypeError: The class has one.
        """
        super().__init_subclass__(**kwargs)
        for old in _RENAMED.keys() & vars(cls).keys():
            raise TypeError(
                f"the method {cls.__module__}.{cls.__qualname__} has {old}, which is now called {_RENAMED[old]} and "
                "would not be called; rename it."
            )

    @classmethod
    def argument_names(cls) -> list[str]:
        """Names of all arguments, those of the base classes included; each is also an attribute."""
        names = [
            name
            for base in reversed(cls.__mro__)
            if base is not object and "__init__" in vars(base)
            for name, parameter in inspect.signature(vars(base)["__init__"]).parameters.items()
            if name != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        return list(dict.fromkeys(names))

    @property
    def arguments(self) -> dict[str, Any]:
        """What the method was built with, defaults included, for the run's config.yaml."""
        return {name: getattr(self, name) for name in self.argument_names()}

    @property
    def own_options(self) -> dict[str, Any]:
        """Arguments that are fields of the config and that plain LoRA does not have."""
        plain = {field.name for field in dataclasses.fields(LoraConfig)}
        fields = {field.name for field in dataclasses.fields(self.config_class)} - plain
        return {name: value for name, value in self.arguments.items() if name in fields}

    def config(self, **lora_options: Any) -> LoraConfig:
        """The PEFT config with these LoRA options."""
        return self.config_class(**lora_options, **self.own_options)

    def adapt(self, model: nn.Module, kind: ModelKind) -> PeftModel:
        """`model` with fresh adapters, or with those of `init_from`.

        Raises:
            ValueError: The target modules match nothing, `last_layers` exceeds the model's layers or comes with a
                `placement`, or `init_from` is no LoRA adapter that fits the model.
        """
        if self.init_from is not None:
            if issubclass(self.config_class, RandomLoraConfig):
                options = {"task_type": TASK_TYPES[kind], **self.own_options}
                return from_lora(model, self.init_from, config_class=self.config_class, **options)
            return continue_adapter(model, located_adapter(self.init_from), TASK_TYPES[kind])
        return get_peft_model(model, self.config(**self._lora_options(model), task_type=TASK_TYPES[kind]))

    def _lora_options(self, model: nn.Module) -> dict[str, Any]:
        targets, layers = self.target_modules, self._layers(model)
        if targets == "all-linear" and layers is not None:
            targets, layers = linear_names(model, layers), None
        targets = default_targets(model) if targets is None else targets
        return {
            "r": self.r,
            "lora_alpha": self.lora_alpha,
            "lora_dropout": self.lora_dropout,
            "target_modules": targets,
            "exclude_modules": excluded_modules(model, targets),
            "modules_to_save": saved_modules(model, self.modules_to_save),
            "layers_to_transform": layers,
        }

    def _layers(self, model: nn.Module) -> list[int] | None:
        if self.last_layers is None and self.placement == "all":
            return None if self.top is None else list(range(self.top))
        config: Any = model.config
        total = int(config.get_text_config().num_hidden_layers) if self.top is None else self.top
        return adapted_layers(total, self.placement, self.last_layers)

    def trains(self, config: PeftConfig) -> bool:
        """Whether an adapter with this PEFT config can be one that the method has trained."""
        return type(config) is self.config_class or self.init_from is not None

    def trainer_options(self, learning_rate: float, total_steps: int, num_examples: int) -> dict[str, Any]:
        """Arguments for `BayesianLoraTrainer` beyond the usual ones."""
        return {}

    def training_arguments(self) -> dict[str, Any]:
        """Fields of `transformers.TrainingArguments` that the method needs, such as a schedule of its own."""
        return {}

    def fit_posterior(self, model: PeftModel, training: TrainingResult) -> State:
        """What is left to do when the adapter is trained: it may change `model`, and returns what else to keep."""
        return {}

    def predict(
        self,
        model: nn.Module,
        batch: ChoiceBatch,
        num_samples: int,
        seed: int,
        trunk_cache: TrunkCache | None = None,
        state: State | None = None,
    ) -> Predictive:
        """The predictive distribution of `batch`; `num_samples` 0 asks for the point estimate."""
        return predict(model, batch, num_samples=num_samples, seed=seed, trunk_cache=trunk_cache)

    def effective_num_samples(self, num_samples: int) -> int:
        """How many posterior samples a prediction asked for `num_samples` is made of; 0: a point estimate."""
        return num_samples if self.has_draws else 0

    @property
    def draws_in_turn(self) -> bool:
        """Whether predictions are the mean of as many independent draws as asked for, so that more can be added."""
        counts = all(self.effective_num_samples(number) == number for number in (2, 3))
        return counts and type(self).predict is Method.predict

    def forwards_used(self, num_samples: int) -> int:
        """How many forwards of an item a prediction asked for `num_samples` takes; at least one."""
        return max(1, self.effective_num_samples(num_samples))


class VariationalMethod(Method):
    """A method that minimises mean NLL + beta * KL / N.

    Args:
        beta: Weight of the KL; 1 is the ELBO.
        kl_warmup: Share of the training steps over which the KL grows to its full weight.
        posterior_learning_rate_scale: Learning rate of the variational parameters, as a multiple of that of the means.
        train_samples: Draws per training forward; the loss is their mean.
    """

    def __init__(
        self,
        beta: AtLeastZero = 1.0,
        kl_warmup: Share = 0.0,
        posterior_learning_rate_scale: RateScale = 1.0,
        train_samples: Size = 1,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.beta = beta
        self.kl_warmup = kl_warmup
        self.posterior_learning_rate_scale = posterior_learning_rate_scale
        self.train_samples = train_samples

    def trainer_options(self, learning_rate: float, total_steps: int, num_examples: int) -> dict[str, Any]:
        """The ELBO's."""
        return {
            "beta": self.beta,
            "kl_warmup_steps": round(self.kl_warmup * total_steps),
            "posterior_learning_rate": learning_rate * self.posterior_learning_rate_scale,
            "train_samples": self.train_samples,
        }


def trainable_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def lora_parameters(model: nn.Module) -> int:
    """Numbers in plain LoRA adapters of the same rank on the same layers, saved modules included."""
    total = 0
    for module in model.modules():
        if isinstance(module, LoraLayer):
            base: Any = module.get_base_layer()
            total += sum(int(rank) * (base.in_features + base.out_features) for rank in module.r.values())
        elif isinstance(module, ModulesToSaveWrapper):
            total += sum(parameter.numel() for parameter in module.modules_to_save.parameters())
    return total
