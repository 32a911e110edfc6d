"""A result for two eyes."""

from __future__ import annotations

import json

import pytest
import torch
from synthetic import write_clip, write_depth

from pipeline import InputError
from pipeline.media.video import probe, read_video
from pipeline.render.events import DoneEvent, FailedEvent, StepEvent
from pipeline.render.report import Report
from pipeline.render.request import RenderRequest
from pipeline.render.run import render
from pipeline.render.stereo import convergence, side_by_side


@pytest.fixture
def request_(tmp_path, tiny_backbone_folder, monkeypatch) -> RenderRequest:
    monkeypatch.setenv("RECAPTURE_CACHE", str(tmp_path / "cache"))
    clip, depth = (
        write_clip(tmp_path / "clip.mp4", height=64, width=96),
        write_depth(tmp_path / "z.npz", height=64, width=96),
    )
    files = {"depth": str(depth), "depth_kind": "metric"}
    return RenderRequest.of(str(clip), **files, backbone=str(tiny_backbone_folder), camera="still", stereo=0.0)


def halves(request, folder) -> tuple[torch.Tensor, torch.Tensor, DoneEvent, list]:
    events = list(render(request, folder))
    last = events[-1]
    assert isinstance(last, DoneEvent), last
    left, right = read_video(last.result.video).frames.chunk(2, -1)
    return left, right, last, events


def test_without_a_baseline_both_halves_are_equal(request_, tmp_path):
    left, right, last, events = halves(request_, tmp_path / "out")
    assert left.shape == right.shape == (5, 3, 64, 96)
    apart = (left - right)[..., 4:-4].abs()  # where the halves meet the compression mixes them
    assert apart.max() < 0.2 and apart.mean() < 0.008
    fractions = [event.fraction for event in events if isinstance(event, StepEvent)]
    assert fractions == sorted(fractions) and fractions[-1] > 0.5
    assert probe(last.result.video).has_audio
    report = Report.from_dict(json.loads((tmp_path / "out" / "report.json").read_text()))
    assert report.request.stereo == 0 and report.sizes.result == [64, 192]
    assert any("In stereo" in note for note in report.notes)


def test_the_right_eye_stands_to_the_right(request_, tmp_path):
    left, right, _, _ = halves(request_.changed(stereo=6.0), tmp_path / "out")
    shift = convergence(6.0, 55.0, 96, 64)
    assert shift == 6 and left.shape == right.shape == (5, 3, 64, 90)
    # the square is the subject, as far as its depth is found: it stands in about the same place for both
    square = lambda frames: ((frames[:, 0] > 0.88) & (frames[:, 2] < 0.35)).float()
    columns = torch.arange(90.0)
    middle = lambda frames: (square(frames) * columns).sum() / square(frames).sum()
    assert square(left).sum() > 300
    assert abs(middle(left) - middle(right)) < 1.0  # of 6


def test_side_by_side_is_cropped_to_what_both_see():
    wide = torch.arange(10.0).expand(1, 3, 2, 10)
    assert side_by_side(wide, wide, 0)[0, 0, 0].tolist() == [*range(10), *range(10)]
    assert side_by_side(wide, wide - 4, 4)[0, 0, 0].tolist() == [4, 5, 6, 7, 8, 9, -4, -3, -2, -1, 0, 1]


def test_a_baseline_out_of_range_and_a_render_that_fails(request_, tmp_path):
    for baseline in (-1, 21, float("nan")):
        with pytest.raises(InputError, match="stereo"):
            request_.changed(stereo=baseline)
    *_, last = render(request_.changed(clip=str(tmp_path / "none.mp4")), tmp_path / "out")
    assert isinstance(last, FailedEvent)
