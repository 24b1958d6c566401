import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modelzip.data import files, sst2, text
from modelzip.data.checking import calibration_batches, check
from modelzip.errors import DataError, MissingExtraError, SettingError

real = pytest.mark.skipif(
    files.local_file("sst2/train.tsv") is None, reason="MODELZIP_DATA has no folder sst2"
)
LINES = ["a fine film\t1", "a dull film\t0", "fine fine fine\t1"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch):
    """A data folder with a small SST-2 in it."""
    monkeypatch.setenv(files.VARIABLE, str(tmp_path))
    (tmp_path / "sst2").mkdir()
    for split, count in (("train", 3), ("dev", 2), ("test", 1)):
        write(tmp_path, split, "\n".join(LINES[:count]))
    return tmp_path


def write(folder: Path, split: str, content: str) -> None:
    (folder / "sst2" / f"{split}.tsv").write_text(content, encoding="utf-8")


def test_rows_are_ids_padded_with_zeros(folder):
    splits = sst2(length=8, vocabulary=100)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [3, 2, 1]
    assert splits.classes == 2
    assert splits.train.targets.tolist() == [1, 0, 1]
    first, third = splits.train[0][0], splits.train[2][0]
    assert first.dtype == torch.int64
    assert first[:3].min() > text.UNKNOWN
    assert first[3:].tolist() == [text.PAD] * 5
    assert third.tolist() == [int(first[1])] * 3 + [text.PAD] * 5  # "fine" has one id
    check(splits)


def test_long_sentences_are_cut_off(folder):
    long, short = sst2(length=8, vocabulary=100), sst2(length=2, vocabulary=100)
    assert torch.equal(short.train.inputs, long.train.inputs[:, :2])


def test_letters_of_other_splits_are_unknown(folder):
    write(folder, "test", "a žfilm\t1")
    (row, _) = sst2(length=4, vocabulary=100).test[0]
    assert text.UNKNOWN in row.tolist()


def test_limit_keeps_a_seeded_choice_and_leaves_the_vocabulary(folder):
    whole, one = sst2(length=8, vocabulary=100), sst2(length=8, vocabulary=100, limit=1, seed=3)
    assert len(one.train) == 1
    assert torch.equal(one.test.inputs, whole.test.inputs)
    assert any(torch.equal(one.train.inputs[0], row) for row in whole.train.inputs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limit": 0}, "limit must be an integer of at least 1, got 0"),
        ({"length": 0}, "length must be an integer of at least 1, got 0"),
        ({"vocabulary": 0}, "vocabulary must be an integer of at least 1, got 0"),
        ({"vocabulary": 5}, "vocabulary must be at least 12, one token for each letter, got 5"),
    ],
)
def test_bad_settings_are_refused(folder, arguments, message):
    with pytest.raises(SettingError, match=message):
        sst2(**arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("fine\t1\nno label", r"train\.tsv: line 2 is 'no label'; it must be a sentence, a tab"),
        ("fine\t2", r"line 1 is 'fine\\t2'; it must be a sentence, a tab and 0 or 1"),
        (" \t1", "line 1 is .*; it must be a sentence"),
        ("", r"train\.tsv is empty; MODELZIP_DATA must name a folder that holds sst2/train.tsv"),
    ],
)
def test_damaged_files_are_refused(folder, content, message):
    write(folder, "train", content)
    with pytest.raises(DataError, match=message):
        sst2()


def test_a_file_that_is_not_text_is_refused(folder):
    (folder / "sst2" / "dev.tsv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"dev\.tsv cannot be read: 'utf-8' codec"):
        sst2()


def test_a_missing_file_says_where_it_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv(files.VARIABLE, str(tmp_path))
    with pytest.raises(DataError, match=r"no sst2/train\.tsv; set MODELZIP_DATA to a folder that"):
        sst2()


def test_without_tokenizers_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    text._learned.cache_clear()
    with pytest.raises(MissingExtraError, match=r"text data needs tokenizers: .*\[text\]"):
        sst2(vocabulary=50)


_PRINT_IDS = """
from modelzip.data.text import token_ids, tokenizer
lines = ["the quick brown fox", "jumps over the lazy dog", "a lazy fox over there"] * 3
print(token_ids(tokenizer(lines, vocabulary=45), lines, length=30).tolist())
"""


def test_another_process_learns_the_same_tokens(capsys):
    exec(_PRINT_IDS, {})
    there = subprocess.run([sys.executable, "-c", _PRINT_IDS], check=True, capture_output=True)
    assert there.stdout.decode() == capsys.readouterr().out


words = st.text("abcd", min_size=1, max_size=6)


@given(
    st.lists(st.lists(words, max_size=4).map(" ".join), min_size=1, max_size=5), st.integers(1, 9)
)
def test_ids_spell_the_start_of_the_sentence(sentences, length):
    tokens = text.tokenizer(["abcd abc ab a dcba"], vocabulary=12)
    rows = text.token_ids(tokens, sentences, length=length)
    assert rows.shape == (len(sentences), length)
    for sentence, row in zip(sentences, rows.tolist(), strict=True):
        spelled = "".join(tokens.id_to_token(i) for i in row if i != text.PAD).replace("▁", " ")
        assert f" {sentence}".startswith(spelled)
        assert text.PAD not in row or spelled.strip() == sentence


@real
def test_real_sst2():
    splits = sst2()
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [6920, 872, 1821]
    assert torch.bincount(splits.test.targets).tolist() == [912, 909]
    assert int((splits.test.inputs == text.UNKNOWN).sum()) == 0
    assert len(calibration_batches(splits, samples=200)) == 2
    check(splits)
