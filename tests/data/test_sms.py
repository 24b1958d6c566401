import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from modelzip.data import calibration_batches, check, files, sms, sms_spam
from modelzip.data.base import Augmented, Splits
from modelzip.data.store import Store, check_store
from modelzip.errors import DataError, MissingExtraError, SettingError

real = pytest.mark.skipif(
    files.local_file("sms_spam.tsv") is None, reason="MODELZIP_DATA has no sms_spam.tsv"
)
WORDS = ("lunch", "home", "later", "train", "sleep", "movie", "dinner", "work", "class", "bus")
LINES = [f"ham\tsee you at {w}" for w in WORDS] + [f"spam\tWIN £{i}00 {WORDS[i]}" for i in range(9)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch):
    """A data folder with 19 different messages."""
    monkeypatch.setenv(files.VARIABLE, str(tmp_path))
    write(tmp_path, LINES)
    return tmp_path


def write(folder: Path, lines: list[str]) -> None:
    (folder / "sms_spam.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def small(**settings) -> Splits:
    return sms_spam(**({"length": 12, "vocabulary": 60} | settings))


def test_a_fifth_is_the_test_set_for_every_seed(folder):
    first, second = small(), small(seed=1)
    assert [len(s) for s in (first.train, first.validation, first.test)] == [13, 2, 4]
    assert torch.equal(first.test.targets, second.test.targets)
    assert (first.classes, first.names) == (2, ("ham", "spam"))
    check(first)


def test_equal_messages_count_once(folder):
    write(folder, [*LINES, "ham\tSee  you at LUNCH", "spam\tWIN £700 lunch"])
    # the second was there with another number of as many digits
    splits = small()
    assert sum(len(s) for s in (splits.train, splits.validation, splits.test)) == len(LINES)


def test_the_file_beside_the_model_takes_raw_messages(folder, tmp_path):
    splits = small()
    (tmp_path / sms.TOKENS).write_text(splits.files[sms.TOKENS], encoding="utf-8")
    tokens = Tokenizer.from_file(str(tmp_path / sms.TOKENS))
    for text, row in zip(splits.train.texts, splits.train, strict=True):
        assert tokens.encode(text).ids == row[0].tolist()
    found = tokens.encode("WIN &lt;300").ids
    assert len(found) == 12
    assert found == tokens.encode(" win\n<888 ").ids
    assert len(tokens.encode("see you at " * 50).ids) == 12


def test_without_noise_they_are_the_same_in_each_epoch_and_can_be_stored(folder):
    assert isinstance(small().train, Augmented)
    splits = small(dropped=0, typos=0)
    assert not isinstance(splits.train, Augmented)
    assert not isinstance(splits.test, Augmented)
    check_store(Store(filters=["delta:-1"]), splits.train)


def test_training_messages_are_mistyped_anew_in_each_epoch(folder):
    train = small(dropped=0.3, typos=0.5).train
    plain, _ = train.__getitems__(range(len(train)))
    rows = []
    for epoch in (0, 1, 0):
        train.set_epoch(epoch)
        rows.append(train.__getitems__(range(len(train)))[0])
    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], plain)
    assert set(train.__getitems__([0, 12])[1].tolist()) <= {0, 1}


def test_messages_can_be_rewritten(folder):
    test = small().test
    found = test.rewritten([3, 0], ["call now", test.texts[0]])
    assert found.texts == ("call now", test.texts[0])
    assert torch.equal(found.targets, test.targets[[3, 0]])
    assert torch.equal(found[1][0], test[0][0])
    assert not torch.equal(found[0][0], test[3][0])


def test_limit_keeps_a_part_of_the_training_messages(folder):
    whole, part = small(), small(limit=5)
    assert part.train.texts == whole.train.texts[:5]
    assert part.files == whole.files
    assert len(calibration_batches(part, samples=4, batch_size=2)) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limit": 0}, "limit must be an integer of at least 1, got 0"),
        ({"length": 0}, "length must be an integer of at least 1, got 0"),
        ({"vocabulary": 3}, "vocabulary must be at least .*, one token for each letter, got 3"),
        ({"dropped": 1.5}, r"dropped must be a fraction in \[0, 1\), got 1.5"),
        ({"typos": -1}, r"typos must be a fraction in \[0, 1\], got -1"),
        ({"validation": 99}, "validation=99 of 15 training samples leaves an empty split"),
    ],
)
def test_bad_settings_are_refused(folder, settings, message):
    with pytest.raises(SettingError, match=message):
        small(**settings)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("egg\thello", r"line 20 is 'egg\\thello'; it must be ham or spam, a tab and a message"),
        ("ham", "line 20 is 'ham'; it must be ham or spam"),
        ("ham\t ", r"line 20 is 'ham\\t '; it must be"),
        ("", "line 20 is ''; it must be"),
    ],
)
def test_damaged_lines_are_named(folder, line, message):
    write(folder, [*LINES, line])
    with pytest.raises(DataError, match=message):
        small()


def test_a_file_that_is_not_text_is_refused(folder):
    (folder / "sms_spam.tsv").write_bytes(b"ham\t\xff\xfe")
    with pytest.raises(DataError, match=r"sms_spam\.tsv cannot be read: 'utf-8' codec"):
        small()


def test_without_tokenizers_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match=r"text data needs tokenizers: .*\[text\]"):
        small()


@real
def test_the_real_collection():
    splits = sms_spam()
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [3598, 514, 1028]
    spam = [int(splits.test.targets.sum()), int(splits.validation.targets.sum())]
    assert sum(spam) + sum(label for _, label in splits.train) == 623
    check(splits)
