"""`modelzip data pack | info | unpack | bench`, as subprocesses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from modelzip.data import PackedDataset
from modelzip.data.packed.pack import pack
from modelzip.data.packed.speed import speed
from modelzip.data.packed.unpack import unpack
from modelzip.errors import DataError, OutputError, SettingError


def modelzip(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "modelzip", "data", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def arrays(tmp_path: Path) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    found = {
        "train_x": random.integers(0, 9, (40, 3, 4, 4)).astype(np.uint8),
        "test_x": random.integers(0, 9, (10, 3, 4, 4)).astype(np.uint8),
        "train_y": np.arange(40) % 3,
        "test_y": np.arange(10) % 3,
    }
    np.savez(tmp_path / "a.npz", **found)
    return found


def test_a_source_is_packed_shown_timed_and_unpacked(tmp_path: Path, arrays) -> None:
    file, out = tmp_path / "test.mzd", tmp_path / "out.npz"
    chosen = ("--split", "test", "--set", f"path={tmp_path / 'a.npz'}", "--chunk", 4)
    packed = modelzip("pack", "modelzip.data:npz", "-o", file, *chosen, "--codec", "zlib")
    assert packed.returncode == 0, packed.stderr
    assert "10 samples" in packed.stdout
    shown = modelzip("info", file, "--check").stdout
    assert "10 in chunks of 4" in shown
    assert "uint8 [3, 4, 4]" in shown
    assert "zlib, without loss" in shown
    assert "10 samples are whole, 0 are lost" in shown
    assert "chunk-shuffled" in modelzip("bench", file).stdout
    assert modelzip("unpack", file, "-o", out).returncode == 0
    with np.load(out) as found:
        assert np.array_equal(found["inputs"], arrays["test_x"])
        assert np.array_equal(found["labels"], arrays["test_y"])


def test_what_is_whole_of_a_damaged_file_is_kept(tmp_path: Path) -> None:
    file, out = tmp_path / "a.mzd", tmp_path / "out.npz"
    pack([(bytes([65 + i]), i) for i in range(6)], file, codec="store", chunk=4)
    file.write_bytes(file.read_bytes()[:-14])
    shown = modelzip("info", file, "--check")
    assert shown.returncode == 1
    assert "samples 4 to 5 are lost" in shown.stderr
    assert "4 samples are whole, 2 are lost" in shown.stdout
    assert modelzip("unpack", file, "-o", out).returncode == 2
    assert not out.exists()
    kept = modelzip("unpack", file, "-o", out, "--keep-going")
    assert kept.returncode == 0
    assert "samples 4 to 5 are lost" in kept.stderr
    with np.load(out) as found:
        assert found["inputs"].tobytes() == b"ABCD"
        assert found["lengths"].tolist() == [1] * 4
        assert found["labels"].tolist() == list(range(4))


def test_what_is_wrong_is_said_in_one_line(tmp_path: Path) -> None:
    out = tmp_path / "a.mzd"
    for arguments, message in (
        (("--set", "limit"), "--set takes KEY=VALUE, got 'limit'"),
        (("--set", "limit=["), "the value is no YAML"),
        (("--split", "all"), "--split must be train, validation or test, got 'all'"),
        (("--bits", "9"), "bits must be an integer from 1 to 7, got 9"),
    ):
        wrong = modelzip("pack", "modelzip.data:digits", "-o", out, *arguments)
        assert wrong.returncode == 2
        assert message in wrong.stderr
        assert not out.exists()


def test_unpacking_and_timing_refuse_what_cannot_be(tmp_path: Path) -> None:
    file = tmp_path / "a.mzd"
    pack([(b"a", 0)], file, codec="store")
    with pytest.raises(OutputError, match="cannot write"):
        unpack(PackedDataset(file), tmp_path / "none" / "a.npz")
    with pytest.raises(SettingError, match="order has no choice 'back'"):
        speed(file, "back")
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match="keep_going leaves what is lost out"):
        unpack(PackedDataset(file), tmp_path / "a.npz")
    with pytest.raises(DataError, match="no sample of 1 is whole"):
        unpack(PackedDataset(file), tmp_path / "a.npz", keep_going=True)
