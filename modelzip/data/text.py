"""Sentences as rows of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modelzip.core import checks
from modelzip.data import files
from modelzip.data.arrays import ArrayDataset
from modelzip.data.base import Splits, Texts
from modelzip.errors import DataError, MissingExtraError, SettingError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, UNKNOWN = 0, 1  # ids of the two tokens that stand for no text
_SPECIAL = ("[PAD]", "[UNK]")
_SST2 = (
    "a folder that holds sst2/train.tsv, sst2/dev.tsv and sst2/test.tsv, each line a sentence, a "
    "tab and its label, 0 or 1"
)


def sst2(
    *, length: int = 64, vocabulary: int = 8000, seed: int = 0, limit: int | None = None
) -> Splits:
    """SST-2, film reviews that are bad (0) or good (1): int64 token ids [length], padded with 0.

    6,920 + 872 + 1,821 sentences from sst2/train.tsv, dev.tsv (the validation slice) and test.tsv
    in the folder that MODELZIP_DATA names. Longer sentences are cut off. Needs tokenizers.
    Socher et al. 2013, https://nlp.stanford.edu/sentiment/.

    Args:
        length: tokens in a row; no sentence is longer than 68 at the default vocabulary.
        vocabulary: how many tokens there are, learned from the training sentences.
        seed: of which training sentences `limit` keeps.
        limit: keep at most this many training sentences; all by default.

    Raises:
        DataError: a file is missing, or a line is not a sentence, a tab and a label.
        MissingExtraError: tokenizers is not installed.
    """
    train, validation, test = (_sentences(split) for split in ("train", "dev", "test"))
    tokens = tokenizer(train[0], vocabulary=vocabulary)

    def dataset(found: tuple[tuple[str, ...], list[int]]) -> Sentences:
        return Sentences(found[0], torch.tensor(found[1]), tokens, length=length)

    kept = dataset(train)
    if limit is not None:
        checks.integer("limit", limit, low=1)
        order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed))[:limit]
        kept = kept.rewritten(order.tolist(), [kept.texts[i] for i in order.tolist()])
    return Splits(train=kept, validation=dataset(validation), test=dataset(test), classes=2)


class Sentences(Texts):
    """Texts as rows of token ids, int64 [length].

    >>> tokens = tokenizer(["a b"], vocabulary=5)
    >>> Sentences(["b a"], torch.tensor([1]), tokens, length=4)[0]
    (tensor([4, 3, 4, 2]), 1)
    """

    def __init__(
        self, texts: Sequence[str], targets: Tensor, tokens: Tokenizer, *, length: int
    ) -> None:
        self.texts = tuple(texts)
        self.length = length
        self._tokens = tokens
        self._rows = self._coded(self.texts, targets)

    @property
    def inputs(self) -> Tensor:
        """Their tokens, int64 [N, length]."""
        return self._rows.inputs

    @property
    def targets(self) -> Tensor:
        """Their labels, int64 [N]."""
        return self._rows.targets

    def rewritten(self, indices: Sequence[int], texts: Sequence[str]) -> Sentences:
        targets = self.targets[list(indices)]
        return Sentences(texts, targets, self._tokens, length=self.length)

    def _coded(self, texts: Sequence[str], targets: Tensor) -> ArrayDataset:
        return ArrayDataset(token_ids(self._tokens, texts, length=self.length), targets)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._rows[index]

    def __getitems__(self, indices: Sequence[int]) -> Any:
        return self._rows.__getitems__(indices)


def tokenizer(sentences: Sequence[str], *, vocabulary: int) -> Tokenizer:
    """Byte pairs learned from `sentences`, the same in every process; at most `vocabulary` tokens.

    Id 0 is padding, 1 whatever the sentences have no letter for. It is learned once a process.
    Sennrich et al. 2016, https://arxiv.org/abs/1508.07909.

    >>> tokenizer(["low low lower"], vocabulary=11).encode("lower").tokens
    ['▁low', 'e', 'r']
    """
    letters = {*"".join(sentences), "▁"} - {" "}
    least = len(_SPECIAL) + len(letters)
    checks.integer("vocabulary", vocabulary, low=1)
    if vocabulary < least:
        raise SettingError(
            f"vocabulary must be at least {least}, one token for each letter, got {vocabulary}"
        )
    return _learned(tuple(sentences), vocabulary)


@lru_cache(maxsize=4)
def _learned(sentences: tuple[str, ...], vocabulary: int) -> Tokenizer:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingExtraError("tokenizers", extra="text", purpose="text data") from error
    # not WordPiece, whose trainer breaks ties by an order that differs between processes
    learned = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=_SPECIAL[UNKNOWN]))
    learned.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(_SPECIAL), show_progress=False
    )
    learned.train_from_iterator(sentences, trainer, length=len(sentences))
    return learned


def token_ids(tokens: Tokenizer, sentences: Sequence[str], *, length: int) -> Tensor:
    """Ids of each sentence, int64 [sentences, length], cut off or padded with 0 to `length`.

    >>> token_ids(tokenizer(["a b"], vocabulary=5), ["b a", "c"], length=5).tolist()
    [[4, 3, 4, 2, 0], [4, 1, 0, 0, 0]]
    """
    checks.integer("length", length, low=1)
    ids = torch.full((len(sentences), length), PAD)
    for row, found in zip(ids, tokens.encode_batch(list(sentences)), strict=True):
        kept = torch.tensor(found.ids[:length], dtype=torch.int64)
        row[: len(kept)] = kept
    return ids


def _sentences(split: str) -> tuple[tuple[str, ...], list[int]]:
    """Sentences and labels of one file of SST-2."""
    name = f"sst2/{split}.tsv"
    path = files.local_file(name)
    if path is None:
        raise DataError(f"there is no {name}; set {files.VARIABLE} to {_SST2}")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    rows = [_row(path, number, line) for number, line in enumerate(lines, start=1)]
    if not rows:
        raise DataError(f"{path} is empty; {files.VARIABLE} must name {_SST2}")
    sentences, labels = zip(*rows, strict=True)
    return tuple(sentences), list(labels)


def _row(path: Path, number: int, line: str) -> tuple[str, int]:
    sentence, _, label = line.rpartition("\t")
    if not sentence.strip() or label not in ("0", "1"):
        raise DataError(
            f"{path}: line {number} is {line!r:.60}; it must be a sentence, a tab and 0 or 1"
        )
    return sentence, int(label)
