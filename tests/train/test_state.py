from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from modelzip.core import checkpoint
from modelzip.errors import SettingError
from modelzip.train import state

from . import tasks


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters())


def written(path: Path, model: nn.Module, **changes) -> state.State:
    trained = optimizer(model)
    model(torch.rand(4, 1, 6, 6)).sum().backward()
    trained.step()
    epoch = state.Epoch(
        number=0,
        step=0,
        train_loss=None,
        validation_accuracy=0.5,
        lr=0.1,
        seconds=1.0,
        settled=True,
    )
    found = state.State(**({"run": {"seed": 0}, "curve": [epoch]} | changes))
    state.save(path, found, model=model, optimizer=trained)
    return found


def test_what_is_saved_comes_back(tmp_path: Path):
    path = tmp_path / "a"
    model, other = tasks.model(), tasks.model()
    best = {"x": torch.ones(2)}
    saved = written(path, model, best=best, kept=0)
    restored = optimizer(other)
    found = state.load(path, run={"seed": 0}, model=other, optimizer=restored)
    assert found.curve == saved.curve
    assert found.kept == 0
    assert tasks.same(found.best, best)
    assert tasks.same(model.state_dict(), other.state_dict())
    assert all(float(s["step"]) == 1 for s in restored.state_dict()["state"].values())


def test_tied_weights_come_back(tmp_path: Path):
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        model[1].weight = model[0].weight
        return model

    model, other = tied(), tied()
    state.save(
        tmp_path / "a", state.State(run={}, curve=[]), model=model, optimizer=optimizer(model)
    )
    state.load(tmp_path / "a", run={}, model=other, optimizer=optimizer(other))
    assert torch.equal(model[0].weight, other[1].weight)
    assert other[0].weight is other[1].weight


def test_a_run_of_other_settings_is_refused(tmp_path: Path):
    model = tasks.model()
    written(tmp_path / "a", model)
    with pytest.raises(SettingError, match=r"run with other settings \(seed 0 -> 1\); delete it"):
        state.load(tmp_path / "a", run={"seed": 1}, model=model, optimizer=optimizer(model))


def test_another_model_is_refused(tmp_path: Path):
    written(tmp_path / "a", tasks.model())
    other = nn.Linear(2, 2)
    with pytest.raises(SettingError, match="does not fit the model: Missing key"):
        state.load(tmp_path / "a", run={"seed": 0}, model=other, optimizer=optimizer(other))


@pytest.mark.parametrize("header", [{}, {"kind": "x"}, {"kind": "finetune"}])
def test_checkpoints_of_another_kind_are_refused(tmp_path: Path, header):
    model = tasks.model()
    checkpoint.write(tmp_path / "a", {"x": torch.ones(1)}, header)
    with pytest.raises(SettingError, match="is no checkpoint of fine-tuning"):
        state.load(tmp_path / "a", run={}, model=model, optimizer=optimizer(model))


def test_other_files_are_refused(tmp_path: Path):
    model = tasks.model()
    save_file({"x": torch.ones(1)}, tmp_path / "a")
    with pytest.raises(SettingError, match="a has no modelzip header"):
        state.load(tmp_path / "a", run={}, model=model, optimizer=optimizer(model))


def test_a_damaged_file_is_refused(tmp_path: Path):
    model = tasks.model()
    written(tmp_path / "a", model)
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:200])
    with pytest.raises(SettingError, match="is not a readable safetensors file"):
        state.load(tmp_path / "a", run={"seed": 0}, model=model, optimizer=optimizer(model))


@pytest.mark.parametrize("missing", ["run", "kept", "curve"])
def test_a_checkpoint_without_an_entry_is_refused(tmp_path: Path, missing: str):
    model = tasks.model()
    written(tmp_path / "a", model)
    header = checkpoint.read_json(tmp_path / "a")
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    kept = {k: header[k] for k in ("kind", "run", "curve", "kept") if k != missing}
    checkpoint.write(tmp_path / "a", tensors, kept)
    with pytest.raises(SettingError, match="is no checkpoint of fine-tuning, or is damaged"):
        state.load(tmp_path / "a", run={"seed": 0}, model=model, optimizer=optimizer(model))
