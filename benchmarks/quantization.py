"""Post-training quantization on CIFAR-10: modelzip beside onnxruntime's quantizer and NNCF.

    python benchmarks/quantization.py [--nets resnet20 resnet56] [--nncf PYTHON]

Every file is made from the same float file and 512 training images without labels. Accuracy,
agreement with float and McNemar's p are of the file in onnxruntime on all 10,000 test images. Speed
is the float file's time in onnxruntime by the file's own, one thread, all files and both runtimes
in the same interleaved rounds. What a tool takes is timed without its imports, to the written file.
"plain min-max" keeps weights on 4-bit grids in 8 bits. The last tables spend the same bytes on bits
everywhere, and on bits by what each layer costs.
NNCF wants an environment of its own: `--nncf` names its python; `pip install nncf==3.4.0 onnx`
there first. Needs modelzip[openvino], CIFAR-10 and the weights: see MODELZIP_DATA and
MODELZIP_MODELS in the README.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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
from torch import nn

import modelzip as mz
from modelzip import zoo
from modelzip.core.base import Pass
from modelzip.data import calibration_batches, cifar10, loader
from modelzip.measure.accuracy import accuracy, compare, predict
from modelzip.measure.latency import LatencyRow, latency_table
from modelzip.measure.machine import describe
from modelzip.measure.parity import parities
from modelzip.runtime.session import Serving, load

BATCHES = (1, 32)
SERVINGS = (Serving(), Serving(runtime="openvino"))
FLOAT = "float"
# rows that modelzip makes, and the passes that make them
W8A8: Mapping[str, Sequence[Pass]] = {"modelzip": [mz.Int8()]}
MIN_MAX = mz.Int8(calibrator="minmax", bias_correction=False)
LEAST_SQUARES = mz.Int8(bits=4, rounding="least_squares")


class Reader(CalibrationDataReader):
    """The calibration images one batch at a time, as onnxruntime asks for them."""

    def __init__(self, name: str, images: list[np.ndarray]) -> None:
        self.rows: Iterator[dict[str, np.ndarray]] = iter([{name: x} for x in images])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.rows, None)


def onnxruntime_file(
    source: Path, path: Path, images: list[np.ndarray], method: CalibrationMethod
) -> float:
    """Seconds of onnxruntime's own static quantization, with the settings it recommends for x86."""
    started = time.perf_counter()
    prepared = path.with_suffix(".pre.onnx")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    with contextlib.redirect_stdout(sys.stderr):  # it talks
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
    return time.perf_counter() - started


def nncf_file(python: str, source: Path, path: Path, images: list[np.ndarray]) -> float:
    """Seconds of NNCF's post-training quantization of the float file, in its own environment."""
    samples = path.with_suffix(".npy")
    np.save(samples, np.concatenate(images))
    script = (
        "import sys, time, nncf, numpy, onnx\n"
        "source, path, samples = sys.argv[1:]\n"
        "rows = [{'input': x[None]} for x in numpy.load(samples)]\n"
        "started = time.perf_counter()\n"
        "model = onnx.load(source)\n"
        "onnx.save(nncf.quantize(model, nncf.Dataset(rows), subset_size=len(rows)), path)\n"
        "print('seconds', time.perf_counter() - started)\n"
    )
    command = [python, "-c", script, str(source), str(path), str(samples)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


class Bench:
    """One net: its float file, its data, and the files made so far with what each took."""

    def __init__(self, name: str, folder: Path, *, seconds: float) -> None:
        self.name, self.folder, self.budget = name, folder, seconds
        splits = cifar10(augment=False)
        weights = Path(os.environ.get("MODELZIP_MODELS", ".")) / f"{name}_cifar10.safetensors"
        self.model = zoo.build(f"modelzip.zoo:{name}", weights=weights)
        self.calibration = calibration_batches(splits, samples=512, batch_size=128)
        self.images = [np.asarray(inputs) for inputs, _ in self.calibration]
        self.example = torch.from_numpy(self.images[0][:1])
        self.test = list(loader(splits.test, batch_size=500))
        self.source = mz.export_onnx(self.model, self.example, folder / f"{name}.onnx")

    def min_max_weights(self, bits: int) -> nn.Module:
        """The model with every weight on the grid that its channel's largest one spans."""
        model = copy.deepcopy(self.model)
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                weight = module.weight.data
                top = 2 ** (bits - 1) - 1
                step = weight.abs().amax(dim=list(range(1, weight.dim())), keepdim=True) / top
                module.weight.data = (weight / step).round() * step
        return model

    def ours(
        self, passes: Sequence[Pass], path: Path, *, model: nn.Module | None = None
    ) -> tuple[nn.Module, float]:
        """The converted module of modelzip, and the seconds to its file."""
        started = time.perf_counter()
        zipped = mz.prepare(
            model or self.model,
            list(passes),
            calibration=self.calibration,
            example_inputs=(self.example,),
        )
        module = zipped.convert()
        mz.export_onnx(module, self.example, path)
        return module, time.perf_counter() - started

    def plain_min_max(self, bits: int, path: Path) -> float:
        """Seconds to the file of a model whose ranges, of weights too, are the extremes."""
        return self.ours([MIN_MAX], path, model=self.min_max_weights(bits))[1]

    def table(
        self,
        title: str,
        passes: Mapping[str, Sequence[Pass]],
        peers: Mapping[str, Callable[[Path], float]],
    ) -> None:
        """Make a file a row, print a row a file, and how near modelzip's modules are to theirs."""
        files = {label: self.folder / f"{title} {label}.onnx" for label in (*passes, *peers)}
        seconds: dict[str, float] = {}
        modules = {}
        for label, steps in passes.items():
            modules[label], seconds[label] = self.ours(steps, files[label])
        for label, make in peers.items():
            seconds[label] = make(files[label])
        files = {FLOAT: self.source, **files}
        timed = latency_table(
            files,
            self.example,
            servings=SERVINGS,
            batch_sizes=BATCHES,
            rounds=60,
            budget_s=self.budget,
        )
        answers = {label: predict(load(path), self.test) for label, path in files.items()}
        rows = []
        for label, path in files.items():
            top1 = accuracy(answers[label])
            against = compare(answers[FLOAT], answers[label])
            rows.append(
                [
                    label,
                    f"{top1.top1:.2%} [{top1.low:.2%}, {top1.high:.2%}]",
                    f"{against.agreement:.2%}",
                    f"{against.p_value:.2f}",
                    f"{path.stat().st_size / 1000:.1f}",
                    *(speed(row) for row in timed if row.name == label),
                    f"{seconds[label]:.2f}" if label in seconds else "",
                ]
            )
        speeds = [f"b{size} {s.runtime}" for size in BATCHES for s in SERVINGS]
        headers = [title, "top-1 [95 %]", "agrees", "p", "KB", *speeds, "made in s"]
        print(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True), "\n")
        for label, module in modules.items():
            self.compare_answers(label, module, files[label])

    def budget_table(self, bits: int) -> None:
        """The same bytes spent twice: `bits` for every weight, and by what each layer costs."""
        original = predict(load(self.source), self.test)
        rows = []
        for rounding in ("nearest", "least_squares"):
            path = self.folder / "budget.onnx"
            allowed = 1.0
            for label in (f"{bits} bits everywhere", "allocated"):
                same: Any = {"bits": bits} if label != "allocated" else {"size": f"{allowed:.5f}x"}
                _, seconds = self.ours([mz.Int8(**same, rounding=rounding)], path)
                allowed = path.stat().st_size / self.source.stat().st_size
                found = predict(load(path), self.test)
                against = compare(original, found)
                rows.append(
                    [
                        f"{label}, {rounding}",
                        f"{path.stat().st_size / 1000:.1f}",
                        f"{allowed:.4f}x",
                        f"{accuracy(found).top1:.2%}",
                        f"{against.agreement:.2%}",
                        f"{against.kl:.4f}",
                        f"{seconds:.2f}",
                    ]
                )
        headers = [self.name, "KB", "of float", "top-1", "agrees", "KL, nats", "made in s"]
        print(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True), "\n")

    def compare_answers(self, label: str, module: nn.Module, path: Path) -> None:
        """Print how near the answers of a file in each runtime are to its module's."""
        sessions = {serving: load(path, **vars(serving)) for serving in SERVINGS}
        for serving, found in parities(module, sessions, (x for x, _ in self.test)).items():
            print(
                f"{label} in {serving.runtime} against its module on {found.n} test images: same "
                f"answer {found.agreement:.2%}, identical to the last bit {found.identical:.2%}, "
                f"largest difference {found.max_difference:.3g} of {found.scale:.3g}"
            )
        print()


def speed(row: LatencyRow) -> str:
    """How many times faster than float in onnxruntime, with the 95 % interval."""
    low, high = 1 / row.overall_high, 1 / row.overall_low
    return f"{1 / row.overall:.2f}x [{low:.2f}, {high:.2f}]"


def peers(bench: Bench, nncf: str | None) -> dict[str, Callable[[Path], float]]:
    """What the other tools do, by the name of its row."""
    methods = {"min-max": CalibrationMethod.MinMax, "percentile": CalibrationMethod.Percentile}
    found: dict[str, Callable[[Path], float]] = {
        f"onnxruntime {name}": (
            lambda path, method=method: onnxruntime_file(bench.source, path, bench.images, method)
        )
        for name, method in methods.items()
    }
    if nncf:
        # NNCF leaves batch norms alone, and its file would be slow
        folded = bench.source.with_suffix(".folded.onnx")
        quant_pre_process(bench.source, folded, skip_symbolic_shape=True)
        found["NNCF"] = lambda path: nncf_file(nncf, folded, path, bench.images)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", default=["resnet20", "resnet56"])
    parser.add_argument("--nncf", metavar="PYTHON", help="python of NNCF's environment")
    parser.add_argument("--seconds", type=float, default=20, help="of timing, a runtime and batch")
    options = parser.parse_args()
    machine = describe()
    versions = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    print(f"{machine.cpu}, {machine.cores} cores, {' '.join(machine.isa)}\n{versions}\n")
    if not options.nncf:
        print("NNCF: left out, name its python with --nncf\n")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.nets:
            bench = Bench(name, Path(folder), seconds=options.seconds)
            bench.table(f"{name} W8A8", W8A8, peers(bench, options.nncf))
            bench.table(
                f"{name} W4A8",
                {"modelzip": [LEAST_SQUARES]},
                {"plain min-max": lambda path, b=bench: b.plain_min_max(4, path)},
            )
            for bits in (3, 4):
                bench.budget_table(bits)


if __name__ == "__main__":
    main()
