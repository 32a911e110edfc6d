"""From a request to files: analyse, look, fill, finish, write.

Everything that decides a result is in a `RenderRequest`; everything that happens on the way is a `RenderEvent`.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline import InputError
from pipeline.known.first_frame import inpaint, locate
from pipeline.media.files import make_writable, save_arrays, write_report, writing
from pipeline.media.video import Clip, resize, size_of, to_uint8, write_video
from pipeline.method.lavr import parts_of
from pipeline.render.analysis import Analysis, FindDepth, analyse, find_depth, hide
from pipeline.render.events import DoneEvent, FailedEvent, RenderEvent, RenderResult, stage
from pipeline.render.expected import learn
from pipeline.render.finish import Finished, finish
from pipeline.render.loaded import get_backbone, release_depth_model
from pipeline.render.report import Clock, Measured, keep_measurement, quality_of, report_of, silence_of, sound_of
from pipeline.render.request import RenderRequest, check_asked
from pipeline.render.stereo import in_stereo
from pipeline.render.view import Paint, View, check_cameras, look, show_holes
from pipeline.render.worker import Fill, fill


def render(
    request: RenderRequest,
    folder: str | Path,
    *,
    analysis: Analysis | None = None,
    keep: str | Path | None = None,
    find_depth: FindDepth = find_depth,
    fill: Fill = fill,
    paint: Paint = inpaint,
) -> Generator[RenderEvent, None, None]:
    """Render a request into folder (created): result.mp4, source.mp4, warp.mp4, report.json, request.json.

    analysis: of the same clip, frames, size and depth, to save doing it again. keep: a folder for measurement.npz,
    raw.npz and depth.npz at working size. find_depth, fill, paint: in place of the functions of those names and of
    `first_frame.inpaint`, where their work is done elsewhere. Never raises for user errors: the last event is a
    `DoneEvent` or a `FailedEvent`. Closing the generator stops the render at the next event,
    `stop.stoppable` inside of it.
    """
    work: dict[str, Any] = {"find_depth": find_depth, "fill": fill, "paint": paint}
    if request.stereo is not None:
        try:
            check_asked(request)  # what the second eye cannot have is said before the first one is rendered
        except InputError as error:
            yield FailedEvent(str(error))
            return
        left = partial(render, analysis=analysis, keep=keep, **work)
        yield from in_stereo(request, Path(folder), left, partial(render, **work))
        return
    clock, kept = Clock(), Path(keep) if keep is not None else None
    try:
        with closing(_render(request, Path(folder), analysis, kept, find_depth, fill, paint, clock)) as events:
            for event in events:
                clock.see(event)
                yield event
    except InputError as error:
        yield FailedEvent(str(error))
    except torch.OutOfMemoryError:
        yield FailedEvent("The memory of the device is not enough; choose fewer frames or a smaller size.")


def _render(
    request: RenderRequest,
    folder: Path,
    analysis: Analysis | None,
    keep: Path | None,
    find_depth: FindDepth,
    fill: Fill,
    paint: Paint,
    clock: Clock,
) -> Generator[RenderEvent, None, None]:
    for place in filter(None, (folder, keep)):
        make_writable(place)
    (folder / "request.json").write_text(request.to_json(), encoding="utf-8")
    if request.first_frame_model is not None:
        locate(request.first_frame_model)  # what is missing is said before any work
    check_asked(request)

    if analysis is None:
        filmed = yield from analyse(request, find_depth=find_depth, filmed_by=partial(check_cameras, request))
    else:
        check_cameras(request, analysis.source, size_of(analysis.clip.frames))
        filmed = analysis
    analysis = yield from hide(filmed, request)
    clip = len(analysis.clip.frames), *size_of(analysis.clip.frames)
    release_depth_model()
    backbone = get_backbone(request.backbone, request, clip)
    parts = parts_of(backbone, request.guidance)
    plan = backbone.plan(*clip, wanted=backbone.mode.name, fast=request.guidance.fast, parts=parts)
    if plan.need is not None:
        yield stage("place", plan.words)

    view = yield from look(analysis, request, paint)
    known = view.known.measurement

    with closing(fill(request.backbone, view.known, request.guidance)) as events:
        filled = yield from events
    finished = yield from finish(torch.from_numpy(filled.video), view, request, backbone)

    yield stage("measure", "Measuring")
    composited = None if finished.composited is None else quality_of(finished.composited, known)
    measured = Measured(quality_of(finished.raw, known), composited)
    yield stage("write", "Writing the video")
    files, notes = _write(folder, keep, request, filmed, view, finished)
    clock.enter("")
    report = report_of(request, backbone, plan, view, finished.video, measured, clock, (*filled.notes, *notes))
    write_report(folder / "report.json", report.to_dict())
    learn(report, view.analysis, backbone)
    yield DoneEvent(RenderResult(folder, *files, report))


def _write(
    folder: Path, keep: Path | None, request: RenderRequest, filmed: Analysis, view: View, finished: Finished
) -> tuple[tuple[Path, Path, Path], list[str]]:
    """The videos of a result: itself, the same frames of the clip, and the warp with its holes shown; and notes."""
    result, fps, sound = finished.video, view.analysis.fps, sound_of(request, filmed)
    source = filmed.full.frames
    if finished.composited is None:
        source = resize(source, size_of(result))
    files = folder / "result.mp4", folder / "source.mp4", folder / "warp.mp4"
    with writing(files[0]):
        heard = write_video(files[0], Clip(result, fps), **sound)
        write_video(files[1], Clip(source, fps), **sound)
        write_video(files[2], Clip(show_holes(view.known.measurement), fps))
    if keep is not None:
        with writing(keep):
            keep_measurement(keep, view)
            save_arrays(keep / "raw.npz", video=to_uint8(finished.raw))
    silent = ["The result is silent: the clip has no sound there that can be decoded."]
    return files, silent if sound and not heard else silence_of(request, filmed)
