"""A result for two eyes, side by side: the left one is the result, the right one is seen from a little to its right."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.camera.geometry import DEFAULT_FOV
from pipeline.camera.moves import Keyframe, Move
from pipeline.media.files import write_report, writing
from pipeline.media.video import Clip, probe, read_video, size_of, write_video
from pipeline.render.events import DoneEvent, FailedEvent, RenderEvent, RenderResult, StageEvent, StepEvent
from pipeline.render.request import RenderRequest

Render = Callable[..., Generator[RenderEvent, None, None]]


def in_stereo(
    request: RenderRequest, folder: Path, left_by: Render, right_by: Render
) -> Generator[RenderEvent, None, None]:
    """The events of both renders; the result has both pictures side by side, cropped so that the subject is at the
    depth of the screen.

    left_by, right_by: render a request without stereo into a folder. The right picture is rendered from the left one,
    so that both eyes see what the model painted there.
    """
    left: RenderResult | None = None
    with closing(left_by(replace(request, stereo=None), folder)) as events:
        for event in events:
            if isinstance(event, DoneEvent):
                left = event.result
            elif isinstance(event, FailedEvent):
                yield event
                return
            else:
                yield _half(event, "Left eye", 0.0)
    assert left is not None
    with closing(right_by(right_eye(request, left), folder / "right")) as events:
        for event in events:
            if isinstance(event, DoneEvent):
                yield DoneEvent(_beside(left, event.result, request))
            elif isinstance(event, FailedEvent):
                yield event
            else:
                yield _half(event, "Right eye", 0.5)


def right_eye(request: RenderRequest, left: RenderResult) -> RenderRequest:
    """The request of the right picture, whose clip is the left one."""
    shift = float(request.stereo or 0) / 100
    move = Move((Keyframe(0.0, (shift, 0.0, 0.0), (shift, 0.0, 1.0)),))
    own_depth = request.mask is None and request.camera == "still" and request.move is None and request.start == 0
    return replace(
        request,
        clip=str(left.video),
        move=move,
        fov=_fov(request),
        stereo=None,
        mask=None,
        remove=False,
        invert=False,
        first_frame=None,
        frames=left.report.frames.count,
        start=0,
        stride=1,
        size=(left.report.sizes.working[0], left.report.sizes.working[1]),
        depth=request.depth if own_depth and request.stride == 1 else None,
        composite=True,
    )


def _fov(request: RenderRequest) -> float:
    return request.fov or probe(request.clip).fov or DEFAULT_FOV


def convergence(baseline: float, fov: float, width: int, height: int) -> int:
    """Pixels by which the subject stands farther left in the right picture, even, for a baseline in percent of its
    distance."""
    focal = 0.5 * max(width, height) / math.tan(math.radians(fov) / 2)
    return 2 * round(focal * baseline / 100 / 2)


def side_by_side(
    left: Float[Tensor, "T 3 H W"], right: Float[Tensor, "T 3 H W"], shift: int
) -> Float[Tensor, "T 3 H W2"]:
    """Both pictures, cropped so that what stands `shift` pixels farther left on the right stands in one place."""
    width = left.shape[-1] - shift
    return torch.cat([left[..., shift:], right[..., :width]], -1)


def _half(event: RenderEvent, eye: str, begins: float) -> RenderEvent:
    if isinstance(event, StageEvent):
        return replace(event, message=f"{eye}: {event.message}", fraction=begins + event.fraction / 2)
    return replace(event, fraction=begins + event.fraction / 2) if isinstance(event, StepEvent) else event


def _beside(left: RenderResult, right: RenderResult, request: RenderRequest) -> RenderResult:
    """The left result with both pictures in its files, and in its report."""
    pictures = [read_video(result.video, max_side=2**14) for result in (left, right)]
    source = read_video(left.source, max_side=2**14).frames
    height, width = size_of(pictures[0].frames)
    shift = min(convergence(float(request.stereo or 0), _fov(request), width, height), width // 2)
    both = side_by_side(pictures[0].frames, pictures[1].frames, shift)
    twice = torch.cat([source[..., shift:]] * 2, -1)
    for file, frames in ((left.video, both), (left.source, twice)):
        part = file.with_name(f"both-{file.name}")
        with writing(file):
            write_video(part, Clip(frames, pictures[0].fps), audio_from=file)
            os.replace(part, file)
    note = (
        f"In stereo: the left half is the result, the right one is seen from {request.stereo:g} % of the distance to "
        f"the subject farther right. Both lack {shift} pixels at a side, which one eye sees alone, so that the subject "
        "is at the depth of the screen."
    )
    own = left.report
    report = replace(
        own,
        request=request,
        sizes=replace(own.sizes, result=list(size_of(both))),
        notes=(*own.notes, note),
        seconds={name: own.seconds.get(name, 0.0) + seconds for name, seconds in right.report.seconds.items()},
    )
    write_report(left.folder / "report.json", report.to_dict())
    (left.folder / "request.json").write_text(request.to_json(), encoding="utf-8")
    return replace(left, report=report)
