"""Packed datasets: bytes and samples a second of CIFAR-10's training set, and of peers.

    python benchmarks/data.py            about ten minutes; --limit 5000 for one
    python benchmarks/data.py trained    ten minutes of a core: what training on them gives

Without `trained`: all images but one, which is the least to validate on (uint8, 3 x 32 x 32), and
labels, in batches of 128 in this process with one thread, for a pass or five seconds. Ratio: 3,080
bytes a sample against all bytes on the disk. Samples a second of a core's time, and by the clock in
brackets; they differ where a machine is shared. "chunk-shuffled" is random chunks, samples shuffled
within four of them; for WebDataset its own buffer of 1,024 over tar files of 1,000 PNG files, which
are read in turn. Lossless ones are compared with the original. Needs MODELZIP_DATA or a download,
modelzip[archive,images], and `pip install webdataset` for its row (it is left out where it is not
installed).

With `trained`: a convolutional network of 61,000 parameters, from scratch, on what is kept of
45,000 training images: as many steps of 128 for each row, with crops and flips, one seed unless
--seeds says more. Tested on the 10,000 original test images after the last step. The coresets are
chosen by two networks trained for a third as long from other seeds, whose time is not counted.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate
from torch import nn
from torch.utils.data import Dataset

import modelzip as mz
from modelzip.core.prepare import Prepared
from modelzip.core.running import evaluating
from modelzip.data import (
    ArrayDataset,
    PackedArrays,
    PackedDataset,
    Splits,
    cifar10,
    coreset,
    loader,
    pack,
)
from modelzip.data.base import generator_for
from modelzip.data.packed.speed import SECONDS, Speed, speed
from modelzip.measure.accuracy import wilson
from modelzip.measure.machine import describe
from modelzip.train.finetune import finetune

BATCH = 128
SHARD = 1000
ROWS: dict[str, dict[str, Any]] = {
    "modelzip, zstd": {},
    "modelzip, zstd level 19": {"level": 19},
    "modelzip, zlib": {"codec": "zlib"},
    "modelzip, lz4": {"codec": "lz4"},
    "modelzip, lzma": {"codec": "lzma"},
    "modelzip, store": {"codec": "store", "filters": ()},
    "modelzip, zstd, one by one": {"single": True},
    "modelzip, PNG": {"codec": "png"},
    "modelzip, WebP": {"codec": "webp"},
    "modelzip, 5 bits": {"bits": 5},
    "modelzip, JPEG 95": {"jpeg": 95},
    "modelzip, JPEG 75": {"jpeg": 75},
    "modelzip, WebP 75": {"webp": 75},
}
HALVES: dict[str, dict[str, Any]] = {
    "coreset by loss": {"by": "loss"},
    "coreset by loss, without the hardest tenth": {"by": "loss", "skip": 0.1},
    "coreset by embedding": {"by": "embedding"},
    "at random": {"by": "random"},
}
SLOW = ("modelzip, zstd level 19", "modelzip, zlib", "modelzip, lzma", "modelzip, WebP")
FEW = 2000  # images of those that pack under 200 a second


def images(limit: int | None) -> ArrayDataset:
    train = cifar10(validation=1).train
    assert isinstance(train, ArrayDataset)
    return ArrayDataset(train.inputs[:limit], train.targets[:limit])


def timed(batches: Iterator[int]) -> Speed:
    """Samples a second of batches, each of which is how many it has."""
    wall, core, count = time.perf_counter(), time.process_time(), 0
    for size in batches:
        count += size
        if time.perf_counter() - wall > SECONDS:
            break
    return Speed(count / (time.perf_counter() - wall), count / (time.process_time() - core))


def shown(found: Speed | None) -> str:
    return "" if found is None else f"{found.core:,.0f} ({found.wall:,.0f})"


def row(name: str, count: int, size: int, mixed: Speed | None, random: Speed | None) -> list[str]:
    print(name, flush=True)
    return [name, f"{count * 3080 / size:.2f}x", shown(mixed), shown(random)]


def packed(name: str, data: ArrayDataset, folder: Path) -> list[str]:
    if name in SLOW and len(data) > FEW:
        data = ArrayDataset(data.inputs[:FEW], data.targets[:FEW])
        label = f"{name} (of {FEW:,})"
    else:
        label = name
    path = folder / "train.mzd"
    found = pack(data, path, **ROWS[name])
    if found.form.lossless:
        read = PackedDataset(path, random_access=True)
        for start in range(0, len(data), 1000):
            part = range(start, min(start + 1000, len(data)))
            if not torch.equal(read.batch(part)[0], data.inputs[part.start : part.stop]):
                raise AssertionError(f"{name} does not give the same images back")
    orders = [speed(path, order, batch_size=BATCH) for order in ("chunk-shuffled", "random")]
    return row(label, len(data), path.stat().st_size, *orders)


def shuffled(count: int, read: Callable[[list[int]], object]) -> Speed:
    order = torch.randperm(count, generator=generator_for(0)).tolist()

    def batches() -> Iterator[int]:
        for start in range(0, count, BATCH):
            read(numbers := order[start : start + BATCH])
            yield len(numbers)

    return timed(batches())


def memmap(data: ArrayDataset, folder: Path) -> list[str]:
    np.save(folder / "x.npy", data.inputs.numpy())
    np.save(folder / "y.npy", data.targets.numpy())
    x, y = (np.load(folder / name, mmap_mode="r") for name in ("x.npy", "y.npy"))
    size = sum((folder / name).stat().st_size for name in ("x.npy", "y.npy"))
    at_once = shuffled(len(data), lambda numbers: (torch.from_numpy(x[numbers]), y[numbers]))
    return row(".npy memmap", len(data), size, None, at_once)


def png_of(image: torch.Tensor) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG")
    return file.getvalue()


def from_png(file: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)


def png_files(data: ArrayDataset, folder: Path) -> list[str]:
    size = 0
    for number, image in enumerate(data.inputs):
        (path := folder / f"{number}.png").write_bytes(png_of(image))
        size += 8 + -(-path.stat().st_size // 4096) * 4096  # as a disk has them, and a label
    read = shuffled(
        len(data), lambda numbers: torch.stack([from_png(folder / f"{n}.png") for n in numbers])
    )
    return row("a PNG file each (4 KiB blocks)", len(data), size, None, read)


def webdataset(data: ArrayDataset, folder: Path) -> list[str]:
    import webdataset as wds

    with wds.ShardWriter(str(folder / "%04d.tar"), maxcount=SHARD, verbose=0) as writer:
        for number, (image, label) in enumerate(zip(data.inputs, data.targets, strict=True)):
            writer.write({"__key__": f"{number:06}", "png": png_of(image), "cls": int(label)})
    shards = sorted(map(str, folder.glob("*.tar")))
    size = sum(Path(shard).stat().st_size for shard in shards)
    pipeline = wds.WebDataset(shards, shardshuffle=len(shards), seed=0, empty_check=False)
    batches = pipeline.shuffle(1024).to_tuple("png", "cls").batched(BATCH, collation_fn=None)

    def sizes() -> Iterator[int]:
        for batch in batches:
            torch.stack([from_png(io.BytesIO(png)) for png, _ in batch])
            yield len(batch)

    return row("WebDataset, PNG", len(data), size, timed(sizes()), None)


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 48, 1)):
        conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))


def trained(splits: Splits, *, steps: int, seed: int) -> nn.Module:
    zipped = Prepared(network(seed))
    how = mz.FineTune(steps=steps, lr=0.1, warmup=0.15, keep="last")
    finetune(zipped, splits, how, batch_size=BATCH, seed=seed, progress=False)
    return zipped.model


def kept(data: ArrayDataset, path: Path, **settings: Any) -> PackedArrays:
    packed = PackedDataset(pack(data, path, **settings).path)
    return PackedArrays(packed, mean=data.mean, std=data.std, crop=data.crop, seed=data.seed)


def training(limit: int | None, steps: int, seeds: int, folder: Path) -> None:
    splits = cifar10(limit=limit)
    data = splits.train
    assert isinstance(data, ArrayDataset)
    judges = [trained(splits, steps=max(1, steps // 3), seed=1000 + seed) for seed in range(2)]
    sets: dict[str, Dataset[Any]] = {
        "original": data,
        "5 bits": kept(data, folder / "bits.mzd", bits=5),
        "JPEG 75": kept(data, folder / "jpeg.mzd", jpeg=75),
        **{f"half, {name}": coreset(judges, data, 0.5, **how) for name, how in HALVES.items()},
    }
    rows = []
    for name, dataset in sets.items():
        found = [
            tested(trained(replace(splits, train=dataset), steps=steps, seed=seed), splits)
            for seed in range(seeds)
        ]
        right, count = sum(found), seeds * len(splits.test)  # type: ignore[arg-type]
        low, high = (100 * bound for bound in wilson(right, count))
        accuracy = f"{100 * right / count:.2f} % ({low:.2f} to {high:.2f})"
        each = ", ".join(f"{100 * seeds * hits / count:.2f}" for hits in found)
        rows.append([name, f"{len(dataset):,}", accuracy, each])  # type: ignore[arg-type]
        print(*rows[-1], flush=True)
    print(f"\n{describe().cpu}, {steps} steps of {BATCH}, {len(splits.test):,} test images\n")  # type: ignore[arg-type]
    heads = ["trained on", "images", "accuracy (95 % Wilson)", "each seed"]
    print(tabulate(rows, heads, tablefmt="github", stralign="right"))


def tested(model: nn.Module, splits: Splits) -> int:
    right = 0
    with evaluating(model):
        for inputs, targets in loader(splits.test, batch_size=500):
            right += int((model(inputs).argmax(dim=1) == targets).sum())
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="?", default="packed", choices=["packed", "trained"])
    parser.add_argument("--limit", type=int, help="only so many images")
    parser.add_argument("--steps", type=int, default=1200, help="of training")
    parser.add_argument("--seeds", type=int, default=1, help="networks trained for each row")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.part == "trained":
        with tempfile.TemporaryDirectory() as scratch:
            training(chosen.limit, chosen.steps, chosen.seeds, Path(scratch))
        return
    data = images(chosen.limit)
    peers = [memmap, png_files]
    if importlib.util.find_spec("webdataset"):
        peers.append(webdataset)
    else:
        print("WebDataset is left out: pip install webdataset")
    rows = []
    for name in ROWS:
        with tempfile.TemporaryDirectory() as scratch:
            rows.append(packed(name, data, Path(scratch)))
    for peer in peers:
        with tempfile.TemporaryDirectory() as scratch:
            rows.append(peer(data, Path(scratch)))
    heads = ["", "ratio", "chunk-shuffled samples/s", "random samples/s"]
    print(f"\n{describe().cpu}, {len(data):,} images\n")
    print(tabulate(rows, heads, tablefmt="github", stralign="right"))


if __name__ == "__main__":
    main()
