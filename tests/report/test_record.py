import json

import pytest

from modelzip.core.base import LayerReport, PassReport
from modelzip.errors import OutputError, SettingError
from modelzip.report.record import SCHEMA, Record, decode, merge_layers, read, write


def test_a_record_reads_back_from_its_json(record, tmp_path):
    (tmp_path / "report.json").write_text(record.to_json())
    assert read(tmp_path) == record
    assert read(tmp_path / "report.json") == record


def test_the_schema_has_a_version(record):
    assert json.loads(record.to_json())["schema"] == SCHEMA == 3


def test_a_folder_without_a_report_is_refused(tmp_path):
    with pytest.raises(SettingError, match=r"there is no .*report\.json; give the folder"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a readable report"),
        ("[]", "has schema None; this modelzip reads 3"),
        ('{"schema": 99}', "has schema 99"),
        ('{"schema": 3}', "is damaged"),
        ('{"schema": 3, "nmae": 2}', "is damaged: Record has no field 'nmae'"),
        ('{"schema": 3, "name": 2}', "is damaged: 2 is not of type str"),
    ],
)
def test_a_damaged_report_is_refused(tmp_path, text, message):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(SettingError, match=message):
        read(tmp_path)


def test_a_list_is_no_record():
    with pytest.raises(ValueError, match="has no field"):
        decode(Record, ["a"])


def test_a_file_that_cannot_be_written_is_refused_whole(tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        write(tmp_path / "missing" / "report.md", "text")
    assert list(tmp_path.iterdir()) == []


def test_layers_are_as_the_first_pass_found_and_the_last_left_them():
    def report(name, before, after, nonzero, bits, note):
        layer = LayerReport(
            name="conv",
            kind="Conv2d",
            parameters_before=before,
            parameters_after=after,
            nonzero=nonzero,
            bits=bits,
            note=note,
        )
        return PassReport(name=name, settings={}, layers=(layer,))

    reports = [
        report("prune_channels", 100, 60, 60, 32.0, "10 of 16"),
        report("int8", 60, 60, 55, 8.0, ""),
    ]
    (row,) = merge_layers(reports)
    assert (row.parameters_before, row.parameters_after, row.nonzero) == (100, 60, 55)
    assert (row.bits, row.note) == (8.0, "10 of 16")
