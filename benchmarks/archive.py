"""Archives: bits a weight and speed of each codec on ResNet-56, beside what others keep.

    python benchmarks/archive.py integers      bits of quantized weights by each codec, a minute
    python benchmarks/archive.py floats        float32, bfloat16 and float16, and zipnn where it is

integers: all weights of ResNet-56 (CIFAR-10), symmetric with a scale for each output channel from
its largest magnitude: 8 bits, 4 bits, and 8 bits with the 90 % of weights of least magnitude zero.
floats: the same weights as they are, drawn 24 MB of, with the seed 0. Sizes are of whole archives,
every one of which is decoded and compared; speed is the best of three on one thread. Needs the
weights (see MODELZIP_MODELS in the README), `pip install modelzip[archive]`, and for its row zipnn.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tabulate import tabulate
from torch import Tensor

import modelzip as mz
from modelzip.archive import choose, codecs
from modelzip.archive.integers import context, lanes, static
from modelzip.measure.machine import describe

TIMES = 3


def weights() -> dict[str, Tensor]:
    folder = os.environ.get("MODELZIP_MODELS", ".")
    state = load_file(f"{folder}/resnet56_cifar10.safetensors")
    return {name: tensor for name, tensor in state.items() if tensor.dim() > 1}


def quantized(state: dict[str, Tensor], *, bits: int, zeros: float = 0.0) -> dict[str, Tensor]:
    top = 2 ** (bits - 1) - 1
    least = torch.cat([w.abs().flatten() for w in state.values()]).quantile(zeros)
    found = {}
    for name, weight in state.items():
        rows = torch.where(weight.abs() > least, weight, 0).flatten(1)
        scale = rows.abs().amax(1, keepdim=True).clamp_min(1e-12) / top
        found[name] = (rows / scale).round().to(torch.int8).view_as(weight)
    return found


def best(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(TIMES):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def packed(state: dict[str, Tensor], codec: str, folder: Path) -> int:
    path = folder / "weights.mzip"
    mz.pack(state, path, codec=codec, threads=1)
    with mz.open_archive(path) as archive:
        if not all(torch.equal(archive[name], tensor) for name, tensor in state.items()):
            raise AssertionError(f"{codec} does not give the same weights back")
    return path.stat().st_size


def integers() -> None:
    state = weights()
    count = sum(w.numel() for w in state.values())
    sets = {
        "int8": quantized(state, bits=8),
        "4 bit": quantized(state, bits=4),
        "int8, 90 % zeros": quantized(state, bits=8, zeros=0.9),
    }
    with tempfile.TemporaryDirectory() as scratch:
        rows = []
        for codec in (choose.AUTO, *choose.INTEGERS, *codecs.NAMES):
            sizes = [packed(tensors, codec, Path(scratch)) for tensors in sets.values()]
            rows.append([codec, *(f"{8 * size / count:.3f}" for size in sizes)])
    print(tabulate(rows, headers=["bits a weight", *sets], tablefmt="github"))
    print(f"\n{count:,} weights, archives whole; entropy coders alone, millions a second:\n")
    arrays = [w.numpy() for w in sets["int8"].values()]
    long = [np.concatenate([a.ravel() for a in arrays] * 8)]
    rows = []
    for name, given, coder in (
        ("context", arrays, None),
        ("static", long, static),
        ("lanes", long, lanes),
    ):
        total = sum(a.size for a in given)
        encoder = context.Encoder(127) if coder is None else coder
        coded = [encoder.encode(a) for a in given]
        context_bits = 8 * sum(len(c.data) for c in coded) / total

        def decode() -> None:
            decoder = context.Decoder() if coder is None else coder  # noqa: B023
            for a, c in zip(given, coded, strict=True):  # noqa: B023
                decoder.decode(c.data, c.params, a.shape, a.dtype)

        def encode() -> None:
            fresh = context.Encoder(127) if coder is None else coder  # noqa: B023
            for a in given:  # noqa: B023
                fresh.encode(a)

        speeds = [f"{total / best(work) / 1e6:.1f}" for work in (encode, decode)]
        rows.append([name, f"{context_bits:.3f}", *speeds])
    print(tabulate(rows, headers=["int8", "bits a weight", "encode", "decode"], tablefmt="github"))


def floats() -> None:
    drawn = torch.cat([w.flatten() for w in weights().values()])
    places = torch.randint(len(drawn), (6_000_000,), generator=torch.Generator().manual_seed(0))
    rows = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        tensor = drawn[places].to(dtype)
        size = tensor.numel() * tensor.element_size()
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "weights.mzip"
            after = packed({"w": tensor}, choose.AUTO, Path(scratch))
            with mz.open_archive(path) as archive:
                speed = size / best(lambda: archive.read("w")) / 1e6
        row = [str(dtype).removeprefix("torch."), f"{100 * after / size:.2f} %", f"{speed:.0f}"]
        rows.append([*row, *zipnn(tensor, size)])
    headers = ["24 MB of float32 or half", "modelzip", "decode MB/s", "zipnn", "decode MB/s"]
    print(tabulate(rows, headers=headers, tablefmt="github"))


def zipnn(tensor: Tensor, size: int) -> list[str]:
    if importlib.util.find_spec("zipnn") is None:
        return ["not installed", ""]
    from zipnn import ZipNN

    name = str(tensor.dtype).removeprefix("torch.")
    engine = ZipNN(bytearray_dtype=name, input_format="byte", threads=1)
    data = bytearray(tensor.view(torch.uint8).numpy().tobytes())
    coded = engine.compress(bytearray(data))
    if bytes(engine.decompress(coded)) != bytes(data):
        return ["not the same back", ""]
    speed = size / best(lambda: engine.decompress(coded)) / 1e6
    return [f"{100 * len(coded) / size:.2f} %", f"{speed:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["integers", "floats"])
    torch.set_num_threads(1)
    machine = describe()
    print(f"{machine.cpu}, {machine.cores} cores, {' '.join(machine.isa)}, 1 thread\n")
    {"integers": integers, "floats": floats}[parser.parse_args().part]()


if __name__ == "__main__":
    main()
