"""The recipes reach the figures they require, on real data and through the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import modelzip as mz
from modelzip import zoo
from modelzip.data import calibration_batches, cifar10, fashion_mnist, files, loader
from modelzip.measure.machine import describe
from modelzip.measure.parity import parity
from modelzip.report.record import read
from modelzip.runtime.session import load

RECIPES = Path(__file__).parent.parent / "recipes"
MODELS = Path(os.environ.get("MODELZIP_MODELS") or "none")

needs_cifar10 = pytest.mark.skipif(
    not (os.environ.get("MODELZIP_DATA") and MODELS.is_dir()),
    reason="MODELZIP_DATA and MODELZIP_MODELS name no folders with CIFAR-10 and its ResNets",
)


needs_sst2 = pytest.mark.skipif(
    files.local_file("sst2/train.tsv") is None,
    reason="MODELZIP_DATA names no folder with SST-2",
)


needs_sms = pytest.mark.skipif(
    files.local_file("sms_spam.tsv") is None,
    reason="MODELZIP_DATA names no folder with sms_spam.tsv",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "digits",
        pytest.param("resnet20_int8", marks=needs_cifar10),
        pytest.param("resnet20_4bit", marks=needs_cifar10),
        pytest.param("resnet20_int8_datafree", marks=needs_cifar10),
        pytest.param("resnet20_4bit_datafree", marks=needs_cifar10),
        pytest.param("resnet56_size", marks=needs_cifar10),
        pytest.param("resnet20_prune_int8", marks=needs_cifar10),
        pytest.param("resnet20_lsq", marks=needs_cifar10),
        pytest.param("resnet20_learn_bits", marks=needs_cifar10),
        pytest.param("resnet56_prune_int8", marks=[needs_cifar10, pytest.mark.timeout(14400)]),
        pytest.param("resnet56_archive", marks=[needs_cifar10, pytest.mark.timeout(28800)]),
        pytest.param("sms_spam", marks=needs_sms),
        pytest.param("sst2_int8", marks=[needs_sst2, pytest.mark.timeout(1800)]),
    ],
)
def test_a_recipe_meets_its_requirements(name, tmp_path):
    command = [sys.executable, "-m", "modelzip", "run", str(RECIPES / f"{name}.yaml")]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / name), "--quiet"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert read(tmp_path / name).parity.agreement >= 0.999


def resnet(name):
    weights = MODELS / f"{name}_cifar10.safetensors"
    return zoo.build(f"modelzip.zoo:{name}", weights=weights), cifar10(augment=False)


def mlp():
    torch.manual_seed(0)
    splits = fashion_mnist()
    layers = (nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))
    model = nn.Sequential(nn.Flatten(), *layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for x, y in loader(splits.train, batch_size=128, shuffle=True):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), splits


@pytest.mark.slow
@needs_cifar10
@pytest.mark.skipif(
    not {"avx512_vnni", "avx_vnni"} & set(describe().isa),
    reason="the integer arithmetic is promised for x86 with VNNI",
)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["resnet20", "resnet56", "mlp"])
def test_module_and_file_are_identical_on_the_whole_test_set(name, bits, tmp_path):
    model, splits = mlp() if name == "mlp" else resnet(name)
    calibration = calibration_batches(splits, samples=512)
    converted = mz.prepare(model, [mz.Int8(bits=bits)], calibration=calibration).convert()
    file = mz.export_onnx(converted, calibration[0][0][:1], tmp_path / "int8.onnx")
    with torch.no_grad():
        found = parity(converted, load(file), (x for x, _ in loader(splits.test, batch_size=500)))
    assert (found.n, found.identical) == (10_000, 1.0)
