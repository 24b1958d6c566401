import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from modelzip.data import files
from modelzip.errors import DataError

from .formats import cifar_tar, idx_file, sha256, webp


@pytest.fixture(autouse=True)
def no_data_folder(tmp_path, monkeypatch):
    monkeypatch.delenv(files.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_file_is_downloaded_once_checked_and_cached(tmp_path: Path):
    source = tmp_path / "data.bin"
    source.write_bytes(b"content")
    path = files.fetch(source.as_uri(), sha256=sha256(b"content"))
    assert path == tmp_path / "cache" / "modelzip" / "data.bin"
    source.unlink()
    assert files.fetch(source.as_uri(), sha256=sha256(b"content")).read_bytes() == b"content"
    assert [p.name for p in path.parent.iterdir()] == ["data.bin"]


def test_the_data_folder_comes_before_the_network(tmp_path: Path, monkeypatch):
    (tmp_path / "data.bin").write_bytes(b"mine")
    monkeypatch.setenv(files.VARIABLE, str(tmp_path))
    path = files.fetch("https://example.invalid/data.bin", sha256=sha256(b"mine"))
    assert path == tmp_path / "data.bin"


def test_a_damaged_file_is_refused_by_its_hash(tmp_path: Path):
    source = tmp_path / "data.bin"
    source.write_bytes(b"other")
    with pytest.raises(DataError, match=r"data\.bin is damaged: its SHA-256 is .* delete it"):
        files.fetch(source.as_uri(), sha256=sha256(b"content"))


def test_without_network_the_error_says_what_to_set_and_nothing_is_left(tmp_path: Path):
    with pytest.raises(DataError, match=r"cannot download http://127.0.0.1:9/x.gz .*MODELZIP_DATA"):
        files.fetch("http://127.0.0.1:9/x.gz", sha256="")
    assert not any((tmp_path / "cache" / "modelzip").iterdir())


def test_a_data_folder_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setenv(files.VARIABLE, "/no/such/folder")
    with pytest.raises(
        DataError, match="MODELZIP_DATA is '/no/such/folder', which is not a folder"
    ):
        files.local_file("x")


@settings(deadline=None, max_examples=30)
@given(
    array=hnp.arrays(
        dtype=st.sampled_from(["u1", "i8", "f4", "f8"]),
        shape=hnp.array_shapes(min_dims=1, max_dims=3, max_side=4),
    )
)
def test_npz_round_trip(array, tmp_path_factory):
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    np.savez(path, a=array)
    found = files.NpzFile(path).read("a", kinds="uif", ndim=array.ndim)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_an_object_array_is_never_unpickled(tmp_path: Path):
    np.savez(tmp_path / "a.npz", a=np.array([print], dtype=object))
    with pytest.raises(DataError, match="array 'a' has dtype object; it must be integer or float"):
        files.NpzFile(tmp_path / "a.npz").read("a", kinds="if")


def test_a_declared_size_is_not_believed(tmp_path: Path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (2**40, 2**40)}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", header.getvalue())
    with pytest.raises(DataError, match=r"'a' declares the shape .* nothing of that size"):
        files.NpzFile(tmp_path / "a.npz").read("a", kinds="f")


def test_npz_errors_name_file_and_array(tmp_path: Path):
    path = tmp_path / "a.npz"
    with pytest.raises(DataError, match="there is no file"):
        files.NpzFile(path)
    path.write_text("no zip")
    with pytest.raises(DataError, match=r"a\.npz is not an \.npz file"):
        files.NpzFile(path)
    np.savez(path, a=np.zeros((2, 2)), b=np.zeros((0, 2)))
    file = files.NpzFile(path)
    with pytest.raises(DataError, match=r"has no array 'c'; it has a, b"):
        file.read("c", kinds="f")
    with pytest.raises(DataError, match=r"'a' has shape \[2, 2\]; it must have 1 dimension$"):
        file.read("a", kinds="f", ndim=1)
    with pytest.raises(DataError, match=r"'b' declares the shape \[0, 2\]"):
        file.read("b", kinds="f")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00broken")
    with pytest.raises(DataError, match="array 'a' cannot be read"):
        files.NpzFile(path).read("a", kinds="f")


def test_idx_by_hand(tmp_path: Path):
    path = idx_file(tmp_path / "x.gz", (1, 2, 2), bytes([1, 2, 3, 4]))
    assert files.idx(path, ndim=3).tolist() == [[[1, 2], [3, 4]]]


@pytest.mark.parametrize(
    ("shape", "body", "magic", "message"),
    [
        ((2, 2), b"123", b"\0\0\x08", r"holds 3 bytes where its header declares \[2, 2\]"),
        ((2, 2), b"12345", b"\0\0\x08", "holds 5 bytes"),
        ((2, 2), b"1234", b"\0\0\x0d", "is not an IDX file of 2-dimensional bytes"),
        ((2**32 - 1, 2**32 - 1), b"", b"\0\0\x08", "is not an IDX file"),
    ],
)
def test_bad_idx_is_refused(tmp_path: Path, shape, body, magic, message):
    with pytest.raises(DataError, match=message):
        files.idx(idx_file(tmp_path / "x.gz", shape, body, magic), ndim=2)


def test_idx_that_is_not_gzip_is_refused(tmp_path: Path):
    (tmp_path / "x.gz").write_bytes(b"plain")
    with pytest.raises(DataError, match=r"x\.gz cannot be read"):
        files.idx(tmp_path / "x.gz", ndim=1)


def test_cifar_archive_by_hand(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(files, "CIFAR_BATCH", 4)
    batches = list(files.cifar_batches(cifar_tar(tmp_path / "c.tar.gz", images=4)))
    assert [name for name, _, _ in batches][-1] == "test_batch"
    _, images, labels = batches[2]
    assert images.shape == (4, 3, 32, 32)
    assert set(images.flatten().tolist()) == {2}
    assert labels.tolist() == [0, 1, 2, 3]


def test_a_cifar_archive_of_another_size_is_refused(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(files, "CIFAR_BATCH", 4)
    with pytest.raises(DataError, match=r"data_batch_1\.bin does not hold 4 images"):
        list(files.cifar_batches(cifar_tar(tmp_path / "c.tar.gz", images=5)))
    (tmp_path / "c.tar.gz").write_bytes(b"no tar")
    with pytest.raises(DataError, match=r"c\.tar\.gz cannot be read"):
        list(files.cifar_batches(tmp_path / "c.tar.gz"))


def test_a_strip_comes_apart_into_its_images():
    pixels = np.random.default_rng(0).integers(0, 256, (12, 4, 3), dtype=np.uint8)
    found = files.webp_strip(webp(pixels), side=4, where="strip")
    np.testing.assert_array_equal(found, pixels.reshape(3, 4, 4, 3))


def test_a_strip_of_another_width_or_format_is_refused():
    pixels = np.zeros((12, 4, 3), dtype=np.uint8)
    with pytest.raises(DataError, match="strip is 4 x 12 pixels; it must be 8 wide"):
        files.webp_strip(webp(pixels), side=8, where="strip")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    with pytest.raises(DataError, match="strip is not a readable image"):
        files.webp_strip(buffer.getvalue(), side=4, where="strip")
