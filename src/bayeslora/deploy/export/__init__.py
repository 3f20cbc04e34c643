"""Posteriors as ordinary LoRA adapters or merged models, for programs that do not know this package.

An exported adapter has its scaling folded into B, `lora_alpha = r` and the same rank everywhere (layers of a smaller
rank are padded with zeros), so that its scale is 1 for every reader: PEFT, vLLM and TGI take it from the config,
llama.cpp divides `lora_alpha` by the rank of each tensor.
"""

from bayeslora.deploy.export.adapters import export_mean, export_samples
from bayeslora.deploy.export.base import ExportFormat, ExportRequest
from bayeslora.deploy.export.folder import RECORD, Dtype
from bayeslora.deploy.export.merged import export_merged
from bayeslora.deploy.export.run import FORMATS, export_run

__all__ = [
    "FORMATS",
    "RECORD",
    "Dtype",
    "ExportFormat",
    "ExportRequest",
    "export_mean",
    "export_merged",
    "export_run",
    "export_samples",
]
