"""Whatever an archive says, it is refused or gives what it declares: no crash, bomb or hang.

Files that were damaged are always refused. Files that someone made on purpose, with right
checksums, may be anything else than what was packed, but never more than they declare.
"""

from __future__ import annotations

import copy
import json
import os
import resource
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelzip.archive import choose, codecs, layout, pack
from modelzip.archive.container import Reader, Writer
from modelzip.archive.integers.sparse import FORMS
from modelzip.archive.unpack import open_archive, unpack
from modelzip.errors import ArchiveError

GOLDEN = sorted((Path(__file__).parent / "golden").glob("version_*/*.mzip"))
ROOM = 768 << 20  # bytes of address space beyond what the process has, threads' own among them
SECONDS = 2.0
DECLARED = 1 << 20


def few(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


class Parts(NamedTuple):
    """An archive taken apart."""

    index: Any
    blobs: dict[str, bytes]


def taken_apart(path: Path) -> Parts:
    with Reader(path) as reader:
        blobs = {name: bytes(reader.blob(name)) for name in reader.blobs}
    return Parts(json.loads(zlib.decompress(blobs.pop("index"))), blobs)


def written(path: Path, parts: Parts) -> Path:
    """The archive of these parts, with right checksums."""
    text = json.dumps(parts.index).encode()
    with Writer(path) as writer:
        for name, data in parts.blobs.items():
            writer.add(name, data)
        writer.add("index", zlib.compress(text, 1))
        writer.finish({"index": len(text)})
    return path


def node_of(array: np.ndarray) -> tuple[list[Any], bytes]:
    return ["store", array.nbytes], array.tobytes()


def every_form() -> Parts:
    """An archive with each form of arrays, and forms in forms, as no writer makes it at once."""
    values = np.array([[0, 0, 3, 0, -1, 0, 0, 0]] * 8, np.int8)
    tensors: list[Any] = []
    nodes: list[Any] = []
    data: list[bytes] = []

    def add(name: str, dtype: str, shape: list[int], node: Any, *parts: bytes) -> None:
        tensors.append([name, dtype, shape])
        nodes.append([node])
        data.extend(parts)

    for form, (to_streams, _, _) in FORMS.items():
        streams = to_streams(values)
        inner = [node_of(stream) for stream in streams]
        node = [form, [n for n, _ in inner], [[len(s), s.dtype.name] for s in streams]]
        add(form, "int8", [8, 8], node, *(d for _, d in inner))
    rows = [node_of(values[:3]), node_of(values[3:])]
    add("rows", "int8", [8, 8], ["pieces", [n for n, _ in rows], [3, 5]], *(d for _, d in rows))
    floats = np.arange(4, dtype="<f4") + 1
    node = ["palette", [["store", 16], ["store", 64]], [4, "int8"]]
    add("palette", "float32", [8, 8], node, floats.tobytes(), np.abs(values).tobytes())
    node = ["grid", [["store", 32], ["store", 64]], [8, "int8", 1, True]]
    add("grid", "float32", [8, 8], node, np.repeat(floats, 2).tobytes(), values.tobytes())
    planes = [node_of(np.arange(64, dtype=np.uint8))] * 2
    add("planes", "bfloat16", [64], ["planes", [n for n, _ in planes]], *(d for _, d in planes))
    node = ["words", [["store", 40]], [3, 5, 1]]
    add("words", "uint8", [8, 1], node, (np.arange(40, dtype=np.int8) % 3 - 1).tobytes())
    add("int4", "int4", [8, 8], ["nibbles", [["store", 64]], ["int4", [8, 8]]], values.tobytes())
    index = {
        "kind": "safetensors",
        "skeleton": [11, ["store", 11]],
        "gaps": [0] * len(tensors),
        "tensors": tensors,
        "pieces": [nodes],
    }
    return Parts(index, {"0": b"".join(data), "skeleton": b"\x03" + bytes(7) + b"{} "})


SEEDS = {path.stem: taken_apart(path) for path in GOLDEN} | {"forms": every_form()}


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def bounded() -> Iterator[None]:
    """Little more memory than there is in use: what asks for more raises MemoryError."""
    with open_archive(next(path for path in GOLDEN if path.stem == "context")) as archive:
        archive.test()  # which compiles
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def is_refused(path: Path) -> str:
    """The error of an archive that must not open, or not decode."""
    with pytest.raises(ArchiveError) as caught, open_archive(path) as archive:
        archive.test()
    assert str(path) in str(caught.value)
    return str(caught.value)


def is_harmless(path: Path, parts: Parts) -> bool:
    """Whether all is as declared; else an ArchiveError says what is not. In bounded time."""
    began, message = time.process_time(), ""
    try:
        with open_archive(path, limit=DECLARED) as archive:
            assert archive.size <= DECLARED
            sums = [entry[1:] for group in parts.index["pieces"] for entry in group]
            for entry, crc in zip(archive.entries, sums, strict=True):
                found = archive.read(entry.name)
                assert found.nbytes == entry.before
                assert not crc or zlib.crc32(found.data) == crc[0]
                assert tuple(archive[entry.name].shape) == entry.shape
            archive.test()
            archive.write(out := path.with_suffix(".out"))
            assert out.stat().st_size == archive.size
            out.unlink()
            fine = True
    except ArchiveError as error:
        fine, message = False, str(error)
    assert time.process_time() - began < SECONDS
    assert fine or str(path) in message
    message.encode()
    return fine


def test_the_archives_to_start_from_have_every_codec_and_form() -> None:
    text = json.dumps([parts.index for parts in SEEDS.values()])
    for name in (
        *choose.INTEGERS,
        *codecs.NAMES,
        *FORMS,
        "planes",
        "palette",
        "grid",
        "pieces",
        "nibbles",
        "words",
    ):
        assert f'["{name}", ' in text


@pytest.mark.parametrize("name", SEEDS)
def test_they_are_whole(name: str, tmp_path: Path) -> None:
    assert is_harmless(written(tmp_path / "a.mzip", SEEDS[name]), SEEDS[name])


def test_a_flipped_bit_in_any_byte_of_an_archive_is_found(tmp_path: Path) -> None:
    pack.pack({"w": torch.arange(30, dtype=torch.int8), "v": torch.ones(9)}, tmp_path / "a.mzip")
    whole = (tmp_path / "a.mzip").read_bytes()
    (tmp_path / "a.mzip").unlink()
    for at in range(len(whole)):
        broken = bytearray(whole)
        broken[at] ^= 1 << at % 8
        (tmp_path / "a.mzip").write_bytes(broken)
        is_refused(tmp_path / "a.mzip")


@few(250)
@given(st.sampled_from(GOLDEN), st.data())
def test_a_flipped_bit_anywhere_is_found_with_its_tensor(
    tmp_path_factory: pytest.TempPathFactory, path: Path, data: st.DataObject
) -> None:
    whole = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    whole[bit // 8] ^= 1 << bit % 8
    (broken := tmp_path_factory.getbasetemp() / "flipped.mzip").write_bytes(whole)
    message = is_refused(broken)
    with Reader(path) as reader:
        blob = reader.blobs["0"]
    if blob.offset <= bit // 8 < blob.offset + blob.size:
        names = [name for name, _, _ in SEEDS[path.stem].index["tensors"]]
        held = " to ".join(repr(name) for name in dict.fromkeys((names[0], names[-1])))
        assert f"tensor {held} is in it" in message
        assert f"bytes {blob.offset} to {blob.offset + blob.size}" in message


@few(150)
@given(st.sampled_from(GOLDEN), st.data())
def test_what_is_cut_or_longer_or_moved_is_found(
    tmp_path_factory: pytest.TempPathFactory, path: Path, data: st.DataObject
) -> None:
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    size = data.draw(st.integers(1, len(whole) - at))
    more = data.draw(st.binary(min_size=1, max_size=9))
    swapped = bytearray(whole)
    swapped[at : at + size] = whole[at : at + size][::-1]
    broken = tmp_path_factory.getbasetemp() / "cut.mzip"
    for content in (
        whole[:at],
        whole + more,
        whole + whole,
        whole[:at] + more + whole[at:],
        whole[:at] + whole[at + size :],
        whole[at:] + whole[:at],
        bytes(swapped),
    ):
        if content != whole:
            broken.write_bytes(content)
            is_refused(broken)


def test_blobs_in_another_order_are_found(tmp_path: Path) -> None:
    parts = SEEDS["store"]
    whole = written(tmp_path / "a.mzip", parts).read_bytes()
    ends = [len(data) for data in parts.blobs.values()]
    start = whole.index(parts.blobs["0"])
    first, second = start + ends[0], start + sum(ends)
    turned = whole[:start] + whole[first:second] + whole[start:first] + whole[second:]
    assert len(turned) == len(whole)
    (tmp_path / "a.mzip").write_bytes(turned)
    assert "blob 'skeleton'" in is_refused(tmp_path / "a.mzip")


def test_a_newer_version_says_to_upgrade(tmp_path: Path) -> None:
    whole = GOLDEN[0].read_bytes()
    newer = whole.replace(b'"modelzip.archive":"1"', b'"modelzip.archive":"2"')
    (tmp_path / "a.mzip").write_bytes(newer)
    assert "version 2 is newer than this modelzip reads (1); upgrade modelzip" in is_refused(
        tmp_path / "a.mzip"
    )


def paths_of(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inner = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree if isinstance(tree, list) else [])
    )
    for key, value in inner:
        yield from paths_of(value, (*path, key))


def value_at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def sizes_of(pieces: Any) -> Iterator[int]:
    """The bytes of data that the nodes in a tree say that they have."""
    match pieces:
        case [str(), int(size), *_]:
            yield size
        case list(inner):
            for each in inner:
                yield from sizes_of(each)


def nested(depth: int) -> Any:
    value: Any = ["store", 0]
    for _ in range(depth):
        value = ["csr", [value, value[:], ["store", 64]], [[8, "uint8"], [16, "int8"], [8, "int8"]]]
    return value


NAMES = [
    *(
        *choose.INTEGERS,
        *codecs.NAMES,
        *FORMS,
        "planes",
        "palette",
        "grid",
        "pieces",
        "nibbles",
        "words",
        "",
        "x",
    ),
    *("int8", "uint32", "int64", "float32", "bfloat16", "float64", "bool", "complex128"),
    *("onnx", "safetensors", "../../x", "/etc/passwd", "\ud800", "\x1b[31m", "[red]", "a\0b"),
]
NUMBERS = [
    *(0, 1, -1, 2, 3, 7, 63, 64, 255, 256, 2**16 - 1, 2**16, 2**24, 2**31 - 1, 2**31, 2**32),
    *(2**37, 2**59, 2**63 - 1, 2**63, 2**64, 10**400, -(2**63), 0.5, 1.0, -0.0, 1e308),
]
ODD = [None, True, False, [], {}, [[]], [0] * 70, [1] * 70, [2**40] * 3, [0, 2**62, 2**62]]
DEEP = [nested(3), nested(7), ["pieces", [["pieces", [["store", 64]], [8]]], [8]]]
junk = st.sampled_from([*NAMES, *NUMBERS, *ODD, *DEEP]).map(copy.deepcopy)


def mutated(tree: Any, data: st.DataObject) -> Any:
    """The tree with one of its values replaced, removed, doubled or a little changed."""
    path = data.draw(st.sampled_from(list(paths_of(tree))))
    if not path:
        return data.draw(junk)
    parent, key = value_at(tree, path[:-1]), path[-1]
    value = parent[key]
    change = data.draw(st.sampled_from(["junk", "near", "other", "remove", "double"]))
    if change == "near" and type(value) is int:
        parent[key] = data.draw(st.sampled_from([value - 1, value + 1, 2 * value, value // 2]))
    elif change == "other":
        others = [p for p in paths_of(tree) if len(p) == len(path)]
        parent[key] = copy.deepcopy(value_at(tree, data.draw(st.sampled_from(others))))
    elif change == "remove":
        del parent[key]
    elif change == "double" and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(value))
    else:
        parent[key] = data.draw(junk)
    return tree


@few(900)
@given(st.sampled_from(sorted(SEEDS)), st.data())
@pytest.mark.usefixtures("bounded")
def test_any_index_is_refused_or_gives_what_it_declares(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    parts = copy.deepcopy(SEEDS[name])
    index = parts.index
    for _ in range(data.draw(st.integers(1, 3))):
        index = mutated(index, data)
    sizes = sum(sizes_of(index["pieces"])) if isinstance(index, dict) and "pieces" in index else 0
    if data.draw(st.booleans()) and 0 <= sizes < DECLARED:
        parts.blobs["0"] = parts.blobs["0"][:sizes].ljust(sizes, b"\0")
    path = tmp_path_factory.getbasetemp() / "index.mzip"
    is_harmless(written(path, Parts(index, parts.blobs)), Parts(index, parts.blobs))


@few(500)
@given(st.sampled_from(sorted(SEEDS)), st.data())
@pytest.mark.usefixtures("bounded")
def test_any_blob_is_refused_or_gives_what_is_declared(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    parts = copy.deepcopy(SEEDS[name])
    blob = data.draw(st.sampled_from([*parts.blobs, "0", "0"]))
    content = bytearray(parts.blobs[blob])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(content) - 1)))
        with_what = data.draw(st.binary(min_size=1, max_size=9) | st.just(b"\0" * 40))
        content[at : at + len(with_what)] = with_what
    parts.blobs[blob] = bytes(content[: len(parts.blobs[blob])])
    path = tmp_path_factory.getbasetemp() / "blob.mzip"
    is_harmless(written(path, parts), parts)


@few(150)
@given(st.sampled_from(sorted(SEEDS)), st.data())
@pytest.mark.usefixtures("bounded")
def test_any_spec_is_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    whole = written(tmp_path_factory.getbasetemp() / "spec.mzip", SEEDS[name])
    with Reader(whole) as reader:
        spec = {**reader.spec, "blobs": [[b.name, b.size, b.crc32] for b in reader.blobs.values()]}
        start = next(iter(reader.blobs.values())).offset
    content = whole.read_bytes()[start:]
    before = copy.deepcopy(spec)
    spec = mutated(spec, data)
    text = json.dumps(spec, separators=(",", ":"))
    metadata = {"modelzip.archive": "1", "crc32": f"{zlib.crc32(text.encode()):08x}", "spec": text}
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    listed = spec.get("blobs") if isinstance(spec, dict) else None
    for entry in listed if isinstance(listed, list) else []:
        match entry:
            case [str(blob), int(size), *_]:
                at, first = at + size, at
                header[blob] = {"dtype": "U8", "shape": [size], "data_offsets": [first, at]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    whole.write_bytes(len(encoded).to_bytes(8, "little") + encoded + content)
    if spec != before or repr(spec) != repr(before):
        is_refused(whole)


def changed(name: str, *path: Any, to: Any) -> Parts:
    parts = copy.deepcopy(SEEDS[name])
    value_at(parts.index, path[:-1])[path[-1]] = to
    return parts


FORM = {name: number for number, (name, _, _) in enumerate(SEEDS["forms"].index["tensors"])}
INSIDE: Any = ["nibbles", [["store", 128]], ["uint4", [128]]]
DEEPEST: Any = ["store", 64]
for _ in range(7):
    DEEPEST = ["pieces", [DEEPEST], [8]]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (changed("store", "tensors", 0, 2, to=[2**38]), "over the limit of 274877906944"),
        (changed("store", "tensors", 0, 2, to=[2**59]), "over the limit of 274877906944"),
        (changed("store", "tensors", 0, 2, to=[2**60]), "'float32' has too large a shape"),
        (changed("store", "tensors", 0, 2, to=[1] * 65), "'float32' has too large a shape"),
        (changed("store", "tensors", 0, 2, to=[0, 2**50, 2**50]), "has too large a shape"),
        (changed("store", "tensors", 0, 2, to=[True]), "has 'True' where a size must be"),
        (changed("store", "tensors", 0, 2, to=[-1]), "has '-1' where a size must be"),
        (changed("store", "tensors", 0, 0, to="\ud800"), "which is no tensor"),
        (changed("store", "tensors", 0, 1, to="float8"), "which is no tensor"),
        (changed("store", "tensors", 0, 0, to="int8"), "two of its tensors have the same name"),
        (changed("store", "tensors", to={}), "has '{}' where a list must be"),
        (changed("store", "skeleton", to=[]), "has '[]' where a skeleton must be"),
        (changed("store", "skeleton", 0, to=2**40), "over the limit of 274877906944"),
        (changed("store", "gaps", 0, to=10**6), "no gap before each tensor in"),
        (changed("store", "gaps", 0, to=-1), "has '-1' where a size must be"),
        (changed("store", "gaps", to=[]), "no gap before each tensor in"),
        (changed("store", "pieces", to=[]), "does not list what its tensors are in"),
        (changed("store", "kind", to="pickle"), "it holds a file of unknown kind 'pickle'"),
        (changed("store", "kind", to=[]), "it holds a file of unknown kind '[]'"),
        (Parts([], {}), "its index has no gaps, kind, pieces, skeleton, tensors"),
        (changed("store", "pieces", 0, 1, to=7), "tensor 'float16': '7' is not how a piece is"),
        (changed("store", "pieces", 0, 1, 0, to=7), "'7' does not say how an array is stored"),
        (changed("store", "pieces", 0, 1, 0, 1, to=2**60), "does not say how an array is stored"),
        (changed("store", "pieces", 0, 1, 0, 0, to="rar"), "tensor 'float16': there is no codec"),
        (
            changed("store", "pieces", 0, 1, 0, 1, to=2303),
            "has 25656 bytes, and what is in it 25655",
        ),
        (changed("store", "pieces", 0, 0, 1, to=5), "tensor 'float32', to byte "),
        (changed("store", "pieces", 0, 0, 1, to=5), ", and 5 were packed"),
        (changed("forms", "pieces", 0, FORM["palette"], 0, 2, 0, to=True), "is no palette"),
        (changed("forms", "pieces", 0, FORM["grid"], 0, 2, 0, to=True), "is no grid"),
        (
            changed("forms", "pieces", 0, FORM["int4"], 0, 2, 1, to=[65]),
            "are no nibbles of uint8 [32]",
        ),
        (
            changed("forms", "pieces", 0, FORM["words"], 0, 2, 1, to=6),
            "are no words of uint8 [8, 1]",
        ),
        (changed("forms", "pieces", 0, FORM["int4"], 0, 2, 1, to=[True]), "are no nibbles of"),
        (
            changed("forms", "pieces", 0, FORM["int4"], 0, 1, 0, to=INSIDE),
            "nibbles is inside of too many forms",
        ),
        (changed("forms", "pieces", 0, FORM["csr"], 0, 2, 0, 0, to=True), "describes no stream of"),
        (changed("forms", "pieces", 0, 0, 0, 0, to="tree"), "parts in no such form: 'tree'"),
        (changed("forms", "pieces", 0, 0, 0, to=nested(2)), "csr is inside of too many forms"),
        (changed("forms", "pieces", 0, 0, 0, to=DEEPEST), "pieces is inside of too many forms"),
    ],
)
def test_an_index_that_is_wrong_is_refused_by_its_place(
    parts: Parts, message: str, tmp_path: Path, bounded: None
) -> None:
    assert message in is_refused(written(tmp_path / "a.mzip", parts))


def test_blobs_that_are_missing_or_spare_are_refused(tmp_path: Path) -> None:
    parts = copy.deepcopy(SEEDS["store"])
    parts.blobs["1"] = b"hidden"
    assert "blob '1' belongs to nothing" in is_refused(written(tmp_path / "a.mzip", parts))
    del parts.blobs["0"], parts.blobs["1"]
    message = is_refused(written(tmp_path / "a.mzip", parts))
    assert "there is no blob '0' of 25656 bytes" in message


def test_an_index_is_inflated_to_its_bound_and_no_further(tmp_path: Path, bounded: None) -> None:
    for size, stated, message in (
        (1 << 30, 1 << 30, "its index is said to have 1073741824 bytes, over 67108864"),
        (1 << 26, 1 << 10, "its index does not have 1024 bytes"),
        (1 << 10, "1", "its index is said to have 1 bytes"),
    ):
        with Writer(tmp_path / "a.mzip") as writer:
            writer.add("index", zlib.compress(bytes(min(size, 1 << 26))))
            writer.finish({"index": stated})
        assert message in is_refused(tmp_path / "a.mzip")
    with Writer(tmp_path / "a.mzip") as writer:
        writer.add("index", b"no zlib")
        writer.finish({"index": 5})
    assert "its index cannot be inflated" in is_refused(tmp_path / "a.mzip")


def test_an_index_too_large_to_be_read_is_not_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pack, "MAX_INDEX", 50)
    with pytest.raises(ArchiveError, match="cannot pack 1 tensors: their index has"):
        pack.pack({"w": torch.zeros(30)}, tmp_path / "a.mzip")


def test_more_than_there_is_memory_for_is_refused(tmp_path: Path, bounded: None) -> None:
    size = 1 << 31
    head = b"\x28\xb5\x2f\xfd\xe0" + size.to_bytes(8, "little")  # RFC 8878: content of `size`
    data = head.ljust(1 << 16, b"\0")
    count = size // layout.PIECE
    index = {
        "kind": "safetensors",
        "skeleton": [size, ["zstd", len(data)]],
        "gaps": [0],
        "tensors": [["w", "int8", [size]]],
        "pieces": [[[["store", 0]]]] * count,
    }
    blobs = {**{str(number): b"" for number in range(count)}, "skeleton": data}
    with open_archive(written(tmp_path / "a.mzip", Parts(index, blobs))) as archive:
        with pytest.raises(ArchiveError, match="no memory for the 2147483648 bytes of tensor 'w'"):
            archive["w"]
        with pytest.raises(ArchiveError, match="in no tensor: there is no memory for 2147483648"):
            archive.skeleton()


def test_many_tensors_take_no_time_that_grows_with_their_square(tmp_path: Path) -> None:
    count = 20_000
    index = {
        "kind": "safetensors",
        "skeleton": [0, ["store", 0]],
        "gaps": [0] * count,
        "tensors": [[str(number), "int8", [0]] for number in range(count)],
        "pieces": [[[["store", 0]]] * count],
    }
    path = written(tmp_path / "a.mzip", Parts(index, {"0": b"", "skeleton": b""}))
    began = time.process_time()
    with open_archive(path) as archive:
        assert len(list(archive.values())) == count
    assert time.process_time() - began < 5 * SECONDS


def test_after_a_damaged_tensor_another_is_still_read(tmp_path: Path) -> None:
    parts = changed("store", "pieces", 0, 1, to=[["store", 2304], 5])
    parts.index["tensors"][1][0] = "damaged"
    with open_archive(written(tmp_path / "a.mzip", parts)) as archive:
        for name in ("damaged", "bfloat16", "damaged"):
            if name == "damaged":
                with pytest.raises(ArchiveError, match="tensor 'damaged', to byte"):
                    archive[name]
            else:
                with pytest.raises(ArchiveError, match="tensor 'damaged', to byte"):
                    archive[name]  # what is before it in the blob is decoded first
        assert archive["float32"].shape == (16, 8, 3, 3)


def test_nothing_is_written_outside_of_the_folder(tmp_path: Path) -> None:
    parts = copy.deepcopy(SEEDS["store"])
    for number, name in enumerate(("../../out", "/etc/out", "..", "a/b", "C:\\out", "~")):
        parts.index["tensors"][number][0] = name
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    path = written(tmp_path / "in" / "deep" / "a.mzip", parts)
    unpack(path, tmp_path / "out")
    found = [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*")) if p.is_file()]
    assert found == ["in/deep/a.mzip", "out/a.safetensors"]
