"""Compressed models come back in a process that has seen none of them.

Run as `python -m tests.test_portable FOLDER`, this is that process: it prints by how much the
outputs of each model in the folder differ from those that were computed before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import modelzip as mz
from modelzip.zoo import digits_cnn, encoder

IMAGES = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))
SEQUENCES = torch.randn(16, 6, 12, generator=torch.Generator().manual_seed(2))
LABELS = torch.arange(16) % 4


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.norm = nn.BatchNorm2d(2 * width)
        self.conv2 = nn.Conv2d(2 * width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.norm(self.conv1(x))))


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 4, batch_first=True)
        self.linear = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        mixed, _ = self.attention(x, x, x)
        return self.linear((x + mixed).mean(dim=1))  # type: ignore[no-any-return]


def cnn() -> nn.Module:
    return digits_cnn(width=8, classes=4)


def residual() -> nn.Module:
    body = [nn.Conv2d(1, 8, 3, padding=1), Residual(8), nn.ReLU(), Residual(8), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def heads() -> nn.Module:
    return encoder(features=12, length=6, width=16, heads=4, layers=1, classes=4)


@dataclass(frozen=True)
class Case:
    """A model and the passes on it; it is trained a little after each."""

    make: Callable[[], nn.Module]
    x: Tensor
    passes: Sequence[mz.Pass]


PRUNE = mz.PruneChannels(macs="0.8x", round_to=1)
HALF = mz.PruneChannels(sparsity=0.5, round_to=1)
CASES = {
    "channels": Case(cnn, IMAGES, [HALF]),
    "iterative": Case(cnn, IMAGES, [PRUNE, PRUNE, PRUNE]),
    "blocks": Case(residual, IMAGES, [mz.PruneChannels(widths={"3": 0})]),
    "blocks and channels": Case(residual, IMAGES, [mz.PruneChannels(widths={"3": 0}), HALF]),
    "heads": Case(
        heads,
        SEQUENCES,
        [mz.PruneChannels(sparsity=0.5, round_to=1, targets=("layers.0.attention.*",))],
    ),
    "multihead": Case(
        Attending,
        SEQUENCES,
        [mz.PruneChannels(sparsity=0.5, round_to=1, targets=("attention",))],
    ),
    "low rank": Case(cnn, IMAGES, [mz.LowRank(ranks={"6": 4}, whiten=False)]),
    "channels and low rank": Case(
        cnn, IMAGES, [PRUNE, mz.LowRank(ranks={"6": 4}, whiten=False), PRUNE]
    ),
    "magnitude": Case(cnn, IMAGES, [mz.MagnitudePrune(sparsity=0.7)]),
    "pattern": Case(cnn, IMAGES, [mz.MagnitudePrune(pattern="2:4", targets=("3", "6"))]),
    "movement": Case(cnn, IMAGES, [mz.MovementPrune(sparsity=0.5, every=1)]),
    "clusters": Case(cnn, IMAGES, [mz.ClusterWeights(bits=3)]),
    "all": Case(
        cnn, IMAGES, [PRUNE, mz.MagnitudePrune(sparsity=0.5), mz.ClusterWeights(bits=3), mz.Int8()]
    ),
}


def train(prepared: mz.Prepared, x: Tensor) -> None:
    optimizer = torch.optim.SGD(prepared.model.parameters(), lr=0.05, momentum=0.9)
    prepared.model.train()
    for _ in range(4):
        loss = F.cross_entropy(prepared.model(x), LABELS) + prepared.penalty()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        prepared.step()


def extend(prepared: mz.Prepared, case: Case, passes: Sequence[mz.Pass]) -> None:
    for pass_ in passes:
        prepared.add(pass_, calibration=[case.x], training_steps=4)
        if pass_.stage < mz.Stage.ACTIVATION:
            train(prepared, case.x)


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(x)  # type: ignore[no-any-return]


def report(folder: Path) -> None:
    """Print the largest difference of each model, and of the schedule that goes on here."""
    torch.manual_seed(99)  # no weight may come from how a model is built
    expected = load_file(folder / "outputs")
    found = {
        name: outputs(mz.load(case.make, folder / f"{name}.safetensors"), case.x)
        for name, case in CASES.items()
    }
    case = CASES["iterative"]
    half = mz.load_prepared(case.make, folder / "half.safetensors", example_inputs=case.x)
    extend(half, case, case.passes[1:])
    found["half"] = outputs(half.convert(), case.x)
    differences = {n: float((y - expected[n]).abs().max()) for n, y in found.items()}
    sys.stdout.write(json.dumps(differences))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case saved, with what its converted model computes."""
    path = tmp_path_factory.mktemp("portable")
    expected = {}
    for name, case in CASES.items():
        torch.manual_seed(0)
        prepared = mz.Prepared(case.make(), example_inputs=case.x)
        if name == "iterative":
            extend(prepared, case, case.passes[:1])
            prepared.save(path / "half.safetensors")
            extend(prepared, case, case.passes[1:])
        else:
            extend(prepared, case, case.passes)
        prepared.save(path / f"{name}.safetensors")
        expected[name] = outputs(prepared.convert(), case.x)
    save_file({**expected, "half": expected["iterative"].clone()}, path / "outputs")
    return path


def test_a_fresh_process_computes_the_same(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.test_portable", str(folder)],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    differences = json.loads(done.stdout)
    assert differences.keys() == {*CASES, "half"}
    assert {n: d for n, d in differences.items() if not d <= 1e-6} == {}


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_is_tensors_and_json(folder: Path, name: str) -> None:
    """The layout of safetensors: a length, a JSON header, and then nothing but tensors."""
    whole = (folder / f"{name}.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    text = header.pop("__metadata__").pop("modelzip").partition(" ")[2]
    assert [entry["name"] for entry in json.loads(text)["passes"]] == [
        pass_.name for pass_ in CASES[name].passes
    ]
    ends = [tensor["data_offsets"][1] for tensor in header.values()]
    assert max(ends) == len(whole) - 8 - length
    with safe_open(folder / f"{name}.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(header)


def test_the_models_were_compressed(folder: Path) -> None:
    """Else there would be nothing to bring back."""
    small = {n: mz.load(c.make, folder / f"{n}.safetensors") for n, c in CASES.items()}
    assert small["heads"].layers[0].attention.heads < 4
    assert small["multihead"].attention.num_heads < 4
    assert isinstance(small["blocks"][3], nn.Identity)
    assert small["iterative"][3].out_channels < 16
    assert len(small["low rank"][6]) > 1
    assert len(small["clusters"][3].weight.unique()) <= 8


if __name__ == "__main__":
    report(Path(sys.argv[1]))
