import hashlib

import pytest

from modelzip.errors import ModelError, OutputError, SettingError
from modelzip.report.folder import RunFolder


def test_the_folder_has_its_name_only_when_the_run_is_whole(tmp_path):
    out = tmp_path / "runs" / "a"
    with RunFolder(out, recipe="seed: 0\n", resume=False) as folder:
        assert not out.exists()
        folder.finish({"report.json": "{}", "report.md": "#"})
    assert sorted(p.name for p in out.iterdir()) == ["recipe.yaml", "report.json", "report.md"]
    assert not (tmp_path / "runs" / "a.partial").exists()


def test_an_existing_folder_is_refused(tmp_path):
    with pytest.raises(OutputError, match=r"exists already; give another folder with --out"):
        RunFolder(tmp_path, recipe="", resume=False)


def test_an_unfinished_run_is_refused_unless_resumed(tmp_path):
    RunFolder(tmp_path / "a", recipe="seed: 0\n", resume=False)
    with pytest.raises(OutputError, match=r"a\.partial holds an unfinished run; .*--resume"):
        RunFolder(tmp_path / "a", recipe="seed: 0\n", resume=False)
    assert RunFolder(tmp_path / "a", recipe="seed: 0\n", resume=True).resumed


def test_resuming_with_another_recipe_is_refused(tmp_path):
    RunFolder(tmp_path / "a", recipe="seed: 0\nx: 1\n", resume=False)
    with pytest.raises(SettingError, match=r"begun with another recipe \(now: seed: 1\)"):
        RunFolder(tmp_path / "a", recipe="seed: 1\nx: 1\n", resume=True)


def test_an_unfinished_folder_without_its_recipe_is_refused(tmp_path):
    (tmp_path / "a.partial").mkdir()
    with pytest.raises(OutputError, match=r"cannot read .*recipe\.yaml"):
        RunFolder(tmp_path / "a", recipe="", resume=True)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot make"):
        RunFolder(tmp_path / "file" / "a", recipe="", resume=False)


def test_a_name_taken_meanwhile_is_refused_and_the_run_kept(tmp_path):
    folder = RunFolder(tmp_path / "a", recipe="", resume=False)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "other").write_text("")
    with pytest.raises(OutputError, match="it exists by now"):
        folder.finish({})
    assert (tmp_path / "a.partial" / "recipe.yaml").exists()


@pytest.mark.parametrize(
    ("left", "error", "stays"),
    [
        ("nothing", ModelError(), False),
        ("step-1.training", ModelError(), False),
        ("step-1.training", OutputError(), True),
        ("step-1.training", RuntimeError(), True),
        ("step-2.safetensors", ModelError(), True),
        ("nothing", KeyboardInterrupt(), True),
    ],
)
def test_what_was_trained_survives_an_error(tmp_path, left, error, stays):
    folder = RunFolder(tmp_path / "a", recipe="", resume=False)
    (folder / left).write_text("")
    with pytest.raises(type(error)), folder:
        raise error
    assert (tmp_path / "a.partial").exists() is stays


def test_hashes_are_of_every_file(tmp_path):
    folder = RunFolder(tmp_path / "a", recipe="seed: 0\n", resume=False)
    assert folder.hashes() == {"recipe.yaml": hashlib.sha256(b"seed: 0\n").hexdigest()}
