from dataclasses import replace

from modelzip.report.render import comparison, markdown, terminal, verdict


def test_the_first_line_says_pass_or_fail(record):
    assert terminal(record).startswith("FAIL: digits, 1 of 2 requirements met\n! size: 0.3x")
    assert markdown(record).startswith("# FAIL: digits, 1 of 2 requirements met\n")
    assert verdict(replace(record, passed=True, notes=()))[0].startswith("PASS: digits")


def test_the_first_lines_name_the_fastest(record):
    line = terminal(record).splitlines()[2]
    assert line.startswith("fastest at batch 1 on cpu, 1 thread: the compressed model in onnxrun")
    assert "- fastest at batch 1 on cpu" in markdown(record).split("## ")[0]


def test_answers_and_the_promise_are_said(record):
    text = terminal(record)
    assert (
        "answers of the compressed model in openvino float32: accuracy 95.00 % (94.00 to 96.00); "
        "against its module on 1000 samples: same answer on 99.90 %, 99.90 % bit-identical, "
        "largest difference 0"
    ) in text
    assert "\ninteger sums are the module's on x86\n" in text
    assert "\n\n\n" not in terminal(replace(record, promise="", answers=()))
    assert "\n80 % zero\n" in terminal(replace(record, zeros="80 % zero"))


def test_the_fastest_rows_are_marked(record):
    rows = [line for line in markdown(record).splitlines() if "batch 1 on cpu, 1 thread |" in line]
    assert [line.split("|")[1].strip() for line in rows if "fastest" in line] == [
        "baseline",
        "compressed",
    ]


def test_the_table_has_both_models_and_their_ratio(record):
    table = terminal(record).split("\n\n")[1].splitlines()[2:]
    rows = [line.split() for line in table]
    assert rows[0] == ["accuracy", "97.00", "%", "96.00", "%", "-1.00", "pp"]
    assert rows[1] == ["file", "4.0", "KB", "1.2", "KB", "0.300x"]
    assert rows[-1][-8:] == ["2.000", "ms", "1.000", "ms", "0.50x", "(0.48", "to", "0.52)"]


def test_the_page_has_every_section(record):
    page = markdown(record)
    for title in ("Requirements", "Steps", "Latency", "Layers", "Left as they were", "Files"):
        assert f"\n## {title}\n" in page
    assert "- not measured: onnxruntime on cuda: none here" in page
    assert "| conv    | Conv2d | 1000         | 500     | 400" in page


def test_a_section_without_rows_is_left_out(record):
    page = markdown(replace(record, protected={}, requirements=(), missing=()))
    assert "Left as they were" not in page
    assert "Requirements" not in page
    assert "\n\n\n" not in page


def test_a_file_whose_memory_is_unknown_has_no_row_for_it(record):
    assert "peak memory" in terminal(record)
    assert "peak memory" not in terminal(
        replace(record, baseline=replace(record.baseline, memory=None))
    )


def test_runs_stand_side_by_side(record):
    lines = comparison([("runs/a", record), ("runs/b", replace(record, passed=True))]).splitlines()
    assert lines[2].split()[:2] == ["runs/a", "FAIL"]
    assert lines[3].split()[:2] == ["runs/b", "pass"]
    assert "0.50x (b1, t1, cpu)" in lines[2]
