import pytest

from modelzip.data.absent import evaluation_only
from modelzip.data.checking import calibration_batches, check
from modelzip.errors import DataError

PAIRS = [([0.0], 0), ([1.0], 1)]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_data_that_are_not_there_cannot_be_read(split):
    data = getattr(evaluation_only(PAIRS, classes=2), split)
    with pytest.raises(DataError, match=r"there are no (training|validation) data here"):
        len(data)
    with pytest.raises(DataError, match=r"set calibration: synthetic, and data: generator"):
        data[0]


def test_whoever_reads_them_says_so():
    splits = evaluation_only(PAIRS, classes=2, names=["no", "yes"])
    assert splits.test is PAIRS
    for read in (check, calibration_batches):
        with pytest.raises(DataError, match="there are no training data here"):
            read(splits)
