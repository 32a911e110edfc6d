"""The comparison of methods: their names, the pairing of its table, going on from a file."""

from __future__ import annotations

import json
from typing import Any

import pytest
from scipy.stats import t

from pipeline import InputError
from pipeline.evaluation import scenes as world
from pipeline.evaluation.scenes import BASE, DEFAULT, TELEA, UNGUIDED, evaluate, method_of, table


def test_methods_in_words():
    request = method_of("repaint, binary,iterations=3,tau=0.5,condition=first-frame")
    assert (request.guidance.solver, request.guidance.latent_mask, request.guidance.iterations) == (
        "repaint",
        "binary",
        3,
    )
    assert (request.guidance.tau, request.guidance.condition, request.guidance.gamma) == (
        0.5,
        "first-frame",
        BASE.guidance.gamma,
    )
    assert method_of("solver=none") == method_of("none") and method_of("latent_mask=pooled") == method_of("pooled")


@pytest.mark.parametrize("text", ["magic", "", "dds,magic", "seed=3", "gamma=-1", "iterations=many", "solver=magic"])
def test_methods_that_are_none_are_refused(text):
    with pytest.raises(InputError):
        method_of(text)


def row(seed, method, holes, observed, seconds=2.0):
    spent = {} if method == TELEA else {"sampling": seconds / 2, "seconds": seconds}
    figures = dict(psnr_holes=holes, psnr_observed=observed, psnr_whole=20.0, ssim_whole=0.1 * seed)
    return dict(seed=seed, method=method, unknown=0.1) | figures | spent


def test_the_table_compares_scene_by_scene():
    rows = [row(1, TELEA, 10, 60), row(1, UNGUIDED, 12, 20), row(1, DEFAULT, 13, 25, 3), row(1, "other", 14, 24, 4)]
    rows += [row(2, TELEA, 20, 60), row(2, UNGUIDED, 21, 30), row(2, DEFAULT, 24, 36, 3), row(2, "other", 24, 34, 4)]
    main, more, _ = table(rows).split("\n\n")
    cells = {line.split(" | ")[0].strip("| "): line.strip("|\n ").split(" | ") for line in main.splitlines()}
    half = t.ppf(0.975, 1) * 0.5  # of two scenes that differ by 1
    assert cells["other"][1:6] == ["2", "19.00", "+4.00 ± 0.00", f"+0.50 ± {half:.2f}", "29.00"]
    assert cells["other"][6:] == [f"-1.50 ± {half:.2f}", "20.00", "2.000 ± 0.000", "2.000 ± 0.000"]
    assert cells[DEFAULT][8] == "1.500 ± 0.000" and cells[UNGUIDED][8:] == ["1", "1"]
    assert cells[DEFAULT][4].strip() == ""  # of itself
    assert "| other | 2 | 0.150 ± 0.635 |" in more
    # a method that was measured on one of the scenes is compared on that one, without an error
    assert "| late | 1 | 14.00 | +4.00 | +1.00 |" in table([*rows, row(1, "late", 14, 24)])


def test_an_evaluation_goes_on_where_its_file_ends(tiny_backbone_folder, tmp_path, monkeypatch):
    small = world.render_sample
    monkeypatch.setattr(world, "render_sample", lambda seed, move: small(seed, frames=5, size=(32, 48), move=move))
    output, done = tmp_path / "rows.jsonl", []
    recapture = world.recapture_sample
    monkeypatch.setattr(
        world, "recapture_sample", lambda *given: done.append(given[-1].guidance.solver) or recapture(*given)
    )
    ask: dict[str, Any] = dict(output=output, steps=2, progress=lambda _: None)

    first = evaluate(str(tiny_backbone_folder), 0, 1, methods=["replacement,binary"], **ask)
    assert done == ["none", "dds", "dds", "replacement"] and "| replacement,binary |" in first
    lines = output.read_text().splitlines()
    assert len(lines) == 7 and all(json.loads(line)["steps"] == 2 for line in lines)
    assert evaluate(str(tiny_backbone_folder), 0, 1, methods=["replacement,binary"], **ask) == first
    assert len(done) == 4 and output.read_text().splitlines() == lines

    more = evaluate(str(tiny_backbone_folder), 0, 2, methods=["repaint,iterations=2"], **ask)
    assert done[4:] == ["repaint", "none", "dds", "dds", "repaint"] and "2 unseen scenes" in more
    assert output.read_text().splitlines()[:7] == lines and "replacement" not in more
    # rows of other steps do not count
    evaluate(str(tiny_backbone_folder), 0, 1, methods=[], **{**ask, "steps": 1})
    assert done[9:] == ["none", "dds", "dds"]

    output.write_text("no table\n")
    with pytest.raises(InputError, match="Cannot go on"):
        evaluate(str(tiny_backbone_folder), 0, 1, methods=[], **ask)
