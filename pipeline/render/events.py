"""What happens on the way of a render, for whoever shows it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pipeline.render.report import Report

# Where in the whole job, in [0, 1], each stage begins; it ends where the next begins.
STARTS = {
    "load": 0.0,
    "read": 0.02,
    "depth": 0.03,
    "mask": 0.08,
    "place": 0.09,
    "warp": 0.1,
    "first-frame": 0.11,
    "gather": 0.11,
    "gpu": 0.11,
    "encode": 0.12,
    "sample": 0.18,
    "decode": 0.8,
    "steady": 0.87,
    "composite": 0.88,
    "grain": 0.91,
    "measure": 0.92,
    "write": 0.95,
}


@dataclass(frozen=True)
class StageEvent:
    """A stage begins or goes on. message: plain words for the user; fraction: of the whole job, in [0, 1]."""

    stage: str
    message: str
    fraction: float


def fraction_of(name: str, done: float = 0.0) -> float:
    """The fraction of the whole job at which a stage of `STARTS` is done by so much, 0 to 1."""
    begins = STARTS[name]
    ends = min([start for start in STARTS.values() if start > begins], default=1.0)
    return begins + done * (ends - begins)


def stage(name: str, message: str, done: float = 0.0) -> StageEvent:
    """The event that a stage of `STARTS` begins, or is done by so much."""
    return StageEvent(name, message, fraction_of(name, done))


@dataclass(frozen=True, eq=False)
class WarpEvent:
    """The measurement: as each frame by itself gives it, and once more if other frames complete it.

    video: uint8 T H W 3, unobserved pixels 0; mask: uint8 T H W, 255 = observed; unknown: share.
    """

    video: np.ndarray
    mask: np.ndarray
    fps: float
    unknown: float


@dataclass(frozen=True, eq=False)
class StepEvent:
    """A sampling step is done. preview: uint8 t h w 3, at the size of the latents or a small multiple of it;
    preview_by: what made it, in words; index counts from 1 to total."""

    index: int
    total: int
    sigma: float
    preview: np.ndarray
    seconds_left: float
    fraction: float
    preview_by: str = ""


@dataclass(frozen=True, eq=False)
class RenderResult:
    """The files of a finished render (all mp4, equally long, in step) and its report, as in report.json.

    video: the result; source: the same frames of the clip, cropped as the result; warp: the measurement at working size
    with its holes shown as a grey checkerboard.
    """

    folder: Path
    video: Path
    source: Path
    warp: Path
    report: Report


@dataclass(frozen=True, eq=False)
class DoneEvent:
    result: RenderResult


@dataclass(frozen=True)
class FailedEvent:
    """The render ended because of something the user gave; message says what and what to do."""

    message: str


RenderEvent = StageEvent | WarpEvent | StepEvent | DoneEvent | FailedEvent
