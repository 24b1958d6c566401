"""Packed datasets: what comes back, in which order, and what is refused."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Subset

from modelzip.archive.codecs import NAMES
from modelzip.archive.container import Writer
from modelzip.data import (
    ArrayDataset,
    ChunkShuffled,
    PackedArrays,
    PackedDataset,
    Splits,
    loader,
    pack,
)
from modelzip.data.packed import filters
from modelzip.errors import ArchiveError, DataError, MissingExtraError, SettingError


def smooth(count: int = 20, shape: tuple[int, ...] = (3, 8, 6)) -> torch.Tensor:
    """Images whose neighbours are near each other, as in photographs."""
    steps = np.random.default_rng(0).integers(-3, 4, (count, *shape))
    return torch.from_numpy((128 + steps.cumsum(-1).cumsum(-2)).clip(0, 255).astype(np.uint8))


def images(count: int = 20) -> ArrayDataset:
    return ArrayDataset(smooth(count), torch.arange(count) % 7)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "train.mzd"


def same(path: Path, pixels: torch.Tensor) -> None:
    data = PackedDataset(path)
    found, labels = data.batch(range(len(data)))
    assert torch.equal(found, pixels)
    assert labels.tolist() == data.labels.tolist() == [i % 7 for i in range(len(data))]
    assert torch.equal(data[-1][0], pixels[-1])


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("codec", NAMES)
def test_every_codec_gives_the_same_images_and_labels_back(path, codec, single):
    packed = pack(images(), path, codec=codec, chunk=8, single=single)
    assert packed.form.lossless
    assert packed.before == 20 * (3 * 8 * 6 + 8)
    assert packed.after == path.stat().st_size
    same(path, smooth())


@pytest.mark.parametrize("shape", [(3, 8, 6), (1, 8, 6), (8, 6), (8, 6, 3)])
@pytest.mark.parametrize("codec", ["png", "webp"])
def test_png_and_webp_keep_every_pixel(path, codec, shape):
    pack(ArrayDataset(smooth(9, shape), torch.arange(9)), path, codec=codec, chunk=4)
    assert torch.equal(PackedDataset(path).batch(range(9))[0], smooth(9, shape))


@pytest.mark.parametrize("setting", [{"jpeg": 90}, {"webp": 90}])
def test_jpeg_and_webp_lose_little(path, setting):
    assert not pack(images(), path, **setting).form.lossless
    difference = PackedDataset(path).batch(range(20))[0].int() - smooth().int()
    assert 0 < difference.abs().float().mean() < 12


@given(
    st.sampled_from(["uint8", "int16", "int64", "float16", "float32", "float64", "bool"]),
    st.lists(st.integers(0, 4), min_size=1, max_size=3),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_filters_are_undone(dtype, shape, data):
    axes = st.integers(-len(shape), len(shape) - 1).map(lambda axis: f"delta:{axis}")
    colours = [f"{k}:{a}" for a, side in enumerate(shape) if side == 3 for k in ("green", "ycocg")]
    names = data.draw(st.lists(axes | st.sampled_from(colours) if colours else axes, max_size=3))
    names += data.draw(st.sampled_from([[], ["planes"], ["sparse"]]))
    filters.check(names, shape)
    whole = (data.draw(st.integers(1, 3)), *shape)
    size = int(np.prod(whole)) * np.dtype(dtype).itemsize
    raw = data.draw(st.binary(min_size=size, max_size=size))
    values = np.frombuffer(raw, np.uint8)
    values = (values & 1).astype(bool) if dtype == "bool" else values.view(dtype)
    values = values.reshape(whole)
    found = filters.undo(filters.apply(values, names), names, whole, np.dtype(dtype))
    assert found.tobytes() == values.tobytes()


def test_bytes_in_planes_are_undone_in_place():
    row = np.array([[5, 7, 4]], np.uint8)
    names = ["delta:0", "planes"]
    assert filters.undo(filters.apply(row, names), names, (1, 3), row.dtype).tolist() == [[5, 7, 4]]


def test_filters_of_samples_without_numbers():
    for shape in ((2, 0), (2, 0, 3), (2, 3, 0)):
        empty = np.zeros(shape, np.uint8)
        for names in (["delta:0"], ["delta:-1", "sparse"], ["planes"]):
            data = filters.apply(empty, names)
            assert filters.undo(data, names, shape, empty.dtype).shape == shape


def test_filters_by_hand():
    row = np.array([[5, 7, 4]], np.uint8)
    assert filters.apply(row, ["delta:0"]) == bytes([5, 2, 253])
    assert filters.apply(row, ["green:0"]) == bytes([254, 7, 253])
    assert filters.apply(np.array([[0, 9, 0]], np.uint8), ["sparse"]) == bytes([0b01000000, 9])
    assert filters.apply(np.array([[1, 258]], "<u2"), ["planes"]) == bytes([1, 2, 0, 1])
    # orange 1, middle 4, greenness 3, luma 5
    assert filters.apply(row, ["ycocg:0"]) == bytes([5, 1, 3])


def test_auto_takes_colours_and_planes_out_of_photographs(path):
    assert pack(images(), path).form.filters[-1].startswith("delta")


@pytest.mark.parametrize("bits", [1, 5, 7])
def test_fewer_bits_are_read_as_the_middle_of_what_they_stand_for(path, bits):
    packed = pack(images(), path, bits=bits)
    step = 1 << (8 - bits)
    assert torch.equal(PackedDataset(path).batch(range(20))[0], smooth() // step * step + step // 2)
    assert packed.form.bits == bits


def test_noise_stays_in_its_step_and_is_the_same_each_time(path):
    pack(images(), path, bits=4, noise=True, chunk=8)
    first, again = (PackedDataset(path).batch(range(20))[0] for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(first // 16, smooth() // 16)
    assert len(set((first % 16).flatten().tolist())) == 16


@pytest.mark.parametrize(("dtype", "steps"), [("int8", 127 * 2), ("uint8", 255)])
@pytest.mark.parametrize("single", [False, True])
def test_quantized_floats_are_within_half_a_step(path, dtype, steps, single):
    values = torch.linspace(-1, 1, 40).view(10, 4)
    pack(ArrayDataset(values, torch.arange(10)), path, dtype=dtype, single=single)
    found = PackedDataset(path).batch(range(10))[0]
    assert found.dtype == torch.float32
    assert (found - values).abs().max() <= 1 / steps + 1e-6
    pack(ArrayDataset(values, torch.arange(10)), path, dtype=dtype, noise=True)
    assert (PackedDataset(path).batch(range(10))[0] - values).abs().max() <= 2 / steps + 1e-6


def test_half_precision_and_thresholds(path):
    values = torch.tensor([[1.0, 0.1], [-0.01, -2.0]])
    data = ArrayDataset(values, torch.arange(2))
    pack(data, path, dtype="float16")
    assert torch.equal(PackedDataset(path).batch([0, 1])[0], values.half().float())
    pack(data, path, threshold=0.5, filters="sparse")
    assert PackedDataset(path).batch([0, 1])[0].tolist() == [[1, 0], [0, -2]]


@pytest.mark.parametrize("single", [False, True])
def test_rows_of_any_length_and_bytes(path, single):
    rows = [(torch.arange(n) * n, n) for n in (3, 0, 5, 1)]
    pack(rows, path, chunk=3, single=single)
    data = PackedDataset(path)
    assert [(x.tolist(), y) for x, y in data] == [(x.tolist(), y) for x, y in rows]
    with pytest.raises(DataError, match="samples differ in length; read them one by one"):
        data.batch([0])
    texts = [(b"free prize", 1), (b"", 0), (b"hi", 0)]
    pack(texts, path, single=single)
    assert list(PackedDataset(path)) == texts


def test_of_a_part_of_what_is_in_memory_it_is_what_is_held(path):
    held = ArrayDataset(
        smooth(), torch.arange(len(smooth())), mean=[0.5] * 3, std=[0.1] * 3, crop=2
    )
    form = pack(Subset(Subset(held, [5, 3, 1]), [2, 0]), path, bits=7).form
    assert (form.dtype, form.shape) == ("uint8", tuple(smooth().shape[1:]))
    data = PackedDataset(path)
    assert data.labels.tolist() == [1, 5]
    assert torch.equal(data[1][0], smooth()[5] // 2 * 2 + 1)


def test_one_chunk_is_decoded_once_for_a_batch(path):
    pack(images(), path, chunk=5)
    data = PackedDataset(path, cache=1)
    found = data.__getitems__([19, 0, 7, 1, 18])
    assert [label for _, label in found] == [19 % 7, 0, 0, 1, 18 % 7]
    assert data._decoded == 15


def test_chunk_shuffled_reads_each_sample_once_and_each_chunk_once(path):
    pack(images(), path, chunk=3)
    data = PackedDataset(path)
    sampler = ChunkShuffled(data, seed=1, window=2)
    order = list(sampler)
    assert sorted(order) == list(range(20))
    assert order == list(sampler)
    sampler.epoch = 1
    assert order != list(sampler)
    labels = [y for _, y in DataLoader(data, batch_size=4, sampler=sampler)]
    assert torch.cat(labels).tolist() == [i % 7 for i in sampler]
    assert data._decoded == 20


def test_workers_get_chunks_of_their_own(path):
    pack(images(), path, chunk=2)
    order = list(ChunkShuffled(PackedDataset(path), workers=2, batch_size=3))
    assert sorted(order) == list(range(20))
    mine, others = ({i // 2 for i in order[w * 3 : w * 3 + 3]} for w in (0, 1))
    assert not mine & others


def test_an_order_that_thrashes_chunks_is_an_error(path):
    pack(ArrayDataset(torch.arange(4000)[:, None], torch.zeros(4000).long()), path, chunk=32)
    spread = [i for start in range(4) for i in range(start, 4000, 32)]
    data = PackedDataset(path, cache=1)
    with pytest.raises(DataError, match=r"samples were decoded to read .* use ChunkShuffled"):
        [data[i] for i in spread]
    free = PackedDataset(path, cache=1, random_access=True)
    assert [int(free[i][0]) for i in spread] == spread
    pack(ArrayDataset(torch.arange(4000)[:, None], torch.zeros(4000).long()), path, single=True)
    single = PackedDataset(path, cache=1)
    assert [int(single[i][0]) for i in spread] == spread


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_read_the_file_themselves(path, context):
    """In a process of its own: torch's loader leaves a handler of SIGCHLD in this one."""
    pack(images(), path, chunk=4)
    code = f"""
import torch
from torch.utils.data import DataLoader
from modelzip.data import PackedDataset
if __name__ == "__main__":
    data = PackedDataset({str(path)!r})
    assert data[3][1] == 3
    batches = DataLoader(data, batch_size=5, num_workers=1, multiprocessing_context={context!r})
    torch.save(torch.cat([x for x, _ in batches]), {str(path) + ".pt"!r})
"""
    (script := path.with_suffix(".py")).write_text(code)
    subprocess.run([sys.executable, str(script)], check=True, timeout=120)
    assert torch.equal(torch.load(f"{path}.pt", weights_only=True), smooth())


def _wait(path: Path, ready: object) -> None:
    data = PackedDataset(path)
    data[0]
    ready.set()  # type: ignore[attr-defined]
    signal.pause()


def test_a_killed_reader_leaves_the_file_whole(path):
    pack(images(), path)
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    reader = context.Process(target=_wait, args=(path, ready))
    reader.start()
    assert ready.wait(30)
    os.kill(reader.pid or 0, signal.SIGKILL)
    reader.join()
    same(path, smooth())


def test_a_killed_worker_ends_the_loader_and_leaves_the_file_whole(path):
    """In a process of its own: torch's loader leaves a handler of SIGCHLD in this one."""
    pack(images(), path, chunk=4)
    code = f"""
import os, signal
from torch.utils.data import DataLoader, get_worker_info
from modelzip.data import PackedDataset
class Killed(PackedDataset):
    def __getitems__(self, indices):
        if get_worker_info() is not None and 12 in indices:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitems__(indices)
for _ in DataLoader(
    Killed({str(path)!r}), batch_size=4, num_workers=1, multiprocessing_context="fork"
):
    pass
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    # an error it is, but torch's: a worker that is gone, its socket, or the end of a pipe
    assert done.returncode != 0
    assert "Error" in done.stderr
    same(path, smooth())


def test_the_projects_own_loader_takes_it(path):
    pack(images(), path)
    inputs, targets = next(iter(loader(PackedDataset(path), batch_size=4)))
    assert inputs.shape == (4, 3, 8, 6)
    assert targets.tolist() == [0, 1, 2, 3]


def damage(path: Path, name: str, at: int = 4) -> None:
    from modelzip.archive.container import Reader

    with Reader(path) as archive:
        offset = archive.blobs[name].offset
    data = bytearray(path.read_bytes())
    data[offset + at] ^= 1
    path.write_bytes(data)


def test_a_damaged_chunk_names_its_samples_and_others_are_read(path):
    pack(images(), path, chunk=8)
    damage(path, "inputs/1")
    data = PackedDataset(path)
    with pytest.raises(DataError, match="samples 8 to 15 are lost, the others are not: damaged"):
        data[9]
    assert torch.equal(data[16][0], smooth()[16])
    assert [lost for lost, _ in data.damaged()] == [range(8, 16)]


def test_one_damaged_sample_of_those_coded_one_by_one(path):
    pack(images(), path, chunk=8, codec="png")
    damage(path, "inputs/1", at=-1 + 8 * 8 + 4 + 30)
    damage(path, "inputs/0")
    damage(path, "labels/2")
    data = PackedDataset(path)
    with pytest.raises(DataError, match=r"sample 8 is lost, .* its CRC-32 is wrong"):
        data[8]
    with pytest.raises(
        DataError, match=r"samples 0 to 7 are lost, .* CRC-32 of its table is wrong"
    ):
        data[7]
    with pytest.raises(DataError, match="labels of samples 16 to 19 are lost"):
        data[19]
    assert torch.equal(data[9][0], smooth()[9])
    assert [lost for lost, _ in data.damaged()] == [range(8), range(8, 9), range(16, 20)]


@pytest.mark.parametrize("single", [False, True])
def test_a_file_that_is_cut_short_gives_what_is_there(path, single):
    pack(images(), path, chunk=8, single=single)
    path.write_bytes(path.read_bytes()[:-150])
    data = PackedDataset(path)
    assert torch.equal(data[15][0], smooth()[15])
    with pytest.raises(DataError, match=r"samples? (16 to )?19 (are|is) lost.*cut short"):
        data[19]


def raw_file(path: Path, said: object) -> Path:
    with Writer(path) as writer:
        writer.finish({"dataset": said})
    return path


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (None, "holds no dataset; modelzip list shows"),
        ({"version": 2}, "version 2 of a dataset is not 1"),
        ({"version": 1, "count": 0}, "does not say how .* count must be an integer"),
        ({"version": 1, "count": 1, "colour": 1}, "does not say how .* unexpected keyword"),
        ({"version": 1, "count": 1, "dtype": "uint8", "shape": "3"}, "shape is no list of int"),
        ({"version": 1, "count": 1, "dtype": "uint8", "shape": [3]}, "says 1 chunks, and has 0"),
    ],
)
def test_a_file_that_says_what_cannot_be_is_refused(path, said, message):
    with pytest.raises(ArchiveError, match=message):
        PackedDataset(raw_file(path, said))


X = torch.zeros(3, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "list is empty; there is nothing to pack"),
        ([(X, 0), (X[:, :2], 1)], r"item 1 is uint8 \[3, 2, 4\], and those before it are uint8"),
        ([(X, 0), X], "item 1 is Tensor; it must be a pair"),
        ([(X, 0), (X, None)], "the label of item 1 is None; it must be an integer"),
        ([(X, 0.5)], "the label of item 0 is 0.5"),
        ([("text", 0)], "inputs of item 0 are str; they must be a tensor, an array or bytes"),
        ([(X.to(torch.complex64), 0)], "inputs of item 0 are complex64; use one of"),
    ],
)
def test_samples_that_cannot_be_packed_are_named_and_nothing_is_written(path, items, message):
    path.write_bytes(b"before")
    with pytest.raises(DataError, match=message):
        pack(items, path)
    assert path.read_bytes() == b"before"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 8}, "bits must be an integer from 1 to 7, got 8"),
        ({"dtype": "int8"}, "dtype rounds floats, and samples are uint8; labels, token ids"),
        ({"dtype": "int4"}, "dtype must be one of float16, int8, uint8, got 'int4'"),
        ({"bits": 5, "threshold": 0.5}, "bits and threshold are two ways to lose"),
        ({"bits": 5, "jpeg": 75}, "bits and quality are two ways to lose"),
        ({"noise": True}, "noise stands for what bits, int8 or uint8 rounds off"),
        ({"codec": "zip"}, "codec has no choice 'zip'"),
        ({"codec": "jpeg"}, "codec 'jpeg' has quality None: JPEG needs one"),
        ({"jpeg": 101}, "quality must be an integer from 1 to 100, got 101"),
        ({"jpeg": 75, "webp": 75}, "are several ways to keep an image; choose one"),
        ({"codec": "png", "filters": "delta:0"}, "codes images one by one, without filters"),
        ({"filters": "dleta:0"}, "there is no filter 'dleta'; did you mean 'delta'"),
        ({"filters": "delta:3"}, r"filter 'delta:3' has no axis in samples of shape \[3, 8, 6\]"),
        ({"filters": "green:1"}, "filter 'green:1' needs three colours"),
        ({"filters": ["planes", "delta:0"]}, "filter 'planes' must be 'planes' and the last"),
        ({"filters": 3}, "filters must be a list of names, got 3"),
        ({"filters": None}, "filters must be a list of names, got None"),
        ({"filters": [1]}, r"filters must be a list of names, got \[1\]"),
        ({"level": 3, "codec": "zlib"}, "level is of zstd, from 1 to 22, got 3 for 'zlib'"),
        ({"chunk": 1 << 24}, "lower chunk"),
    ],
)
def test_settings_that_do_not_fit_are_refused(path, changes, message):
    with pytest.raises(SettingError, match=message):
        pack(images(), path, **changes)


@pytest.mark.parametrize("shape", [None, [0]])
def test_more_labels_than_there_are_take_no_memory(path, shape):
    def write(chunk):
        with Writer(path) as writer:
            writer.add("inputs/0", b"")
            writer.add("labels/0", zlib.compress(bytes(8)))
            said = {"version": 1, "count": chunk, "dtype": "int64", "shape": shape, "chunk": chunk}
            writer.finish({"dataset": said})

    write(1 << 40)
    with pytest.raises(ArchiveError, match=r"1099511627776 samples has .*; lower chunk"):
        PackedDataset(path)
    write(1 << 27)
    with pytest.raises(DataError, match="labels of samples 0 to 134217727 are lost"):
        _ = PackedDataset(path).labels


def test_what_is_lossy_leaves_token_ids_text_and_overflow_alone(path):
    with pytest.raises(SettingError, match="bits rounds uint8 images, and samples are int64"):
        pack([(torch.arange(5), 0)], path, bits=5)
    with pytest.raises(SettingError, match="and samples are bytes; labels, token ids and text"):
        pack([(b"abc", 0)], path, bits=5)
    with pytest.raises(SettingError, match=r"codec 'png' is for uint8 images .* bool \[4\]"):
        pack([(torch.ones(4).bool(), 0)], path, codec="png")
    with pytest.raises(DataError, match="items 0 to 0: int8 has no NaN or infinity"):
        pack([(torch.tensor([torch.nan]), 0)], path, dtype="int8")
    with pytest.raises(DataError, match="float16 ends at 65504, and there is 1e"):
        pack([(torch.tensor([1e6]), 0)], path, dtype="float16")


def test_samplers_that_cannot_be_are_refused(path):
    pack(images(), path)
    with pytest.raises(SettingError, match=r"a window of 9 chunks is more than the 8 .* cache=9"):
        ChunkShuffled(PackedDataset(path), window=9)
    with pytest.raises(SettingError, match="workers=2 take whole batches; give their batch_size"):
        ChunkShuffled(PackedDataset(path), workers=2)
    with pytest.raises(IndexError, match="index 20 is out of range for 20 items"):
        PackedDataset(path)[20]


def test_a_codec_that_is_not_installed_names_its_extra(path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(MissingExtraError, match=r"'zstd' needs zstandard: .*modelzip\[archive\]"):
        pack(images(), path)
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    with pytest.raises(MissingExtraError, match=r"'png' needs Pillow: .*modelzip\[images\]"):
        pack(images(), path, codec="png")


@pytest.mark.parametrize("single", [False, True])
def test_a_changed_byte_anywhere_costs_samples_and_never_changes_one(tmp_path, single):
    path = tmp_path / "whole.mzd"
    pack(images(), path, chunk=8, single=single, codec="zlib")
    whole, pixels = path.read_bytes(), smooth()

    @given(st.integers(0, len(whole) - 1), st.integers(1, 255))
    @settings(max_examples=60, deadline=None)
    def check(at, change):
        data = bytearray(whole)
        data[at] ^= change
        path.write_bytes(data)
        try:
            found = PackedDataset(path)
        except ArchiveError:  # in the header
            return
        lost = {number for samples, _ in found.damaged() for number in samples}
        assert 0 < len(lost) <= 8
        kept = [number for number in range(20) if number not in lost]
        assert torch.equal(found.batch(kept)[0], pixels[kept])

    check()


def test_the_examples_of_the_documentation_run(tmp_path, monkeypatch):
    text = Path(__file__).parents[2].joinpath("docs/data.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    packing, storing = (part.split("```")[0] for part in text.split("```python\n")[1:3])
    exec(packing, names)
    assert names["label"] == 7
    assert names["inputs"].dtype == torch.float32  # type: ignore[attr-defined]
    exec(storing, names)
    stored, splits = names["stored"], names["splits"]
    assert isinstance(stored, Splits)
    assert isinstance(splits, Splits)
    assert isinstance(stored.train, PackedArrays)
    assert sorted(stored.train.targets.tolist()) == sorted(splits.train.targets.tolist())  # type: ignore[attr-defined]
