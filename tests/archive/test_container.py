"""The `.mzip` file: what goes in comes out, and any change to the file is found."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from modelzip.archive.container import Reader, Writer
from modelzip.archive.header import MAX_HEADER
from modelzip.errors import ArchiveError, OutputError

BLOBS = {"first": b"abcdefgh", "second": b"ABCDEFGH", "none": b"", "Gewicht/ß": b"\0\xff\0"}
SPEC = {"made_by": "a test", "tensors": [{"name": "w", "scale": 0.1}], "ß": None}

one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
names = names.filter(lambda name: name not in ("__metadata__", "blobs"))
some_blobs = st.dictionaries(names, st.binary(max_size=40), max_size=4)
some_spec = st.dictionaries(names, json_values, max_size=4)


def write(path: Path, blobs: Mapping[str, bytes] = BLOBS, spec: Mapping[str, Any] = SPEC) -> None:
    with Writer(path) as writer:
        for name, data in blobs.items():
            writer.add(name, data)
        writer.finish(spec)


def read(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    with Reader(path) as archive:
        return archive.spec, {name: bytes(archive.blob(name)) for name in archive.blobs}


def crc(data: bytes) -> str:
    return f"{zlib.crc32(data):08x}"


def built(spec: Any, data: bytes = b"", *, version: Any = "1", **change: Any) -> bytes:
    """A file by another writer, with right checksums whatever else is wrong."""
    text = spec if isinstance(spec, str) else json.dumps(spec, separators=(",", ":"))
    metadata = {"modelzip.archive": version, "crc32": crc(text.encode()), "spec": text}
    header: dict[str, Any] = {"__metadata__": metadata}
    start = 0
    if isinstance(spec, dict) and isinstance(spec.get("blobs"), list):
        for name, size, _ in (b for b in spec["blobs"] if isinstance(b, list) and len(b) == 3):
            end = start + size
            header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [start, end]}
            start = end
    return packed({**header, **change}, data)


def packed(header: Any, data: bytes = b"") -> bytes:
    text = (
        header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    )
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # these files need not last


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.mzip"


@pytest.fixture
def whole(path: Path) -> bytes:
    write(path)
    return path.read_bytes()


def refused(path: Path, content: bytes, match: str | None = None) -> str:
    path.unlink(missing_ok=True)  # writing over a file waits for the disk
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=match) as caught:
        read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@contextlib.contextmanager
def limit(what: int, value: int) -> Iterator[None]:
    """A resource of this process kept small, as by a full disk."""
    before = resource.getrlimit(what)
    resource.setrlimit(what, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


def folder(path: Path) -> list[str]:
    return [entry.name for entry in path.parent.iterdir()]


# what comes back


def test_blobs_and_spec_come_back(path: Path) -> None:
    write(path)
    assert read(path) == (SPEC, BLOBS)


@one_folder
@given(blobs=some_blobs, spec=some_spec)
def test_any_blobs_and_spec_come_back(
    path: Path, blobs: dict[str, bytes], spec: dict[str, Any]
) -> None:
    write(path, blobs, spec)
    assert read(path) == (spec, blobs)
    with safe_open(path, framework="np") as file:
        assert set(file.keys()) == set(blobs)


def test_safetensors_opens_an_archive(path: Path) -> None:
    write(path)
    with safe_open(path, framework="np") as file:
        assert {name: file.get_tensor(name).tobytes() for name in file.keys()} == BLOBS  # noqa: SIM118
        metadata = file.metadata()
    assert metadata["modelzip.archive"] == "1"
    assert json.loads(metadata["spec"])["made_by"] == "a test"
    assert metadata["crc32"] == crc(metadata["spec"].encode())


def test_file_is_what_the_format_says(path: Path) -> None:
    write(path, {"a": b"123456789", "b": b"x"}, {"n": 1})
    spec = r"{\"n\":1,\"blobs\":[[\"a\",9,\"cbf43926\"],[\"b\",1,\"8cdc1683\"]]}"
    checksum = crc(spec.replace("\\", "").encode())
    header = (
        '{"__metadata__":{"modelzip.archive":"1","crc32":"' + checksum + '","spec":"' + spec + '"},'
        '"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]},'
        '"b":{"dtype":"U8","shape":[1],"data_offsets":[9,10]}}'
    )
    assert path.read_bytes() == packed(header.encode(), b"123456789x")


def test_archive_by_another_writer_is_read(path: Path) -> None:
    path.write_bytes(built({"blobs": [["a", 2, crc(b"xy")]], "n": 1.50}, b"xy"))
    assert read(path) == ({"n": 1.5}, {"a": b"xy"})


def test_empty_archive_comes_back(path: Path) -> None:
    write(path, {}, {})
    assert read(path) == ({}, {})


def test_blob_outlives_its_reader(path: Path) -> None:
    write(path)
    with Reader(path) as archive:
        blob = archive.blob("first")
    assert blob.readonly
    assert bytes(blob) == b"abcdefgh"


def test_unknown_blob_is_named(path: Path) -> None:
    write(path)
    with Reader(path) as archive, pytest.raises(ArchiveError, match=r"no blob 'third' among its 4"):
        archive.blob("third")


def test_blobs_of_other_types_are_their_bytes(path: Path) -> None:
    with Writer(path) as writer:
        writer.add("w", memoryview(np.arange(3, dtype="<i2")))
        writer.finish({})
    assert read(path)[1] == {"w": b"\0\0\1\0\2\0"}


# damage


def test_every_flipped_bit_is_found(path: Path, whole: bytes) -> None:
    for bit in range(len(whole) * 8):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        refused(path, changed)


@one_folder
@given(data=st.data(), blobs=some_blobs, spec=some_spec)
def test_flipped_bit_of_any_archive_is_found(
    path: Path, data: st.DataObject, blobs: dict[str, bytes], spec: dict[str, Any]
) -> None:
    write(path, blobs, spec)
    changed = bytearray(path.read_bytes())
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    refused(path, changed)


def test_truncation_at_every_length_is_found(path: Path, whole: bytes) -> None:
    for size in range(len(whole)):
        refused(path, whole[:size])


def test_what_is_cut_off_is_named(path: Path, whole: bytes) -> None:
    data = len(whole) - sum(map(len, BLOBS.values()))
    refused(path, whole[: data + 10], rf"cut short: blob 'second' is bytes {data + 8} to "
            rf"{data + 16}, and the file ends at {data + 10}")  # fmt: skip
    refused(
        path,
        whole[:60],
        r"no whole modelzip archive: its header claims \d+ bytes, and the file ends 52",
    )
    refused(path, whole[:5], r"the file ends at byte 5, inside the length of its header")
    refused(path, b"", r"model.mzip is empty")


@pytest.mark.parametrize("extra", [b"\0", b" ", b"{}", b"x" * 100])
def test_extension_is_found(path: Path, whole: bytes, extra: bytes) -> None:
    refused(path, whole + extra, rf"has {len(extra)} bytes after its end at {len(whole)}")


def test_damaged_blob_is_named_with_its_offset(path: Path, whole: bytes) -> None:
    at = whole.index(b"ABCDEFGH")
    refused(
        path,
        whole.replace(b"ABCDEFGH", b"ABCDEFGh"),
        rf"blob 'second', bytes {at} to {at + 8}, has CRC-32 \w+ and not \w+; copy it again",
    )
    with Reader(path) as archive:
        assert bytes(archive.blob("first")) == b"abcdefgh"  # the others can still be read


def test_swapped_blobs_are_found(path: Path, whole: bytes) -> None:
    swapped = whole.replace(b"abcdefghABCDEFGH", b"ABCDEFGHabcdefgh")
    assert swapped != whole
    refused(path, swapped, "blob 'first'")
    names = whole.replace(b'"first":{', b'"\0":{').replace(b'"second":{', b'"first":{')
    refused(path, names.replace(b'"\0":{', b'"second":{'))


def test_edited_spec_is_found(path: Path, whole: bytes) -> None:
    edited = whole.replace(b"a test", b"A test")
    assert edited != whole
    refused(path, edited, "the CRC-32 of its spec is wrong; copy it again")


@one_folder
@given(st.binary(max_size=200) | st.builds(packed, st.binary(max_size=100)))
def test_random_bytes_are_refused(path: Path, content: bytes) -> None:
    refused(path, content)


@one_folder
@given(data=st.data())
def test_changed_anyhow_is_found(path: Path, whole: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(start + 20, len(whole))))
    changed = whole[:start] + data.draw(st.binary(max_size=20)) + whole[end:]
    if changed != whole:
        refused(path, changed)


# hostility: files whose checksums are right


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (built({"blobs": []}, version="2"),
         r"version 2 is newer than this modelzip reads \(1\); upgrade modelzip"),
        (built({"blobs": []}, version="10"), r"version 10 is newer"),
        (built({"blobs": []}, version="0"), r"unknown version '0'"),
        (built({"blobs": []}, version="x" * 999), r"unknown version 'x{20}'"),
        (built({"blobs": []}, version=1), r"unknown version '1'"),
        (packed({}), r"no modelzip archive: its metadata has no 'modelzip.archive'"),
        (packed({"__metadata__": []}), r"its metadata has no"),
        (packed({"__metadata__": {"modelzip.archive": "1"}}), r"its metadata has no text 'spec'"),
        (packed({"__metadata__": {"modelzip.archive": "1", "spec": "\ud800"}}), r"no text 'spec'"),
        (packed(b"[]"), r"no whole modelzip archive: byte 8 is not {, as a header"),
        (packed(b'{"a": 1, "a": 2}'), r"its header is no readable JSON: 'a' appears twice"),
        (packed(b'{"a": \xff}'), r"its header is no readable JSON: 'utf-8' codec"),
        (packed(b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}"), r"its header nests values more than 32"),
        (packed(b'{"a": ' + b"[" * 10**6), r"its header is no readable JSON: "),
        (packed(b'{"a": ' + b"9" * 10**5 + b"}"), r"no readable JSON|has no 'modelzip.archive'"),
        (built("[]"), r"its spec has no list of blobs"),
        (built({}), r"its spec has no list of blobs"),
        (built({"blobs": {}}), r"its spec has no list of blobs"),
        (built('{"blobs":[],"x":NaN}'), r"no readable JSON: NaN is no JSON number"),
        (built('{"blobs":[],"blobs":[]}'), r"the spec of .* no readable JSON: 'blobs' appears"),
        (built({"blobs": [["a", -1, "00000000"]]}), r"blobs\[0\] is not \[name, size, CRC-32\]"),
        (built({"blobs": [["a", True, "00000000"]]}), r"blobs\[0\] is not"),
        (built({"blobs": [["a", 0.0, "00000000"]]}), r"blobs\[0\] is not"),
        (built({"blobs": [["a", 10**400, "00000000"]]}), r"blobs\[0\] is not"),
        (built({"blobs": [["a", 0]]}), r"blobs\[0\] is not"),
        (built({"blobs": [["a", 0, "00000000"], 7]}), r"blobs\[1\] is not"),
        (built({"blobs": [["a", 0, "00000000"]] * 2}), r"two of its blobs have the same name"),
        (built({"blobs": [["a", 2**62, "00000000"]]}), r"cut short: blob 'a'"),
        (built({"blobs": [["a", 1, ""]]}, b"x"), r"blob 'a'.* has CRC-32 8cdc1683 and not ;"),
        (built({"blobs": [["__metadata__", 0, ""]]}), r"no modelzip archive: its metadata"),
        (built({"blobs": []}, b"x", b={"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}),
         r"byte \d+ of its header is not what follows from its spec"),
        (built({"blobs": [["a", 4, crc(b"1234")]]}, b"1234",
               a={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}), r"byte \d+ of its"),
        (built({"blobs": [["a", 1, crc(b"y")]]}, b"xy",
               a={"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}), r"byte \d+ of its header"),
        (struct.pack("<Q", 2**63) + b"{}", r"its header claims 9223372036854775808 bytes"),
        (struct.pack("<Q", MAX_HEADER + 1) + b"{}", r"and at most 33554432 are read"),
        (struct.pack("<Q", 100) + b"{}", r"claims 100 bytes, and the file ends 2 bytes on"),
    ],
)  # fmt: skip
def test_hostile_file_is_refused(path: Path, content: bytes, match: str) -> None:
    refused(path, content, match)


def test_what_is_no_file_is_refused(path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"there is no file .*model.mzip"):
        Reader(path)
    os.mkfifo(path)
    with pytest.raises(ArchiveError, match=r"there is no file .*model.mzip"):
        Reader(path)


def test_file_that_cannot_be_opened_is_refused(path: Path, whole: bytes) -> None:
    cannot = pytest.raises(ArchiveError, match=r"cannot read .*model.mzip: Too many open files")
    with cannot, limit(resource.RLIMIT_NOFILE, 3):
        Reader(path)


# writing


def test_exception_leaves_the_file_that_was_there(path: Path, whole: bytes) -> None:
    with contextlib.suppress(ZeroDivisionError), Writer(path) as writer:
        writer.add("a", b"x" * 10**6)
        raise ZeroDivisionError
    assert path.read_bytes() == whole
    assert folder(path) == [path.name]


def test_unfinished_archive_is_an_error(path: Path) -> None:
    with (
        pytest.raises(ArchiveError, match=r"finish\(spec\) was not called"),
        Writer(path) as writer,
    ):
        writer.add("a", b"x")
    assert folder(path) == []


@pytest.mark.parametrize("moment", ["writer.add('b', b'y')", "writer.finish({})"])
def test_killed_writer_leaves_the_file_that_was_there(
    path: Path, whole: bytes, moment: str
) -> None:
    program = f"""
import os, sys
from modelzip.archive.container import Writer
writer = Writer(sys.argv[1])
writer.add('a', b'x' * 10**6)
os.fsync = lambda handle: os.kill(os.getpid(), 9)  # in finish: all is written, nothing renamed
{moment}
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == whole
    left = [name for name in folder(path) if name != path.name]
    assert all(name.startswith(".modelzip-") and name.endswith(".partial") for name in left)


def test_archive_gets_the_permissions_of_any_new_file(path: Path, whole: bytes) -> None:
    other = path.with_name("other")
    other.write_bytes(b"")
    assert path.stat().st_mode == other.stat().st_mode


def test_archive_can_be_replaced_while_it_is_read(path: Path) -> None:
    write(path)
    with Reader(path) as archive:
        write(path, {"first": archive.blob("first")}, {})
        assert bytes(archive.blob("second")) == b"ABCDEFGH"
    assert read(path) == ({}, {"first": b"abcdefgh"})


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("a", r"cannot add blob 'a' to .*: it is there already"),
        ("", r"cannot add blob '' to .*: it cannot be a name"),
        ("__metadata__", r"it cannot be a name"),
        ("\ud800", r"it cannot be a name"),
    ],
)
def test_name_that_cannot_be_is_refused(path: Path, name: str, match: str) -> None:
    with Writer(path) as writer:
        writer.add("a", b"x")
        with pytest.raises(ArchiveError, match=match):
            writer.add(name, b"x")
        writer.finish({})
    assert read(path) == ({}, {"a": b"x"})


def deep(levels: int) -> list[Any]:
    return [deep(levels - 1)] if levels else []


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ({"blobs": []}, r"a spec has no key 'blobs' of its own: the archive writes it"),
        ({"x": float("nan")}, r"the spec of .* is not JSON: Out of range float"),
        ({"x": b"bytes"}, r"the spec of .* is not JSON: Object of type bytes"),
        ({"x": deep(40)}, r"the spec of .* nests values more than 32 deep"),
        ({"x": "x" * MAX_HEADER}, r"the header of .* has \d+ bytes, and at most 33554432 are read"),
    ],
    ids=["blobs", "NaN", "bytes", "deep", "large"],
)
def test_spec_that_could_not_be_read_is_not_written(
    path: Path, spec: dict[str, Any], match: str
) -> None:
    with pytest.raises(ArchiveError, match=match):
        write(path, BLOBS, spec)
    assert folder(path) == []


def test_place_that_cannot_be_written_is_told_at_once(path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*: No such file or directory"):
        Writer(path / "model.mzip")
    path.mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*: there is something that is no file"):
        Writer(path)


@pytest.mark.parametrize("size", [99_000, 100_000])  # the blob does not fit, or the header
def test_full_disk_leaves_the_file_that_was_there(path: Path, whole: bytes, size: int) -> None:
    too_large = pytest.raises(OutputError, match=r"cannot write .*model.mzip: File too large")
    with too_large, limit(resource.RLIMIT_FSIZE, size):
        write(path, {"a": b"x" * 100_000})
    assert path.read_bytes() == whole
    assert folder(path) == [path.name]


def test_a_part_and_what_is_whole_of_a_file_that_is_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "a.mzip"
    with Writer(path) as writer:
        writer.add("first", b"1234")
        writer.add("second", b"5678")
        writer.finish({})
    path.write_bytes(path.read_bytes()[:-2])
    with Reader(path, whole=False) as archive:
        assert bytes(archive.blob("first")) == b"1234"
        assert bytes(archive.part("first", 1, 9)) == b"234"
        assert bytes(archive.part("second", 0, 4)) == b"56"
        with pytest.raises(ArchiveError, match="is cut short: blob 'second' is bytes"):
            archive.blob("second")
