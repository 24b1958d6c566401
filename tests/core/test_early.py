"""Early weights: files they come from, and how they are fitted to a model that was pruned since."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import modelzip as mz
from modelzip.core import checkpoint, early
from modelzip.errors import SettingError


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def cut(**layers: Any) -> tuple[str, dict[str, Any]]:
    sides = {
        n.strip("_"): {side: {"of": of, "kept": kept}} for n, (side, of, kept) in layers.items()
    }
    return ("prune_channels", {"layers": sides})


FIRST = cut(_0=("out", 4, [0, 3]), _1=("out", 4, [0, 3]), _2=("in", 4, [0, 3]))


def narrow() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 2, 3, bias=False), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1))


def fitted(
    state: dict[str, Tensor], model: nn.Module, *records: tuple[str, dict[str, Any]]
) -> dict[str, Tensor]:
    return early.fit(state, model, records, path="early.safetensors")


# reading


def test_checkpoint_gives_plain_tensors_by_plain_names(tmp_path: Path) -> None:
    zipped = mz.prepare(
        net(),
        [mz.GroupSparsity(), mz.MagnitudePrune(sparsity=0.5)],
        example_inputs=torch.ones(1, 3, 4, 4),
        training_steps=1,
    )
    zipped.save(tmp_path / "early.safetensors")
    found = early.read(tmp_path / "early.safetensors")
    assert found.keys() == net().state_dict().keys()
    assert torch.equal(found["0.weight"], net()[0].weight)  # below the mask


def test_aliases_of_a_checkpoint_come_back(tmp_path: Path) -> None:
    tied = torch.ones(2)
    header = {"step": 0, "passes": []}
    checkpoint.write(tmp_path / "a.safetensors", {"a.weight": tied, "b.weight": tied}, header)
    assert list(early.read(tmp_path / "a.safetensors")) == ["a.weight", "b.weight"]


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="there is no weights file"):
        early.read(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(SettingError, match=r"text.safetensors is not a readable safetensors file"):
        early.read(tmp_path / "text.safetensors")


@pytest.mark.parametrize("text", ['{"format": 1, "aliases": 3}', '{"format": 1}'])
def test_damaged_header_is_named(tmp_path: Path, text: str) -> None:
    metadata = {checkpoint.KEY: f"{checkpoint.checksum(text)} {text}"}
    save_file({"weight": torch.ones(1)}, tmp_path / "a.safetensors", metadata=metadata)
    with pytest.raises(SettingError, match="has a damaged modelzip header"):
        early.read(tmp_path / "a.safetensors")


# fitting


def test_channels_removed_since_are_removed_from_each_tensor() -> None:
    state = net().state_dict()
    found = fitted(state, narrow(), FIRST)
    assert torch.equal(found["0.weight"], state["0.weight"][[0, 3]])
    assert torch.equal(found["1.weight"], state["1.weight"][[0, 3]])
    assert torch.equal(found["2.weight"], state["2.weight"][:, [0, 3]])
    assert torch.equal(found["2.bias"], state["2.bias"])
    assert torch.equal(found["1.num_batches_tracked"], state["1.num_batches_tracked"])


def test_two_cuts_follow_each_other_from_wherever_the_file_is() -> None:
    second = cut(_0=("out", 2, [1]), _1=("out", 2, [1]), _2=("in", 2, [1]))
    model = nn.Sequential(nn.Conv2d(3, 1, 3, bias=False), nn.BatchNorm2d(1), nn.Conv2d(1, 2, 1))
    state = net().state_dict()
    between = fitted(state, narrow(), FIRST)
    after = fitted(state, model, FIRST, second)
    assert torch.equal(after["0.weight"], state["0.weight"][[3]])
    for start in (between, after):
        again = fitted(start, model, FIRST, second)
        assert all(torch.equal(again[name], after[name]) for name in after)


def test_blocks_dropped_since_are_not_asked_for() -> None:
    class Blocks(nn.Module):
        def __init__(self, *, whole: bool) -> None:
            super().__init__()
            self.first = nn.Linear(2, 2)
            self.block = nn.Linear(2, 2) if whole else nn.Identity()

    state = Blocks(whole=True).state_dict()
    record = ("prune_channels", {"layers": {}, "dropped": {"block": 6}})
    assert list(fitted(state, Blocks(whole=False), record)) == ["first.weight", "first.bias"]


def test_one_name_of_tied_weights_is_enough() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    found = fitted({"1.weight": torch.ones(2, 2)}, model)
    assert sorted(found) == ["0.weight", "1.weight"]


@pytest.mark.parametrize(
    ("changes", "records", "text"),
    [
        ({"0.weight": None}, [], r"early.safetensors does not fit the model: missing: 0.weight"),
        ({"fc.bias": torch.ones(1)}, [], r"unexpected: fc.bias. It must hold the same model"),
        ({"2.bias": torch.ones(3)}, [], r"of another shape: 2.bias \[3\] for \[2\]"),
        ({}, [FIRST], r"of another shape: 0.weight \[2, 3, 3, 3\] for \[4, 3, 3, 3\], 1.weight"),
        ({"1.bias": torch.full((4,), torch.nan)}, [], r"1.bias in early.safetensors holds NaN"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    changes: dict[str, Any], records: list[Any], text: str
) -> None:
    state = {k: v for k, v in (net().state_dict() | changes).items() if v is not None}
    with pytest.raises(SettingError, match=text):
        fitted(state, net(), *records)


def test_many_misfits_are_counted() -> None:
    with pytest.raises(SettingError, match=r"missing: 0.weight, .* and 4 more; unexpected: x"):
        fitted({"x": torch.ones(1)}, net())
