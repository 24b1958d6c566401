"""Fuzzes what reads files of strangers: archives, the parsers of what is packed, and bundles.

python fuzz/archive.py [TARGET ...] [--seconds 120] [--folder build/fuzz]

- file: any bytes as an archive. index: an index and data as an archive with right checksums, so
  that they are reached. split: any bytes as an ONNX or safetensors file. bundle: as a zip or tar.

A find is anything else than an ArchiveError: another exception, other bytes, over 10 s, 2 GiB.
The input is left in the folder; it is run again by `python fuzz/archive.py TARGET --input FILE`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import re
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(
    include=["modelzip"],
    exclude=["modelzip.archive.integers.kernels"],  # numba compiles what is there
):
    from modelzip.archive.container import Blob, Reader, make_header
    from modelzip.archive.segments import join, split
    from modelzip.archive.unbundle import contents
    from modelzip.archive.unpack import open_archive
    from modelzip.errors import ArchiveError

GOLDEN = Path(__file__).parents[1] / "tests" / "archive" / "golden"
LIMIT = 1 << 20  # bytes that an archive may ask for
LONGEST = 1 << 15  # bytes of an input
SECONDS, MEGABYTES = 10, 2048  # for one input
JUNK = (0, 1, -1, 64, 1 << 16, 1 << 32, 1 << 63, True, None, 0.5, "", "int8", "float32", [], {})


def read_all(path: Path) -> None:
    """Open an archive and decode everything; ArchiveError or what it declares."""
    with open_archive(path, limit=LIMIT) as archive:
        for entry in archive.entries:
            size, shape = archive.read(entry.name).nbytes, archive[entry.name].shape
            assert (size, tuple(shape)) == (entry.before, entry.shape)
        archive.test()


def as_file(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    read_all(path)


def as_index(path: Path, data: bytes) -> None:
    """An input is the index as JSON, then after a 0 the data, then the skeleton's."""
    text, _, rest = data.partition(b"\0")
    try:
        pieces = json.loads(text)["pieces"]
        size = sum(_sizes(pieces[0])) if pieces else 0
    except (ValueError, LookupError, TypeError, RecursionError):
        size = len(rest)
    blobs = {"skeleton": rest[size:], "index": zlib.compress(text, 1)}
    blobs |= {"0": rest[:size]} if size else {}
    listed = [Blob(name, 0, len(d), f"{zlib.crc32(d):08x}") for name, d in blobs.items()]
    spec = {"index": len(text), "blobs": [[b.name, b.size, b.crc32] for b in listed]}
    header = make_header(json.dumps(spec, separators=(",", ":")), listed)
    path.write_bytes(header + b"".join(blobs.values()))
    read_all(path)


def as_source(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with split(path) as parts:
        joined = io.BytesIO()
        join(parts.skeleton(), parts.lengths, map(parts.data, parts.tensors), joined)
        assert joined.getvalue() == data


def as_bundle(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    contents(path, limit=LIMIT)


def _sizes(node: Any) -> Iterator[int]:
    match node:
        case [str(), int(size), *_]:
            yield max(0, min(size, LONGEST))
        case list(inner):
            for each in inner:
                yield from _sizes(each)


def golden() -> Iterator[bytes]:
    for path in sorted(GOLDEN.rglob("*.mzip")):
        yield path.read_bytes()


def indices() -> Iterator[bytes]:
    for path in sorted(GOLDEN.rglob("*.mzip")):
        with Reader(path) as reader:
            text = zlib.decompress(reader.blob("index"))
            yield b"".join([text, b"\0", reader.blob("0"), reader.blob("skeleton")])


def sources() -> Iterator[bytes]:
    from onnx import TensorProto, helper

    for raw in (True, False):
        values = bytes(96) if raw else [0.0] * 24
        weight = helper.make_tensor("w", TensorProto.FLOAT, [2, 12], values, raw=raw)
        inner = helper.make_graph([], "inner", [], [], [weight])
        node = helper.make_node("If", ["a"], ["b"], name="n", then_branch=inner, value=weight)
        graph = helper.make_graph([node], "g", [], [], [weight])
        yield helper.make_model(graph).SerializeToString()
    yield from golden()


def bundles() -> Iterator[bytes]:
    import tarfile
    import zipfile

    for mode in ("w", "w:gz"):
        with tarfile.open(fileobj=(file := io.BytesIO()), mode=mode) as tar:
            tar.addfile(info := tarfile.TarInfo("run/a.txt"), io.BytesIO())
            info.name, info.size = "run/b", 3
            tar.addfile(info, io.BytesIO(b"abc"))
        yield file.getvalue()
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        archive.writestr("a.txt", "abc")
        archive.writestr("folder/SHA256SUMS", "00" * 32 + "  a.txt\n")
    yield file.getvalue()


Target = tuple[Callable[[Path, bytes], None], Callable[[], Iterator[bytes]]]
TARGETS: dict[str, Target] = {
    "file": (as_file, golden),
    "index": (as_index, indices),
    "split": (as_source, sources),
    "bundle": (as_bundle, bundles),
}


def mutate(data: bytes, most: int, seed: int) -> bytes:
    """Half of the time, an index with one value of its tree replaced by another or by junk."""
    draw = random.Random(seed)
    text, zero, rest = data.partition(b"\0")
    with contextlib.suppress(ValueError, RecursionError):
        tree = json.loads(text)
        places = list(_places(tree))
        if places and draw.random() < 0.5:
            parent, key = draw.choice(places)
            other, from_key = draw.choice(places)
            near = [parent[key] + 1, parent[key] * 2] if type(parent[key]) is int else []
            parent[key] = draw.choice([*JUNK, *near, *near, *([other[from_key]] * 9)])
            with contextlib.suppress(ValueError):
                return (json.dumps(tree).encode() + zero + rest)[:most]
    return atheris.Mutate(data, most)


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    if not isinstance(tree, (dict, list)):
        return
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        yield tree, key
        yield from _places(value)


def fuzz(target: str, seconds: int, folder: Path, given: Path | None) -> None:
    """Run one target in this process, which ends with it."""
    run, seeds = TARGETS[target]
    corpus = folder / target
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    path = Path(tempfile.mkdtemp(prefix="fuzz-")) / "input"

    def one(data: bytes) -> None:
        try:
            run(path, data)
        except ArchiveError:
            return
        except BaseException:
            (folder / f"{target}-find").write_bytes(data)
            raise

    options = [
        f"-max_total_time={seconds}",
        f"-max_len={LONGEST}",
        f"-timeout={SECONDS}",
        f"-rss_limit_mb={MEGABYTES}",
        f"-artifact_prefix={folder}/{target}-",
        "-print_final_stats=1",
        "-verbosity=1",
    ]
    custom = {"custom_mutator": mutate} if target == "index" else {}
    atheris.Setup([sys.argv[0], *options, str(given or corpus)], one, **custom)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=120, help="for each target")
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"), help="corpora and finds")
    parser.add_argument("--input", type=Path, help="run this alone")
    given = parser.parse_args()
    targets = given.targets or list(TARGETS)
    if len(targets) == 1:
        fuzz(targets[0], given.seconds, given.folder, given.input)
    failed = 0
    for target in targets:
        command = [sys.executable, __file__, target, "--seconds", str(given.seconds)]
        command += ["--folder", str(given.folder)]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        runs = re.findall(r"number_of_executed_units:\s*(\d+)", done.stderr) or ["?"]
        print(f"{target}: {runs[-1]} executions, {'no find' if not done.returncode else 'a find:'}")
        if done.returncode:
            failed = 1
            print(done.stderr[-3000:])
    return failed


if __name__ == "__main__":
    sys.exit(main())
