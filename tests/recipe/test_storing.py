"""Training data kept as a recipe says: what is trained on, compared, and taken up again."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import modelzip as mz
from modelzip.data import ArrayDataset, PackedArrays, PackedDataset, Splits, pack
from modelzip.data.base import Normalised
from modelzip.data.packed import ChunkShuffled
from modelzip.data.store import Store, check_store, keep
from modelzip.errors import DataError, MissingExtraError, SettingError
from modelzip.recipe import storing
from modelzip.recipe.loader import load, validate
from modelzip.recipe.schema import Recipe
from modelzip.recipe.workshop import open_workshop
from modelzip.run import run
from modelzip.zoo import digits_cnn
from tests.stopping import Stopped, stop_after


def images(count: int = 60) -> ArrayDataset:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return ArrayDataset(pixels, torch.arange(count) % 3, mean=(0.5,), std=(0.25,), crop=1, seed=2)


def kept(train, path, **settings):
    model = digits_cnn(width=4, classes=3)
    return keep(train, path / "a.mzd", Store(**settings), model=model, seed=0, progress=False)


def test_what_is_trained_on_is_normalised_and_augmented_as_before(tmp_path):
    train = images()
    found = kept(train, tmp_path, bits=5, chunk=2)
    assert isinstance(found.train, PackedArrays)
    assert (found.train.mean, found.train.std) == (train.mean, train.std)
    assert (found.train.crop, found.train.seed) == (1, 2)
    packed = found.train.data.batch(range(60))[0]
    rows = {tuple(image.flatten().tolist()) for image in packed}
    assert rows == {tuple(image.flatten().tolist()) for image in train.inputs // 8 * 8 + 4}
    assert found.train.targets.tolist() != train.targets.tolist()  # in random order
    assert isinstance(found.train.shuffled(seed=0), ChunkShuffled)


@pytest.mark.parametrize("by", ["loss", "embedding", "random"])
def test_duplicates_go_before_a_coreset_is_chosen(tmp_path, by):
    train = images()
    twice = train.take([*range(60), *range(30)])
    found = kept(twice, tmp_path, duplicates="near", coreset=0.5, by=by)
    assert (found.duplicates, found.left_out, found.packed.count) == (30, 30, 30)


def test_a_part_of_what_is_in_memory_is_stored_as_it_is_held(tmp_path):
    train = torch.utils.data.Subset(images(), range(0, 60, 2))
    check_store(Store(bits=5), train)
    found = kept(train, tmp_path, bits=5, coreset=0.5)
    assert found.packed.form.dtype == "uint8"
    assert (found.train.mean, found.train.std, found.train.crop) == ((0.5,), (0.25,), 1)
    packed = found.train.data.batch(range(15))[0]
    rows = {tuple(image.flatten().tolist()) for image in packed}
    assert rows <= {tuple(i.flatten().tolist()) for i in images().inputs[::2] // 8 * 8 + 4}


class Files(Normalised):
    """Normalised images that are read one by one."""

    mean, std = (0.5,), (0.25,)

    def __init__(self, pixels):
        self.pixels = pixels

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        return (self.pixels[index].float() / 255 - 0.5) / 0.25, index % 3


def test_normalised_images_are_stored_as_the_pixels_they_were(tmp_path):
    pixels = images().inputs
    found = kept(torch.utils.data.Subset(Files(pixels), range(40)), tmp_path)
    assert found.packed.form.dtype == "uint8"
    assert found.packed.before == 40 * (64 + 8)
    inputs, labels = found.train.__getitems__(range(40))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([Files(pixels)[int(index)][0] for index in order])
    assert torch.allclose(inputs, expected, atol=1e-6)
    assert labels.tolist() == (order % 3).tolist()
    with pytest.raises(DataError, match="image 0 has values between the 256 steps of uint8"):
        kept(Files(pixels // 2 + 0.5), tmp_path)


def test_what_cannot_be_stored_is_refused_before_it_is(tmp_path, monkeypatch):
    path = pack(images(), tmp_path / "b.mzd").path
    packed = PackedArrays(PackedDataset(path))
    for again in (packed, torch.utils.data.Subset(packed, range(9))):
        with pytest.raises(SettingError, match="store: the training data are packed already"):
            check_store(Store(), again)
    with pytest.raises(SettingError, match="by=random chooses a coreset; give coreset too"):
        Store(by="random")
    tokens = ArrayDataset(torch.ones(9, 4, dtype=torch.int64), torch.zeros(9).long())
    with pytest.raises(SettingError, match="bits rounds uint8 images, and samples are int64; lab"):
        check_store(Store(bits=5), tokens)
    with pytest.raises(DataError, match=r"near compares images \[C, H, W\]"):
        check_store(Store(duplicates="near"), tokens)
    rows = [(torch.arange(n), 0) for n in (1, 2)]
    with pytest.raises(DataError, match="samples differ in length, and make no batch"):
        check_store(Store(), rows)
    check_store(Store(path=str(path)), images())
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.setitem(__import__("sys").modules, "lz4.block", None)
    with pytest.raises(MissingExtraError, match=r"needs lz4: pip install 'modelzip\[archive\]'"):
        check_store(Store(codec="lz4"), images())


def test_the_original_gets_as_many_steps():
    def shop(count):
        data = images(count)
        splits = Splits(train=data, validation=data, test=data, classes=3)
        return open_workshop(splits, batch_size=10, calibration=20, seed=0)

    step = mz.FineTune(epochs=3, save_at=1, save_to="a.safetensors")
    found = storing._as_long(step, shop(20), shop(60))
    assert (found.epochs, found.steps, found.save_at) == (None, 6, 2)
    assert storing._as_long(step, shop(60), shop(60)) is step
    fixed = mz.FineTune(steps=5)
    assert storing._as_long(fixed, shop(20), shop(60)) is fixed


RECIPE = """
model: {build: "modelzip.zoo:digits_cnn", width: 4}
data:
  build: "modelzip.data:digits"
  batch_size: 64
  calibration: 128
  store: {chunk: 32, coreset: 0.25}
steps:
  - finetune: {epochs: 2, lr: 0.1}
  - int8
measure: {runtimes: [onnxruntime], batch_sizes: [2]}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return load(path)


def test_a_run_that_was_stopped_takes_up_what_it_stored(recipe, tmp_path):
    whole = run(recipe, out=tmp_path / "whole", progress=False)
    with pytest.raises(Stopped), stop_after(1):
        run(recipe, out=tmp_path / "out", progress=False)
    assert (tmp_path / "out.partial" / "train.mzd").exists()
    resumed = run(recipe, out=tmp_path / "out", resume=True, progress=False)
    assert resumed.hashes == whole.hashes
    assert resumed.data.comparison == whole.data.comparison


def test_a_file_that_was_replaced_meanwhile_is_not_taken_up(recipe, tmp_path):
    store = dataclasses.replace(recipe.data.store, path=str(tmp_path / "mine.mzd"))
    data = recipe.data.model_copy(update={"store": store})
    recipe = recipe.model_copy(update={"data": data})
    with pytest.raises(Stopped), stop_after(1):
        run(recipe, out=tmp_path / "out", progress=False)
    pack(images(), tmp_path / "mine.mzd")
    with pytest.raises(SettingError, match=r"mine.mzd is not what this run stored: .*; remove "):
        run(recipe, out=tmp_path / "out", resume=True, progress=False)


def test_data_in_hand_are_stored_too(tmp_path):
    splits = Splits(train=images(), validation=images(20), test=images(20), classes=3)
    model, how = digits_cnn(width=4, classes=3), {"store": {"bits": 5}, "calibration": 20}
    steps = [mz.FineTune(steps=4, lr=0.01), mz.Int8()]
    measure = {"runtimes": ["onnxruntime"], "batch_sizes": [1]}
    given = {"data": splits, "batch_size": 10, "measure": measure, "progress": False}
    record = mz.compress(model, steps, out=tmp_path / "out", **given, **how)
    assert (record.data.samples, record.data.settings["bits"]) == (60, 5)
    assert record.data.comparison is not None
    with pytest.raises(SettingError, match="store has no setting 'bit'; did you mean 'bits'"):
        mz.compress(model, steps, out=tmp_path / "b", **given, store={"bit": 5})
    with pytest.raises(SettingError, match="store keeps training data, of which"):
        mz.compress(
            model, steps, out=tmp_path / "b", **given, **{**how, "calibration": "synthetic"}
        )
    with pytest.raises(Stopped), stop_after(1):
        mz.compress(model, steps, out=tmp_path / "c", **given, **how)
    with pytest.raises(SettingError, match=r"c.partial holds data stored otherwise; remove it"):
        mz.compress(
            model, steps, out=tmp_path / "c", resume=True, **given, **{**how, "store": {"bits": 4}}
        )


def test_a_damaged_note_of_what_was_stored_is_named(tmp_path):
    (tmp_path / "stored.json").write_text("{}")
    with pytest.raises(SettingError, match=r"stored.json is damaged .*; remove "):
        storing._read(tmp_path / "stored.json")


def test_without_comparison_the_file_goes_where_it_is_told(recipe, tmp_path):
    store = dataclasses.replace(
        recipe.data.store, compare=False, coreset=None, path=str(tmp_path / "mine.mzd")
    )
    data = recipe.data.model_copy(update={"store": store})
    record = run(recipe.model_copy(update={"data": data}), out=tmp_path / "out", progress=False)
    assert record.data.original is None
    assert record.data.file == str(tmp_path / "mine.mzd")
    assert len(PackedDataset(tmp_path / "mine.mzd")) == record.data.samples
    assert "train.mzd" not in record.hashes


def test_storing_and_reading_no_training_data_exclude_each_other(recipe):
    raw = recipe.resolved()
    assert validate(Recipe, raw).data.store == recipe.data.store
    raw["data"]["calibration"] = "synthetic"
    with pytest.raises(SettingError, match="store keeps training data, of which calibration: syn"):
        validate(Recipe, raw)
