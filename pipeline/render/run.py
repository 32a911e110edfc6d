"""From a request to a re-captured video: analyse, warp, encode, sample under data consistency, decode, composite.

`analyse`, `measure` and `render` are what the app and the command line call. Everything that decides a result is in
a `RenderRequest`; everything that happens on the way is a `RenderEvent`.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from pipeline import InputError
from pipeline.finish.composite import composite
from pipeline.finish.grain import match_grain
from pipeline.known.first_frame import inpaint, locate
from pipeline.known.gather import depth_of_all
from pipeline.media.files import make_writable, write_report, writing
from pipeline.media.video import (
    Clip,
    resize,
    size_of,
    to_uint8,
    write_video,
)
from pipeline.method.guidance import _strength, guidance_scale_of, latent_mask_of, steps_of
from pipeline.method.latent_mask import LATENT_MASKS
from pipeline.method.problem import COMPLETE_BELOW, NO_REFERENCE, _padded, windows_of
from pipeline.models import table
from pipeline.render.analysis import Analysis, FindDepth, _name_of, analyse, find_depth, hide
from pipeline.render.events import DoneEvent, FailedEvent, RenderEvent, RenderResult, StageEvent, WarpEvent
from pipeline.render.full_size import _composite_full
from pipeline.render.loaded import get_backbone, release_depth_model
from pipeline.render.report import (
    GRAINED,
    _Clock,
    _figures,
    _first_frame_from,
    _notes,
    _span_frames,
    _windows_note,
    keep_measurement,
    sound_of,
)
from pipeline.render.request import REQUEST_VERSION, RenderRequest, _amount, _to_dict, seam_of
from pipeline.render.view import (
    Paint,
    _lacks_first_frame,
    _paint_first_frame,
    at_moment,
    cameras_of,
    depth_of_seen,
    measure,
    path_warnings,
    replaced_place,
    see_elsewhere,
    show_holes,
    stands_still,
    steadied,
    wants_other_frames,
    with_depth,
)
from pipeline.render.worker import Fill, fill


def render(
    request: RenderRequest,
    folder: str | Path,
    *,
    analysis: Analysis | None = None,
    keep: str | Path | None = None,
    find_depth: FindDepth = find_depth,
    fill: Fill = fill,
    paint: Paint | None = None,
) -> Generator[RenderEvent, None, None]:
    """Render a request into folder (created): result.mp4, source.mp4, warp.mp4, report.json, request.json.

    analysis: of the same clip, frames, size and depth, to save doing it again. keep: a folder for measurement.npz,
    raw.npz and depth.npz at working size. find_depth, fill, paint: in place of the functions of those names and of
    `first_frame.inpaint`, where their work is done elsewhere. Never raises for user errors: the last event is a
    `DoneEvent` or a `FailedEvent`. Closing the generator stops the render at the next step.
    """
    try:
        kept = Path(keep) if keep is not None else None
        yield from _render(request, Path(folder), analysis, kept, find_depth, fill, paint or inpaint)
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
) -> Generator[RenderEvent, None, None]:
    clock = _Clock()
    for place in filter(None, (folder, keep)):
        make_writable(place)
    (folder / "request.json").write_text(request.to_json(), encoding="utf-8")
    if request.first_frame_model is not None:
        locate(request.first_frame_model)  # what is missing is said before any work
    if analysis is None:
        for event in analyse(request, find_depth=find_depth):
            if isinstance(event, StageEvent):
                clock.enter(event.stage)
                yield event
            else:
                analysis = event
    assert analysis is not None
    filmed = analysis
    for event in hide(analysis, request):
        if isinstance(event, StageEvent):
            clock.enter(event.stage)
            yield event
        else:
            analysis = event
    analysis = at_moment(analysis, request)
    still_camera = stands_still(analysis, request)
    wanted = LATENT_MASKS.get(request.latent_mask or "")
    if wanted and wanted.needs_target and request.solver != "none" and not still_camera:
        raise InputError(NO_REFERENCE)
    clip, frames = analysis.clip, len(analysis.clip.frames)
    size = size_of(clip.frames)
    release_depth_model()
    backbone = get_backbone(request.backbone, request, (_padded(frames), *size))
    plan = backbone.plan(_padded(frames), *size, wanted=backbone.mode.name, fast=request.fast)
    if plan.need is not None:
        yield clock.stage("load", plan.words, 0.09)

    yield clock.stage("warp", "Warping", 0.1)
    measurement = measure(analysis, request)
    if request.first_frame_model is not None and _lacks_first_frame(measurement):
        title = table.title_of(request.first_frame_model)
        yield clock.stage("first-frame", f"Inpainting the first frame by {title}", 0.11)
        analysis = _paint_first_frame(analysis, request, request.first_frame_model, paint)
        measurement = measure(analysis, request)
    measurement = with_depth(measurement, analysis, request)
    replaced = replaced_place(analysis, request)
    elsewhere, found, own = 0.0, None, measurement
    if wants_other_frames(analysis, request, measurement):
        yield clock.stage("gather", "Looking for what other frames saw", 0.11)
        found = see_elsewhere(analysis, request, measurement, replaced)
        measurement = found.measurement if found else measurement
        elsewhere = (measurement.mask & ~own.mask).float().mean().item() if found else None
    unknown = 1 - measurement.mask.float().mean(dim=(1, 2, 3))
    yield WarpEvent(
        to_uint8(measurement.video), to_uint8(measurement.mask)[..., 0], analysis.fps, unknown.mean().item()
    )

    spans = windows_of(backbone, frames)
    raw, first_preview, speed_notes = None, 0.0, ()
    place = None if replaced is None else replaced.numpy()
    given = (measurement.video.numpy(), measurement.mask.numpy(), clip.frames.numpy())
    depth = None if measurement.z is None else measurement.z.numpy()
    with closing(fill(request, *given, still_camera, place, depth)) as events:
        for event in events:
            if isinstance(event, np.ndarray):
                raw = torch.from_numpy(event)
                continue
            if isinstance(event, tuple):
                speed_notes = event
                continue
            if isinstance(event, StageEvent):
                clock.enter(event.stage)
            else:
                first_preview = first_preview or clock.total()
            yield event
    assert raw is not None, "filling ends with the video"

    if found is not None and backbone.settings.steady:
        yield clock.stage("steady", "Making the frames agree on what is painted", 0.87)
        raw = steadied(raw, found, own, depth_of_seen(analysis), replaced, backbone.settings.steady)

    full_size = size_of(analysis.full.frames)
    result, composited = raw, None
    if request.composite:
        yield clock.stage("composite", f"Compositing at {full_size[0]}x{full_size[1]}", 0.88)
        composited = composite(raw, measurement, seam_pixels=seam_of(request, size))
        result = composited
    if composited is not None and full_size != size:
        result, painted = _composite_full(raw, analysis, request, found)
        if replaced is not None:
            painted &= F.interpolate(replaced[:, None].float(), full_size, mode="nearest") == 0
        if request.grain and painted.any():
            yield clock.stage("grain", "Matching the grain of what is painted", 0.91)
            cameras = found.cameras_at(size) if found else (analysis.source, cameras_of(analysis, request))
            softness = backbone.settings.softness * math.sqrt(math.prod(full_size) / math.prod(size))
            seen = depth_of_all(depth_of_seen(analysis), *cameras)
            result = match_grain(result, painted, seen, cameras[1], softness, request.seed)

    yield clock.stage("measure", "Measuring", 0.92)
    figures = {"raw": _figures(raw, measurement), "composited": None}
    if composited is not None:
        figures["composited"] = _figures(composited, measurement)

    yield clock.stage("write", "Writing the video", 0.95)
    files = RenderResult(folder, folder / "result.mp4", folder / "source.mp4", folder / "warp.mp4", {})
    shown = resize(filmed.full.frames, size_of(result)) if result is raw else filmed.full.frames
    sound = sound_of(request, filmed)
    with writing(folder):
        heard = write_video(files.video, Clip(result, analysis.fps), **sound)
        write_video(files.source, Clip(shown, analysis.fps), **sound)
        write_video(files.warp, Clip(show_holes(measurement), analysis.fps))
    if keep is not None:
        with writing(keep):
            keep_measurement(keep, measurement, analysis)
            np.savez_compressed(keep / "raw.npz", video=to_uint8(raw))

    clock.enter("")
    report = {
        "version": REQUEST_VERSION,
        "request": _to_dict(request),
        "backbone": backbone.name,
        "seed": request.seed,
        "steps": steps_of(request, backbone),
        "guidance_scale": guidance_scale_of(request, backbone),
        "strength": _strength(request, backbone),
        "latent_mask": None if request.solver == "none" else latent_mask_of(request, backbone, still_camera),
        "fast": request.fast,
        "memory": {
            "mode": backbone.mode.name,
            "need": plan.need,
            "free": plan.free,
            "words": plan.words,
            "attention": backbone.attention,
            "dtype": str(backbone.dtype).removeprefix("torch."),
        },
        "amount": _amount(request),
        "frames": {
            "first": analysis.first,
            "last": analysis.first + (frames - 1) * request.stride,
            "stride": request.stride,
            "count": frames,
            "in_clip": analysis.info.frames,
            "model": _padded(frames),
            "windows": [_span_frames(span, backbone) for span in spans],
            "why": analysis.notes[0],
        },
        "fps": analysis.fps,
        "sizes": {
            "clip": [analysis.info.height, analysis.info.width],
            "working": list(size),
            "result": list(size_of(result)),
            "latents": list(backbone.latent_shape(_padded(frames), *size)),
        },
        "depth": {
            "from": request.depth or "estimated",
            "model": None if request.depth else _name_of(request.depth_model) or "the backbone's",
            "metric": analysis.depth.metric,
            "distance": analysis.distance,
        },
        "unknown": unknown.mean().item(),
        "from_other_frames": elsewhere,
        "hidden": None if analysis.hidden is None else analysis.hidden.float().mean().item(),
        "first_frame": {
            "complete": unknown[0].item() < COMPLETE_BELOW,
            "unknown": unknown[0].item(),
            "from": _first_frame_from(analysis, request, unknown[0].item()),
        },
        "measurement": figures,
        "seconds": {**clock.seconds, "total": clock.total()},
        "first_preview_seconds": first_preview,
        "preview_by": backbone.preview_by,
        "notes": [
            *analysis.notes,
            *_notes(analysis, request, unknown, elsewhere),
            *([GRAINED] if "grain" in clock.seconds else []),
            *([_windows_note(spans, backbone)] if len(spans) > 1 else []),
            *speed_notes,
            *path_warnings(analysis, request, 1 - unknown),
            *([] if heard or not sound else ["The result is silent: the clip has no sound there that can be decoded."]),
        ],
    }
    write_report(folder / "report.json", report)
    yield DoneEvent(replace(files, report=report))
