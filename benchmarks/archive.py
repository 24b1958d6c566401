"""Archives: bits a weight and speed of each codec on ResNet-56, beside what others keep.

    python benchmarks/archive.py integers      bits of quantized weights by each codec, a minute
    python benchmarks/archive.py floats        float32, bfloat16 and float16, and zipnn where it is
    python benchmarks/archive.py lossy         ResNet-56 in fewer bytes, not trained, 15 minutes
    python benchmarks/archive.py trained --run runs/resnet56_archive    a trained one, by each codec
    python benchmarks/archive.py memory        1 GB packed and unpacked: how much memory it takes

integers: all weights of ResNet-56 (CIFAR-10), symmetric with a scale for each output channel from
its largest magnitude: 8 bits, 4 bits, and 8 bits with the 90 % of weights of least magnitude zero.
floats: the same weights as they are, drawn 24 MB of, with the seed 0. Sizes are of whole archives,
every one of which is decoded and compared; speed is the best of three, on all cores for archives.
lossy: ResNet-56 (CIFAR-10), rate_quantize for two sizes, on 512 images of train, beside NNCodec by
its own step for all weights and batch norms folded before; each decoded, run on all test images.
trained: what `modelzip run recipes/resnet56_archive.yaml --out runs/resnet56_archive` left behind,
packed by each codec, and what unpacks run on all test images.
memory: a state_dict of 937 MB whose largest tensor has 131; the most that is resident while it is
packed and unpacked, less what is before. Needs the weights (see MODELZIP_MODELS in the README),
`pip install modelzip[archive]`, for its row zipnn, and for NNCodec's rows an environment of its own
(see nncodec_peer.py), whose python is given as --nncodec.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tabulate import tabulate
from torch import Tensor

import modelzip as mz
from modelzip.archive import choose, codecs
from modelzip.archive.integers import context, lanes, static
from modelzip.core.base import Context
from modelzip.core.graph import trace
from modelzip.data import cifar10, loader
from modelzip.data.checking import calibration_batches
from modelzip.measure.accuracy import Predictions, accuracy, kl_divergence, predict
from modelzip.measure.machine import describe
from modelzip.quantization.folding import fold_norms
from modelzip.runtime.session import load
from modelzip.zoo import load_weights, resnet56

TIMES = 3
SIZES = ("0.0535x", "0.046x")
RUN = Path("runs/resnet56_archive")
QPS = (-28, -26, -24)
MATRICES = {
    **dict.fromkeys(("query", "key", "value", "out"), (1024, 1024)),
    **{"up": (2048, 1024), "down": (1024, 2048)},
}
WATCHED = """
import sys, tempfile, time, numpy as np, modelzip as mz
def status(key):
    return int(next(l for l in open("/proc/self/status") if l.startswith(key)).split()[1]) / 1e3
work, source = sys.argv[1:]
with tempfile.TemporaryDirectory() as warm:
    mz.pack({"w": np.random.randn(300, 400), "v": np.arange(9000) % 9}, warm + "/a.mzip")
    mz.unpack(warm + "/a.mzip", warm + "/a.safetensors")
open("/proc/self/clear_refs", "w").write("5")
before, start = status("VmRSS"), time.perf_counter()
archive = source + ".mzip"
mz.pack(source, archive) if work == "pack" else mz.unpack(archive, archive + ".out")
print(status("VmHWM") - before, time.perf_counter() - start)
"""


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


def integers(nncodec: str | None) -> None:
    trained = weights()
    count = sum(w.numel() for w in trained.values())
    sets = {
        "int8": quantized(trained, bits=8),
        "4 bit": quantized(trained, bits=4),
        "int8, 90 % zeros": quantized(trained, bits=8, zeros=0.9),
    }
    with tempfile.TemporaryDirectory() as scratch:
        rows = []
        for codec in (choose.AUTO, *choose.INTEGERS, *codecs.NAMES):
            sizes = [packed(tensors, codec, Path(scratch)) for tensors in sets.values()]
            rows.append([codec, *(f"{8 * size / count:.3f}" for size in sizes)])
        peers = []
        for tensors in sets.values():
            state = {n: t.numpy() for n, t in tensors.items()}
            found = by_nncodec(nncodec, state, 0, Path(scratch))
            if not isinstance(found, str) and any((found[1][n] != state[n]).any() for n in state):
                raise AssertionError("NNCodec does not give the same weights back")
            peers.append(found if isinstance(found, str) else f"{8 * found[0] / count:.3f}")
        rows.append(["NNCodec", *peers])
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


def lossy(nncodec: str | None) -> None:
    splits = cifar10(augment=False)
    model = resnet56().eval()
    load_weights(model, f"{os.environ.get('MODELZIP_MODELS', '.')}/resnet56_cifar10.safetensors")
    calibration = calibration_batches(splits, samples=512, batch_size=128, seed=0)
    x = calibration[0][0][:2]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        whole = mz.export_onnx(model, x, folder / "float.onnx")
        float_ = predict(load(whole), loader(splits.test, batch_size=500))
        rows = [row("float32", whole.stat().st_size, whole.stat().st_size, float_, float_)]
        print(tabulate(rows[-1:], tablefmt="plain"), flush=True)

        def add(name: str, size: int, file: Path) -> None:
            found = predict(load(file), loader(splits.test, batch_size=500))
            rows.append(row(name, size, whole.stat().st_size, found, float_))
            print(tabulate(rows[-1:], tablefmt="plain"), flush=True)

        for size in SIZES:
            step = mz.RateQuantize(size=size)
            small = mz.prepare(model, [step], example_inputs=x, calibration=calibration).convert()
            packed = mz.pack(mz.export_onnx(small, x, folder / "small.onnx"), folder / "small.mzip")
            add(
                f"rate_quantize {size}", packed.after, mz.unpack(packed.path, folder / "again.onnx")
            )
        folded = trace(model, Context(example_inputs=x))
        fold_norms(folded)
        state = {n: p.detach().numpy().copy() for n, p in folded.named_parameters()}
        for qp in QPS:
            found = by_nncodec(nncodec, state, qp, folder)
            if isinstance(found, str):
                rows.append([f"NNCodec, {found}"])
                break
            folded.load_state_dict({n: torch.from_numpy(a) for n, a in found[1].items()})
            coded = mz.export_onnx(folded, x, folder / "coded.onnx")
            add(f"NNCodec, qp {qp}", found[0], coded)
    headers = ["ResNet-56, 10,000 images", "KB", "ratio", "top-1", "95 %", "KL"]
    print("\n" + tabulate(rows, headers=headers, tablefmt="github"))


def trained(run: Path) -> None:
    splits = cifar10(augment=False)
    whole = (run / "baseline.onnx").stat().st_size
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for codec in (choose.AUTO, *codecs.NAMES):
            found = mz.pack(run / "model.onnx", Path(scratch) / f"{codec}.mzip", codec=codec)
            rows.append([codec, f"{found.after / 1000:.1f}", f"{whole / found.after:.1f}x"])
        print(tabulate(rows, headers=["codec", "KB", "ratio"], tablefmt="github") + "\n")
        again = mz.unpack(Path(scratch) / "auto.mzip", Path(scratch) / "again.onnx")
        sizes = {"float32": whole, "unpacked": (Path(scratch) / "auto.mzip").stat().st_size}
        files = {"float32": run / "baseline.onnx", "unpacked": again}
        answers = {
            name: predict(load(file), loader(splits.test, batch_size=500))
            for name, file in files.items()
        }
    rows = [row(n, sizes[n], whole, answers[n], answers["float32"]) for n in files]
    headers = ["ResNet-56, 10,000 images", "KB", "ratio", "top-1", "95 %", "KL"]
    print(tabulate(rows, headers=headers, tablefmt="github"))


def row(name: str, size: int, whole: int, found: Predictions, float_: Predictions) -> list[str]:
    right = accuracy(found)
    top1, low, high = (f"{100 * v:.2f}" for v in (right.top1, right.low, right.high))
    kl = kl_divergence(float_.outputs, found.outputs)
    times = f"{whole / size:.1f}x"
    return [name, f"{size / 1000:.1f}", times, f"{top1} %", f"{low} to {high}", f"{kl:.4f}"]


def by_nncodec(
    python: str | None, state: Mapping[str, Any], qp: int, folder: Path
) -> tuple[int, dict[str, Any]] | str:
    """Bytes and arrays that come back, or why there are none."""
    if python is None:
        return "skipped: no --nncodec"
    np.savez(folder / "in.npz", **state)
    script = Path(__file__).with_name("nncodec_peer.py")
    command = [python, str(script), str(folder / "in.npz"), str(folder / "out.npz"), str(qp)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return f"skipped: {done.stderr.strip().splitlines()[-1]}"
    return int(done.stdout.split()[-1]), dict(np.load(folder / "out.npz"))


def memory() -> None:
    generator = torch.Generator().manual_seed(0)
    state = {"embedding": torch.randn(32000, 1024, generator=generator)}
    for layer in range(24):
        for name, (rows, columns) in MATRICES.items():
            state[f"{layer}.{name}"] = torch.randn(rows, columns, generator=generator)
            state[f"{layer}.{name}.bias"] = torch.randn(rows, generator=generator)
    table = []
    with tempfile.TemporaryDirectory() as scratch:
        save_file(state, f"{scratch}/a.safetensors")
        torch.save(state, f"{scratch}/a.pt")
        total, largest = (f(t.nbytes for t in state.values()) / 1e6 for f in (sum, max))
        for source in ("a.safetensors", "a.pt"):
            for work in ("pack", "unpack"):
                command = [sys.executable, "-c", WATCHED, work, f"{scratch}/{source}"]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                above, seconds = map(float, done.stdout.split())
                ratio = f"{above / largest:.2f}x"
                table.append([work, source, f"{above:.0f}", ratio, f"{total / seconds:.0f}"])
    headers = [f"{total:.0f} MB", "file", "MB above", f"of the largest, {largest:.0f}", "MB/s"]
    print(tabulate(table, headers=headers, tablefmt="github"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["integers", "floats", "lossy", "trained", "memory"])
    parser.add_argument("--nncodec", metavar="PYTHON", help="of an environment that has NNCodec")
    parser.add_argument("--run", type=Path, help="the folder that a recipe's run left", default=RUN)
    given = parser.parse_args()
    torch.set_num_threads(1)
    machine = describe()
    print(f"{machine.cpu}, {machine.cores} cores, {' '.join(machine.isa)}, 1 thread of torch\n")
    match given.part:
        case "integers":
            integers(given.nncodec)
        case "floats":
            floats()
        case "lossy":
            lossy(given.nncodec)
        case "trained":
            trained(given.run)
        case "memory":
            memory()


if __name__ == "__main__":
    main()
