"""modelzip turns a trained PyTorch model into a small, fast ONNX file, and proves it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelzip.archive.bundle import bundle
    from modelzip.archive.pack import pack
    from modelzip.archive.unpack import open_archive, unpack
    from modelzip.core.base import Context, Need, Pass, PassReport, Stage
    from modelzip.core.prepare import Prepared, load, load_prepared, prepare
    from modelzip.errors import ModelzipError
    from modelzip.export.onnx import export_onnx
    from modelzip.passes.cast import Cast
    from modelzip.passes.cluster_weights import ClusterWeights
    from modelzip.passes.equalize import Equalize
    from modelzip.passes.fake_quantize import FakeQuantize
    from modelzip.passes.group_sparsity import GroupSparsity
    from modelzip.passes.int8 import Int8
    from modelzip.passes.learn_bits import LearnBits
    from modelzip.passes.low_rank import LowRank
    from modelzip.passes.magnitude_prune import MagnitudePrune
    from modelzip.passes.movement_prune import MovementPrune
    from modelzip.passes.prune_channels import PruneChannels
    from modelzip.passes.rate_quantize import RateQuantize
    from modelzip.passes.reestimate_batch_norm import ReestimateBatchNorm
    from modelzip.passes.rewind import Rewind
    from modelzip.passes.smooth_quant import SmoothQuant
    from modelzip.passes.weight_only import WeightOnly
    from modelzip.run import compress
    from modelzip.train.finetune import FineTune
    from modelzip.train.synthetic import synthesize

__version__ = "0.1.0"

__all__ = [
    "Cast",
    "ClusterWeights",
    "Context",
    "Equalize",
    "FakeQuantize",
    "FineTune",
    "GroupSparsity",
    "Int8",
    "LearnBits",
    "LowRank",
    "MagnitudePrune",
    "ModelzipError",
    "MovementPrune",
    "Need",
    "Pass",
    "PassReport",
    "Prepared",
    "PruneChannels",
    "RateQuantize",
    "ReestimateBatchNorm",
    "Rewind",
    "SmoothQuant",
    "Stage",
    "WeightOnly",
    "bundle",
    "compress",
    "export_onnx",
    "load",
    "load_prepared",
    "open_archive",
    "pack",
    "prepare",
    "synthesize",
    "unpack",
]

_HOME = {  # loaded when first asked for: a training loop needs no ONNX
    "Cast": "passes.cast",
    "ClusterWeights": "passes.cluster_weights",
    "Context": "core.base",
    "Equalize": "passes.equalize",
    "FakeQuantize": "passes.fake_quantize",
    "FineTune": "train.finetune",
    "GroupSparsity": "passes.group_sparsity",
    "Int8": "passes.int8",
    "LearnBits": "passes.learn_bits",
    "LowRank": "passes.low_rank",
    "MagnitudePrune": "passes.magnitude_prune",
    "ModelzipError": "errors",
    "MovementPrune": "passes.movement_prune",
    "Need": "core.base",
    "Pass": "core.base",
    "PassReport": "core.base",
    "Prepared": "core.prepare",
    "PruneChannels": "passes.prune_channels",
    "RateQuantize": "passes.rate_quantize",
    "ReestimateBatchNorm": "passes.reestimate_batch_norm",
    "Rewind": "passes.rewind",
    "SmoothQuant": "passes.smooth_quant",
    "Stage": "core.base",
    "WeightOnly": "passes.weight_only",
    "bundle": "archive.bundle",
    "compress": "run",
    "export_onnx": "export.onnx",
    "load": "core.prepare",
    "load_prepared": "core.prepare",
    "open_archive": "archive.unpack",
    "pack": "archive.pack",
    "prepare": "core.prepare",
    "synthesize": "train.synthetic",
    "unpack": "archive.unpack",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'modelzip' has no attribute {name!r}")
    return getattr(importlib.import_module(f"modelzip.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
