"""PruneChannels on whole architectures: all that can go goes, and what is left is right."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import modelzip as mz
from modelzip.core.channels.resize import LAYERS
from modelzip.core.running import call, evaluating, tensors
from modelzip.core.surgery import clone
from modelzip.runtime.session import load
from tests.architectures import ARCHITECTURES, MODELS, build

OUTPUT = "output"  # part of the reasons below
NORM = "Norm"

# Layers that keep their width, and part of the reason. Every other convolution, Linear and
# attention must lose half: protection cannot grow without a line here.
PROTECTED: dict[str, dict[str, str]] = {
    "bottleneck": {"3.2": OUTPUT},
    "vgg": {"classifier.6": OUTPUT},
    "densenet": {"head.2": OUTPUT},
    "mobilenet_v2": {"13": OUTPUT},
    "mobilenet_v3": {"13": OUTPUT},
    "efficientnet": {"13": OUTPUT},
    "unet": {"out": OUTPUT},
    "inception": {"4.2": OUTPUT},
    "convnext": {
        **dict.fromkeys(("0.0", "1.depthwise", "1.down", "2.1", "3.depthwise", "3.down"), NORM),
        "4.3": OUTPUT,
    },
    "audio": {"10": OUTPUT},
    "video": {"11": OUTPUT},
    "weight_norm": {"2": "computes its weight", "4": "computes its weight", "8": "one output"},
    "detector": {"classes": OUTPUT, "boxes": OUTPUT},
    "autoencoder": {"code": ""},
    "vit_fused": {  # its forward takes the width of a head from the input's, so no head can go
        **dict.fromkeys(("patches", "blocks.*.attn.proj", "blocks.*.mlp.fc2"), NORM),
        **{"blocks.*.attn.qkv": "", "head": OUTPUT},
    },
    "vit_head_dim": {
        **dict.fromkeys(("patches", "blocks.*.attn.proj", "blocks.*.mlp.fc2"), NORM),
        "head": OUTPUT,
    },
    "vit_separate": {
        **dict.fromkeys(("patches", "blocks.*.attn.o", "blocks.*.mlp.fc2"), NORM),
        "head": OUTPUT,
    },
    "bert": {
        **dict.fromkeys(("layers.*.dense", "layers.*.output"), NORM),
        "classifier": OUTPUT,
    },
    "torch_encoder": {
        **dict.fromkeys(("embed", "encoder.layers.*.linear2"), NORM),
        **{"encoder.layers.*.self_attn.out_proj": "", "head": OUTPUT},
    },
    "cross_attention": {
        **{"project": "MultiheadAttention", "mlp.fc2": NORM},
        **{"cross.out_proj": "", "classes": OUTPUT, "places": OUTPUT},
    },
    "language_model": dict.fromkeys(("out", "mlp.fc2", "head"), "are tied"),
    "lstm_heads": {"conv2": "", "tags": OUTPUT, "score": "one output"},
    "gru_heads": {"conv2": "", "tags": OUTPUT, "score": "one output"},
}


@functools.cache
def _pruned(name: str, **settings: Any) -> tuple[nn.Module, Any, mz.Prepared]:
    model, inputs = build(name)
    settings = {"sparsity": 0.5, "scope": "layer", "round_to": 1} | settings
    return model, inputs, mz.prepare(model, [mz.PruneChannels(**settings)], example_inputs=inputs)


def pruned(name: str, **settings: Any) -> tuple[nn.Module, nn.Module, Any, dict[str, Any]]:
    """The original, the pruned model, example inputs, and the record of the pass."""
    model, inputs, zipped = _pruned(name, **settings)
    record = zipped.attached[0].context.record
    return clone(model), clone(zipped.model), inputs, record


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    with evaluating(model):
        return list(tensors(call(model, inputs)))


def mask_removed(model: nn.Module, record: dict[str, Any]) -> None:
    """Zero the weights that read what the record says is gone."""
    for name, entry in record["layers"].items():
        module = model.get_submodule(name)
        if "in" not in entry or not isinstance(module, LAYERS) or getattr(module, "groups", 1) > 1:
            continue  # whole groups go, and whatever reads their outputs is masked there
        mask = torch.zeros(entry["in"]["of"])
        mask[entry["in"]["kept"]] = 1
        first = isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
        assert not parametrize.is_parametrized(module), "a computed weight cannot be pruned"
        weight = module.weight
        shape = [1] * weight.dim()
        shape[0 if first else 1] = -1
        with torch.no_grad():
            weight.mul_(mask.reshape(shape))


def layer_names(model: nn.Module) -> list[str]:
    """Everything with a width that could shrink: convolutions, Linear layers, attention."""
    kinds = (*LAYERS, nn.MultiheadAttention)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def expand(patterns: dict[str, str], names: list[str]) -> dict[str, str]:
    """The table with each `*`, a block's number, written out."""
    found = {}
    for pattern, reason in patterns.items():
        hits = [n for n in names if n in {pattern.replace("*", str(i)) for i in range(3)}]
        assert hits, f"no layer {pattern}"
        found |= dict.fromkeys(hits, reason)
    return found


def size(model: nn.Module, name: str) -> int:
    """Outputs of a layer; parameters of attention, whose class may change."""
    module = model.get_submodule(name)
    for attribute in ("out_features", "out_channels"):
        if attribute in vars(module):
            return int(vars(module)[attribute])
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_that_can_go_goes(name: str) -> None:
    original, small, _, _ = pruned(name)
    names = layer_names(original)
    stays = expand(PROTECTED[name], names)
    whole = [n for n in names if size(small, n) == size(original, n) and n not in stays]
    assert whole == []


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_stays_is_listed_with_its_reason(name: str) -> None:
    original, small, _, record = pruned(name)
    stays = expand(PROTECTED[name], layer_names(original))
    protected = record["protected"]
    for layer, reason in stays.items():
        assert reason in protected[layer], layer
        assert size(small, layer) == size(original, layer)
    for layer in layer_names(original):
        if isinstance(original.get_submodule(layer), LAYERS):
            assert (layer in protected) == (size(small, layer) == size(original, layer)), layer


SETTINGS = [{}, {"scope": "global", "round_to": 4}]


@pytest.mark.parametrize("settings", SETTINGS, ids=["layer", "global"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equals_the_masked_original(name: str, settings: dict[str, Any]) -> None:
    original, small, inputs, record = pruned(name, **settings)
    assert sum(p.numel() for p in small.parameters()) < sum(
        p.numel() for p in original.parameters()
    )
    whole = outputs(original, inputs)
    mask_removed(original, record)
    masked = outputs(original, inputs)
    assert not all(map(torch.allclose, whole, masked)), "what was removed made no difference"
    for ours, theirs in zip(outputs(small, inputs), masked, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_trains_where_the_original_does(name: str) -> None:
    def without_gradient(model: nn.Module, inputs: Any) -> set[str]:
        torch.manual_seed(0)
        model.train()
        sum(t.square().sum() for t in tensors(call(model, inputs))).backward()
        return {
            name
            for name, parameter in model.named_parameters()
            if parameter.grad is None or not bool(torch.isfinite(parameter.grad).all())
        }

    original, small, inputs, _ = pruned(name)
    assert without_gradient(small, inputs) <= without_gradient(original, inputs)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_its_file_answers_as_it_does(name: str, tmp_path: Path) -> None:
    _, small, inputs, _ = pruned(name)
    for module in small.modules():  # what the user computes, only the user can make plain
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")
    session = load(mz.export_onnx(small.eval(), inputs, tmp_path / "small.onnx"))
    given = [inputs] if isinstance(inputs, Tensor) else list(inputs.values())
    answers = session.run(
        {spec.name: g.numpy() for spec, g in zip(session.inputs, given, strict=True)}
    )
    for theirs, ours in zip(answers, outputs(small, inputs), strict=True):
        torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_leaves_the_users_model_alone(name: str) -> None:
    model, inputs, _ = _pruned(name)
    fresh, _ = build(name)
    assert repr(model) == repr(fresh)
    state = model.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in fresh.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    for ours, theirs in zip(outputs(model, inputs), outputs(fresh, inputs), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_comes_back_from_its_file(name: str, tmp_path: Path) -> None:
    _, inputs, zipped = _pruned(name)
    zipped.save(tmp_path / "small.safetensors")
    loaded = mz.load(lambda: build(name, seed=1)[0], tmp_path / "small.safetensors")
    for ours, theirs in zip(outputs(loaded, inputs), outputs(zipped.model, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["torch_encoder", "cross_attention", "vit_head_dim", "bert"])
def test_integers_come_after_heads_were_cut(name: str, tmp_path: Path) -> None:
    model, inputs = build(name)
    passes = [mz.PruneChannels(sparsity=0.5, scope="layer", round_to=1), mz.Int8()]
    zipped = mz.prepare(model, passes, example_inputs=inputs, calibration=[inputs])
    small = zipped.convert()
    session = load(mz.export_onnx(small, inputs, tmp_path / "small.onnx"))
    given = [inputs] if isinstance(inputs, Tensor) else list(inputs.values())
    answers = session.run(
        {spec.name: g.numpy() for spec, g in zip(session.inputs, given, strict=True)}
    )
    for theirs, ours in zip(answers, outputs(small, inputs), strict=True):
        torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=1e-2, atol=1e-2)


def test_tied_weights_stay_tied() -> None:
    _, small, _, _ = pruned("language_model")
    assert small.get_submodule("head").weight is small.get_submodule("embed").weight


def test_every_table_names_what_there_is() -> None:
    assert PROTECTED.keys() == ARCHITECTURES.keys()
    assert not ARCHITECTURES.keys() & MODELS.keys()
