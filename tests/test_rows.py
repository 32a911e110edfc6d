"""The file that an evaluation goes on from, and the tables of its rows."""

from __future__ import annotations

import math

import pytest

from pipeline import InputError
from pipeline.evaluation import rows

TITLES = {"psnr": "PSNR, dB"}


def test_rows_come_back_of_the_same_run_alone(tmp_path):
    output = tmp_path / "rows.jsonl"
    assert rows.kept(output, {}) == rows.kept(None, {}) == []
    rows.append(None, {"clip": "nowhere"})
    for number in range(3):
        rows.append(output, {"clip": number, "steps": number % 2, "psnr": math.inf})
    assert [row["clip"] for row in rows.kept(output, {"steps": 0})] == [0, 2]
    assert rows.kept(output, {"steps": 0})[0]["psnr"] == math.inf


@pytest.mark.parametrize("half", ['{"clip": 1, "psn', '{"clip": 1}', '{"clip": "\u00e9'])
def test_a_half_written_last_line_is_written_again(tmp_path, half):
    output = tmp_path / "rows.jsonl"
    rows.append(output, {"clip": 0})
    with output.open("ab") as file:
        file.write(half.encode()[: len(half.encode()) - (not half.isascii())])  # in the middle of a letter
    assert rows.kept(output, {}) == [{"clip": 0}]
    rows.append(output, {"clip": 2})
    assert rows.kept(output, {}) == [{"clip": 0}, {"clip": 2}] and output.read_text().count("\n") == 2
    output.write_text(half, encoding="utf-8")  # of a run that was killed at its first row
    rows.append(output, {"clip": 3})
    assert rows.kept(output, {}) == [{"clip": 3}]


def test_a_file_of_something_else_is_refused(tmp_path):
    output = tmp_path / "rows.jsonl"
    for content in ("no table\n", "[1]\n", '{"half\n{"clip": 1}\n', "\udcff\n"):
        output.write_bytes(content.encode("utf-8", "surrogateescape"))
        with pytest.raises(InputError, match="Cannot go on from"):
            rows.kept(output, {})
    with pytest.raises(InputError, match="Cannot write to"):
        rows.append(tmp_path, {})


def test_intervals_are_students():
    middle, half = rows.interval([1.0, 2.0, 3.0])
    assert middle == 2 and half == pytest.approx(4.302653 / math.sqrt(3))
    assert math.isnan(rows.interval([1.0])[1])


def test_a_summary_averages_the_rows_of_a_clip_first():
    given = [
        {"clip": "a", "method": "x", "psnr": 10.0, "note": "n"},
        {"clip": "a", "method": "x", "psnr": 14.0},
        {"clip": "b", "method": "x", "psnr": 20.0, "more": 0.5},
        {"clip": "a", "method": "y", "psnr": math.inf},
    ]
    assert rows.columns_of(given) == ["psnr", "more"]
    lines = rows.summary(given, ["method"], ["psnr", "more"], TITLES).splitlines()
    assert lines[0] == "| method | clips | PSNR, dB | more |"
    assert lines[2] == "| x | 2 | 16.00 ± 50.82 | 0.500 |"  # 12 and 20: t of one degree of freedom, 12.706 * 4
    assert lines[3] == "| y | 1 | exact |  |"


def test_a_table_has_a_line_a_row():
    given = [{"clip": "a|b\nc", "psnr": 1234.5}, {"clip": "d", "psnr": None}]
    assert rows.table(given, ["clip"], ["psnr"], TITLES).splitlines()[2:] == ["| a/b c | 1234 |", "| d |  |"]


def test_a_figure_of_a_whole_group_has_a_column_if_any_group_has_it():
    given = [{"method": name, "clip": i, "psnr": 1.0 * i} for name in "ab" for i in range(3)]
    sets = {
        "sum": lambda members: sum(row["psnr"] for row in members) if members[0]["method"] == "b" else None,
        "none": lambda members: None,
    }
    head, _, first, second = rows.summary(given, ["method"], ["psnr"], TITLES, sets=sets).splitlines()
    assert head == "| method | clips | PSNR, dB | sum |"
    assert first.endswith("| |".replace(" ", "  ")) and second.endswith("| 3.000 |")
