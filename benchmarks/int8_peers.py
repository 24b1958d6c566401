"""Post-training int8 on CIFAR-10: modelzip beside onnxruntime's quantizer and NNCF, in one run.

    python benchmarks/int8_peers.py [--nets resnet20 resnet56] [--nncf PYTHON]

Every file is made from the same float file and 512 training images, and served by onnxruntime on
all 10,000 test images; latency is one thread, interleaved rounds. NNCF wants an environment of its
own: `--nncf` names its python, `pip install nncf==3.4.0 onnx onnxruntime` there first.
Needs CIFAR-10 and the weights: see MODELZIP_DATA and MODELZIP_MODELS in the README.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from tabulate import tabulate

import modelzip as mz
from modelzip import zoo
from modelzip.data import calibration_batches, cifar10, loader
from modelzip.measure.accuracy import Predictions, accuracy, compare, predict
from modelzip.measure.latency import latency_table
from modelzip.measure.machine import describe
from modelzip.measure.parity import parity
from modelzip.runtime.session import load

BATCHES = (1, 32)


class Reader(CalibrationDataReader):
    """The calibration images one batch at a time, as onnxruntime asks for them."""

    def __init__(self, name: str, images: list[np.ndarray]) -> None:
        self.rows: Iterator[dict[str, np.ndarray]] = iter([{name: x} for x in images])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.rows, None)


def onnxruntime_file(
    source: Path, path: Path, images: list[np.ndarray], method: CalibrationMethod
) -> Path:
    """onnxruntime's own static quantization, with the settings it recommends for x86."""
    prepared = path.with_suffix(".pre.onnx")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        path,
        Reader("input", images),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        calibrate_method=method,
    )
    return path


def nncf_file(python: str, source: Path, path: Path, images: list[np.ndarray]) -> Path:
    """NNCF's post-training quantization of the float file, in its own environment."""
    samples = path.with_suffix(".npy")
    np.save(samples, np.concatenate(images))
    script = (
        "import sys, nncf, numpy, onnx\n"
        "source, path, samples = sys.argv[1:]\n"
        "rows = [{'input': x[None]} for x in numpy.load(samples)]\n"
        "model = onnx.load(source)\n"
        "onnx.save(nncf.quantize(model, nncf.Dataset(rows), subset_size=len(rows)), path)\n"
    )
    command = [python, "-c", script, str(source), str(path), str(samples)]
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603
    return path


def measure(name: str, *, nncf: str | None, folder: Path) -> None:
    splits = cifar10(augment=False)
    model = zoo.build(
        f"modelzip.zoo:{name}",
        weights=Path(os.environ.get("MODELZIP_MODELS", ".")) / f"{name}_cifar10.safetensors",
    )
    calibration = calibration_batches(splits, samples=512, batch_size=128)
    images = [np.asarray(inputs) for inputs, _ in calibration]
    example = torch.from_numpy(images[0][:1])
    files = {"fp32, onnxruntime": mz.export_onnx(model, example, folder / f"{name}.onnx")}
    source = files["fp32, onnxruntime"]
    seconds: dict[str, float] = {}

    started = time.perf_counter()
    zipped = mz.prepare(model, [mz.Int8()], calibration=calibration)
    converted = zipped.convert()
    files["modelzip int8"] = mz.export_onnx(converted, example, folder / f"{name}_modelzip.onnx")
    seconds["modelzip int8"] = time.perf_counter() - started
    for label, method in (
        ("onnxruntime quantize_static min-max", CalibrationMethod.MinMax),
        ("onnxruntime quantize_static percentile", CalibrationMethod.Percentile),
    ):
        started = time.perf_counter()
        files[label] = onnxruntime_file(source, folder / f"{name}_{method}.onnx", images, method)
        seconds[label] = time.perf_counter() - started
    if nncf:
        started = time.perf_counter()
        files["NNCF, ONNX"] = nncf_file(nncf, source, folder / f"{name}_nncf.onnx", images)
        seconds["NNCF, ONNX"] = time.perf_counter() - started
    else:
        print("NNCF: left out, name its python with --nncf")

    test = list(loader(splits.test, batch_size=500))
    answers = {label: predict(load(path), test) for label, path in files.items()}
    report(name, files, answers, seconds, example)
    found = parity(converted, load(files["modelzip int8"]), (x for x, _ in test))
    print(
        f"modelzip's module and file on {found.n} test images: argmax {found.agreement:.2%}, "
        f"identical to the last bit {found.identical:.2%}\n"
    )


def report(
    name: str,
    files: dict[str, Path],
    answers: dict[str, Predictions],
    seconds: dict[str, float],
    example: torch.Tensor,
) -> None:
    """Print one row a file: accuracy, agreement, size, speed against float."""
    float_answers = next(iter(answers.values()))
    timed = latency_table(files, example, batch_sizes=BATCHES, rounds=60, budget_s=20)
    rows = []
    for label, path in files.items():
        top1 = accuracy(answers[label])
        against = compare(float_answers, answers[label])
        speed = [
            f"{r.speedup:.2f}x [{1 / r.ratio_high:.2f}, {1 / r.ratio_low:.2f}]"
            for size in BATCHES
            for r in timed
            if r.name == label and r.batch_size == size
        ]
        rows.append(
            [
                label,
                f"{top1.top1:.2%} [{top1.low:.2%}, {top1.high:.2%}]",
                f"{against.agreement:.2%}",
                f"{against.p_value:.2f}",
                f"{path.stat().st_size / 1000:.0f}",
                *speed,
                f"{seconds.get(label, 0):.1f}",
            ]
        )
    headers = [name, "top-1 [95 %]", "agrees", "McNemar p", "KB", "b1", "b32", "made in s"]
    print(tabulate(rows, headers=headers, tablefmt="github"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", default=["resnet20", "resnet56"])
    parser.add_argument("--nncf", metavar="PYTHON")
    options = parser.parse_args()
    machine = describe()
    print(f"{machine.cpu}, {machine.cores} cores, {' '.join(machine.isa)}, 1 thread, n = 10,000\n")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.nets:
            measure(name, nncf=options.nncf, folder=Path(folder))


if __name__ == "__main__":
    main()
