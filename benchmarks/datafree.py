"""ResNet-20 and ResNet-56 on CIFAR-10 calibrated on real images, on synthetic ones, and on noise.

    python benchmarks/datafree.py [--nets resnet20 resnet56] [--bits 8] [--samples 128] [--nearest]

Each row is an ONNX file, run in onnxruntime on all 10,000 test images. Calibration differs, and
nothing else: training images, images made from the batch norms of the model, and two kinds of noise
of the same shape and number, Gaussian (mean 0, deviation 1) and uniform from -2 to 2. The last
columns compare each file's answers with those of the file calibrated on real images.

`--nearest` asks what synthetic images give away: whether the nearest of 10,000 training images is
nearer to them than the nearest of the 10,000 test images, which the model has never seen.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor

import modelzip as mz
from modelzip import zoo
from modelzip.data import Splits, calibration_batches, cifar10, loader
from modelzip.data.sources import RGB_MEAN, RGB_STD
from modelzip.measure.accuracy import Predictions, accuracy, compare, predict, wilson
from modelzip.measure.machine import describe
from modelzip.runtime.session import load

HEADERS = ("calibrated on", "top-1", "95 % interval", "points below real", "interval", "made in s")
NEAREST = ("images", "to training", "to test", "nearer to training", "95 % interval")
SHAPE = (3, 32, 32)


def weights_of(name: str) -> Path:
    return Path(os.environ.get("MODELZIP_MODELS", ".")) / f"{name}_cifar10.safetensors"


def noise(kind: str, samples: int) -> list[Tensor]:
    draws = torch.Generator().manual_seed(0)
    if kind == "gaussian":
        return [torch.randn(samples, *SHAPE, generator=draws)]
    return [4 * torch.rand(samples, *SHAPE, generator=draws) - 2]


def table(name: str, data: Splits, *, bits: int, samples: int, folder: Path) -> None:
    model = zoo.build(f"modelzip.zoo:{name}", weights=weights_of(name)).eval()
    example = torch.zeros(1, *SHAPE)
    test = list(loader(data.test, batch_size=500))
    calibrations = {
        f"{samples} training images": lambda: calibration_batches(data, samples=samples),
        f"{samples} synthetic images": lambda: mz.synthesize(model, example, samples=samples),
        f"{samples} of Gaussian noise": lambda: noise("gaussian", samples),
        f"{samples} of uniform noise": lambda: noise("uniform", samples),
    }
    source = mz.export_onnx(model, example, folder / "float.onnx")
    top1 = accuracy(predict(load(source), test))
    rows = [["float", f"{top1.top1:.2%}", f"{top1.low:.2%} to {top1.high:.2%}", "", "", ""]]
    real: Predictions | None = None
    for label, make in calibrations.items():
        started = time.perf_counter()
        batches = make()
        seconds = time.perf_counter() - started
        zipped = mz.prepare(model, [mz.Int8(bits=bits)], calibration=batches)
        file = mz.export_onnx(zipped.convert(), example, folder / "int8.onnx")
        found = predict(load(file), test)
        real = real or found
        top1, against = accuracy(found), compare(real, found)
        rows.append(
            [
                label,
                f"{top1.top1:.2%}",
                f"{top1.low:.2%} to {top1.high:.2%}",
                f"{against.drop:.2f}",
                f"{against.drop_low:.2f} to {against.drop_high:.2f}",
                f"{seconds:.0f}",
            ]
        )
        print(name, bits, *rows[-1], flush=True)
    print(f"\n{name}, {bits}-bit weights, 8-bit activations, {top1.n} test images\n")
    print(tabulate(rows, headers=HEADERS, tablefmt="github", disable_numparse=True), "\n")


def nearest(name: str, data: Splits, *, samples: int) -> None:
    """Print how near synthetic images, and noise, are to images seen and unseen, in pixels."""
    model = zoo.build(f"modelzip.zoo:{name}", weights=weights_of(name)).eval()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (RGB_MEAN, RGB_STD))
    seen = torch.cat([x for x, _ in calibration_batches(data, samples=10_000, batch_size=500)])
    unseen = torch.cat([x for x, _ in loader(data.test, batch_size=500)])
    rows = []
    for label, batches in (
        ("synthetic", mz.synthesize(model, torch.zeros(1, *SHAPE), samples=samples)),
        ("Gaussian noise", noise("gaussian", samples)),
    ):
        images = ((torch.cat(batches) * std + mean).clamp(0, 1) - mean) / std
        found = [
            (torch.cdist(images.flatten(1), pool.flatten(1)) * std.mean()).min(dim=1).values
            for pool in (seen, unseen)
        ]
        nearer = int((found[0] < found[1]).sum())
        low, high = wilson(nearer, samples)
        distances = [f"{float(d.mean() / 3072**0.5):.4f}" for d in found]
        rows.append([label, *distances, f"{nearer} of {samples}", f"{low:.0%} to {high:.0%}"])
    print(f"\n{name}: root mean square difference of pixels from the nearest image\n")
    print(tabulate(rows, headers=NEAREST, tablefmt="github", disable_numparse=True), "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", default=["resnet20", "resnet56"])
    parser.add_argument("--bits", nargs="+", type=int, default=[8])
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--nearest", action="store_true")
    given = parser.parse_args()
    machine, data = describe(), cifar10(augment=False)
    print(f"{machine.cpu}, {' '.join(machine.isa)}, {machine.threads} threads\n")
    for name in given.nets:
        if given.nearest:
            nearest(name, data, samples=given.samples)
            continue
        for bits in given.bits:
            with tempfile.TemporaryDirectory() as folder:
                table(name, data, bits=bits, samples=given.samples, folder=Path(folder))


if __name__ == "__main__":
    main()
