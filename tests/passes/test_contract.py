"""Every registered pass keeps the contract, alone and after every other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import modelzip as mz
from modelzip.core import registry
from modelzip.core.base import Pass
from modelzip.core.running import evaluating
from modelzip.errors import ModelError, SettingError
from modelzip.export.onnx import export_onnx
from modelzip.runtime import session
from modelzip.testing import check_pass


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 8),
    )


def norm_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 4))


def smooth_net() -> nn.Module:
    torch.manual_seed(0)
    hidden = [nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)]
    return nn.Sequential(nn.LayerNorm(16), *hidden, nn.LayerNorm(16), nn.Linear(16, 4))


@dataclass(frozen=True)
class Row:
    """A pass with settings, and what it is tried on."""

    pass_: Pass
    make_model: Callable[[], nn.Module] = conv_net
    training_steps: int | None = None
    tolerance: float = 1e-4

    @property
    def inputs(self) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        shape = (4, 4, 8, 8) if self.make_model is conv_net else (4, 16)
        return torch.randn(*shape, generator=generator)


EARLY = "early.safetensors"  # what `early_weights` writes


@pytest.fixture(autouse=True)
def early_weights(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the current folder, other weights of the model that the test is of."""
    monkeypatch.chdir(tmp_path)
    callspec = vars(request.node).get("callspec")
    for row in callspec.params.values() if callspec else ():
        if isinstance(row, Row):
            state = row.make_model().state_dict()
            save_file({n: t + 0.01 * (t.ndim > 1) for n, t in state.items()}, EARLY)


ROWS = [
    Row(mz.MagnitudePrune(sparsity=0.6)),
    Row(mz.MagnitudePrune(sparsity=0.6, scope="layer", targets=("type:Conv2d",))),
    Row(mz.MagnitudePrune(pattern="2:4")),
    Row(mz.MagnitudePrune(sparsity=0.5, pattern="4x1", skip=("7",))),
    Row(
        mz.MagnitudePrune(sparsity=0.6, schedule="cubic", begin=0.2, end=0.8, every=2),
        training_steps=8,
    ),
    Row(mz.MovementPrune(sparsity=0.6, every=1), training_steps=4),
    Row(mz.MovementPrune(pattern="2:4", begin=0, end=1, every=2), training_steps=5),
    Row(mz.PruneChannels(sparsity=0.5)),
    Row(mz.PruneChannels(macs="0.5x", round_to=1, importance="l1", scope="layer")),
    Row(mz.GroupSparsity(), training_steps=4),
    Row(mz.GroupSparsity(strength=0.1, contrast=0, growth=0, targets=("0",)), training_steps=4),
    Row(mz.ReestimateBatchNorm()),
    Row(mz.Rewind(weights=EARLY)),
    Row(mz.Rewind(weights=EARLY, targets=("type:Linear",)), norm_net),
    Row(mz.LowRank(energy=0.6, round_to=2)),
    Row(mz.LowRank(macs="0.6x", round_to=1, whiten=False)),
    Row(mz.LowRank(ranks={"0": 4, "type:Linear": 2}), norm_net),
    Row(mz.ClusterWeights()),
    Row(mz.ClusterWeights(bits=3, layer_clusters={"0": 20}, layer_bits={"type:Linear": 5})),
    Row(mz.ClusterWeights(clusters=2), norm_net),
    Row(mz.Equalize()),
    Row(mz.Int8(), tolerance=0.02),
    Row(
        mz.Int8(bits=4, layer_bits={"0": 8}, rounding="least_squares", bias_correction=True),
        tolerance=0.02,
    ),
    Row(mz.Int8(portable=True, activation_bits=7, calibrator="entropy"), tolerance=0.02),
    Row(mz.Int8(bits=6), norm_net, tolerance=0.02),
    Row(mz.Int8(mode="linear"), norm_net, tolerance=0.02),
    Row(mz.Int8(), norm_net, tolerance=0.02),
    Row(mz.FakeQuantize(), tolerance=0.02),
    Row(mz.FakeQuantize(bits=4, activation_bits=8, method="lsq"), tolerance=0.02),
    Row(mz.FakeQuantize(bits=5, layer_bits={"0": 8, "type:Linear": 8}), tolerance=0.06),
    Row(mz.LearnBits(bits=5), training_steps=4, tolerance=0.02),
    Row(mz.LearnBits(bits=4.2, settle=0.9), training_steps=8, tolerance=0.02),
    Row(mz.RateQuantize(size="0.2x")),
    Row(mz.WeightOnly()),
    Row(mz.WeightOnly(bits=4, block_size=32)),
    Row(mz.WeightOnly(bits=4, block_size=8, codebook="nf4"), norm_net),
    Row(mz.WeightOnly(bits=4, block_size=16, compute="int8"), norm_net, tolerance=1e-3),
    Row(mz.SmoothQuant(), smooth_net),
    Row(mz.SmoothQuant(alpha=0.8, skip=("0",)), smooth_net),
    Row(mz.Cast(), tolerance=2e-3),
    Row(mz.Cast(dtype="bfloat16"), norm_net, tolerance=2e-2),
    Row(mz.Cast(weights_only=False), tolerance=1e-2),
    Row(mz.Cast(weights_only=False, keep_io=False, skip=("1",)), norm_net, tolerance=1e-2),
]


@pytest.mark.parametrize("name", registry.available())
def test_every_registered_pass_has_a_row(name: str) -> None:
    assert any(row.pass_.name == name for row in ROWS), f"add a row of settings for {name}"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: repr(row.pass_))
def test_pass_keeps_the_contract(row: Row) -> None:
    check_pass(
        row.pass_,
        row.make_model,
        row.inputs,
        calibration=[row.inputs],
        training_steps=row.training_steps,
        tolerance=row.tolerance,
    )


def pairs() -> Iterator[tuple[Row, Row]]:
    """The first row of each pass with the first of each other; integers leave a layer to cast."""
    first = {row.pass_.name: row for row in reversed(ROWS)}
    for a, b in product(first.values(), repeat=2):
        if a is b or {a.pass_.name, b.pass_.name} == {"smooth_quant", "reestimate_batch_norm"}:
            continue  # layer norms for the one, batch norms for the other
        if b.pass_.name == "cast" and a.pass_.name != "reestimate_batch_norm":
            a = replace(a, pass_=replace(a.pass_, skip=("0",)))
        made = [row.make_model for row in (a, b) if row.make_model is not conv_net]
        model = made[0] if made else conv_net
        yield replace(a, make_model=model), replace(b, make_model=model)


def name_pair(value: Any) -> str:
    return str(value.pass_.name)


@pytest.mark.parametrize(("a", "b"), list(pairs()), ids=name_pair)
def test_pair_composes_or_is_refused(a: Row, b: Row, tmp_path: Any) -> None:
    model, x = a.make_model(), a.inputs
    given: dict[str, Any] = {"example_inputs": x, "calibration": [x]}
    given["training_steps"] = a.training_steps or b.training_steps
    if b.pass_.stage < a.pass_.stage and a.pass_.attaches:
        with pytest.raises(
            SettingError, match=f"{b.pass_.name} .* must come before {a.pass_.name}"
        ):
            mz.prepare(model, [a.pass_, b.pass_], **given)
        return
    if {a.pass_.name, b.pass_.name} <= {
        "int8",
        "fake_quantize",
        "learn_bits",
        "rate_quantize",
        "weight_only",
    }:
        with pytest.raises(SettingError, match="the model is quantized already"):
            mz.prepare(model, [a.pass_, b.pass_], **given)
        return
    if (a.pass_.name, b.pass_.name) == ("low_rank", "rewind"):  # no early weights of factors
        with pytest.raises(SettingError, match=r"does not fit the model: missing: 0\.0\.weight"):
            mz.prepare(model, [a.pass_, b.pass_], **given)
        return
    if a.pass_.name == "cluster_weights" and b.pass_.name in ("equalize", "rewind", "smooth_quant"):
        with pytest.raises(ModelError, match=f"put {b.pass_.name} before it"):
            mz.prepare(model, [a.pass_, b.pass_], **given)
        return
    zipped = mz.prepare(model, [a.pass_, b.pass_], **given)
    small = zipped.convert()
    assert [report.name for report in zipped.reports] == [a.pass_.name, b.pass_.name]
    with evaluating(small):
        converted = small(x)
    with evaluating(zipped.model):
        prepared = zipped.model(x)
    limit = max(a.tolerance, b.tolerance) * float(prepared.abs().max())
    assert float((converted - prepared).abs().max()) <= limit
    zipped.save(tmp_path / "pair.safetensors")
    with torch.no_grad():
        assert torch.equal(mz.load(a.make_model, tmp_path / "pair.safetensors")(x), converted)
    export_onnx(small, x, tmp_path / "pair.onnx")
    (served,) = session.load(tmp_path / "pair.onnx").run(x)
    assert float((torch.from_numpy(served) - converted).abs().max()) <= limit


@dataclass(frozen=True, kw_only=True)
class Undocumented(mz.MagnitudePrune):
    name = "undocumented"


def test_pass_without_documentation_fails() -> None:
    with pytest.raises(AssertionError, match="its docstring has no example"):
        check_pass(Undocumented(sparsity=0.5), norm_net, torch.randn(2, 16))
