"""The models that ship with the program: complete, small, safe to load, and good for what they are said to be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluation.nano import mean_with_error
from pipeline.evaluation.scenes import BASE, measure_sample, recapture_sample
from pipeline.known.fill import fill_unknown, telea
from pipeline.media.quality import psnr
from pipeline.media.video import Clip, probe, write_video
from pipeline.method.problem import windows_of
from pipeline.models.hub import resolve
from pipeline.render.events import DoneEvent
from pipeline.render.loaded import get_backbone
from pipeline.render.request import RenderRequest
from pipeline.render.run import render
from pipeline.world.dataset import TRAIN_FROM
from pipeline.world.scenes import render_sample

ASSETS = Path(resolve("nano")).parent
EXAMPLES = ASSETS.parent / "examples"
SEED = 1002  # an unseen scene with holes in 6 % of its pixels


@pytest.fixture(scope="module")
def sample():
    assert SEED < TRAIN_FROM
    return render_sample(SEED, frames=9)


def test_assets_are_small_and_safetensors_only():
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 64e6
    assert not [path for path in files if path.suffix == ".json" and '": "/' in path.read_text()], "a path of a machine"
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]
    assert {path.parent.name for path in files if path.suffix == ".safetensors"} == {
        "vae", "transformer", "text_encoder", "depth", "classifier", "mask_encoder", "inpainter", "click", "lpips",
    }  # fmt: skip


def test_the_vae_keeps_an_unseen_scene(sample):
    backbone = get_backbone("nano")
    frames = sample.source.frames
    assert psnr(backbone.decode(backbone.encode(frames)).cpu(), frames) > 27


def test_holes_of_an_unseen_scene_are_filled(sample):
    """Raw, what is observed stays close to what the VAE alone keeps; holes are about as good as any simple filling."""
    backbone, measurement, truth = get_backbone("nano"), measure_sample(sample), sample.target.frames
    result = recapture_sample(backbone, sample, measurement, BASE)[0]
    alone = psnr(backbone.decode(backbone.encode(truth)).cpu(), truth, measurement.mask)
    assert psnr(result, measurement.video, measurement.mask) > alone - 2
    holes = ~measurement.mask
    assert psnr(result, truth, holes) > psnr(telea(measurement), truth, holes) - 1
    assert psnr(result, truth, holes) > psnr(fill_unknown(measurement), truth, holes) - 2


def test_previews_show_the_scene(sample):
    backbone = get_backbone("nano")
    frames = sample.source.frames
    preview = backbone.preview(backbone.encode(frames))
    small = frames[::4].reshape(3, 3, preview.shape[2], 8, preview.shape[3], 8).mean((3, 5))
    assert psnr(preview, small) > 20


def test_a_single_figure_has_no_error():
    assert mean_with_error([1.0, 2.0, 3.0]) == f"2.00 ± {3**-0.5:.2f}"
    assert mean_with_error([1.25], "+.1f") == "+1.2" and mean_with_error([1.0, 1.0], "+.1f") == "+1.0 ± 0.0"


@pytest.mark.slow
def test_a_clip_of_21_frames_is_rendered_in_windows(tmp_path):
    longer = render_sample(SEED, frames=21, size=(80, 128))
    write_video(tmp_path / "clip.mp4", Clip(longer.source.frames, 12.0))
    np.savez(tmp_path / "depth.npz", z=longer.source.z.numpy())
    request = RenderRequest.of(
        str(tmp_path / "clip.mp4"), frames=21, steps=2, size=(80, 128), depth=str(tmp_path / "depth.npz"), amount=10
    )
    *_, last = render(request, tmp_path / "out")
    assert isinstance(last, DoneEvent), last
    report = last.result.report.to_dict()
    assert probe(last.result.video).frames == report["frames"]["count"] == report["frames"]["model"] == 21
    assert report["sizes"]["latents"][1] == 6 and report["frames"]["windows"][-1][1] == 20
    assert len(report["frames"]["windows"]) == len(windows_of(get_backbone("nano"), 21)) > 1
    assert report["measurement"]["raw"]["psnr"] > 24


@pytest.mark.slow
def test_every_example_request_renders(tmp_path):
    requests = sorted(EXAMPLES.glob("*.json"))
    assert requests
    for path in requests:
        request = RenderRequest.from_json(path.read_text())
        files = {name: str(EXAMPLES / file) for name in ("clip", "mask") if (file := getattr(request, name))}
        shorter = request.changed(**files, steps=2, frames=5, size=(64, 112))
        *_, last = render(shorter, tmp_path / path.stem)
        assert isinstance(last, DoneEvent), last
        report = json.loads((tmp_path / path.stem / "report.json").read_text())
        assert report["measurement"]["raw"]["psnr"] > 20


@pytest.mark.slow
def test_the_table_of_what_the_models_reach(monkeypatch):
    """The command's table, on one short and small scene, with half of the steps: every figure is there, and guidance
    alone helps where the prior sees the first frame only."""
    from pipeline.evaluation import nano

    monkeypatch.setattr(nano, "FRAMES", 9)
    monkeypatch.setattr(nano, "SIZE", (80, 128))
    monkeypatch.setattr(nano, "BASE", nano.BASE.changed(steps=4))
    said: list[str] = []
    rows = nano.evaluate(
        "nano", first_seed=2, count=1, replacements=1, depth_scenes=1, clips=[], depth_of=None, say=said.append
    )
    reached = {row.name: row.reached for row in rows}
    assert len(reached) == len(rows) and said
    figure = lambda words: next(float(value.split()[0]) for name, value in reached.items() if words in name)
    assert figure("unseen scene") > 27 and figure("above OpenCV's Telea") > 1
    assert figure("both shown the first frame") > 0.5 and abs(figure("both shown the warp")) < 1.5
    assert 0 < figure("AbsRel") < 0.2 and figure("a render of") > 0
    assert reached["VAE, real clips"] == "not measured: give --clips"
    assert nano.table(rows).count("\n") == len(rows) + 1
