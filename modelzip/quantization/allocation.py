"""Bit widths for the layers of a model, under a size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from modelzip.core import surgery
from modelzip.core.base import Batch
from modelzip.core.running import tensors
from modelzip.errors import SettingError
from modelzip.numerics.allocation import allocate
from modelzip.quantization.fake import WeightQuantizer
from modelzip.quantization.rounding import Rounding, error_left
from modelzip.quantization.sensitivity import sensitivity

WIDTHS = (2, 3, 4, 5, 6, 7, 8)

_MEASURED = 3  # bits at which each layer is tried; others follow from their rounding error
_STORED = {2: 8 / 5, 3: 32 / 11}  # bits a weight where several share a word: see export.packing
_CHANNEL_BYTES = 8  # of an output channel's scale and bias
_LAYER_BYTES = 525  # of a layer's operators and those after it, as ResNets have them
_FILE_BYTES = 2500  # of the rest of the graph, and of what unpacks each width
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_SAMPLES = 256  # are enough to tell layers apart
_LEAST = 1e-9  # nats: a layer that cost nothing on these samples still takes what is to spare


def allocate_bits(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Sequence[Batch],
    *,
    size: float,
    rounding: Rounding = "nearest",
) -> dict[str, int]:
    """The bits, 2 to 8, of the weights of each of `layers`, so that the file is of `size`.

    Each layer is rounded alone. How far the outputs then diverge from the float model's, times what
    `rounding` leaves of that error, says what a layer costs; at other widths the cost changes as
    the squared rounding error does. The widths are those of least total cost, with the square roots
    of costs: biases and later layers make up for a part, the more of it the larger it is. Yao et
    al. 2021, https://arxiv.org/abs/2011.10680, section 3.4, has the sum and the budget.

    Args:
        layers: those to be quantized, by name; the rest of the model stays in float32.
        batches: calibration data; the outputs on the first 256 samples are compared.
        size: bytes of the file as a fraction of those of the float32 one.

    Raises:
        SettingError: not even 2 bits everywhere are as small as `size`.
    """
    float_bytes, rest = _bytes(model, layers)
    sizes = [[_weight_bytes(layer, bits) for bits in WIDTHS] for layer in layers.values()]
    least = (rest + sum(row[0] for row in sizes)) / float_bytes
    if size < least:
        raise SettingError(
            f"size {size:g}x cannot be reached: with 2 bits everywhere the file is {least:.3f}x; "
            "prune it first, or quantize more of its layers"
        )
    batches = batches[: _enough(batches)]
    tried = sensitivity(model, batches, bits=(_MEASURED,), layers=list(layers), activations=False)
    left = dict.fromkeys(layers, 1.0)
    if rounding == "least_squares":
        left = error_left(model, layers, batches, bits=_MEASURED)
    costs = []
    for row, (name, layer) in zip(tried, layers.items(), strict=True):
        errors = [_rounding_error(_weight(layer), bits) for bits in WIDTHS]
        cost = math.sqrt(max(row.kl * left[name], _LEAST))
        costs.append([cost * e / max(errors[WIDTHS.index(_MEASURED)], 1e-30) for e in errors])
    chosen = allocate(costs, sizes, budget=size * float_bytes - rest)
    return {name: WIDTHS[index] for name, index in zip(layers, chosen, strict=True)}


def _enough(batches: Sequence[Batch]) -> int:
    """How many of the batches hold enough samples."""
    sizes = [len(next(tensors(batch.inputs))) for batch in batches]
    return 1 + sum(total < _SAMPLES for total in itertools.accumulate(sizes))


def _bytes(model: nn.Module, layers: Mapping[str, nn.Module]) -> tuple[float, float]:
    """Bytes of the float32 file, and of all but the weights of `layers` in the integer one."""
    norms = [module for module in model.modules() if isinstance(module, _NORMS)]
    folded = {id(p) for module in (*layers.values(), *norms) for p in module.parameters()}
    others = 4 * sum(p.numel() for p in model.parameters() if id(p) not in folded)
    weights = [_weight(layer) for layer in layers.values()]
    channels = sum(len(weight) for weight in weights)
    rest = others + _CHANNEL_BYTES * channels + _LAYER_BYTES * len(weights) + _FILE_BYTES
    return others + 4 * (sum(weight.numel() for weight in weights) + channels), rest


def _weight(layer: nn.Module) -> Tensor:
    return surgery.original_tensor(layer).detach()


def _weight_bytes(layer: nn.Module, bits: int) -> float:
    return _weight(layer).numel() * _STORED.get(bits, bits) / 8


def _rounding_error(weight: Tensor, bits: int) -> float:
    rounded = WeightQuantizer(weight, bits=bits, method="fixed").eval()(weight)
    return float((rounded - weight).square().mean())
