"""Holes of real film with a truth: which pixels count as lost, what is measured of them, and the table."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from synthetic import write_clip

from pipeline import InputError
from pipeline.camera.geometry import CameraPath, default_intrinsics, static_path
from pipeline.depth.network import DepthNet
from pipeline.evaluation import real
from pipeline.known.measurement import Measurement


def scene(frames: int = 3, height: int = 48, width: int = 64):
    """Noise with a near square before a far wall, and the camera that filmed it."""
    video = torch.rand(frames, 3, height, width, generator=torch.Generator().manual_seed(0))
    z = torch.full((frames, height, width), 8.0)
    z[:, 16:32, 24:40] = 2.0
    return video, z, static_path(default_intrinsics(height, width, frames, 55.0))


def moved(path: CameraPath, right: float) -> CameraPath:
    poses = path.world_from_cam.clone()
    poses[:, 0, 3] += right
    return CameraPath(poses, path.K)


def test_nothing_is_lost_along_a_path_that_stands_still():
    video, z, source = scene()
    known = real.there_and_back(video, z, source, source)
    assert known.mask.all() and torch.equal(known.video, video)


def test_what_a_near_thing_hides_and_what_leaves_the_picture_is_lost():
    video, z, source = scene()
    known = real.there_and_back(video, z, source, moved(source, 0.3))
    lost = ~known.mask[0, 0]
    assert torch.equal(known.video, video * known.mask) and known.z is not None
    assert torch.equal(known.z.isnan(), ~known.mask[:, 0])
    assert not lost[16:32, 24:40].any(), "the square stays in sight"
    # seen from the right, the square moves left by nine pixels, the wall by two: it hides the wall on its left
    assert lost[18:30, 18:23].all() and not lost[18:30, 41:56].any()
    assert lost[:, :2].all() and not lost[:8, 3:].any(), "two columns leave on the left"


def test_figures_of_the_truth_and_of_an_error():
    video, z, source = scene()
    known = real.there_and_back(video, z, source, moved(source, 0.3))
    assert real.figures(video, video, known)["psnr_holes"] == math.inf
    off = torch.where(known.mask, video, (video + 0.1))
    found = real.figures(off, video, known)
    assert found["psnr_holes"] == pytest.approx(20, abs=0.1) and found["psnr_rim"] > 20
    assert found["unsteady"] == pytest.approx(0, abs=1e-3), "an error that stays is steady"
    off[1] = torch.where(known.mask[1], video[1], video[1] - 0.1)
    assert real.figures(off, video, known)["unsteady"] > 20
    with pytest.raises(ValueError):
        real.figures(video, video[:1], Measurement(video, known.mask))


def test_the_table_goes_on_where_it_stopped(tiny_backbone_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("RECAPTURE_CACHE", str(tmp_path / "cache"))
    backbone = shutil.copytree(tiny_backbone_folder, tmp_path / "backbone")
    torch.manual_seed(0)
    DepthNet(repeats=(1,) * 7, trunk=(8,) * 7, channels=(8,) * 5, heads=2).save_pretrained(backbone / "depth")
    settings = json.loads((backbone / "recapture.json").read_text()) | {"depth": "depth"}
    (backbone / "recapture.json").write_text(json.dumps(settings))
    clips = tmp_path / "clips"
    (clips / "inner").mkdir(parents=True)
    for name in ("a", "b", "c"):
        write_clip(clips / "inner" / f"{name}.mp4")
    lines = [
        {"file": f"inner/{name}.mp4", "split": split}
        for name, split in zip("abc", ("val", "train", "val"), strict=True)
    ]
    (clips / "index.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [source.name for source in real.clips_of(clips)] == ["a", "c"]

    monkeypatch.setattr(real, "LEAST", 0.0)
    done: list[str] = []
    rows = tmp_path / "rows.jsonl"
    say = lambda: real.evaluate(clips, str(backbone), cameras=["dolly-in"], output=rows, progress=done.append)
    table = say()
    assert len(done) == 2 and real.TELEA in table and real.SMOOTH in table and real.MODEL in table
    assert "2 clips and paths" in table
    written = rows.read_text()
    assert len(written.splitlines()) == 6
    assert say() == table and rows.read_text() == written


def test_folders_that_cannot_be_measured_are_refused(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        real.clips_of(tmp_path / "nowhere")
    (tmp_path / "index.jsonl").write_text('{"file": "a.mp4"}')
    with pytest.raises(InputError, match="cannot be read"):
        real.clips_of(tmp_path)
    (tmp_path / "index.jsonl").write_text('{"file": "a.mp4", "split": "train"}')
    with pytest.raises(InputError, match="no clips of the split val"):
        real.clips_of(tmp_path)
    with pytest.raises(InputError, match="loses anything"):
        real.report([])
