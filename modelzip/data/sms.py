"""The SMS Spam Collection: messages cleaned, cut into tokens, and mistyped for training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from modelzip.core import checks
from modelzip.data import files
from modelzip.data.arrays import split_off
from modelzip.data.base import Augmented, Splits
from modelzip.data.text import PAD, Sentences, tokenizer
from modelzip.data.typos import mistyped
from modelzip.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.normalizers import Normalizer

CLASSES = ("ham", "spam")
TOKENS = "tokens.json"  # the file that a run leaves beside the model
_FILE = "sms_spam.tsv"
_URL = "https://raw.githubusercontent.com/justmarkham/pycon-2016-tutorial/master/data/sms.tsv"
_SHA256 = "7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d"
_TEST = 0.2


def sms_spam(
    *,
    length: int = 64,
    vocabulary: int = 2000,
    dropped: float = 0.1,
    typos: float = 0.1,
    validation: float = 0.125,
    seed: int = 0,
    limit: int | None = None,
) -> Splits:
    """Text messages, wanted (ham, 0) or not (spam, 1): int64 token ids [length], padded with 0.

    5,140 different messages, 623 of them spam; of those that are equal once cleaned (see
    `cleaning`) one counts, or the test set would hold messages of the training set. A fixed fifth
    is the test set. Read from sms_spam.tsv in the folder that MODELZIP_DATA names; otherwise
    downloaded, checked and cached. A run leaves `tokens.json` beside the model, which turns a
    message into its inputs. Needs tokenizers.
    Almeida et al. 2011, https://doi.org/10.1145/2034691.2034742.

    Args:
        length: tokens in a row; longer messages are cut off, 2 % of them at the defaults.
        vocabulary: how many tokens there are, learned from the training messages.
        dropped, typos: share of words left out of training messages, and mistyped, others in each
            epoch; see `mistyped`.

    Raises:
        DataError: the file is missing, or a line is not ham or spam, a tab and a message.
        MissingExtraError: tokenizers is not installed.
    """
    texts, labels = _messages()
    rest, test = split_off(len(texts), validation=_TEST, limit=None, seed=0)
    chosen, held_out = split_off(len(rest), validation=validation, limit=None, seed=seed)
    cleaner = cleaning()
    learned_from = [cleaner.normalize_str(texts[i]) for i in rest[chosen].tolist()]
    tokens = message_tokenizer(learned_from, vocabulary=vocabulary, length=length)
    if limit is not None:
        chosen = chosen[: checks.integer("limit", limit, low=1)]

    def messages(indices: Tensor, **noise: float) -> Sentences:
        found = [texts[i] for i in indices.tolist()]
        targets = torch.tensor(labels)[indices]
        if all(share == 0 for share in noise.values()):
            return Sentences(found, targets, tokens, length=length)
        return Messages(found, targets, tokens, length=length, seed=seed, **noise)

    return Splits(
        train=messages(rest[chosen], dropped=dropped, typos=typos),
        validation=messages(rest[held_out]),
        test=messages(test),
        classes=len(CLASSES),
        names=CLASSES,
        files={TOKENS: tokens.to_str()},
    )


def cleaning() -> Normalizer:
    """What becomes of a message before it is cut into tokens; part of the tokenizer's file.

    Look-alike characters become one (NFKC), entities of HTML the characters they stand for,
    capitals small, every digit 0, so that what counts of a number is its length, and white space
    one space.

    >>> cleaning().normalize_str("WIN  &lt;£1,000&gt; call 09061\\u00a0now")
    'win <£0,000> call 00000 now'
    """
    try:
        from tokenizers import Regex, normalizers
    except ImportError as error:
        raise MissingExtraError("tokenizers", extra="text", purpose="text data") from error
    entities = (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&"))
    return normalizers.Sequence(
        [
            normalizers.NFKC(),
            *(normalizers.Replace(*pair) for pair in entities),
            normalizers.Lowercase(),
            normalizers.Replace(Regex("[0-9]"), "0"),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )


def message_tokenizer(cleaned: Sequence[str], *, vocabulary: int, length: int) -> Tokenizer:
    """A tokenizer learned from `cleaned` messages that takes raw ones to `length` ids.

    >>> tokens = message_tokenizer(["win cash", "win"], vocabulary=20, length=4)
    >>> tokens.encode("WIN  cash").tokens
    ['▁win', '▁cash', '[PAD]', '[PAD]']
    """
    checks.integer("length", length, low=1)
    learned = tokenizer(cleaned, vocabulary=vocabulary)
    tokens = type(learned).from_str(learned.to_str())  # the learned one is shared in the process
    tokens.normalizer = cleaning()
    tokens.enable_truncation(length)
    tokens.enable_padding(length=length, pad_id=PAD)
    return tokens


class Messages(Sentences, Augmented):
    """Messages as rows of token ids: as they are until an epoch is set, then mistyped.

    >>> tokens = message_tokenizer(["win cash"], vocabulary=20, length=4)
    >>> Messages(["win cash"], torch.tensor([1]), tokens, length=4, dropped=0.5)[0][0].shape
    torch.Size([4])
    """

    def __init__(
        self,
        texts: Sequence[str],
        targets: Tensor,
        tokens: Tokenizer,
        *,
        length: int,
        dropped: float = 0.0,
        typos: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(texts, targets, tokens, length=length)
        self.dropped = checks.fraction("dropped", dropped)
        self.typos = checks.fraction("typos", typos, one=True)
        self._seed = seed

    def set_epoch(self, epoch: int) -> None:
        """Leave out and mistype other words of every message."""
        if self.dropped == self.typos == 0:
            return
        generator = np.random.default_rng((self._seed, epoch, 1))
        texts = [
            mistyped(text, generator, dropped=self.dropped, typos=self.typos) for text in self.texts
        ]
        self._rows = self._coded(texts, self.targets)


def _messages() -> tuple[list[str], list[int]]:
    """Messages that differ once they are cleaned, and their labels, in the file's order."""
    path = files.local_file(_FILE) or files.fetch(_URL, sha256=_SHA256)
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    cleaner = cleaning()
    found: dict[str, tuple[str, int]] = {}
    for number, line in enumerate(lines, start=1):
        text, label = _row(path, number, line)
        found.setdefault(cleaner.normalize_str(text), (text, label))
    texts, labels = zip(*found.values(), strict=True)
    return list(texts), list(labels)


def _row(path: Path, number: int, line: str) -> tuple[str, int]:
    label, _, text = line.partition("\t")
    if label not in CLASSES or not text.strip():
        raise DataError(
            f"{path}: line {number} is {line!r:.60}; it must be ham or spam, a tab and a message"
        )
    return text, CLASSES.index(label)
