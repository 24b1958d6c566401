from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import modelzip as mz
from modelzip.archive import choose, codecs, layout
from modelzip.archive.pack import pack
from modelzip.archive.unpack import open_archive, unpack
from modelzip.errors import ArchiveError, OutputError, SettingError

TYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32),
    *(torch.int16, torch.int8, torch.uint8, torch.bool),
]


def a_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    weight = torch.randn(32, 16, 3, 3) * 0.05
    return {
        "conv.weight": weight,
        "conv.half": weight.half(),
        "conv.brain": weight.bfloat16(),
        "conv.int8": (weight * 400).round().clamp(-127, 127).to(torch.int8),
        "conv.sparse": torch.where(weight.abs() > 0.1, weight * 400, 0).round().to(torch.int8),
        "conv.rounded": (weight / 0.013).round() * 0.013,
        "conv.clustered": torch.randn(16)[torch.randint(16, (32, 64))],
        "conv.bias": torch.randn(32),
        "norm.num_batches_tracked": torch.tensor(7),
        "mask": torch.rand(40, 40) > 0.5,
        "empty": torch.zeros(0, 3),
        "tokens": torch.arange(500),
    }


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)


def test_tensors_come_back(tmp_path: Path) -> None:
    state = a_state()
    packed = pack(state, tmp_path / "a.mzip")
    assert packed.after == (tmp_path / "a.mzip").stat().st_size < packed.before
    found = load_file(unpack(tmp_path / "a.mzip", tmp_path))
    assert found.keys() == state.keys()
    assert all(same(found[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("codec", ["auto", *choose.INTEGERS, *codecs.NAMES])
def test_a_file_comes_back_to_the_byte(codec: str, tmp_path: Path) -> None:
    save_file(a_state(), source := tmp_path / "a.safetensors")
    packed = pack(source, tmp_path / "a.mzip", codec=codec)
    assert packed.before == source.stat().st_size
    out = unpack(tmp_path / "a.mzip", tmp_path / "b.safetensors")
    assert out.read_bytes() == source.read_bytes()


def test_an_onnx_file_comes_back_to_the_byte(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10))
    x = torch.randn(16, 3, 8, 8)
    small = mz.prepare(model, [mz.Int8()], example_inputs=x, calibration=[x]).convert()
    for name, module in (("float", model), ("int8", small)):
        source = mz.export_onnx(module, x, tmp_path / f"{name}.onnx")
        packed = pack(source, tmp_path / f"{name}.mzip")
        assert packed.before == source.stat().st_size
        (tmp_path / "out").mkdir(exist_ok=True)
        out = unpack(tmp_path / f"{name}.mzip", tmp_path / "out")
        assert out.name == f"{name}.onnx"
        assert out.read_bytes() == source.read_bytes()


def test_a_state_dict_of_torch_save_is_read_without_running_it(tmp_path: Path) -> None:
    state = nn.Linear(20, 30).state_dict()
    torch.save(state, tmp_path / "a.pt")
    pack(tmp_path / "a.pt", tmp_path / "a.mzip")
    found = load_file(unpack(tmp_path / "a.mzip", tmp_path))
    assert all(same(found[name], tensor) for name, tensor in state.items())
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(ArchiveError, match=r"torch\.load\(weights_only=True\) refuses it"):
        pack(tmp_path / "module.pt", tmp_path / "b.mzip")
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(ArchiveError, match="it holds a list, not a state_dict"):
        pack(tmp_path / "list.pt", tmp_path / "b.mzip")
    assert not (tmp_path / "b.mzip").exists()


def test_a_file_is_not_written_over_itself(tmp_path: Path) -> None:
    save_file(a_state(), source := tmp_path / "a.safetensors")
    before = source.read_bytes()
    with pytest.raises(OutputError, match="it is the file that is read; give another name"):
        pack(source, tmp_path / "." / "a.safetensors")
    assert source.read_bytes() == before
    pack(source, archive := tmp_path / "a.mzip")
    packed = archive.read_bytes()
    with pytest.raises(OutputError, match="it is the file that is read; give another name"):
        unpack(archive, archive)
    with pytest.raises(ArchiveError, match="it is an archive already"):
        pack(archive, tmp_path / "b.mzip")
    assert archive.read_bytes() == packed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mzip", "a.safetensors"]


def test_one_tensor_is_read_without_the_rest(tmp_path: Path) -> None:
    state = a_state()
    pack(state, tmp_path / "a.mzip")
    with open_archive(tmp_path / "a.mzip") as archive:
        for name in ("tokens", "conv.int8", "conv.weight", "conv.brain", "conv.int8"):
            assert same(archive[name], state[name])
        assert "missing" not in archive
        with pytest.raises(KeyError):
            archive["missing"]


def test_what_is_in_an_archive_and_how(tmp_path: Path) -> None:
    state = a_state()
    pack(state, tmp_path / "a.mzip")
    with open_archive(tmp_path / "a.mzip") as archive:
        entries = {entry.name: entry for entry in archive.entries}
        archive.test()
    weight = entries["conv.weight"]
    assert (weight.dtype, weight.shape, weight.before) == ("float32", (32, 16, 3, 3), 18432)
    assert weight.codec.startswith("planes(")
    assert weight.bits == pytest.approx(8 * weight.after / 4608)
    assert entries["conv.rounded"].codec.startswith(("grid(", "palette("))
    assert entries["conv.clustered"].codec.startswith("palette(")
    assert entries["conv.rounded"].bits < 6
    assert entries["conv.clustered"].bits < 5
    assert entries["conv.sparse"].bits < entries["conv.int8"].bits < 8


def test_large_tensors_lie_in_several_blobs(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(layout, "GROUP", 1 << 12)
    monkeypatch.setattr(layout, "PIECE", 1 << 12)
    state = {
        "rows": torch.randn(100, 50),
        "flat": torch.arange(20_000, dtype=torch.int16),
        "one_row": torch.randn(1, 9000).half(),
        "small": torch.ones(30),
    }
    pack(state, tmp_path / "a.mzip")
    with open_archive(tmp_path / "a.mzip") as archive:
        assert all(same(archive[name], tensor) for name, tensor in state.items())
        assert all(same(archive[name], state[name]) for name in reversed(state))


def test_threads_change_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(layout, "GROUP", 1 << 12)
    monkeypatch.setattr(layout, "PIECE", 1 << 12)
    files = [tmp_path / f"{threads}.mzip" for threads in (1, 3)]
    for threads, path in zip((1, 3), files, strict=True):
        pack(a_state(), path, threads=threads)
    assert files[0].read_bytes() == files[1].read_bytes()


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_tensors_come_back(data: st.DataObject) -> None:
    state = {}
    for number in range(data.draw(st.integers(0, 4))):
        dtype = data.draw(st.sampled_from(TYPES))
        shape = data.draw(st.lists(st.integers(0, 9), max_size=4))
        tensor = torch.zeros(shape, dtype=dtype)
        size = tensor.numel() * tensor.element_size()
        few = data.draw(st.booleans())
        pattern = data.draw(st.binary(min_size=1, max_size=8 if few else 400))
        filled = np.resize(np.frombuffer(pattern, np.uint8), size)
        if dtype == torch.bool:
            filled = filled % 2
        if size:
            tensor = torch.from_numpy(filled.copy()).view(dtype).reshape(shape)
        state[f"t{number}"] = tensor
    with tempfile.TemporaryDirectory() as folder:
        pack(state, f"{folder}/a.mzip", threads=1)
        found = load_file(unpack(f"{folder}/a.mzip", f"{folder}/a.safetensors"))
        assert found.keys() == state.keys()
        assert all(same(found[name], tensor) for name, tensor in state.items())


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    source = {name: a_state()[name] for name in ("conv.int8", "conv.bias", "conv.rounded")}
    pack(source, path := tmp_path / "a.mzip")
    whole = path.read_bytes()
    for place in np.random.default_rng(0).choice(len(whole), 150, replace=False).tolist():
        broken = bytearray(whole)
        broken[place] ^= 1 << place % 8
        path.write_bytes(broken)
        with pytest.raises(ArchiveError), open_archive(path) as archive:
            archive.test()


def test_a_damaged_tensor_is_named_with_its_place(tmp_path: Path) -> None:
    pack({"w": torch.randn(5000)}, path := tmp_path / "a.mzip")
    broken = bytearray(path.read_bytes())
    with open_archive(path) as archive:
        at = archive._reader.blobs["0"].offset + 50
    broken[at] ^= 1
    path.write_bytes(broken)
    with open_archive(path) as archive, pytest.raises(ArchiveError, match=r"blob '0', bytes \d+"):
        archive["w"]


def test_what_asks_for_too_much_is_refused_before_it_is_made(tmp_path: Path) -> None:
    pack({"w": torch.zeros(1_000_000)}, tmp_path / "a.mzip")
    message = re.escape("over the limit of 1000000; give a higher limit")
    with pytest.raises(ArchiveError, match=message):
        unpack(tmp_path / "a.mzip", tmp_path / "out", limit=1_000_000)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("codec", ["auto", "context"])
def test_tensors_of_many_axes_come_back(codec: str, tmp_path: Path) -> None:
    state = {"many": torch.arange(100, dtype=torch.int8).reshape([10, *[1] * 38, 10])}
    pack(state, tmp_path / "a.mzip", codec=codec)
    with open_archive(tmp_path / "a.mzip") as archive:
        assert same(archive["many"], state["many"])


def test_long_names_stay_whole(tmp_path: Path) -> None:
    state = {"block." * 100 + end: torch.randn(50) for end in ("weight", "bias")}
    pack(state, tmp_path / "a.mzip")
    assert load_file(unpack(tmp_path / "a.mzip", tmp_path / "a.safetensors")).keys() == state.keys()
    with open_archive(tmp_path / "a.mzip") as archive:
        assert all(same(archive[name], tensor) for name, tensor in state.items())


def test_what_cannot_be_packed_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a text")
    with pytest.raises(ArchiveError, match=r"cannot pack .*a\.txt"):
        pack(tmp_path / "a.txt", tmp_path / "a.mzip")
    for value, message in (
        ("text", "cannot pack 'a': a str is no tensor"),
        (torch.zeros(2, dtype=torch.complex64), "safetensors has no type torch.complex64"),
    ):
        with pytest.raises(ArchiveError, match=re.escape(message)):
            pack({"a": value}, tmp_path / "a.mzip")
    for name in ("__metadata__", "\ud800"):
        with pytest.raises(ArchiveError, match="safetensors has no such name; rename it"):
            pack({name: torch.zeros(2)}, tmp_path / "a.mzip")
    with pytest.raises(SettingError, match="there is no codec 'zsdt'; did you mean 'zstd'"):
        pack({}, tmp_path / "a.mzip", codec="zsdt")
    assert not (tmp_path / "a.mzip").exists()


def test_a_file_in_the_way_stays_when_unpacking_fails(tmp_path: Path) -> None:
    pack({"w": torch.randn(5000)}, path := tmp_path / "a.mzip")
    broken = bytearray(path.read_bytes())
    broken[-20] ^= 1
    path.write_bytes(broken)
    (out := tmp_path / "out.safetensors").write_text("mine")
    with pytest.raises(ArchiveError):
        unpack(path, out)
    assert out.read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mzip", "out.safetensors"]
