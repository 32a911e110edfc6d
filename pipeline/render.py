"""From a request to a re-captured video: analyse, warp, encode, sample under data consistency, decode, composite.

`analyse`, `measure` and `render` are what the app and the command line call. Everything that decides a result is in
a `RenderRequest`; everything that happens on the way is a `RenderEvent`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import InputError

if TYPE_CHECKING:
    from pipeline.camera import CameraPath
    from pipeline.depth import Depth
    from pipeline.measurement import Measurement
    from pipeline.video import Clip, VideoInfo

REQUEST_VERSION = 1
CONDITIONS = ("warp", "first-frame", "none")


@dataclass(frozen=True)
class RenderRequest:
    """Everything that decides the result of a render, and nothing else. Raises `InputError` on values out of range.

    clip: path of a video file. camera: a name of `camera.PRESETS`; amount in its unit, None for its default.
    fov: field of view of the clip in degrees along its longer side, None for 55.
    frames, start, stride: which frames are used; start counts in frames of the clip, frames None means as many as the
        model was made for. size: (h, w) at which the model works, None for the model's own at the clip's aspect.
    seed: of the noise. steps, guidance_scale: None for what the model was made for.
    latent_mask, solver: a name of `latent_mask.LATENT_MASKS`, of `solvers.SOLVERS`; gamma > 0: how much the solver
        trusts the model over the measurement; guidance acts while guide_until <= sigma <= guide_from.
    condition: what the model's inpainting channels show: the warp, only its first frame, or nothing.
    backbone: a name, a folder or a hub id. depth: a file or folder of the user's own depth, None to estimate it.
    composite: put the untouched known pixels back, at the clip's full resolution.
    """

    clip: str
    camera: str = "orbit-left"
    amount: float | None = None
    fov: float | None = None
    frames: int | None = None
    start: int = 0
    stride: int = 1
    size: tuple[int, int] | None = None
    prompt: str = ""
    negative_prompt: str = ""
    seed: int = 0
    steps: int | None = None
    guidance_scale: float | None = None
    latent_mask: str = "training-free"
    solver: str = "dds"
    gamma: float = 0.1
    cg_iterations: int = 5
    guide_from: float = 1.0
    guide_until: float = 0.0
    condition: str = "warp"
    backbone: str = "nano"
    depth: str | None = None
    composite: bool = True

    def __post_init__(self) -> None:
        _validate(self)

    def to_json(self) -> str:
        """The request as versioned JSON text."""
        return json.dumps({"version": REQUEST_VERSION, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> RenderRequest:
        """The request in JSON text as `to_json` writes it; fields that are left out take their defaults."""
        try:
            given = json.loads(text)
        except ValueError as error:
            raise InputError(f"The request is not valid JSON: {error}.") from error
        if not isinstance(given, dict):
            raise InputError('The request must be a JSON object such as {"version": 1, "clip": "clip.mp4"}.')
        version = given.pop("version", None)
        if version != REQUEST_VERSION:
            raise InputError(f"The request has version {version!r}; this program reads version {REQUEST_VERSION}.")
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(given) - set(known)):
            raise InputError(f"The request has unknown fields: {', '.join(unknown)}. Known are: {', '.join(known)}.")
        if "clip" not in given:
            raise InputError('The request names no clip; give the path of a video file as "clip".')
        if isinstance(given.get("size"), list):
            given["size"] = tuple(given["size"])
        return cls(**given)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _validate(request: RenderRequest) -> None:
    def need(ok: bool, name: str, wanted: str) -> None:
        if not ok:
            raise InputError(f"{name} must be {wanted}; it is {getattr(request, name)!r}.")

    def optional(name: str, ok, wanted: str) -> None:
        value = getattr(request, name)
        need(value is None or ok(value), name, wanted)

    def one_of(name: str, names) -> None:
        need(getattr(request, name) in names, name, f"one of {', '.join(names)}")

    need(isinstance(request.clip, str) and bool(request.clip), "clip", "the path of a video file")
    optional("amount", _is_number, "a number")
    optional("fov", lambda value: _is_number(value) and 1 <= value <= 170, "an angle from 1 to 170 degrees")
    optional("frames", lambda value: _is_int(value) and value >= 1, "a whole number, 1 or more")
    need(_is_int(request.start) and request.start >= 0, "start", "a whole number, 0 or more")
    need(_is_int(request.stride) and request.stride >= 1, "stride", "a whole number, 1 or more")
    optional(
        "size",
        lambda size: isinstance(size, tuple) and len(size) == 2 and all(_is_int(n) and n > 0 for n in size),
        "a height and a width in pixels",
    )
    for name in ("prompt", "negative_prompt", "backbone"):
        need(isinstance(getattr(request, name), str), name, "text")
    need(_is_int(request.seed) and 0 <= request.seed < 2**63, "seed", "a whole number, 0 or more")
    optional("steps", lambda value: _is_int(value) and 1 <= value <= 1000, "a whole number from 1 to 1000")
    optional("guidance_scale", lambda value: _is_number(value) and 0 <= value <= 100, "a number from 0 to 100")
    need(_is_number(request.gamma) and request.gamma > 0, "gamma", "a number above 0")
    need(_is_int(request.cg_iterations) and request.cg_iterations >= 1, "cg_iterations", "a whole number, 1 or more")
    for name in ("guide_from", "guide_until"):
        value = getattr(request, name)
        need(_is_number(value) and 0 <= value <= 1, name, "a noise level from 0 to 1")
    need(request.guide_until <= request.guide_from, "guide_until", f"at most guide_from ({request.guide_from})")
    one_of("condition", CONDITIONS)
    optional("depth", lambda value: isinstance(value, str) and value, "the path of a depth file or folder")
    need(isinstance(request.composite, bool), "composite", "true or false")


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
    """A sampling step is done. preview: uint8 t h w 3 at the size of the latents; index counts from 1 to total."""

    index: int
    total: int
    sigma: float
    preview: np.ndarray
    seconds_left: float
    fraction: float


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


@dataclass(frozen=True, eq=False)
class Analysis:
    """What is known of the source before a camera is chosen. T is the number of frames the user gets.

    clip: T 3 h w at working size. full: T 3 H W, the same crop at the clip's resolution. depth: T h w.
    source: camera path in pixels of the working size. distance: from the camera to the subject, in the depth's unit.
    fps: of clip, full and the result. info: of the file. notes: choices made for the user, in plain words.
    """

    clip: Clip
    full: Clip
    depth: Depth
    source: CameraPath
    distance: float
    fps: float
    info: VideoInfo
    first: int
    notes: tuple[str, ...] = ()


def analyse(request: RenderRequest) -> Iterator[StageEvent | Analysis]:
    """Read the clip and find its depth. Yields stage events, then one `Analysis`. Raises `InputError`."""
    raise NotImplementedError
    yield


def measure(analysis: Analysis, request: RenderRequest, *, size: tuple[int, int] | None = None) -> Measurement:
    """The clip seen from the requested camera path, T 3 h w, without any diffusion. size: (h, w), None: working size.

    Raises `InputError` if nothing of the clip is visible from there.
    """
    raise NotImplementedError


def render(
    request: RenderRequest, folder: str | Path, *, analysis: Analysis | None = None, keep: str | Path | None = None
) -> Iterator[RenderEvent]:
    """Render a request into folder (created): result.mp4, source.mp4, warp.mp4, report.json, request.json.

    analysis: of the same clip, frames, size and depth, to save doing it again. keep: a folder for measurement.npz,
    raw.npz and depth.npz at working size. Never raises for user errors: the last event is a `DoneEvent` or a
    `FailedEvent`. Closing the generator stops the render at the next step.
    """
    raise NotImplementedError
    yield
