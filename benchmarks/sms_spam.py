"""SMS Spam Collection: settings tried one by one, and the recipe beside TF-IDF and a linear SVM.

    python benchmarks/sms_spam.py grid       half an hour on one core
    python benchmarks/sms_spam.py final      two minutes

grid: recipes/sms_spam.yaml's model trained as it says, and with one setting changed at a time,
in PyTorch: accuracy and F1 of spam on the validation slices of three seeds together, as written
and with a tenth of the words left out and a tenth mistyped. One setting at a time, and no search
beyond it, since 1,542 messages tell settings less than half a point apart from chance only.
final: the recipe's files on the held-out fifth, in onnxruntime, beside a linear SVM on TF-IDF of
words and pairs of words, of scikit-learn, trained on the same messages as they are and as they are
cleaned here. Needs modelzip[text,demo] and the messages: see docs/text.md.
"""

from __future__ import annotations

import argparse
import pickle
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC
from tabulate import tabulate

from modelzip.core.prepare import Prepared
from modelzip.data import Splits, sms_spam
from modelzip.data.sms import CLASSES, Messages, cleaning
from modelzip.data.text import Sentences
from modelzip.data.typos import mistyped
from modelzip.measure.accuracy import Accuracy, Predictions, accuracy
from modelzip.measure.classes import class_scores, f1
from modelzip.recipe import loader
from modelzip.run import run
from modelzip.train.finetune import FineTune, finetune
from modelzip.zoo import text_cnn

RECIPE = Path(__file__).parent.parent / "recipes/sms_spam.yaml"
SEEDS = (0, 1, 2)
NOISE = {"dropped": 0.1, "typos": 0.1}
# what is changed, of the data, the model and the training
GRID: Mapping[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "as in the recipe": ({}, {}, {}),
    "vocabulary 1000": ({"vocabulary": 1000}, {"vocabulary": 1000}, {}),
    "vocabulary 4000": ({"vocabulary": 4000}, {"vocabulary": 4000}, {}),
    "no typing errors": ({"dropped": 0.0, "typos": 0.0}, {}, {}),
    "twice the typing errors": ({"dropped": 0.2, "typos": 0.2}, {}, {}),
    "32 channels": ({}, {"channels": 32}, {}),
    "kernels of 3 alone": ({}, {"kernels": [3], "channels": 192}, {}),
    "6 epochs": ({}, {}, {"epochs": 6}),
    "learning rate 0.001": ({}, {}, {"lr": 0.001}),
    "learning rate 0.004": ({}, {}, {"lr": 0.004}),
}


def scores(found: Iterable[Predictions]) -> tuple[Accuracy, float]:
    """Accuracy and F1 of spam of all predictions together."""
    each = list(found)
    whole = Predictions(
        outputs=np.concatenate([p.outputs for p in each]),
        labels=np.concatenate([p.labels for p in each]),
    )
    return accuracy(whole), f1(class_scores(whole, CLASSES)) or 0.0


def predicted(model: torch.nn.Module, messages: Sentences) -> Predictions:
    inputs, targets = messages.__getitems__(range(len(messages)))
    with torch.no_grad():
        return Predictions(outputs=model(inputs).numpy(), labels=targets.numpy())


def noisy(messages: Messages) -> Sentences:
    """The same messages with typing errors."""
    generator = np.random.default_rng(0)
    texts = [mistyped(text, generator, **NOISE) for text in messages.texts]
    return messages.rewritten(range(len(texts)), texts)


def grid() -> None:
    recipe = loader.load(RECIPE)
    assert isinstance(recipe.model.train, FineTune)
    rows = []
    for name, (data, net, training) in GRID.items():
        plain, noised = [], []
        for seed in SEEDS:
            splits = sms_spam(seed=seed, **data)
            torch.manual_seed(seed)
            prepared = Prepared(
                text_cnn(**net), example_inputs=(splits.test[0][0][None],), seed=seed
            )
            finetune(
                prepared,
                splits,
                replace(recipe.model.train, **training),
                batch_size=recipe.data.batch_size,
                seed=seed,
                progress=False,
            )
            plain.append(predicted(prepared.model.eval(), splits.validation))
            noised.append(predicted(prepared.model.eval(), noisy(splits.validation)))
        count = sum(p.numel() for p in prepared.model.parameters())
        row = [name, count, *(text for found in (plain, noised) for text in shown(*scores(found)))]
        print(*row, flush=True)
        rows.append(row)
    headers = ["setting", "parameters", "accuracy", "F1", "mistyped: accuracy", "F1"]
    print(tabulate(rows, headers, tablefmt="github"))


def shown(found: Accuracy, score: float) -> list[str]:
    interval = f"[{100 * found.low:.2f}%, {100 * found.high:.2f}%]"
    return [f"{100 * found.top1:.2f}% {interval}", f"{100 * score:.2f}%"]


def peer(splits: Splits, *, cleaned: bool) -> list[str]:
    """TF-IDF and a linear SVM on the same messages; its bytes are those of its pickle."""
    train, test = splits.train, splits.test
    assert isinstance(train, Messages)
    assert isinstance(test, Messages)
    clean = cleaning().normalize_str if cleaned else str
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LinearSVC())
    model.fit([clean(t) for t in train.texts], [label for _, label in train])
    given = model.predict([clean(t) for t in test.texts])
    labels = np.array([label for _, label in test])
    found = Predictions(outputs=np.eye(2, dtype=np.float32)[given], labels=labels)
    name = f"TF-IDF and linear SVM, {'cleaned here' if cleaned else 'as written'}"
    return [name, f"{len(pickle.dumps(model)) / 1000:.0f}", *shown(*scores([found]))]


def final() -> None:
    recipe = loader.load(RECIPE)
    with tempfile.TemporaryDirectory() as scratch:
        record = run(recipe, out=Path(scratch) / "sms_spam", progress=False)
    rows = [
        [
            f"{RECIPE.name}, {name}",
            f"{figures.size_bytes / 1000:.0f}",
            *shown(figures.accuracy, f1(figures.classes) or 0.0),
        ]
        for name, figures in (("float", record.baseline), ("compressed", record.compressed))
    ]
    rows += [peer(sms_spam(seed=recipe.seed), cleaned=cleaned) for cleaned in (False, True)]
    print(tabulate(rows, ["model", "KB", "accuracy", "F1"], tablefmt="github"))
    print(f"{record.compressed.accuracy.n} messages; {record.machine.cpu}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("what", choices=("grid", "final"))
    {"grid": grid, "final": final}[parser.parse_args().what]()
