"""Channel pruning on CIFAR-10: modelzip beside Torch-Pruning called directly.

    python benchmarks/pruning.py surgery                   a minute
    python benchmarks/pruning.py curve [--epochs 3]        ResNet-20: an hour on one core
    python benchmarks/pruning.py resnet56 [--recipe FILE] [--out FOLDER] [--only TOOL]
                                                           an hour or two for each training; weights
                                                           that are in FOLDER are used again

surgery: wall time and peak memory of planning and cutting, each in a process of its own, best of
three, and the time without modelzip's trials of the pruned model against the masked one. curve:
top-1 over measured latency in onnxruntime at four targets, with the widths shrunk alike, by global
scores, and by latency; the first two are cut to what takes nearest to the time that the third
takes. resnet56: top-1, multiplications and speed of recipes/resnet56_prune_int8.yaml or another
like it, and of Torch-Pruning at the same multiplications with the same fine-tuning. Accuracy is of
the file on all 10,000 test images, speed is the dense float file's time in onnxruntime by the
file's own, one thread, all files in the same interleaved rounds. Needs CIFAR-10 and the weights
(see MODELZIP_DATA and MODELZIP_MODELS in the README), and `pip install torch-pruning==1.6.1`.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_model, save_model
from tabulate import tabulate
from torch import Tensor, nn

import modelzip as mz
from modelzip import zoo
from modelzip.core.base import Context, Pass
from modelzip.core.channels.cost import count_macs
from modelzip.core.channels.verify import Trial
from modelzip.core.prepare import Prepared
from modelzip.core.running import as_batches
from modelzip.data import calibration_batches, cifar10, loader
from modelzip.data.base import Splits
from modelzip.errors import SettingError
from modelzip.export.onnx import export_onnx
from modelzip.measure.accuracy import accuracy, predict
from modelzip.measure.latency import LatencyRow, latency_table
from modelzip.measure.machine import describe
from modelzip.recipe import keep_float
from modelzip.recipe import loader as recipe_loader
from modelzip.recipe.latency import Bench, Later, settle
from modelzip.runtime.session import Serving, load
from modelzip.train.finetune import FineTune, finetune

RECIPE = Path(__file__).parent.parent / "recipes/resnet56_prune_int8.yaml"
BATCHES = (1, 32)
TARGETS = ("0.85x", "0.75x", "0.65x", "0.57x")
TIMES = 3  # of surgery, the best of which counts


class Attention(nn.Module):
    """Self-attention written by hand, as most encoders have it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, _ = x.shape
        q, k, v = (
            layer(x).view(rows, length, self.num_heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        found: Tensor = self.output(mixed.transpose(1, 2).reshape(rows, length, -1))
        return found


class Layer(nn.Module):
    """One layer of an encoder, its norms first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    """24 layers of width 1024: 302 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(32, 1024)
        self.layers = nn.Sequential(*(Layer(1024, 16) for _ in range(24)))
        self.head = nn.Linear(1024, 10)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.layers(self.embedding(x)).mean(1))
        return found


SUBJECTS: Mapping[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "ResNet-56": lambda: (zoo.resnet56(), torch.randn(2, 3, 32, 32)),
    "encoder, 302 M": lambda: (Encoder(), torch.randn(2, 16, 32)),
}


def with_modelzip(model: nn.Module, inputs: Tensor, *, macs: float | None = None) -> None:
    goal: dict[str, Any] = {"sparsity": 0.5} if macs is None else {"macs": f"{macs}x"}
    mz.PruneChannels(**goal).prepare(model, Context(example_inputs=inputs))


def with_torch_pruning(model: nn.Module, inputs: Tensor, *, macs: float | None = None) -> None:
    """Global L1 pruning of all that it can prune without breaking these models.

    Padded shortcuts of ResNet-56 and the residual stream of the encoder are left alone, as it
    leaves models corrupted otherwise. With `macs` it is asked for more until it gets there.
    """
    import torch_pruning as tp

    kept = [m for n, m in model.named_modules() if n.endswith(("conv2", "output", "down"))]
    kept += [m for n, m in model.named_modules() if n in ("conv1", "linear", "embedding", "head")]
    heads: dict[nn.Module, int] = {}
    for module in model.modules():
        if isinstance(module, Attention):
            heads.update(dict.fromkeys((module.query, module.key, module.value), module.num_heads))
    whole = count_macs(model, inputs)
    pruner = tp.pruner.MagnitudePruner(
        model,
        inputs,
        importance=tp.importance.MagnitudeImportance(p=1),
        global_pruning=True,
        pruning_ratio=0.5 if macs is None else 0.95,
        iterative_steps=1 if macs is None else 200,
        ignored_layers=kept,
        num_heads=heads,
        prune_num_heads=bool(heads),
        head_pruning_ratio=0.5,
        round_to=8,
    )
    pruner.step()
    while macs is not None and count_macs(model, inputs) > macs * whole:
        pruner.step()
    for module in model.modules():
        if isinstance(module, Attention):
            module.num_heads = pruner.num_heads[module.query]


TOOLS = {"modelzip": with_modelzip, "Torch-Pruning": with_torch_pruning}


def surgery_alone(tool: str, subject: str) -> None:
    """Print seconds, and megabytes above what was there before; the work of one process."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, inputs = SUBJECTS[subject]()
    model.eval()
    with_modelzip(nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 2)), torch.ones(1, 4))
    __import__("torch_pruning")  # imports are nobody's surgery
    with torch.no_grad():
        model(inputs)
    trials = timed_trials()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    TOOLS[tool](model, inputs)
    seconds = time.perf_counter() - start
    above = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
    left = sum(p.numel() for p in model.parameters())
    found = {"seconds": seconds, "trials": sum(trials), "megabytes": above, "parameters": left}
    print(json.dumps(found))


def timed_trials() -> list[float]:
    """Seconds of each trial from now on."""
    seconds: list[float] = []
    fault = Trial.fault

    @functools.wraps(fault)
    def timed(*given: Any, **named: Any) -> str | None:
        start = time.perf_counter()
        try:
            return fault(*given, **named)
        finally:
            seconds.append(time.perf_counter() - start)

    Trial.fault = timed  # type: ignore[method-assign]
    return seconds


def surgery() -> None:
    rows = []
    for subject in SUBJECTS:
        found: dict[str, dict[str, float]] = {}
        for _ in range(TIMES):  # in turn, so that a slow moment hits both
            for tool in TOOLS:
                command = [sys.executable, __file__, "surgery", "--one", tool, subject]
                ran = subprocess.run(command, check=True, capture_output=True, text=True)
                one = json.loads(ran.stdout.splitlines()[-1])
                if tool not in found or one["seconds"] < found[tool]["seconds"]:
                    found[tool] = one
        theirs = found["Torch-Pruning"]["seconds"]
        for tool, one in found.items():
            ratio = one["seconds"] / theirs
            rows.append(
                [
                    subject,
                    tool,
                    f"{one['seconds']:.3f} s",
                    f"{ratio:.2f}x",
                    f"{(one['seconds'] - one['trials']) / theirs:.2f}x",
                    f"{one['megabytes']:.0f} MB",
                    f"{one['parameters'] / 1e6:.2f} M",
                ]
            )
    headers = ["", "tool", "time", "ratio", "less trials", "memory on top", "parameters left"]
    print(tabulate(rows, headers=headers, tablefmt="github"))


def dense(net: str) -> nn.Module:
    folder = os.environ.get("MODELZIP_MODELS", ".")
    return zoo.build(f"modelzip.zoo:{net}", weights=f"{folder}/{net}_cifar10.safetensors").eval()


def tuned(model: nn.Module, teacher: nn.Module, splits: Splits, how: FineTune) -> nn.Module:
    prepared = Prepared(model)
    finetune(prepared, splits, how, batch_size=128, teacher=teacher)
    return prepared.convert()


def top1(path: Path, splits: Splits) -> str:
    found = accuracy(predict(load(path), loader(splits.test, batch_size=500)))
    return f"{found.top1:.2%} [{found.low:.2%}, {found.high:.2%}]"


def speedup(rows: list[LatencyRow], name: str, runtime: str, batch: int) -> float:
    """Over the first file in onnxruntime."""
    return next(
        1 / row.overall
        for row in rows
        if (row.name, row.runtime, row.batch_size) == (name, runtime, batch)
    )


def equally_fast(model: nn.Module, scope: str, bench: Bench, ratio: float) -> nn.Module:
    """`model` shrunk by `scope` to the multiplications whose file takes nearest to `ratio`."""
    low, high = 0.1, 1.0
    found: list[tuple[float, nn.Module]] = []
    for turn in range(7):
        macs = (low + high) / 2
        prune = mz.PruneChannels(macs=f"{macs:.4f}x", scope=scope)
        try:
            small = mz.prepare(model, [prune], example_inputs=bench.later.example_inputs).convert()
        except SettingError:  # out of reach
            low = macs
            continue
        takes = float(bench.ratios([bench.deployed(small)], seed=turn).max())
        found.append((abs(takes / ratio - 1), small))
        low, high = (macs, high) if takes <= ratio else (low, macs)
    return min(found, key=lambda pair: pair[0])[1]


def curve(epochs: float) -> None:
    splits, original = cifar10(), dense("resnet20")
    calibration = as_batches(calibration_batches(splits, samples=512, batch_size=128, seed=0))
    later = Later(
        passes=(),
        example_inputs=calibration[0].inputs[:8],
        calibration=calibration,
        training_steps=None,
        serving=keep_float.Serving(batch_sizes=(32,)),
        seed=0,
    )
    how = FineTune(epochs=epochs, lr=0.01, distill=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = {"dense": export_onnx(original, later.example_inputs, folder / "dense.onnx")}
        rows = []
        for target in TARGETS:
            prune = mz.PruneChannels(latency=target, blocks=True)
            step, fit = settle(prune, original, original=original, later=later)
            bench = Bench(prune, original, original=original, later=later, folder=folder)
            small = mz.prepare(original, [step], example_inputs=later.example_inputs).convert()
            models = {"latency": small}
            for scope in ("layer", "global"):
                models[scope] = equally_fast(original, scope, bench, fit.measured)
            for name, model in models.items():
                left = count_macs(model, later.example_inputs)
                model = tuned(model, original, splits, how)
                label = f"{target} {name}"
                files[label] = export_onnx(model, later.example_inputs, folder / f"{label}.onnx")
                share = left / count_macs(original, later.example_inputs)
                rows.append([target, name, f"{share:.3f}x", top1(files[label], splits), label])
                print(rows[-1], flush=True)
        timed = latency_table(
            files, later.example_inputs[:1], batch_sizes=BATCHES, rounds=60, budget_s=60
        )
        for row in rows:
            label = row.pop()
            row += [f"{speedup(timed, label, 'onnxruntime', size):.2f}x" for size in BATCHES]
        print(f"{how.epochs:g} epochs of fine-tuning, n = 10,000\n")
        headers = ["target", "widths by", "MACs", "top-1 [95 %]", "b1", "b32"]
        print(tabulate(rows, headers=headers, tablefmt="github"))


def resnet56(recipe: Path, folder: Path, *, only: str | None) -> None:
    steps = recipe_loader.load(recipe).steps
    prune, int8 = (each for each in steps if isinstance(each, Pass))
    how = next(each for each in steps if isinstance(each, FineTune))
    splits, original = cifar10(), dense("resnet56")
    calibration = calibration_batches(splits, samples=512, batch_size=128, seed=0)
    inputs = calibration[0][0][:8]
    whole = count_macs(original, inputs)
    folder.mkdir(parents=True, exist_ok=True)
    if not (cut := folder / "cut.safetensors").exists():
        step = cast(mz.PruneChannels, prune)
        if step.latency is not None:
            later = Later(
                passes=[int8],
                example_inputs=inputs,
                calibration=as_batches(calibration),
                training_steps=None,
                serving=keep_float.Serving(),
                seed=0,
            )
            step, fit = settle(step, original, original=original, later=later)
            print(f"{fit.text}\n")
        mz.prepare(original, [step], example_inputs=inputs).save(cut)
    pruned, peer = mz.load(zoo.resnet56, cut), copy.deepcopy(original)
    with_torch_pruning(peer, inputs, macs=count_macs(pruned, inputs) / whole)
    for tool, model in (("modelzip", pruned), ("Torch-Pruning", peer)):
        path = folder / f"{tool}.safetensors"
        if only in (None, tool) and not path.exists():
            save_model(tuned(model, original, splits, how), str(path))
        if only is None:
            load_model(model, path)
    if only is not None:
        return

    def in_int8(model: nn.Module) -> nn.Module:
        return mz.prepare(model, [int8], example_inputs=inputs, calibration=calibration).convert()

    models = {
        "dense float": original,
        "modelzip, float": pruned,
        "modelzip, int8": in_int8(pruned),
        "Torch-Pruning, float": peer,
        "Torch-Pruning, modelzip int8": in_int8(peer),
    }
    floats = {"dense float": original, "modelzip": pruned, "Torch-Pruning": peer}
    macs = {label: count_macs(model, inputs) for label, model in floats.items()}
    with tempfile.TemporaryDirectory() as scratch:
        files = {
            label: export_onnx(model, inputs, Path(scratch) / f"{number}.onnx")
            for number, (label, model) in enumerate(models.items())
        }
        timed = latency_table(
            files,
            inputs[:1],
            servings=(Serving(), Serving(runtime="openvino")),
            batch_sizes=BATCHES,
            rounds=60,
            budget_s=60,
        )
        rows = [
            [
                label,
                top1(path, splits),
                f"{macs[label.split(',')[0]] / whole:.3f}x",
                f"{path.stat().st_size / 1000:.0f}",
                *(
                    f"{speedup(timed, label, runtime, size):.2f}x"
                    for runtime in ("onnxruntime", "openvino")
                    for size in BATCHES
                ),
            ]
            for label, path in files.items()
        ]
    print(f"{how.epochs:g} epochs of fine-tuning, n = 10,000\n")
    headers = ["ResNet-56", "top-1 [95 %]", "MACs", "KB", "b1", "b32", "OpenVINO b1", "b32"]
    print(tabulate(rows, headers=headers, tablefmt="github"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["surgery", "curve", "resnet56"])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--out", type=Path, default=Path("runs/pruning"))
    parser.add_argument("--only", choices=TOOLS, help="train this one alone, in the folder")
    arguments = parser.parse_args()
    if arguments.one:
        surgery_alone(*arguments.one)
        return
    machine = describe()
    print(f"{machine.cpu}, {machine.cores} cores, {' '.join(machine.isa)}, 1 thread\n")
    if arguments.part == "surgery":
        surgery()
    elif arguments.part == "curve":
        curve(arguments.epochs)
    else:
        resnet56(arguments.recipe, arguments.out, only=arguments.only)


if __name__ == "__main__":
    main()
