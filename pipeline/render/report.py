"""What is said of a finished render: figures, notes, seconds per stage; and what is kept of it."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from pipeline.camera.moves import frames_at, pace_of
from pipeline.known.measurement import Measurement
from pipeline.media.files import save_arrays
from pipeline.media.quality import psnr, ssim
from pipeline.media.video import PACES, size_of, to_uint8
from pipeline.method.guidance import guidance_scale_of, latent_mask_of, steps_of, strength_of
from pipeline.method.lavr import followed
from pipeline.method.problem import COMPLETE_BELOW, windows_of
from pipeline.models import memory
from pipeline.prior.backbone import Backbone
from pipeline.render.analysis import VISIBLE_AT_LEAST, Analysis, name_of
from pipeline.render.events import RenderEvent, StageEvent, StepEvent, WarpEvent
from pipeline.render.request import REQUEST_VERSION, RenderRequest, amount_of
from pipeline.render.view import View, path_warnings

GRAINED = "The finest texture of what the model filled in is noise, made after what is filmed around it."


@dataclass(frozen=True)
class Quality:
    """Against what is observed, at working size. psnr: in dB, None where both are equal; ssim: 1 is equal."""

    psnr: float | None
    ssim: float


@dataclass(frozen=True)
class Measured:
    """raw: of the model's own pixels; composited: with the known pixels put back, None without that."""

    raw: Quality
    composited: Quality | None


@dataclass(frozen=True)
class Placed:
    """How the model was placed. need, free: bytes of GPU memory, None where they are not known."""

    mode: str
    need: float | None
    free: float | None
    words: str
    attention: str
    dtype: str


@dataclass(frozen=True)
class Frames:
    """first, last, stride: in frames of the clip. model: that the model worked on. windows: the first and the last
    frame of each. why: why these, in words."""

    first: int
    last: int
    stride: int
    count: int
    in_clip: int
    model: int
    windows: list[list[int]]
    why: str


@dataclass(frozen=True)
class Sizes:
    """[h, w] each; latents: [C, t, h, w]."""

    clip: list[int]
    working: list[int]
    result: list[int]
    latents: list[int]


@dataclass(frozen=True)
class DepthUsed:
    """origin: the user's file, or "estimated". distance: from the camera to the subject, in the depth's unit."""

    origin: str
    model: str | None
    metric: bool
    distance: float


@dataclass(frozen=True)
class FirstFrame:
    """unknown: the share of it that nobody filmed; origin: where that is from, in words."""

    complete: bool
    unknown: float
    origin: str


@dataclass(frozen=True)
class Report:
    """All that is said of a render. As JSON (`to_dict`) it is flat in the request, and each `origin` is a "from".

    unknown: the share of the picture that the model filled in. from_other_frames: the share that other frames saw;
    None where how the clip's camera moves was not found. hidden: the share that was replaced or removed; None for none.
    seconds: by stage, and in total.
    """

    request: RenderRequest
    backbone: str
    steps: int
    guidance_scale: float
    strength: float
    latent_mask: str | None
    memory: Placed
    amount: float
    frames: Frames
    fps: float
    sizes: Sizes
    depth: DepthUsed
    unknown: float
    from_other_frames: float | None
    hidden: float | None
    first_frame: FirstFrame
    measurement: Measured
    seconds: dict[str, float]
    first_preview_seconds: float
    preview_by: str
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values that JSON knows."""
        request = self.request
        parts = {name: value for name, value in vars(self).items() if name != "request"}
        plain = {name: _plain(value) for name, value in parts.items()}
        own = {"seed": request.guidance.seed, "fast": request.guidance.fast}
        return {"version": REQUEST_VERSION, "request": request.to_dict(), **own, **plain}

    @classmethod
    def from_dict(cls, given: dict[str, Any], accepted: tuple[str, ...] = ()) -> Report:
        """The report that `to_dict` wrote; accepted: of its request, which JSON leaves out.

        Raises KeyError, TypeError or `InputError` for anything else.
        """
        request = RenderRequest.from_json(json.dumps({"version": given["version"], **given["request"]}), accepted)
        parts: dict[str, Any] = {name.name: given[name.name] for name in fields(cls) if name.name != "request"}
        for name, part in (
            ("memory", Placed),
            ("frames", Frames),
            ("sizes", Sizes),
            ("depth", DepthUsed),
            ("first_frame", FirstFrame),
        ):
            parts[name] = part(**{"origin" if k == "from" else k: v for k, v in parts[name].items()})
        measured = parts["measurement"]
        parts["measurement"] = Measured(
            Quality(**measured["raw"]), measured["composited"] and Quality(**measured["composited"])
        )
        parts["notes"] = tuple(parts["notes"])
        return cls(request=request, **parts)


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {"from" if name == "origin" else name: part for name, part in asdict(value).items()}
    return list(value) if isinstance(value, tuple) else value


def report_of(
    request: RenderRequest,
    backbone: Backbone,
    plan: memory.Plan,
    view: View,
    result: Float[Tensor, "T 3 H W"],
    measured: Measured,
    clock: Clock,
    notes: tuple[str, ...],
) -> Report:
    """The report of a render whose `result` is written. notes: of how it was filled."""
    analysis, unknown = view.analysis, view.unknown
    guidance = followed(request.guidance)
    frames, size = len(analysis.clip.frames), size_of(analysis.clip.frames)
    spans = windows_of(backbone, frames)
    return Report(
        request=request,
        backbone=backbone.name,
        steps=steps_of(guidance, backbone),
        guidance_scale=guidance_scale_of(guidance, backbone, replaces=view.known.place is not None),
        strength=strength_of(guidance, backbone),
        latent_mask=None if guidance.solver == "none" else latent_mask_of(guidance, backbone, view.known),
        memory=Placed(
            backbone.mode.name,
            plan.need,
            plan.free,
            plan.words,
            backbone.attention,
            str(backbone.dtype).removeprefix("torch."),
        ),
        amount=amount_of(request),
        frames=Frames(
            first=analysis.first,
            last=analysis.first if analysis.info.still else analysis.first + (frames - 1) * request.stride,
            stride=request.stride,
            count=frames,
            in_clip=analysis.info.frames,
            model=backbone.padded(frames),
            windows=[_span_frames(span, backbone) for span in spans],
            why=analysis.why,
        ),
        fps=analysis.fps,
        sizes=Sizes(
            clip=[analysis.info.height, analysis.info.width],
            working=list(size),
            result=list(size_of(result)),
            latents=list(backbone.latent_shape(backbone.padded(frames), *size)),
        ),
        depth=DepthUsed(
            request.depth or "estimated",
            None if request.depth else name_of(request.depth_model) or "the backbone's",
            analysis.depth.metric,
            analysis.distance,
        ),
        unknown=unknown.mean().item(),
        from_other_frames=view.elsewhere,
        hidden=None if analysis.hidden is None else analysis.hidden.float().mean().item(),
        first_frame=FirstFrame(unknown[0].item() < COMPLETE_BELOW, unknown[0].item(), _first_frame_from(view)),
        measurement=measured,
        seconds={**clock.seconds, "total": clock.total()},
        first_preview_seconds=clock.first_preview,
        preview_by=backbone.preview_by,
        notes=(
            *analysis.notes,
            *_notes(view, request, backbone),
            *([GRAINED] if "grain" in clock.seconds else []),
            *([_windows_note(spans, backbone)] if len(spans) > 1 else []),
            *notes,
            *path_warnings(analysis, request, 1 - unknown),
        ),
    )


def quality_of(video: Float[Tensor, "T 3 h w"], measurement: Measurement) -> Quality:
    """How near a video is to what is observed."""
    decibels = psnr(video, measurement.video, measurement.mask)
    # JSON knows no infinity; null says that they are equal
    return Quality(decibels if math.isfinite(decibels) else None, ssim(video, measurement.video, measurement.mask))


def sound_of(request: RenderRequest, analysis: Analysis) -> dict[str, Any]:
    """The sound of a result, as arguments of `write_video`: that of the clip where it plays at an even pace forwards
    that a listener can follow (`PACES`); else none.

    analysis: of the clip as it was filmed.
    """
    frames = len(analysis.clip.frames)
    pace = pace_of(request.timing, frames)
    if not analysis.info.has_audio or pace is None or not PACES[0] <= pace <= PACES[1]:
        return {}
    first = request.start + frames_at(request.timing, frames)[0] * request.stride
    return {"audio_from": request.clip, "audio_start": first / analysis.info.fps, "audio_pace": pace}


def silence_of(request: RenderRequest, analysis: Analysis) -> list[str]:
    """Why a clip's sound is left out of its result, if it is. The arguments are those of `sound_of`."""
    if not analysis.info.has_audio or sound_of(request, analysis):
        return []
    return ["The result is silent: the clip's time does not run evenly, between half and twice as fast, in it."]


def keep_measurement(folder: Path, view: View) -> None:
    """Write measurement.npz (video uint8 T H W 3, mask bool T H W, True = observed), depth.npz (z float32 T H W)."""
    measurement, depth = view.known.measurement, view.analysis.depth
    mask = measurement.mask[:, 0].cpu().numpy()
    save_arrays(folder / "measurement.npz", video=to_uint8(measurement.video), mask=mask)
    save_arrays(folder / "depth.npz", z=depth.z.cpu().numpy().astype(np.float32))


class Clock:
    """Seconds per stage, of the events that it sees pass by."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.first_preview = 0.0
        self.begun = self.since = time.perf_counter()
        self.current = ""

    def see(self, event: RenderEvent) -> None:
        if isinstance(event, StageEvent):
            self.enter(event.stage)
        elif isinstance(event, WarpEvent | StepEvent):
            self.first_preview = self.first_preview or self.total()

    def enter(self, stage: str) -> None:
        now = time.perf_counter()
        if self.current:
            self.seconds[self.current] = self.seconds.get(self.current, 0.0) + now - self.since
        self.current, self.since = stage, now

    def total(self) -> float:
        return time.perf_counter() - self.begun


def _span_frames(span: slice, backbone: Backbone) -> list[int]:
    """The first and the last frame under a window of latent frames."""
    return [max(0, (span.start - 1) * backbone.temporal + 1), (span.stop - 1) * backbone.temporal]


def _windows_note(spans: tuple[slice, ...], backbone: Backbone) -> str:
    at_once = (spans[0].stop - 1) * backbone.temporal + 1
    return (
        f"The model sees {at_once} frames at once: the clip was sampled in {len(spans)} windows that overlap and are "
        "blended at every step."
    )


def _first_frame_from(view: View) -> str:
    """Where what is not known of the prior's first frame comes from."""
    if view.analysis.picture is not None:
        return view.analysis.picture_from
    return "the clip" if view.unknown[0] < COMPLETE_BELOW else "the model"


def _notes(view: View, request: RenderRequest, backbone: Backbone) -> list[str]:
    notes, analysis, unknown, elsewhere = [], view.analysis, view.unknown, view.elsewhere
    if request.move is not None and request.move.origin:
        notes.append(request.move.origin)
    frames, worked_on = len(unknown), backbone.padded(len(unknown))
    if worked_on != frames:
        notes.append(f"The model works on {worked_on} frames: the last one was repeated, and cut off again.")
    if elsewhere is None:
        notes.append("Other frames of the clip were not used: how its own camera moves was not found.")
    elif elsewhere >= 0.001:
        notes.append(f"{elsewhere:.1%} of the picture is seen by other frames only, and was taken from there.")
    if analysis.picture is not None:
        how = "" if analysis.picture_from.startswith("inpainted") else "taken from "
        notes.append(f"What was unknown of the first frame was {how}{analysis.picture_from}.")
    elif unknown[0] >= COMPLETE_BELOW and request.guidance.condition != "none":
        notes.append(f"The first frame is not complete: {unknown[0]:.1%} of it is unknown, and the model's own.")
    if request.first_frame_model is not None and analysis.picture is None:
        notes.append("The first frame is complete: the image model was not needed.")
    if (unknown > 1 - VISIBLE_AT_LEAST).any():
        notes.append("In some frames almost nothing of the clip is visible; the model invented them.")
    return notes
