"""Files as people have them: the command behind the table in docs/results.md."""

import json
import sys

import pytest

from pipeline.evaluation import inputs


@pytest.mark.slow
def test_each_is_read_as_meant_or_refused_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["inputs", "--output", str(tmp_path / "rows.jsonl")])
    assert inputs.main() == 0, capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) >= 200
    assert {row["outcome"] for row in rows} == {"right", "refused"}
