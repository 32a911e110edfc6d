"""What happens on the way of a render, for whoever shows it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class StageEvent:
    """A stage begins or goes on. message: plain words for the user; fraction: of the whole job, in [0, 1]."""

    stage: str
    message: str
    fraction: float


@dataclass(frozen=True, eq=False)
class WarpEvent:
    """The measurement. video: uint8 T H W 3, unobserved pixels 0; mask: uint8 T H W, 255 = observed; unknown: share."""

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
    report: dict[str, Any]


@dataclass(frozen=True, eq=False)
class DoneEvent:
    result: RenderResult


@dataclass(frozen=True)
class FailedEvent:
    """The render ended because of something the user gave; message says what and what to do."""

    message: str


RenderEvent = StageEvent | WarpEvent | StepEvent | DoneEvent | FailedEvent
