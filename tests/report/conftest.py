import pytest

from modelzip.measure.accuracy import Accuracy, Comparison
from modelzip.measure.latency import LatencyRow
from modelzip.measure.machine import Machine
from modelzip.measure.memory import Memory
from modelzip.measure.parity import Parity, ParityRow
from modelzip.report.record import Figures, LayerRow, Record, StepRecord
from modelzip.report.requirements import Outcome


def figures(file, *, size_bytes, correct):
    return Figures(
        file=file,
        sha256="ab" * 32,
        size_bytes=size_bytes,
        parameters=1000,
        nonzero=900,
        bits=8.5,
        macs=20_000,
        uncounted=(),
        accuracy=Accuracy(top1=correct / 100, low=0.8, high=0.99, correct=correct, n=100),
        memory=Memory(load_mb=1.0, peak_mb=2.0),
    )


def latency(
    name,
    *,
    ratio,
    runtime="onnxruntime",
    precision="float32",
    low=None,
    batch_size=1,
    overall=None,
):
    overall = ratio if overall is None else overall
    return LatencyRow(
        name=name,
        runtime=runtime,
        device="cpu",
        precision=precision,
        batch_size=batch_size,
        threads=1,
        median_ms=2 * overall,
        p95_ms=3 * overall,
        ratio=ratio,
        ratio_low=ratio - 0.02 if low is None else low,
        ratio_high=ratio + 0.02,
        rounds=10,
        repeats=1,
        overall=overall,
        overall_low=overall - 0.02,
        overall_high=overall + 0.02,
    )


def parity(*, n=1000, agreement=1.0):
    return Parity(
        n=n,
        agreement=agreement,
        identical=agreement,
        max_difference=0.0,
        mean_difference=0.0,
        scale=1.0,
    )


def answers(*, agreement=1.0, precision="float32", n=1000, name="compressed"):
    return ParityRow(
        **vars(parity(n=n, agreement=agreement)),
        name=name,
        runtime="openvino",
        device="cpu",
        precision=precision,
        accuracy=Accuracy(top1=0.95, low=0.94, high=0.96, correct=95, n=100),
    )


def comparison(*, drop=1.0):
    return Comparison(
        n=100,
        agreement=0.98,
        kl=0.01,
        drop=drop,
        drop_low=-1.0,
        drop_high=2.0,
        only_baseline=2,
        only_compressed=1,
        p_value=1.0,
    )


@pytest.fixture
def record():
    return Record(
        name="digits",
        passed=False,
        notes=("size: 0.3x, required at most 0.2x",),
        seed=7,
        seconds=12.5,
        machine=Machine(
            cpu="a processor",
            isa=("avx2",),
            cores=2,
            usable_cores=2,
            memory_gb=8.0,
            system="Linux",
            python="3.11.7",
            gpu=(),
            threads=2,
            packages={"torch": "2.13.0"},
        ),
        steps=(StepRecord(name="int8", settings={"mode": "auto"}, seconds=1.5, accuracy=0.97),),
        baseline=figures("baseline.onnx", size_bytes=4000, correct=97),
        compressed=figures("model.onnx", size_bytes=1200, correct=96),
        comparison=comparison(),
        parity=parity(),
        latency=(latency("baseline", ratio=1.0), latency("compressed", ratio=0.5)),
        answers=(answers(agreement=0.999),),
        missing=("onnxruntime on cuda: none here",),
        promise="integer sums are the module's on x86",
        layers=(
            LayerRow(
                name="conv",
                kind="Conv2d",
                parameters_before=1000,
                parameters_after=500,
                nonzero=400,
                bits=8.0,
                note="",
            ),
        ),
        protected={"prune_channels": {"fc": "it makes the outputs"}},
        requirements=(
            Outcome(name="size", required="at most 0.2x", measured="0.3x", met=False),
            Outcome(name="accuracy", required="at least 90 %", measured="96 %", met=True),
        ),
        hashes={"model.onnx": "cd" * 32},
    )
