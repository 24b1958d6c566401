from pathlib import Path

from modelzip.measure.layer_size import layer_sizes


def test_each_layer_has_what_its_tensors_take(float_file: Path, int8_file: Path) -> None:
    before, after = layer_sizes(float_file), layer_sizes(int8_file)
    assert list(before) == list(after) == ["conv", "fc"]
    assert before["conv"].parameters == after["conv"].parameters == 4 * 2 * 9 + 4
    assert before["conv"].size_bytes == 4 * 76
    assert after["conv"].size_bytes == 72 + 4 * 4  # an int8 weight and an int32 bias
    assert before["fc"] == after["fc"]
