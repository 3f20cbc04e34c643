"""IVON (arXiv 2402.17641, for LoRA 2411.04421): the optimizer itself learns a Gaussian posterior of the weights."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from peft import PeftModel
from torch import Tensor

from bayeslora.adapters import RandomLoraConfig, Side, register
from bayeslora.adapters.draws import random_factors
from bayeslora.methods.base import Method, State, TrainingResult
from bayeslora.options.ranges import Positive, Range, StandardDeviation
from bayeslora.posteriors.weights.gaussian import FixedGaussianWeights


@dataclass(frozen=True)
class IvonWeights(FixedGaussianWeights):
    """A Gaussian whose standard deviations come from the optimizer, which also perturbs the means while training.

    It has no KL in the loss: the optimizer's own update holds the prior.
    """

    fixed: ClassVar[tuple[str, ...]] = ("log_std",)


@register("IVON_LORA")
@dataclass
class IvonConfig(RandomLoraConfig):
    """Config of LoRA trained by IVON; every field of `peft.LoraConfig` works as there, and:

    Args:
        initial_std: Standard deviation of a weight of A or B at the start.

    Raises:
        ValueError: A value out of range, or an option of LoRA that cannot be combined.
    """

    initial_std: StandardDeviation = 0.03

    def family(self, side: Side, rows: int, columns: int) -> IvonWeights:
        """q(W) of a factor `[rows, columns]`."""
        return IvonWeights(rows, columns, std=self.initial_std)


class Ivon(Method):
    """Variational learning by the optimizer IVON (arXiv 2402.17641, 2411.04421; package `ivon-opt`).

    The posterior is q(w) = N(m, 1 / (ess (h + delta))), independent weights, with ess = N / beta. IVON minimises
    ess * E_q[mean NLL] + KL[q || N(0, prior_std^2)], which is N times the loss of the other methods where beta is 1,
    if its weight decay is delta = 1 / (ess prior_std^2). It draws w ~ q for each micro-batch, estimates the gradient
    and, from the gradient times the noise, the diagonal Hessian h, and takes a Newton step, clipped per weight:

        m <- m - rate * clip((g / (1 - beta1^t) + delta m) / (h + delta), -radius, radius)

    radius = clip_gradient / (h + delta at the start), and rate * radius is the learning rate of the run times
    `learning_rate_scale`: so far a weight moves in a step at most, as with AdamW, and one grid of rates serves both.

    Other trainable parameters (a classification head in `modules_to_save`) are learned in the same way and are at
    their mean when predicting. The Trainer's `max_grad_norm`, `weight_decay` and `optim` have no effect here. The noise
    comes from torch's global generator, which the run seeds. One process; no float16 loss scaling.

    Args:
        beta: Weight of the KL; 1 is the ELBO. 2411.04421 sets ess by hand to 1e6 ... 1e8, which is beta << 1.
        prior_std: Standard deviation of the prior of a weight. 2411.04421 has no weight decay, which is a flat prior.
        initial_std: Standard deviation of a weight of A or B (and of other trained parameters) at the start, in place
            of IVON's hess_init = 1 / (ess initial_std^2) - delta. 2411.04421: 0.032, 0.018 or 0.006, by task.
        beta1: Momentum of the gradient.
        beta2: Momentum of the Hessian: it is an average over 1 / (1 - beta2) steps.
        clip_gradient: Size of a component of the gradient (of the mean NLL, nats per unit of the weight) from which on
            its step is clipped, while h is near its start. 2411.04421: clip_radius 1e-3 times hess_init, 1e-6 or 3e-7.
        learning_rate_scale: The largest step of a weight, as a multiple of the learning rate. 2411.04421's rate of 0.03
            times its clip_radius of 1e-3 is 3e-5.

    Raises:
        ValueError: A value out of range.
    """

    name = "ivon"
    of_whole_training = True
    config_class = IvonConfig

    def __init__(
        self,
        beta: Positive = 1.0,
        prior_std: StandardDeviation = 1.0,
        initial_std: StandardDeviation = 0.03,
        beta1: Annotated[float, Range(0, 1, below=True)] = 0.9,
        beta2: Annotated[float, Range(0, 1, below=True)] = 0.99999,
        clip_gradient: Positive = 1e-6,
        learning_rate_scale: Positive = 1.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        for name, value in (("beta", beta), ("clip_gradient", clip_gradient)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}.")
        if not 0 < initial_std < prior_std:
            raise ValueError(f"initial_std must lie between 0 and prior_std = {prior_std}, got {initial_std}.")
        self.beta = beta
        self.prior_std = prior_std
        self.initial_std = initial_std
        self.beta1 = beta1
        self.beta2 = beta2
        self.clip_gradient = clip_gradient
        self.learning_rate_scale = learning_rate_scale

    def trainer_options(self, learning_rate: float, total_steps: int, num_examples: int) -> dict[str, Any]:
        """The optimizer.

        Raises:
            ImportError: `ivon-opt` is not installed.
            ValueError: There are several processes.
        """
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            processes = torch.distributed.get_world_size()
            if processes > 1:
                raise ValueError(
                    f"IVON trains in one process, but there are {processes}: each would draw weights of its own, and "
                    "DDP would mix their gradients. Use gradient_accumulation_steps for larger batches."
                )
        ess = num_examples / self.beta
        weight_decay = 1 / (ess * self.prior_std**2)
        clip_radius = self.clip_gradient * ess * self.initial_std**2
        options = {
            "lr": learning_rate * self.learning_rate_scale / clip_radius,
            "ess": ess,
            "weight_decay": weight_decay,
            "hess_init": 1 / (ess * self.initial_std**2) - weight_decay,
            "beta1": self.beta1,
            "beta2": self.beta2,
            "clip_radius": clip_radius,
            "rescale_lr": False,
        }
        return {"optimizer_cls_and_kwargs": (optimizer_class(), options)}

    def fit_posterior(self, model: PeftModel, training: TrainingResult) -> State:
        """Write the optimizer's standard deviations into the adapter.

        Raises:
            ValueError: Nothing was trained, so there is no optimizer.
        """
        if training.optimizer is None:
            raise ValueError("IVON's posterior is learned in training, but this run has none; set epochs or max_steps.")
        found = posterior_std(training.optimizer)
        for factor in random_factors(model):
            tensors = factor.parameters_by_name
            tensors["log_std"].copy_(found[tensors["mean"]].log())
        return {}


def posterior_std(optimizer: Any) -> dict[Tensor, Tensor]:
    """1 / sqrt(ess (h + delta)) for each parameter of an IVON optimizer, in its shape."""
    result = {}
    for group in optimizer.param_groups:
        std = (group["ess"] * (group["hess"] + group["weight_decay"])).rsqrt()
        pieces = std.split([parameter.numel() for parameter in group["params"]])
        for parameter, piece in zip(group["params"], pieces, strict=True):
            result[parameter] = piece.view_as(parameter)
    return result


@functools.cache
def optimizer_class() -> Any:
    """IVON as the Trainer needs it; imported here because the package is optional.

    Raises:
        ImportError: `ivon-opt` is not installed.
    """
    try:
        import ivon
    except ImportError as error:
        raise ImportError('IVON needs the package ivon-opt: pip install "bayeslora[ivon]"') from error

    class AccumulatingIvon(ivon.IVON):
        """IVON whose samples are the micro-batches of a step, and whose state is all in its `state_dict`.

        The package takes what is in `.grad` at the end of `sampled_params` for the gradient of a whole batch and
        averages over the samples. The Trainer's micro-batches add up in `.grad`, and their losses are shares of the
        batch's: here each sample is its own micro-batch's gradient, and they are summed.
        """

        def __init__(self, groups: list[dict[str, Any]], **options: Any):
            # The Trainer's groups differ in weight decay alone, which here is the prior; empty ones are not allowed.
            super().__init__([parameter for group in groups for parameter in group["params"]], **options)

        @contextmanager
        def sampled_params(self, train: bool = False) -> Iterator[None]:
            """A draw of the weights inside; with `train`, its gradient is noted at the end."""
            parameters = [parameter for group in self.param_groups for parameter in group["params"]]
            earlier = [parameter.grad for parameter in parameters]
            if train:
                for parameter in parameters:
                    parameter.grad = torch.zeros_like(parameter)
            means, noise = self._sample_params()
            ended_well = False
            try:
                yield
                ended_well = True
            finally:
                self._restore_param_average(train and ended_well, means, noise)
                if train:
                    for parameter, before in zip(parameters, earlier, strict=True):
                        parameter.grad = parameter.grad if before is None else parameter.grad + before

        def step(self, closure: Any = None) -> Any:
            """An update with the sum of the samples since the last one."""
            for name in ("avg_grad", "avg_nxg"):
                self.state[name] = self.state[name] * self.state["count"]
            result = super().step(closure)
            # The package keeps the number of steps, which the momentum's bias correction needs, outside its state.
            self.param_groups[0]["steps"] = self.current_step
            return result

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            """As any optimizer's; the Trainer loads it on the CPU."""
            super().load_state_dict(state_dict)
            self.current_step = self.param_groups[0].get("steps", 0)
            for group in self.param_groups:
                for name in ("momentum", "hess"):
                    group[name] = group[name].to(self._device, self._dtype)

    return AccumulatingIvon
