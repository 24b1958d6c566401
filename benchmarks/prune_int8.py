"""ResNet-20 on CIFAR-10 pruned, fine-tuned and in int8, beside dense float and dense int8.

    python benchmarks/prune_int8.py [--runs FOLDER]

Carries out recipes/resnet20_int8.yaml and recipes/resnet20_prune_int8.yaml into FOLDER (about ten
minutes on two cores; a run that is there already is used), then times the three files together.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from tabulate import tabulate

from modelzip.measure.latency import latency_table
from modelzip.measure.machine import describe
from modelzip.recipe import loader
from modelzip.report.record import Figures, Record, read
from modelzip.run import run

RECIPES = Path(__file__).parent.parent / "recipes"
BATCHES = (1, 32)


def carried_out(name: str, runs: Path) -> Record:
    """The record of a recipe's run in `runs`, carried out now if it is not there."""
    out = runs / name
    return read(out) if out.is_dir() else run(loader.load(RECIPES / f"{name}.yaml"), out=out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    runs = parser.parse_args().runs
    dense, pruned = (carried_out(n, runs) for n in ("resnet20_int8", "resnet20_prune_int8"))
    models: dict[str, tuple[Figures, Path]] = {
        "dense float": (dense.baseline, runs / "resnet20_int8/baseline.onnx"),
        "dense int8": (dense.compressed, runs / "resnet20_int8/model.onnx"),
        "pruned int8": (pruned.compressed, runs / "resnet20_prune_int8/model.onnx"),
    }
    image = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    timed = latency_table(
        {label: path for label, (_, path) in models.items()},
        image,
        batch_sizes=BATCHES,
        rounds=60,
        budget_s=20,
    )
    rows = []
    for label, (figures, _) in models.items():
        speeds = [
            f"{r.speedup:.2f}x [{1 / r.ratio_high:.2f}, {1 / r.ratio_low:.2f}]"
            for size in BATCHES
            for r in timed
            if r.name == label and r.batch_size == size
        ]
        top1 = figures.accuracy
        rows.append(
            [
                label,
                f"{top1.top1:.2%} [{top1.low:.2%}, {top1.high:.2%}]",
                f"{figures.macs / dense.baseline.macs:.3f}x",
                f"{figures.size_bytes / 1000:.0f}",
                *speeds,
            ]
        )
    machine = describe()
    print(f"{machine.cpu}, {machine.cores} cores, {' '.join(machine.isa)}, 1 thread, n = 10,000")
    print(f"the pruned run took {pruned.seconds / 60:.1f} minutes\n")
    headers = ["ResNet-20", "top-1 [95 %]", "MACs", "KB", "b1", "b32"]
    print(tabulate(rows, headers=headers, tablefmt="github"))


if __name__ == "__main__":
    main()
