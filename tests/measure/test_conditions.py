import pytest

from modelzip.errors import SettingError
from modelzip.measure.conditions import Condition, Robustness


def test_every_level_is_a_condition():
    found = Robustness(
        jpeg=[90, 50], blur=[0.5], dropped_words=[0.1], pgd=["2/255", 0.1], bit_flips=[1e-5]
    )
    assert [str(c) for c in found.conditions()] == [
        "jpeg 90",
        "jpeg 50",
        "blur 0.5",
        "dropped words 0.1",
        "pgd 2/255",
        "pgd 0.1",
        "bit flips 1e-05",
    ]
    assert found.pgd == (2 / 255, 0.1)
    assert str(Condition(kind="clean")) == "clean"
    assert Robustness(**vars(found)) == found


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"robustness names no condition; give one, such as jpeg: \[75, 50\]"),
        ({"jpeg": 75}, "jpeg must be a list of levels, got 75"),
        ({"jpeg": [0]}, "jpeg: quality must be an integer from 1 to 100, got 0"),
        ({"truncated": [0]}, "truncated: words that are left must be an integer from 1 to 10000"),
        ({"pgd": ["2/0"]}, "pgd must be a change such as 2/255, got '2/0'"),
        ({"fgsm": ["a bit"]}, "fgsm must be a change such as 2/255, got 'a bit'"),
        ({"fgsm": [8]}, r"fgsm must be a fraction in \(0, 1\), got 8"),
        ({"bit_flips": [0]}, r"bit_flips must be a fraction in \(0, 1\), got 0"),
        ({"jpeg": [75], "draws": 3}, "draws is 3, and there is no bit_flips that it is of; leave"),
        ({"fgsm": [0.1], "pgd_steps": 5}, "pgd_steps is 5, and there is no pgd that it is of"),
        ({"jpeg": [75], "attack_samples": 9}, "attack_samples is 9, and there is no fgsm or pgd"),
        ({"jpeg": [75], "draws": 0}, "draws must be an integer of at least 1, got 0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(SettingError, match=message):
        Robustness(**settings)
