"""ResNet-20 on CIFAR-10, float and int8, on images that are not clean; with and without training.

    python benchmarks/robustness.py [--samples 1000] [--attacked 200] [--attacks-alone] [--train]

Both files run in onnxruntime on test images, and with `--train` so do those of the same model
fine-tuned for 16 epochs on images of which 55 % are JPEG, which takes half an hour more.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate
from torch import nn

import modelzip as mz
from modelzip.core import surgery
from modelzip.data import Splits, calibration_batches
from modelzip.measure.conditions import Robustness
from modelzip.measure.machine import describe
from modelzip.measure.robustness import RobustnessRow, Served, measure_robustness
from modelzip.recipe import loader, sources
from modelzip.report.robustness import ROBUSTNESS, robustness_rows
from modelzip.train.finetune import finetune

RECIPE = Path(__file__).parent.parent / "recipes" / "resnet20_int8.yaml"
TRAINING = mz.FineTune(
    epochs=16, lr=0.03, warmup=0.2, keep="last", augment={"jpeg": (40, 95)}, augment_share=0.55
)


def settings(samples: int, attacked: int) -> Robustness:
    return Robustness(
        samples=samples,
        attack_samples=attacked,
        jpeg=(95, 75, 50),
        webp=(90, 75),
        bits=(5, 4, 3),
        gaussian=(0.02, 0.05),
        impulse=(0.01, 0.05),
        blur=(0.5, 1.0),
        brightness=(-0.2, 0.2),
        fgsm=(1 / 255, 2 / 255),
        pgd=(1 / 255, 2 / 255),
        bit_flips=(1e-6, 1e-5, 1e-4),
        draws=3,
    )


def attacks_alone(samples: int) -> Robustness:
    return Robustness(
        samples=samples, attack_samples=samples, fgsm=(1 / 255, 2 / 255), pgd=(1 / 255, 2 / 255)
    )


def measured(
    model: nn.Module, data: Splits, how: Robustness, folder: Path
) -> Sequence[RobustnessRow]:
    """Rows for `model` and what `int8` makes of it."""
    batches = calibration_batches(data)
    example = (batches[0][0][:8],)
    small = mz.prepare(model, [mz.Int8()], example_inputs=example[0], calibration=batches).convert()
    served = []
    for name, module in (("float", model), ("int8", small)):
        served.append(Served(module, mz.export_onnx(module, example, folder / f"{name}.onnx")))
    return measure_robustness(how, *served, data.test, classes=data.classes, failed=print)


def trained_for_jpeg(model: nn.Module, data: Splits) -> nn.Module:
    prepared = mz.Prepared(surgery.clone(model))
    report = finetune(prepared, data, TRAINING, batch_size=128)
    print(f"fine-tuned in {report.seconds / 60:.1f} minutes\n")
    return prepared.model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--attacked", type=int, default=200)
    parser.add_argument("--attacks-alone", action="store_true")
    parser.add_argument("--train", action="store_true")
    given = parser.parse_args()
    how = settings(given.samples, given.attacked)
    if given.attacks_alone:
        how = attacks_alone(given.attacked)
    recipe = loader.load(RECIPE)
    data, model = sources.build_data(recipe), sources.build_model(recipe).eval()
    machine = describe()
    print(f"{machine.cpu}, {' '.join(machine.isa)}\n")
    models = {"as it came": lambda: model}
    if given.train:
        models["trained with JPEG images"] = lambda: trained_for_jpeg(model, data)
    for label, make in models.items():
        with tempfile.TemporaryDirectory() as folder:
            rows = measured(make(), data, how, Path(folder))
        print(f"ResNet-20 {label}; original is float, compressed is int8\n")
        print(tabulate(robustness_rows(rows), headers=ROBUSTNESS, tablefmt="github"), "\n")


if __name__ == "__main__":
    main()
