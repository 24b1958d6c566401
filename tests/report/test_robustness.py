import dataclasses

from modelzip.measure.accuracy import Accuracy
from modelzip.measure.robustness import Reliability, RobustnessRow
from modelzip.report.record import Record, decode
from modelzip.report.render import markdown, terminal
from modelzip.report.robustness import robustness_rows


def reliability(top1):
    found = Accuracy(top1=top1, low=0.0, high=1.0, correct=round(200 * top1), n=200)
    return Reliability(accuracy=found, ece=0.0312, by_class=(top1, None))


ROW = RobustnessRow(
    condition="pgd_transfer",
    level=2 / 255,
    n=200,
    baseline=reliability(0.5),
    compressed=reliability(0.455),
    flip_rate=0.07,
    worst_class=3,
    worst_change=-12.5,
)


def test_cells_are_readable():
    assert robustness_rows([ROW]) == [
        [
            "pgd transfer 2/255",
            200,
            "50.00 %",
            "45.50 %",
            "-4.50 pp",
            "7.00 %",
            "3: -12.5 pp",
            "0.031",
            "0.031",
        ]
    ]


def test_the_report_has_the_table_where_there_is_one(record):
    assert "Robustness" not in markdown(record)
    shifted = dataclasses.replace(record, robustness=(ROW,))
    assert "## Robustness" in markdown(shifted)
    assert "pgd transfer 2/255" in terminal(shifted)
    assert decode(Record, dataclasses.asdict(shifted)) == shifted
