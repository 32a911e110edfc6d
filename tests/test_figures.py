"""The drawing of what evaluations wrote."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from pipeline.evaluation import figures
from pipeline.evaluation.scenes import DEFAULT


def test_the_tradeoff_is_drawn(tmp_path):
    rows = [
        {
            "seed": seed,
            "method": name,
            "psnr_observed": 25.0 + seed + over,
            "psnr_holes": 18.0 - seed + over,
            "sampling": 1.0,
        }
        for seed in range(3)
        for name, over in ((DEFAULT, 0.0), ("other", 0.5))
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    figures.main(["tradeoff", str(tmp_path / "rows.jsonl"), str(tmp_path / "out.png")])
    seen = np.asarray(Image.open(tmp_path / "out.png").convert("L"))
    assert seen.shape[0] > 400 and (seen < 100).any()

    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[1]) + "\n")
    with pytest.raises(SystemExit):
        figures.main(["tradeoff", str(tmp_path / "rows.jsonl"), str(tmp_path / "out.png")])
