"""What a run would need, found out before it: parameters, memory and passes, without weights and without a GPU.

The base model is built on torch's meta device, the adapters are put on it by the code that puts them on real models,
and one training step and one prediction run there too; the bytes of their tensors are counted as they come and go.
"""

from bayeslora.planning.architecture import base_on_meta, find_architecture, known_architectures
from bayeslora.planning.estimate import Estimator, Setting
from bayeslora.planning.memory import Budget, Memory, parse_bytes
from bayeslora.planning.plan import Plan, PlanOptions, RowPlan, make_plan, make_plans
from bayeslora.planning.shape import Shape
from bayeslora.planning.table import as_record, as_text

__all__ = [
    "Budget",
    "Estimator",
    "Memory",
    "Plan",
    "PlanOptions",
    "RowPlan",
    "Setting",
    "Shape",
    "as_record",
    "as_text",
    "base_on_meta",
    "find_architecture",
    "known_architectures",
    "make_plan",
    "make_plans",
    "parse_bytes",
]
