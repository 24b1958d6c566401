"""Checkpoints: what goes in comes back, in a fresh process too; what is damaged is named."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import modelzip as mz
from modelzip.core import checkpoint
from modelzip.errors import ModelzipError, OutputError, SettingError


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def saved(path: Path) -> mz.Prepared:
    torch.manual_seed(0)
    prune = mz.MagnitudePrune(sparsity=0.5, schedule="cubic", every=1)
    zipped = mz.prepare(net(), [prune], training_steps=4)
    for _ in range(4):
        zipped.model(torch.randn(3, 4))
        zipped.step()
    zipped.save(path)
    return zipped


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.safetensors"


# what comes back


def test_prepared_model_comes_back_with_its_step(path: Path) -> None:
    zipped = saved(path)
    again = mz.load_prepared(net, path)
    assert again.steps == 4
    state, expected = again.model.state_dict(), zipped.model.state_dict()
    assert all(torch.equal(state[n], expected[n]) for n in expected)
    assert [a.pass_ for a in again.attached] == [a.pass_ for a in zipped.attached]
    assert [a.context.training_steps for a in again.attached] == [4]
    assert [a.context.record for a in again.attached] == [{"protected": {}}]


def test_pass_added_later_comes_back_with_its_start(path: Path) -> None:
    zipped = saved(path)
    zipped.add(mz.MagnitudePrune(sparsity=0.8, scope="layer"))
    zipped.save(path)
    assert [a.since_step for a in mz.load_prepared(net, path).attached] == [0, 4]


SCRIPT = """
import sys, torch, modelzip as mz
from torch import nn
net = lambda: nn.Sequential(nn.Conv2d(4, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
                            nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(128, 4))
x = torch.linspace(-1, 1, 4 * 4 * 8 * 8).reshape(4, 4, 8, 8)
if len(sys.argv) == 3:
    torch.manual_seed(1)
    passes = [mz.PruneChannels(sparsity=0.5), mz.MagnitudePrune(sparsity=0.5), mz.Int8()]
    zipped = mz.prepare(net(), passes, example_inputs=x, calibration=[x])
    zipped.save(sys.argv[1])
    model = zipped.convert()
else:
    model = mz.load(net, sys.argv[1])
with torch.no_grad():
    print(model(x).double().sum().item(), model(x).abs().max().item())
"""


def test_fresh_process_computes_the_same(path: Path) -> None:
    runs = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT, str(path), *more],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for more in (["write"], [])
    ]
    assert runs[0] == runs[1]


def test_tied_tensors_are_stored_once_and_stay_tied(path: Path) -> None:
    def tied() -> nn.Module:
        a, b = nn.Linear(4, 4), nn.Linear(4, 4)
        b.weight = a.weight
        return nn.Sequential(a, b, nn.Linear(4, 4))

    zipped = mz.prepare(tied(), [mz.MagnitudePrune(sparsity=0.5, targets=("2",))])
    zipped.save(path)
    with safe_open(path, framework="pt") as file:
        assert "1.weight" not in file.keys()  # noqa: SIM118 - it is no dict
    small = mz.load(tied, path)
    assert small[0].weight is small[1].weight
    assert torch.equal(small[0].weight, zipped.model[0].weight)


shapes = st.lists(st.integers(0, 3), max_size=3)
kinds = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.bool])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.dictionaries(st.text("ab", min_size=1, max_size=3), st.tuples(shapes, kinds), max_size=4))
def test_tensors_of_any_shape_and_type_come_back(
    path: Path, tensors: dict[str, tuple[list[int], torch.dtype]]
) -> None:
    model, blank = nn.Module(), nn.Module()
    for name, (shape, kind) in tensors.items():
        model.register_buffer(name, torch.randn(shape).to(kind))
        blank.register_buffer(name, torch.zeros(shape, dtype=kind))
    checkpoint.write(path, model.state_dict(), {"step": 0, "passes": []})
    header, read_tensors = checkpoint.read(path)
    read_tensors(blank)
    assert header == checkpoint.Header(step=0, passes=())
    for name, value in model.state_dict().items():
        assert torch.equal(blank.state_dict()[name], value)


# what is refused


def test_missing_file_is_named(path: Path) -> None:
    with pytest.raises(SettingError, match=r"there is no checkpoint .*checkpoint\.safetensors"):
        mz.load(net, path)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_truncated_file_is_named(path: Path, keep: float) -> None:
    saved(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(SettingError, match="is not a readable safetensors file: "):
        mz.load(net, path)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None
)
@given(st.data())
def test_damaged_bytes_never_escape_as_other_errors(path: Path, data: st.DataObject) -> None:
    saved(path)
    damaged = bytearray(path.read_bytes())
    length = int.from_bytes(damaged[:8], "little")
    place = data.draw(st.integers(0, 8 + length - 1))
    damaged[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(damaged))
    with contextlib.suppress(ModelzipError):  # a name of a tensor may become another
        mz.load(net, path)


def test_plain_weights_are_told_apart(path: Path) -> None:
    save_file(net().state_dict(), path)
    with pytest.raises(
        SettingError, match="has no modelzip header; load plain weights with safete"
    ):
        mz.load(net, path)


def with_header(path: Path, text: str) -> Path:
    metadata = {"modelzip": f"{zlib.crc32(text.encode()):08x} {text}"}
    save_file({"a": torch.zeros(1)}, path, metadata=metadata)
    return path


ENTRY = {"name": "cast", "settings": {}, "record": {}, "training_steps": None, "since_step": 0}
HEADER: dict[str, Any] = {"format": 1, "step": 0, "passes": [ENTRY], "aliases": {}}


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[]",
        "{}",
        json.dumps({**HEADER, "step": None}),
        json.dumps({**HEADER, "aliases": []}),
        json.dumps({**HEADER, "passes": [{}]}),
        json.dumps({**HEADER, "passes": [{**ENTRY, "settings": None}]}),
        json.dumps({**HEADER, "passes": [{**ENTRY, "record": 3}]}),
        json.dumps({**HEADER, "passes": [{**ENTRY, "training_steps": "four"}]}),
    ],
)
def test_damaged_header_is_named(path: Path, text: str) -> None:
    with pytest.raises(SettingError, match="has a damaged modelzip header: "):
        checkpoint.read(with_header(path, text))


def test_changed_header_is_named(path: Path) -> None:
    saved(path)
    path.write_bytes(path.read_bytes().replace(b"since_step", b"since_stop"))
    with pytest.raises(SettingError, match="damaged modelzip header: its checksum is wrong"):
        mz.load(net, path)


@pytest.mark.parametrize("other", [0, 2])
def test_other_formats_are_named(path: Path, other: int) -> None:
    message = (
        rf"checkpoint\.safetensors has checkpoint format {other}, and this modelzip reads 1; "
        "make it again, or read it with the modelzip that wrote it$"
    )
    with pytest.raises(SettingError, match=message):
        mz.load(net, with_header(path, json.dumps({**HEADER, "format": other})))


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None
)
@given(st.data())
def test_any_flipped_bit_of_a_tensor_is_found(path: Path, data: st.DataObject) -> None:
    saved(path)
    damaged = bytearray(path.read_bytes())
    first = 8 + int.from_bytes(damaged[:8], "little")
    place = data.draw(st.integers(first, len(damaged) - 1))
    damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(bytes(damaged))
    with pytest.raises(
        SettingError, match="has damaged tensors: their checksums are wrong; copy it again"
    ):
        mz.load(net, path)


def test_checkpoints_without_checksums_of_tensors_are_read(path: Path) -> None:
    """As they were written before there were any."""
    text = json.dumps({**HEADER, "passes": []})
    header, read_tensors = checkpoint.read(with_header(path, text))
    model = nn.Module()
    model.register_buffer("a", torch.ones(1))
    read_tensors(model)
    assert header.passes == ()
    assert model.state_dict()["a"].item() == 0


def test_unknown_pass_and_setting_are_named(path: Path) -> None:
    for change, text in [
        ({"name": "cst"}, "there is no pass 'cst'; did you mean 'cast'"),
        ({"settings": {"dtyp": 1}}, "cast has no setting 'dtyp'; did you mean 'dtype'"),
    ]:
        damaged = json.dumps({**HEADER, "passes": [{**ENTRY, **change}]})
        with pytest.raises(SettingError, match=text):
            checkpoint.read(with_header(path, damaged))


def test_other_model_is_told_what_does_not_fit(path: Path) -> None:
    saved(path)

    def other() -> nn.Module:
        return nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2), nn.PReLU()
        )

    with pytest.raises(SettingError) as error:
        mz.load(other, path)
    assert "does not fit the model: missing 4.weight; " in str(error.value)
    assert "0.bias is [8] in the file and [6] in the model" in str(error.value)


def test_long_lists_of_keys_are_cut(path: Path) -> None:
    save_file({f"k{i}": torch.zeros(1) for i in range(9)}, path)
    model = nn.Linear(2, 2)
    with pytest.raises(
        SettingError, match="missing bias, weight; unexpected k0, k1, k2, k3 and 5 more"
    ):
        checkpoint.load_tensors(model, path)


def test_plain_weights_that_are_none_are_named(path: Path) -> None:
    path.write_bytes(b"nonsense")
    with pytest.raises(SettingError, match="is not a readable safetensors file"):
        checkpoint.load_tensors(nn.Linear(2, 2), path)


def test_model_is_whole_after_a_misfit(path: Path) -> None:
    save_file({"weight": torch.zeros(2, 2), "bias": torch.zeros(3)}, path)
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    with pytest.raises(SettingError, match="bias is"):
        checkpoint.load_tensors(model, path)
    assert torch.equal(model.weight, before)


# writing


def test_nothing_is_written_where_it_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*missing.*"):
        saved(tmp_path / "missing" / "checkpoint.safetensors")
    folder = tmp_path / "taken"
    folder.mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*taken"):
        saved(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_old_checkpoint_is_replaced_whole(path: Path) -> None:
    path.write_bytes(b"old")
    saved(path)
    mz.load(net, path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_same_state_gives_the_same_bytes(path: Path) -> None:
    written = set()
    for _ in range(8):
        state = {name: torch.ones(2) for name in "abc"}
        checkpoint.write(path, state, {"kind": "x"})
        written.add(path.read_bytes())
    assert len(written) == 1
