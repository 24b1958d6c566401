from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelzip.archive import members
from modelzip.archive.bundle import bundle
from modelzip.archive.unbundle import SUMS, contents, is_bundle, own_name
from modelzip.archive.unpack import unpack
from modelzip.errors import ArchiveError, OutputError

FORMS = ["zip", "tar", "tar.gz"]
Files = list[tuple[str, bytes]]


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def sums(files: Files) -> bytes:
    return "".join(f"{hashlib.sha256(d).hexdigest()}  {n}\n" for n, d in files).encode()


def make_zip(path: Path, files: Files, **settings: object) -> Path:
    """A zip with the names as they are given, whatever they are."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in files:
            info = zipfile.ZipInfo("x")
            info.filename = info.orig_filename = name
            for setting, value in settings.items():
                setattr(info, setting, value)
            made.writestr(info, data)
    return path


def make_tar(path: Path, files: Files, **settings: object) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as made:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for setting, value in settings.items():
                setattr(info, setting, value)
            made.addfile(info, io.BytesIO(data))
    return path


MAKERS = {"zip": make_zip, "tar": make_tar}


def hostile(form: str, folder: Path, files: Files, **settings: object) -> Path:
    whole = [*files, (SUMS, sums(files))]
    return MAKERS[form](folder / f"hostile.{form}", whole, **settings)


def test_nothing_is_overwritten(run: Path, tmp_path: Path) -> None:
    path = bundle(run, tmp_path / "d.zip").path
    (out := tmp_path / "out").mkdir()
    (out / "report.md").write_text("mine")
    (out / "notes.txt").write_text("mine too")
    with pytest.raises(OutputError, match=r"report\.md exists already; unpack into another"):
        unpack(path, out)
    assert read(out) == {"report.md": b"mine", "notes.txt": b"mine too"}
    (out / "report.md").unlink()
    unpack(path, out)
    assert read(out)["notes.txt"] == b"mine too"
    assert len(read(out)) == 7
    with pytest.raises(OutputError, match=r"notes\.txt is no folder; a bundle is unpacked into"):
        unpack(path, out / "notes.txt")
    with pytest.raises(OutputError, match=r"cannot write .*: No such file"):
        unpack(path, tmp_path / "a" / "b")


@pytest.mark.parametrize("form", ["zip", "tar"])
@pytest.mark.parametrize(
    "name",
    [
        *("/etc/passwd", "../up", "..", "a/b", "a/../../b", "C:evil", "C:\\evil", "..\\up", "a\\b"),
        *(
            ".hidden",
            "a.",
            "a ",
            " a",
            "-rf",
            "a\nb",
            "a\x1b[2J",
            "\u202egnp.exe",
            "e\u0301",
            "a:b",
        ),
        *("con", "NUL.txt", "lpt1.md", "a" * 99 + "?"),
    ],
)
def test_no_name_leaves_the_folder(name: str, form: str, tmp_path: Path) -> None:
    (sub := tmp_path / "sub").mkdir()
    path = hostile(form, sub, [(name, b"evil")])
    with pytest.raises(ArchiveError, match="cannot be unpacked: ") as caught:
        unpack(path, sub / "out")
    assert str(caught.value).isprintable()
    assert str(caught.value).isascii()
    assert list(tmp_path.iterdir()) == [sub]
    assert list(sub.iterdir()) == [path]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["zip", "tar"]), st.text(min_size=1, max_size=30))
def test_a_name_is_refused_or_a_file_in_the_folder(form: str, name: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        (sub := Path(scratch, "sub")).mkdir()
        try:
            path = hostile(form, sub, [(name, b"data")])
        except ValueError:  # no zip or tar can have this name
            return
        try:
            unpack(path, sub / "out")
        except ArchiveError:
            assert list(sub.iterdir()) == [path]
        else:
            assert sorted(read(sub / "out")) == sorted([name, SUMS])
        assert list(Path(scratch).iterdir()) == [sub]


def test_a_long_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="a name has at most 128 letters"):
        unpack(hostile("zip", tmp_path, [("a" * 129, b"")]), tmp_path / "out")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("form", ["zip", "tar"])
@pytest.mark.parametrize("names", [("a.md", "a.md"), ("a.md", "A.md")])
def test_names_that_are_alike_are_refused(
    names: tuple[str, str], form: str, tmp_path: Path
) -> None:
    with pytest.raises(ArchiveError, match="is there twice, but for upper and lower case"):
        unpack(hostile(form, tmp_path, [(name, b"") for name in names]), tmp_path / "out")


@pytest.mark.parametrize(
    "kind",
    [
        *(tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE),
        *(tarfile.DIRTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, tarfile.XHDTYPE),
        *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    ],
)
def test_links_and_devices_of_a_tar_are_refused(kind: bytes, tmp_path: Path) -> None:
    path = hostile("tar", tmp_path, [("a", b"")], type=kind, linkname="/etc/passwd")
    with pytest.raises(ArchiveError, match="member 'a' is no regular file"):
        unpack(path, tmp_path / "out")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFDIR, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_of_a_zip_are_refused(kind: int, tmp_path: Path) -> None:
    path = hostile("zip", tmp_path, [("a", b"/etc/passwd")], external_attr=(kind | 0o777) << 16)
    with pytest.raises(ArchiveError, match="member 'a' is no regular file"):
        unpack(path, tmp_path / "out")


def test_encrypted_and_rare_members_of_a_zip_are_refused(tmp_path: Path) -> None:
    path = hostile("zip", tmp_path, [("a", b"data")])
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(ArchiveError, match="member 'a' is encrypted; a bundle is not"):
        unpack(path, tmp_path / "out")
    hostile("zip", tmp_path, [("a", b"data")], compress_type=zipfile.ZIP_LZMA)
    with pytest.raises(ArchiveError, match=r"compressed by method 14; a bundle stores \(0\)"):
        unpack(path, tmp_path / "out")


def test_a_bomb_is_not_inflated(tmp_path: Path) -> None:
    files = [("a", bytes(10**6)), ("b", bytes(10**6))]
    for path in (hostile("zip", tmp_path, files), hostile("tar", tmp_path, files)):
        with pytest.raises(ArchiveError, match=r"'b' takes .* 2000000 bytes, over the limit of 15"):
            unpack(path, tmp_path / "out", limit=1_500_000)
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".modelzip*"))


def test_what_inflates_to_more_than_it_declares_is_refused(tmp_path: Path) -> None:
    path = hostile("zip", tmp_path, [("a", bytes(10**6))])
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        at = data.index(signature) + offset
        data[at : at + 4] = (10).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(ArchiveError, match="member 'a' is damaged: Bad CRC-32"):
        unpack(path, tmp_path / "out")


def test_what_inflates_to_less_than_it_declares_is_refused(tmp_path: Path) -> None:
    path = hostile("zip", tmp_path, [("a", b"data")])
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 24] = 5
    path.write_bytes(data)
    with pytest.raises(ArchiveError, match=r"member 'a' (ends after 4 of 5|is damaged)"):
        unpack(path, tmp_path / "out")


def test_members_that_lie_over_each_other_are_refused(tmp_path: Path) -> None:
    path = hostile("zip", tmp_path, [("a", os.urandom(1000)), ("b", b"")])
    data = bytearray(path.read_bytes())
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    data[second + 20 : second + 24] = data[second + 24 : second + 28] = (900).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(ArchiveError, match="its members lie over each other"):
        unpack(path, tmp_path / "out")


def test_a_directory_is_not_read_whatever_its_size(tmp_path: Path) -> None:
    path = hostile("zip", tmp_path, [("a", b"data")])
    data = bytearray(path.read_bytes())
    start, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    data[start:start] = bytes(9 << 20)  # now its first bytes are not an entry
    end += 9 << 20
    data[end + 12 : end + 16] = (end - start).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(ArchiveError, match="bytes are no directory of 10000 members"):
        unpack(path, tmp_path / "out")


@pytest.mark.parametrize("form", ["zip", "tar"])
def test_members_are_counted(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "MAX_MEMBERS", 2)
    with pytest.raises(ArchiveError, match="has over 2 members"):
        unpack(hostile(form, tmp_path, [("a", b""), ("b", b"")]), tmp_path / "out")


def test_a_tar_of_a_negative_size_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a")
    info.size = -512
    header = info.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "a.tar").write_bytes(header + bytes(1024))
    with pytest.raises(ArchiveError, match="member 'a' is said to have -512 bytes"):
        unpack(tmp_path / "a.tar", tmp_path / "out")


def test_a_tar_ends_where_it_ends(run: Path, tmp_path: Path) -> None:
    path = bundle(run, tmp_path / "d.tar").path
    data = path.read_bytes()
    path.write_bytes(data + b"more")
    with pytest.raises(ArchiveError, match="has bytes after its end"):
        unpack(path, tmp_path / "out")
    path.write_bytes(data.rstrip(b"\0"))
    with pytest.raises(ArchiveError, match="is cut short: a tar ends with two blocks of zeros"):
        unpack(path, tmp_path / "out")
    (tmp_path / "d.tar.gz").write_bytes(gzip.compress(data + bytes(2 << 20)))
    with pytest.raises(ArchiveError, match="has bytes after its end"):
        unpack(tmp_path / "d.tar.gz", tmp_path / "out")


@pytest.mark.parametrize("form", ["zip", "tar"])
@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("a", b"x")], "is no modelzip bundle, or not whole: it has no SHA256SUMS"),
        ([("a", b"x"), (SUMS, b"")], "member 'a' is not in SHA256SUMS"),
        (
            [("a", b"x"), (SUMS, sums([("a", b"y")]))],
            "member 'a' has SHA-256 2d711642b726b044..., a",
        ),
        ([(SUMS, sums([("a", b"x")]))], "has no 'a', which is in SHA256SUMS"),
        ([(SUMS, b"0 a\n")], "line 1 of SHA256SUMS is no sum of a further file: '0 a'"),
        ([(SUMS, sums([("a", b""), ("a", b"")]))], "line 2 of SHA256SUMS is no sum of a further"),
        ([(SUMS, sums([("../a", b"")]))], "line 1 of SHA256SUMS is no sum"),
        ([(SUMS, bytes(5 << 20))], "SHA256SUMS has 5242880 bytes, and at most 4194304"),
    ],
)
def test_every_file_has_its_sum(files: Files, message: str, form: str, tmp_path: Path) -> None:
    path = MAKERS[form](tmp_path / "a.bin", files)
    with pytest.raises(ArchiveError) as caught:
        unpack(path, tmp_path / "out")
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


def test_content_and_not_a_name_says_what_is_a_bundle(run: Path, tmp_path: Path) -> None:
    renamed = bundle(run, tmp_path / "d.tar").path.rename(tmp_path / "d.mzip")
    assert unpack(renamed, tmp_path / "out").is_dir()
    archive = shutil.copy(run / "model.mzip", tmp_path / "model.zip")
    assert not is_bundle(archive)
    assert unpack(archive, tmp_path).suffix == ".safetensors"
    assert not is_bundle(tmp_path / "none.zip")
    with pytest.raises(ArchiveError, match="is no bundle: neither a zip nor a tar"):
        contents(archive, limit=10**6)
    assert [own_name(Path(f"a.b.{form}")) for form in (*FORMS, "tgz", "pt")] == ["a.b"] * 5


def test_a_file_that_may_not_be_read_says_so(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bundle(run, tmp_path / "d.zip").path

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ArchiveError, match=r"cannot read .*: Permission denied"):
        is_bundle(path)


def outcomes(path: Path, changed: Iterable[bytes], whole: tuple[object, ...]) -> None:
    """Each is refused, or has the same files: some bytes, as of times, say nothing of them."""
    for data in changed:
        path.write_bytes(data)
        with suppress(ArchiveError):
            assert contents(path, limit=10**6) == whole


@pytest.mark.parametrize("form", FORMS)
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(places=st.data())
def test_damage_is_found(form: str, places: st.DataObject, run: Path, tmp_path: Path) -> None:
    path = bundle(run, tmp_path / f"d.{form}").path
    data = path.read_bytes()
    whole = contents(path, limit=10**6)
    at = places.draw(st.integers(0, len(data) - 1))
    tail = places.draw(st.integers(max(0, len(data) - 1500), len(data) - 1))
    for place in (at, tail):  # a zip's directory is at its end
        flipped = bytearray(data)
        flipped[place] ^= 1 << places.draw(st.integers(0, 7))
        outcomes(path, [bytes(flipped), data[:place]], whole)
    spliced = data[:at] + places.draw(st.binary(max_size=40)) + data[tail:]
    outcomes(path, [spliced], whole)


@settings(max_examples=100, deadline=None)
@given(head=st.sampled_from([b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b\x08"]), rest=st.binary())
def test_random_bytes_are_refused(head: bytes, rest: bytes) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "a")
        path.write_bytes(head + rest)
        with pytest.raises(ArchiveError):
            unpack(path, Path(scratch, "out"))
        assert list(Path(scratch).iterdir()) == [path]


def test_an_interrupted_move_takes_its_files_back(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bundle(run, tmp_path / "d.zip").path
    (out := tmp_path / "out").mkdir()
    replace = Path.replace

    def stop(self: Path, target: Path) -> Path:
        if target.name == "report.json":
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        unpack(path, out)
    assert list(out.iterdir()) == []
