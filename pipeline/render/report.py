"""What is said of a finished render: figures, notes, seconds per stage, and what is kept of it."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.known.measurement import Measurement
from pipeline.media.quality import psnr, ssim
from pipeline.media.video import (
    to_uint8,
)
from pipeline.method.problem import COMPLETE_BELOW, _padded
from pipeline.prior.backbone import Backbone
from pipeline.render.analysis import VISIBLE_AT_LEAST, Analysis, _name_of
from pipeline.render.events import StageEvent
from pipeline.render.request import RenderRequest
from pipeline.render.view import stands_still

GRAINED = "The finest texture of what the model filled in is noise, made after what is filmed around it."


def sound_of(request: RenderRequest, analysis: Analysis) -> dict[str, Any]:
    """The sound of a result, as arguments of `write_video`: the clip's if it has any, none where time stands still."""
    if not analysis.info.has_audio or (request.move is not None and request.move.frozen is not None):
        return {}
    return {"audio_from": request.clip, "audio_start": request.start / analysis.info.fps}


def keep_measurement(folder: Path, measurement: Measurement, analysis: Analysis) -> None:
    """Write measurement.npz (video uint8 T H W 3, mask bool T H W, True = observed), depth.npz (z float32 T H W)."""
    mask = measurement.mask[:, 0].cpu().numpy()
    np.savez_compressed(folder / "measurement.npz", video=to_uint8(measurement.video), mask=mask)
    np.savez_compressed(folder / "depth.npz", z=analysis.depth.z.cpu().numpy().astype(np.float32))


class _Clock:
    """Seconds per stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.begun = self.since = time.perf_counter()
        self.current = ""

    def enter(self, stage: str) -> None:
        now = time.perf_counter()
        if self.current:
            self.seconds[self.current] = self.seconds.get(self.current, 0.0) + now - self.since
        self.current, self.since = stage, now

    def stage(self, stage: str, message: str, fraction: float) -> StageEvent:
        self.enter(stage)
        return StageEvent(stage, message, fraction)

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


def _first_frame_from(analysis: Analysis, request: RenderRequest, unknown: float) -> str:
    """Where the prior's first frame comes from."""
    if analysis.picture is not None:
        return analysis.picture_from
    if unknown < COMPLETE_BELOW:
        return "the clip"
    return "the model"


def _notes(analysis: Analysis, request: RenderRequest, unknown: Tensor, elsewhere: float | None) -> list[str]:
    notes, frames = [], len(unknown)
    if _padded(frames) != frames:
        notes.append(f"The model works on {_padded(frames)} frames: the last one was repeated, and cut off again.")
    if request.depth is None and not stands_still(analysis, request):
        by = f" by {_name_of(request.depth_model)}" if request.depth_model else ""
        notes.append(f"The depth was estimated from the pictures{by}.")
    if elsewhere is None:
        notes.append("Other frames of the clip were not used: how its own camera moves was not found.")
    elif elsewhere >= 0.001:
        notes.append(f"{elsewhere:.1%} of the picture is seen by other frames only, and was taken from there.")
    if analysis.picture is not None:
        how = "" if analysis.picture_from.startswith("inpainted") else "taken from "
        notes.append(f"What was unknown of the first frame was {how}{analysis.picture_from}.")
    elif unknown[0] >= COMPLETE_BELOW and request.condition != "none":
        notes.append(f"The first frame is not complete: {unknown[0]:.1%} of it is unknown, and the model's own.")
    if request.first_frame_model is not None and analysis.picture is None:
        notes.append("The first frame is complete: the image model was not needed.")
    if (unknown > 1 - VISIBLE_AT_LEAST).any():
        notes.append("In some frames almost nothing of the clip is visible; the model invented them.")
    return notes


def _figures(video: Tensor, measurement: Measurement) -> dict[str, float | None]:
    decibels = psnr(video, measurement.video, measurement.mask)
    # JSON knows no infinity; null says that they are equal
    return {
        "psnr": decibels if math.isfinite(decibels) else None,
        "ssim": ssim(video, measurement.video, measurement.mask),
    }
