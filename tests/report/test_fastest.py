from modelzip.report.fastest import fastest, lines
from tests.report.conftest import answers, latency

ROWS = (
    latency("baseline", ratio=1.0),
    latency("compressed", ratio=0.5),
    latency("baseline", ratio=1.0, overall=0.6, runtime="openvino", precision="bfloat16"),
    latency("compressed", ratio=0.5, overall=0.3, runtime="openvino", precision="bfloat16"),
    latency("baseline", ratio=1.0, batch_size=32),
    latency("compressed", ratio=0.4, batch_size=32),
)


def test_the_fastest_is_found_for_each_batch_size():
    small, large = fastest(ROWS)
    assert (small.reference, small.original, small.compressed) == (ROWS[0], ROWS[2], ROWS[3])
    assert (large.reference, large.original, large.compressed) == (ROWS[4], ROWS[4], ROWS[5])


def test_one_model_alone_has_no_fastest():
    assert fastest(ROWS[:1]) == ()


def test_the_original_is_faster_only_beyond_the_intervals():
    (close,) = fastest([latency("baseline", ratio=1.0), latency("compressed", ratio=1.03)])
    assert not close.is_original
    (clear,) = fastest([latency("baseline", ratio=1.0), latency("compressed", ratio=1.05)])
    assert clear.is_original


def test_a_line_says_where_by_how_much_and_with_which_answers():
    served = [answers(agreement=0.5), answers(agreement=0.999, precision="bfloat16")]
    assert lines(ROWS, served) == [
        "fastest at batch 1 on cpu, 1 thread: the compressed model in openvino bfloat16, 0.30x "
        "(0.28 to 0.32) the time of the original in onnxruntime (accuracy 95.00 %, same answer "
        "as its module on 99.90 % of 1000 samples); the original in openvino bfloat16, "
        "0.60x (0.58 to 0.62)",
        "fastest at batch 32 on cpu, 1 thread: the compressed model in onnxruntime, 0.40x "
        "(0.38 to 0.42) the time of the original in onnxruntime; the original in onnxruntime, "
        "1.00x (0.98 to 1.02)",
    ]
