"""How long a render is expected to take."""

from dataclasses import replace

import pytest
from synthetic import write_clip, write_depth

from pipeline import result_of
from pipeline.models import cost
from pipeline.render import expected
from pipeline.render.analysis import analyse
from pipeline.render.events import DoneEvent
from pipeline.render.expected import expected_seconds
from pipeline.render.loaded import get_backbone
from pipeline.render.request import RenderRequest
from pipeline.render.run import render
from ui.words import analysis_words


@pytest.fixture
def request_(tmp_path, tiny_backbone_folder, monkeypatch) -> RenderRequest:
    monkeypatch.setenv("RECAPTURE_CACHE", str(tmp_path / "cache"))
    clip, depth = write_clip(tmp_path / "clip.mp4"), write_depth(tmp_path / "depth.npz")
    return RenderRequest.of(str(clip), backbone=str(tiny_backbone_folder), depth=str(depth), amount=10)


def test_a_machine_of_half_the_pace_takes_twice_as_long_and_more_frames_take_longer(request_, monkeypatch):
    backbone, analysis = get_backbone(request_.backbone), result_of(analyse(request_))
    found = []
    for pace in (2e9, 1e9):
        monkeypatch.setattr(cost, "measure_pace", lambda *_, pace=pace, **__: cost.Pace(pace, pace))
        expected.forget()
        found.append(expected_seconds(analysis, request_, backbone))
    assert found[1] == pytest.approx(2 * found[0]) and found[0] > 0
    longer = result_of(analyse(request_.changed(frames=9)))
    assert expected_seconds(longer, request_, backbone) > 1.5 * found[1]
    assert expected_seconds(analysis, request_.changed(steps=30), backbone) > found[1]
    assert expected_seconds(analysis, request_.changed(composite=False), backbone) < found[1]


def test_a_busy_moment_of_the_machine_does_not_make_the_next_render_seem_longer(request_, monkeypatch):
    backbone, analysis = get_backbone(request_.backbone), result_of(analyse(request_))
    expected.forget()
    paces = iter([1e9, 2e9, 1e9])
    monkeypatch.setattr(cost, "measure_pace", lambda *_, **__: cost.Pace(*[next(paces)] * 2))
    found = [expected_seconds(analysis, request_, backbone) for _ in range(3)]
    assert found[0] == pytest.approx(2 * found[1]) and found[2] == found[1]
    expected.forget()


def test_what_a_render_took_is_expected_of_the_next(request_, tmp_path, monkeypatch):
    backbone, analysis = get_backbone(request_.backbone), result_of(analyse(request_))
    expected.forget()
    measured = []
    pace = lambda *_, **__: measured.append(1) or cost.Pace(1e9, 1e9)
    monkeypatch.setattr(cost, "measure_pace", pace)
    *_, first = render(request_, tmp_path / "unasked", analysis=analysis)
    assert isinstance(first, DoneEvent) and not measured, "nobody asked how long it will take"
    expected_seconds(analysis, request_, backbone)
    *_, done = render(request_, tmp_path / "out", analysis=analysis)
    assert isinstance(done, DoneEvent)
    report = done.result.report
    taken = sum(seconds for stage, seconds in report.seconds.items() if stage != "total")
    assert expected_seconds(analysis, request_, backbone) == pytest.approx(taken)
    seconds = {"sample": 4 * taken, "total": 4 * taken}
    expected.learn(replace(report, seconds=seconds), analysis, backbone)
    assert expected_seconds(analysis, request_, backbone) == pytest.approx(2 * taken), "the mean of 1 and 4, as ratios"
    expected.forget()
    assert "A render takes about 12 seconds here." in analysis_words(analysis, 12.2)
    assert "A render takes" not in analysis_words(analysis)
