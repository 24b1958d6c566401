"""Small models of many shapes, with example inputs: what passes must get right or leave alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.architectures.branching import Answering, Branch, Collected, Steps
from tests.architectures.images import IMAGES
from tests.architectures.sequences import SEQUENCES
from tests.architectures.traits import (
    Block,
    ChannelMean,
    Dense,
    Encoder,
    Gated,
    Recurrent,
    Scaled,
    Shared,
    Shuffle,
    ShuffleUnit,
    SpatialGate,
    SqueezeExcite,
    Tied,
    TwoInputs,
    Unregistered,
    depthwise,
    flatten,
    group_norm,
    grouped,
    head,
    parametrized,
    resnet,
    transposed,
    zero_scale,
)

__all__ = [
    "ARCHITECTURES", "CAPTURED", "MODELS", "Block", "Steps", "Tied", "build", "depthwise", "head",
    "resnet",
]  # fmt: skip

IMAGE, VECTOR = (2, 3, 8, 8), (2, 6)

MODELS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "resnet_a": (lambda: resnet("A"), IMAGE),
    "resnet_b": (lambda: resnet("B"), IMAGE),
    "zero_scale": (zero_scale, IMAGE),
    "depthwise": (depthwise, IMAGE),
    "dense": (Dense, IMAGE),
    "squeeze_excite": (SqueezeExcite, IMAGE),
    "spatial_gate": (SpatialGate, IMAGE),
    "encoder": (lambda: Encoder("hand"), "tokens"),
    "encoder_torch": (lambda: Encoder("torch"), "tokens"),
    "shared": (Shared, IMAGE),
    "tied": (Tied, VECTOR),
    "grouped": (grouped, IMAGE),
    "flatten": (flatten, IMAGE),
    "transposed": (transposed, IMAGE),
    "shuffle": (Shuffle, IMAGE),
    "shuffle_unit": (ShuffleUnit, IMAGE),
    "lstm": (lambda: Recurrent(nn.LSTM), (2, 4, 6)),
    "gru": (lambda: Recurrent(nn.GRU), (2, 4, 6)),
    "two_inputs": (TwoInputs, "two"),
    "branch": (Branch, IMAGE),
    "gated": (Gated, VECTOR),
    "channel_mean": (ChannelMean, IMAGE),
    "scaled": (Scaled, IMAGE),
    "unregistered": (Unregistered, IMAGE),
    "group_norm": (group_norm, IMAGE),
    "parametrized": (parametrized, VECTOR),
}

CAPTURED: dict[str, tuple[Callable[[], nn.Module], Any]] = {  # what fx cannot trace symbolically
    "branch": MODELS["branch"],
    "steps": (Steps, (2, 4, 6)),
    "answering": (Answering, "pixels"),
    "collected": (Collected, "images"),
}

ARCHITECTURES = IMAGES | SEQUENCES  # whole networks, where MODELS have one trait each


def build(name: str, *, seed: int = 0) -> tuple[nn.Module, Any]:
    """A seeded model in eval mode, its BatchNorm statistics as if trained, and example inputs."""
    make, shape = (MODELS | CAPTURED | ARCHITECTURES)[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make().eval()
        for module in model.modules():
            if isinstance(module, _BatchNorm) and name != "zero_scale":
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
                nn.init.normal_(module.bias, 0.0, 0.2)
        if shape == "tokens":
            return model, torch.randint(0, 50, (2, 6))
        if shape == "masked tokens":
            mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
            return model, {"input_ids": torch.randint(0, 50, (2, 6)), "attention_mask": mask}
        if shape == "pixels":
            return model, {"pixels": torch.randn(IMAGE)}
        if shape == "images":
            return model, (torch.randn(IMAGE), torch.randn(IMAGE))
        if shape == "two":
            return model, {"image": torch.randn(IMAGE), "vector": torch.randn(VECTOR)}
        return model, torch.randn(shape)
