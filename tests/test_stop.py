"""Stop acts inside every stage of a render, and not only where the next begins."""

import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_video import numbered, write_raw

from pipeline.depth.outlines import sharpen_outlines
from pipeline.media import child
from pipeline.media.video import resize
from pipeline.prior import load
from pipeline.render.events import DoneEvent, StageEvent, StepEvent
from pipeline.render.request import RenderRequest
from pipeline.render.run import render
from pipeline.stop import Stopped, aside, check, stoppable

# What takes more than a second for a clip of 480x832 with the small models.
STAGES = ["load", "read", "depth", "warp", "gather", "encode", "decode", "steady", "composite", "grain"]
STAGES += ["measure", "write"]


@pytest.fixture(scope="module")
def request_(tmp_path_factory, tiny_backbone_folder) -> RenderRequest:
    folder = tmp_path_factory.mktemp("stop")
    backbone = shutil.copytree(tiny_backbone_folder, folder / "backbone")
    settings = json.loads((backbone / "recapture.json").read_text())
    (backbone / "recapture.json").write_text(json.dumps(settings | {"steady": 2}))
    squares = torch.rand(1, 3, 13, 19, generator=torch.Generator().manual_seed(0)).repeat(5, 1, 1, 1)
    write_raw(folder / "clip.mkv", resize(squares, (104, 152), mode="nearest"))
    return RenderRequest.of(str(folder / "clip.mkv"), backbone=str(backbone), amount=20, steps=1, depth_model="nano")


def stopped_in(request: RenderRequest, folder, stage: str) -> list[str]:
    """What a render still says after a Stop that comes when this stage begins."""
    stop, said = threading.Event(), []
    with stoppable(stop.is_set), pytest.raises(Stopped):
        for event in render(request, folder):
            name = getattr(event, "stage", type(event).__name__)
            if name == stage:
                stop.set()
            elif stop.is_set():
                said.append(name)
    return said


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_ends_where_it_is(request_, tmp_path, monkeypatch, stage):
    kept = tmp_path if stage == "depth" else Path(request_.clip).parent
    monkeypatch.setenv("RECAPTURE_CACHE", str(kept / "cache"))
    request = request_
    if stage == "load":  # one that is not loaded yet
        request = request_.changed(backbone=str(shutil.copytree(request_.backbone, tmp_path / "backbone")))
    assert stopped_in(request, tmp_path / "job", stage) == []
    assert not [path for path in (tmp_path / "job").glob("*") if path.suffix == ".mp4" or path.name.startswith(".")]


def test_every_stage_is_tried(request_, tmp_path):
    events = list(render(request_, tmp_path / "job"))
    assert isinstance(events[-1], DoneEvent), events[-1]
    assert {event.stage for event in events if isinstance(event, StageEvent)} - {"place", "sample"} == set(STAGES)
    assert any(isinstance(event, StepEvent) for event in events)


def test_a_step_of_the_model_ends_where_it_is(request_, tmp_path):
    assert stopped_in(request_, tmp_path / "job", "sample") == []


def test_who_waits_for_a_file_may_be_stopped(tmp_path):
    """Though the process that reads it says nothing for long, or takes what it is sent slowly."""
    write_raw(tmp_path / "clip.mkv", numbered(8, 480, 640))
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    begun = time.monotonic()
    with stoppable(stop.is_set), pytest.raises(Stopped):
        for _ in range(200):
            child.run("probe_video", tmp_path / "clip.mkv")
    frames = (np.zeros((480, 640, 3), np.uint8) for _ in range(400))
    with stoppable(lambda: time.monotonic() > begun + 1.0), pytest.raises(Stopped):
        child.run("write_frames", tmp_path / "endless.mp4", seconds=None, arrays=frames, fps=8.0, has_sound=False)
    assert time.monotonic() < begun + 5


def test_libraries_are_not_waited_for(tiny_backbone_folder, monkeypatch):
    """Their import takes seconds, and cannot ask."""
    stop, end = threading.Event(), threading.Event()
    monkeypatch.setattr(load, "libraries", lambda: (stop.set(), end.wait(30)))
    begun = time.monotonic()
    with stoppable(stop.is_set), pytest.raises(Stopped):
        load.load_backbone(str(tiny_backbone_folder))
    end.set()
    assert time.monotonic() < begun + 5


def test_what_is_done_aside_returns_and_raises():
    def faulty():
        raise ValueError("a fault")

    with stoppable(lambda: False):
        assert aside(lambda: 3) == 3
        with pytest.raises(ValueError, match="a fault"):
            aside(faulty)


def test_outlines_are_left_between_two_frames():
    frames, asked = torch.rand(4, 3, 16, 24), []
    with stoppable(lambda: asked.append(0) or len(asked) > 2), pytest.raises(Stopped):
        sharpen_outlines(1 + torch.rand(4, 16, 24), frames)
    assert len(asked) == 3


def test_nobody_is_stopped_who_did_not_ask():
    with stoppable(lambda: True):
        other = threading.Thread(target=check)
        other.start()
        other.join()
        with pytest.raises(Stopped):
            check()
    check()
