from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

import modelzip as mz
from modelzip.archive.bundle import bundle
from modelzip.archive.unbundle import SUMS, contents, is_bundle
from modelzip.errors import OutputError, SettingError

FORMS = ["zip", "tar", "tar.gz"]


@pytest.mark.parametrize("form", FORMS)
def test_a_run_comes_back_without_what_trained_it(form: str, run: Path, tmp_path: Path) -> None:
    made = mz.bundle(run, tmp_path / f"d.{form}")
    assert made.files == ("model.mzip", "model.onnx", "recipe.yaml", "report.json", "report.md")
    assert made.before == sum((run / name).stat().st_size for name in made.files)
    assert made.after == made.path.stat().st_size
    assert is_bundle(made.path)
    folder = mz.unpack(made.path, tmp_path / "out")
    assert folder == tmp_path / "out"
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    expected = {name: (run / name).read_bytes() for name in made.files}
    sums = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in expected.items()]
    assert found.pop(SUMS).decode() == "".join(sums)
    assert found == expected


@pytest.mark.parametrize("form", FORMS)
def test_equal_runs_make_equal_bundles(form: str, run: Path, tmp_path: Path) -> None:
    first = bundle(run, tmp_path / f"a.{form}").path.read_bytes()
    other = shutil.copytree(run, tmp_path / "other", copy_function=shutil.copyfile)
    for path in other.iterdir():
        os.utime(path, (1e9, 1e9))
        path.chmod(0o600)
    assert bundle(other, tmp_path / f"b.{form}").path.read_bytes() == first


def test_other_programs_read_a_bundle(run: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(bundle(run, tmp_path / "d.zip").path) as zipped:
        assert zipped.testzip() is None
        assert zipped.getinfo("model.mzip").compress_type == zipfile.ZIP_STORED
        assert zipped.getinfo("report.md").compress_size < 200
        zipped.extractall(tmp_path / "zip")  # noqa: S202
    with tarfile.open(bundle(run, tmp_path / "d.tar.gz").path) as tarred:
        assert tarred.getmember("model.onnx").mode == 0o644
        assert tarred.getnames()[-1] == SUMS
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "-c", "--quiet", SUMS], cwd=tmp_path / "zip", check=True)


@pytest.mark.skipif(not shutil.which("tar"), reason="needs tar")
def test_a_bundle_may_be_made_by_hand(run: Path, tmp_path: Path) -> None:
    mz.unpack(bundle(run, tmp_path / "d.zip").path, tmp_path / "out")
    names = [path.name for path in (tmp_path / "out").iterdir()]
    subprocess.run(["tar", "czf", "../e.tgz", *names], cwd=tmp_path / "out", check=True)
    assert len(contents(tmp_path / "e.tgz", limit=10**6)) == 5


def test_an_archive_alone_is_enough(run: Path, tmp_path: Path) -> None:
    made = bundle(run, tmp_path / "d.zip", onnx=False)
    assert made.files == ("model.mzip", "recipe.yaml", "report.json", "report.md")


def test_plots_are_bundled(run: Path, tmp_path: Path) -> None:
    (run / "cuts of layers.svg").write_text("<svg/>")
    assert "cuts of layers.svg" in bundle(run, tmp_path / "d.zip").files
    (run / "-cuts.svg").write_text("<svg/>")
    with pytest.raises(SettingError, match=r"-cuts\.svg cannot go into a bundle.*rename it"):
        bundle(run, tmp_path / "d.zip")


def test_what_is_no_run_says_what_is_missing(run: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"there is no folder .*none; give that of a finished"):
        bundle(tmp_path / "none", tmp_path / "d.zip")
    with pytest.raises(SettingError, match=r"a bundle is a \.zip, .*got 'd\.rar'"):
        bundle(run, tmp_path / "d.rar")
    (run / "model.mzip").unlink()
    with pytest.raises(SettingError, match=r"has no model\.mzip, which would stand in for model"):
        bundle(run, tmp_path / "d.zip", onnx=False)
    (run / "report.json").unlink()
    (run / "model.onnx").unlink()
    with pytest.raises(SettingError, match=r"has no report\.json, model\.onnx; give the folder"):
        bundle(run, tmp_path / "d.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_link_is_not_followed(run: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    (run / "report.md").unlink()
    (run / "report.md").symlink_to(tmp_path / "secret")
    with pytest.raises(SettingError, match=r"report\.md is no regular file"):
        bundle(run, tmp_path / "d.zip")


def test_a_bundle_that_cannot_be_written_leaves_nothing(run: Path, tmp_path: Path) -> None:
    (tmp_path / "d.zip").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*d\.zip"):
        bundle(run, tmp_path / "d.zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.zip", "runs"]


@pytest.mark.parametrize("there", [True, False])
def test_a_stop_in_mid_write_leaves_what_was_there(
    there: bool, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "d.tar"
    if there:
        path.write_bytes(b"an older one")

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        bundle(run, path)
    assert sorted(p.name for p in tmp_path.iterdir()) == (["d.tar"] if there else []) + ["runs"]
    assert not there or path.read_bytes() == b"an older one"
