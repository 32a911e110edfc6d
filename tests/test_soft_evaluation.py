"""Soft, hard and hybrid compared: the camera found directly, errors of depth, going on from a file, what is drawn."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_lavr import write_soft

from pipeline import InputError
from pipeline.camera.geometry import follow
from pipeline.evaluation import curve, figures, soft
from pipeline.evaluation.direct import found_path, path_error
from pipeline.evaluation.scenes import known_of_sample, measure_sample, move_of
from pipeline.method.lavr import distance_of
from pipeline.prior.load import load_backbone
from pipeline.world.scenes import render_sample

SIZE = (64, 96)


@pytest.fixture(scope="module")
def sample():
    return render_sample(7002, frames=3, size=SIZE, move="orbit-left")


@pytest.fixture(scope="module")
def known(sample):
    return known_of_sample(sample, measure_sample(sample))


@pytest.fixture(scope="module")
def folder(tiny_backbone_folder, tmp_path_factory):
    made = shutil.copytree(tiny_backbone_folder, tmp_path_factory.mktemp("soft") / "backbone")
    write_soft(made)
    return made


def test_the_camera_of_a_video_is_found_from_its_pixels(sample, known):
    source, target, unit = sample.source, sample.target, distance_of(known)
    of = lambda video: path_error(
        found_path(video, source.frames, source.z, source.path, target.path, unit), source.path, target.path, unit
    )
    true, own = of(target.frames), of(source.frames)
    assert true.follows and true.absolute < 0.01 and true.turn < 0.5
    assert not own.follows and own.own < 0.01 and own.asked > 0.1
    # where only half of the way was gone, neither end is taken for it
    half = target.path.world_from_cam[1]
    there = found_path(
        target.frames[1:2], source.frames[1:2], source.z[1:2],
        replace(source.path, world_from_cam=source.path.world_from_cam[1:2], K=source.path.K[1:2]),
        replace(target.path, world_from_cam=target.path.world_from_cam[2:], K=target.path.K[2:]), unit,
    )  # fmt: skip
    assert (there[0, :3, 3] - half[:3, 3]).norm() < 0.02 * unit


def test_errors_of_paths_are_those_that_were_made(sample, known):
    source, target, unit = sample.source.path, sample.target.path, distance_of(known)
    assert path_error(target.world_from_cam, source, target, unit).absolute == pytest.approx(0, abs=1e-6)
    turned = torch.eye(4).repeat(3, 1, 1)
    angle = torch.tensor([0.0, 0.1, 0.2])
    turned[:, 0, 0], turned[:, 0, 2], turned[:, 2, 0], turned[:, 2, 2] = (
        angle.cos(),
        angle.sin(),
        -angle.sin(),
        angle.cos(),
    )
    found = path_error(follow(target, turned).world_from_cam, source, target, unit)
    assert found.turn == pytest.approx(np.degrees(0.1), rel=1e-3) and found.asked == pytest.approx(0.1, rel=1e-3)
    # a scale alone is no error
    far = target.world_from_cam.clone()
    far[:, :3, 3] = source.world_from_cam[0, :3, 3] + 3 * (far[:, :3, 3] - source.world_from_cam[0, :3, 3])
    assert path_error(far, source, target, unit).absolute == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("kind", curve.KINDS)
def test_depth_errs_as_it_is_asked_and_keeps_its_unit(kind, sample, known):
    levels = [curve.wrong(kind, level, sample, known) for level in curve.KINDS[kind].levels]
    off = [curve.relative_error(one, sample) for one in levels]
    if kind == "lens":
        wide = [float(one.target.K[0, 0, 0]) for one in levels]
        assert off == [0, 0, 0] and float(known.target.K[0, 0, 0]) > wide[0] > wide[1] > wide[2]
        assert torch.equal(levels[0].source.K, levels[0].target.K)
    else:
        assert 0 < off[0] < off[1] < off[2]
        assert all(distance_of(one) == pytest.approx(distance_of(known), rel=1e-4) for one in levels)
    assert torch.equal(curve.wrong(kind, 5.0, sample, known).z, curve.wrong(kind, 5.0, sample, known).z)


def test_kinds_that_are_none_are_refused(sample, known):
    with pytest.raises(InputError, match="no kind of error"):
        curve.wrong("colour", 1.0, sample, known)


def test_parts_that_are_left_out_are_not_shown(folder, known):
    backbone = load_backbone(str(folder), device="cpu", dtype=torch.float32)
    small = replace(soft.WAYS[soft.SOFT], request=soft.WAYS[soft.SOFT].request.changed(steps=1))
    results = [
        soft.rendered(backbone, known, replace(small, **left), "a red ball")[0]
        for left in (
            {},
            {"scene": False},
            {"source_pose": False},
            {"poses": False},
            {"scene": False, "source_pose": False},
        )
    ]
    for number, one in enumerate(results):
        assert all(not torch.equal(one, other) for other in results[:number])
    # neither is what recammaster is
    alone = replace(small, request=small.request.changed(method="recammaster"))
    assert torch.equal(results[-1], soft.rendered(backbone, known, alone, "a red ball")[0])


def test_whether_the_latents_of_scenes_differ(folder, sample):
    backbone = load_backbone(str(folder), device="cpu", dtype=torch.float32)
    frames = torch.cat([sample.source.frames, sample.source.frames[:2]])  # as many as two latent frames stand for
    one = replace(sample, source=replace(sample.source, frames=frames))
    other = replace(sample, source=replace(sample.source, frames=frames.flip(-1) * 0.5))
    tokens, latents = soft.told_apart(backbone, [one, other])
    assert 0 < tokens < 1 and 0 < latents <= 1
    same, _ = soft.told_apart(backbone, [one, one])
    assert same == pytest.approx(0, abs=1e-9)


def test_an_evaluation_goes_on_where_its_file_ends(folder, tmp_path, capsys):
    output = tmp_path / "rows.jsonl"
    ask = {"frames": 5, "size": SIZE, "steps": 1, "output": output, "progress": lambda _: None}
    ways = [soft.HARD, soft.SOFT, "soft, no scene"]
    first = soft.evaluate(str(folder), 7002, 1, ways=ways, **ask)
    lines = output.read_text().splitlines()
    assert [row["method"] for row in first] == [soft.TRUTH, *ways] and len(lines) == 4
    assert all("psnr_cycle" in row for row in first[1:])
    assert soft.evaluate(str(folder), 7002, 1, ways=ways, **ask) == first
    more = soft.evaluate(str(folder), 7002, 1, ways=[*ways, soft.HYBRID], **ask)
    assert output.read_text().splitlines()[:4] == lines and more[-1]["method"] == soft.HYBRID
    told = soft.report(more)
    assert "| soft - soft, no scene |" in told and "1 scenes" in told and "| hybrid |" in told
    with pytest.raises(InputError, match="give some of"):
        soft.evaluate(str(folder), 7002, 1, ways=["magic"], **ask)


def test_the_curve_is_measured_told_and_drawn(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(curve, "KINDS", {"shift": replace(curve.KINDS["shift"], levels=(1.0,))})
    monkeypatch.setattr(curve, "MOVED", 0.0)
    output = tmp_path / "curve.jsonl"
    ask = {"frames": 5, "size": SIZE, "steps": 1, "output": output, "progress": lambda _: None}
    rows = curve.evaluate(str(folder), 7002, 2, **ask)
    assert len(rows) == 2 * (3 + 2) and curve.evaluate(str(folder), 7002, 2, **ask) == rows
    assert "2 scenes." in curve.report(rows)
    picture = tmp_path / "curve.png"
    wide = [*curve.KINDS.items(), ("lens", replace(curve.KINDS["shift"]))]
    monkeypatch.setattr(curve, "KINDS", dict(wide))
    more = [json.dumps(row | {"kind": "lens"}) for row in rows if row["kind"] == "shift"]
    output.write_text(output.read_text() + "".join(line + "\n" for line in more))
    figures.main(["curve", str(output), str(picture)])
    assert np.asarray(Image.open(picture)).shape[0] > 300


def test_where_soft_overtakes_hard_lies_between_two_levels(monkeypatch):
    monkeypatch.setattr(curve, "KINDS", {"shift": curve.Kind("", "", (1.0, 2.0))})
    row = lambda method, kind, level, value: {"seed": 0, "method": method, "kind": kind, "level": level, "psnr": value}
    rows = [row(soft.SOFT, curve.NONE, 0.0, 15.0), row(soft.HARD, curve.NONE, 0.0, 20.0)]
    rows += [row(soft.HARD, "shift", 1.0, 16.0), row(soft.HARD, "shift", 2.0, 14.0)]
    assert curve.crossing(rows, "shift", "psnr") == pytest.approx(1.5)
    ahead = [*rows[:2], row(soft.HARD, "shift", 1.0, 19.0), row(soft.HARD, "shift", 2.0, 18.0)]
    assert curve.crossing(ahead, "shift", "psnr") is None


def test_a_picture_of_each_method(folder, tmp_path):
    hard, other = tmp_path / "hard.webp", tmp_path / "soft.webp"
    figures.main(["methods", str(folder), str(hard), str(other)])
    assert Image.open(hard).width > 3 * Image.open(hard).height and Image.open(other).size == Image.open(hard).size


def test_the_moves_go_in_turn():
    assert move_of(7000) != move_of(7001)
