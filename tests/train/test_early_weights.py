import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

import modelzip as mz
from modelzip.core import early
from modelzip.errors import SettingError
from modelzip.train.finetune import FineTune, finetune

from . import tasks


def train(settings: FineTune, **changes) -> mz.Prepared:
    prepared = tasks.prepared()
    finetune(prepared, tasks.splits(), settings, batch_size=16, progress=False, **changes)
    return prepared


@pytest.mark.parametrize(
    ("length", "at", "steps"), [({"epochs": 2}, 0.5, 2), ({"steps": 8}, 3, 3), ({"steps": 8}, 8, 8)]
)
def test_the_weights_of_that_step_are_saved(tmp_path: Path, length, at, steps):
    path = str(tmp_path / "early")
    how = {"lr": 0.1, "schedule": "constant", "keep": "last"}
    train(FineTune(**length, **how, save_at=at, save_to=path))
    expected = train(FineTune(steps=steps, **how))
    assert tasks.same(early.read(path), tasks.state(expected))


def test_the_start_is_saved_and_stands_after_a_resume(tmp_path: Path):
    path = tmp_path / "early"
    settings = FineTune(epochs=2, lr=0.1, save_at=0, save_to=str(path))
    train(settings, checkpoint=tmp_path / "a")
    written = path.read_bytes()
    assert tasks.same(early.read(path), tasks.state(tasks.prepared()))
    train(settings, checkpoint=tmp_path / "a", resume=True)
    assert path.read_bytes() == written
    assert not list(tmp_path.glob("*.partial"))


def test_rewind_reads_them_and_keeps_the_ticket(tmp_path: Path):
    path = str(tmp_path / "early")
    trained = train(FineTune(epochs=2, lr=0.1, save_at=0.5, save_to=path))
    trained.add(mz.MagnitudePrune(sparsity=0.5))
    trained.add(mz.Rewind(weights=path))
    weight = trained.convert()[0].weight
    wanted = early.read(path)["0.weight"]
    assert torch.equal(weight, torch.where(weight == 0, 0, wanted))
    assert 0 < int((weight == 0).sum()) < weight.numel()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"save_at": 1}, "save_at and save_to go together, got save_at=1 and save_to=None"),
        ({"save_to": "a"}, "save_at and save_to go together"),
        ({"save_at": -1, "save_to": "a"}, "save_at must be at least 0, got -1"),
        ({"save_at": 3, "save_to": "a"}, "save_at=3 is after the end of training, 2"),
        ({"save_at": 1, "save_to": 5}, "save_to must be the path of a file to write, got 5"),
        ({"epochs": None, "steps": 4, "save_at": 0.5, "save_to": "a"}, "save_at must be an int"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(SettingError, match=message):
        FineTune(**({"epochs": 2} | changes))


def test_a_missing_folder_is_told_before_training(tmp_path: Path):
    path = str(tmp_path / "none" / "early")
    message = re.escape(f"there is no folder for save_to={path!r}; create it")
    with pytest.raises(SettingError, match=message):
        train(FineTune(epochs=1, save_at=1, save_to=path))


def test_weights_of_the_users_own_are_not_overwritten(tmp_path: Path):
    path = tmp_path / "mine.safetensors"
    for content in (save({"a": torch.ones(1)}), b"text"):
        path.write_bytes(content)
        with pytest.raises(SettingError, match="is there, and no checkpoint of modelzip; give an"):
            train(FineTune(epochs=1, save_at=1, save_to=str(path)))
        assert path.read_bytes() == content
