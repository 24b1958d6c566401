import math

import pytest

from modelzip.train.progress import bar


@pytest.mark.parametrize("labelled", [True, False])
def test_the_accuracy_is_shown_where_there_are_labels(labelled, capsys):
    with bar(total=2, epochs=1, shown=True, labelled=labelled) as tell:
        tell(step=1, epoch=1, loss=0.5, accuracy=0.9 if labelled else math.nan)
    shown = capsys.readouterr().err
    assert "loss 0.5000" in shown
    assert ("accuracy" in shown) is labelled
