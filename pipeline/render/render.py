"""From a request to a re-captured video: analyse, warp, encode, sample under data consistency, decode, composite.

`analyse`, `measure` and `render` are what the app and the command line call. Everything that decides a result is in
a `RenderRequest`; everything that happens on the way is a `RenderEvent`.
"""

from __future__ import annotations

import gc
import json
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline import InputError
from pipeline.camera.geometry import (
    CameraPath,
    default_intrinsics,
    invert_rigid,
    project,
    scale_intrinsics,
    static_path,
)
from pipeline.camera.moves import MOVES, Move, fov_of, preset_move, target_path
from pipeline.depth.depthcrafter import LONGEST
from pipeline.depth.estimate import (
    Depth,
    estimate,
    fetch_depth_model,
    load_depth,
    load_depth_model,
    resize_depth,
    subject_distance,
)
from pipeline.evaluation.metrics import psnr, ssim
from pipeline.finish.grain import match_grain
from pipeline.known.first_frame import inpaint, locate
from pipeline.known.gather import Gathered, at_size, depth_of_all, from_other_frames, steady
from pipeline.known.warp import Measurement, composite, fill_unknown, see_behind, warp_depth, warp_to_path
from pipeline.masks.follow import follow, follower, grow, load_mask
from pipeline.media.cache import cached, content_key, look_up
from pipeline.media.video import (
    Clip,
    VideoInfo,
    crop_to_aspect,
    probe,
    read_picture,
    read_video,
    resize,
    working_size,
    write_video,
)
from pipeline.method.latent_mask import LATENT_MASKS, PHI, TAU, MaskInputs
from pipeline.method.sampler import Step, flow_sigmas, normal_like, sample, time_travel, windowed, windows
from pipeline.method.solvers import SCHEDULES, SOLVERS, Given
from pipeline.models import memory
from pipeline.models import table as models
from pipeline.prior.backbone import FAST, FEW_STEPS, Backbone, group_mask, load_backbone, read_settings

REQUEST_VERSION = 1
CONDITIONS = ("warp", "first-frame", "none")
DEFAULT_FOV = 55.0  # degrees, along the longer side
JUMP = 10 / 250  # of the noise levels, that RePaint goes back at a time (its authors: 10 of 250 steps)
LITTLE = 0.3  # share of a frame below which most of it would be invented
VISIBLE_AT_LEAST = 0.001  # share of pixels below which a camera path shows nothing of the clip
NO_REFERENCE = (
    "The reference latent mask needs the clean target video, which a new camera path does not have; "
    "choose another latent mask, such as training-free, or the camera still."
)
GRAINED = "The finest texture of what the model filled in is noise, made after what is filmed around it."
OVERLAP = 0.25  # share of a window of latent frames that the next one shares at least
_CACHED = 2**26  # pixels of depth at the clip's own resolution that are kept while it is composited: 256 MiB
COMPLETE_BELOW = 0.01  # share of unknown pixels up to which the first frame counts as complete


@dataclass(frozen=True)
class RenderRequest:
    """Everything that decides the result of a render, and nothing else. Raises `InputError` on values out of range.

    clip: path of a video file, or of a folder of numbered pictures.
    camera: a name of `moves.MOVES`; amount in its unit, None for its default.
    move: a camera move of one's own, which goes before `camera`; None for none.
    fov: field of view of the clip in degrees along its longer side, None for what the file says of its lens, or 55.
    frames, start, stride: which frames are used; start counts in frames of the clip, frames None means as many as the
        model was made for; more are sampled in overlapping windows. size: (h, w) at which the model works, None for
        the model's own at the clip's aspect.
    seed: of the noise. steps, guidance_scale, strength: None for what the model was made for. strength: the noise level
        in (0, 1] from which sampling starts; 1 is pure noise, below it the filled warp shines through (SDEdit).
    latent_mask, solver: a name of `latent_mask.LATENT_MASKS` (None: see `latent_mask_of`), of `solvers.SOLVERS`;
        guidance acts while guide_until <= sigma <= guide_from. phi: a name of `latent_mask.PHI`, for the masks that
        need one; tau: its temperature.
    gamma > 0: how much DDS trusts the model over the measurement. iterations, step_size: of the solver, where it has
        them; None for its own. schedule: of `solvers.SCHEDULES`, how the iterations go with the noise level.
    condition: what the model's inpainting channels show: the warp, only its first frame, or nothing.
    mask: a file that shows an object of the clip, which is replaced by what the prompt says, see `segment.load_mask`;
        None replaces nothing. mask_frame: the frame of the clip that a single picture shows, None for the first that is
        used; the object is followed from there. invert: everything but that object is replaced. grow: percent of the
        picture's shorter side by which what is replaced is widened (shrunk, if negative).
    remove: what stood behind the object is taken from other frames of the clip first, where they saw it.
    other_frames: what a frame does not see from the new camera is taken from frames that do, see `gather`; not where
        something new is to stand in the place of an object.
    first_frame: a picture of what the result is to begin with; what is unknown of the first frame is taken from it.
    first_frame_model: an image model that paints what is unknown of the first frame: a name of
        `models.MODELS`, a folder or a hub id; None leaves it to the video model.
    backbone: a name, a folder or a hub id. depth: a file or folder of the user's own depth, None to estimate it.
    fast: a name of `backbone.FAST`, "off" for full quality. memory: how the model is placed on a GPU, a name of
        `memory.MODES`, or "auto". compile: compile the transformer's blocks first, which pays in many or long renders.
    depth_model: a name, a folder or a hub id, see `depth.load_depth_model`; None for what comes with the backbone.
    accepted: names of models whose terms the user has accepted, see `models.check_accepted`. It is not written to JSON:
        everyone accepts for themselves.
    composite: put the untouched known pixels back, at the clip's full resolution. seam: percent of the shorter side
        over which they fade into the model's, inside of what is known; 0 is a hard cut. grain: there, what is painted
        gets grain like that of what is filmed around it, see `grain`; not something new in the place of an object.
    """

    clip: str
    camera: str = "orbit-left"
    amount: float | None = None
    move: Move | None = None
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
    strength: float | None = None
    latent_mask: str | None = None
    solver: str = "dds"
    phi: str = "wiener"
    tau: float = TAU
    gamma: float = 0.03
    iterations: int | None = None
    step_size: float | None = None
    schedule: str = "constant"
    guide_from: float = 1.0
    guide_until: float = 0.0
    condition: str = "warp"
    mask: str | None = None
    mask_frame: int | None = None
    invert: bool = False
    grow: float = 2.0
    remove: bool = False
    other_frames: bool = True
    first_frame: str | None = None
    first_frame_model: str | None = None
    backbone: str = "nano"
    depth: str | None = None
    depth_model: str | None = None
    accepted: tuple[str, ...] = ()
    fast: str = "off"
    memory: str = "auto"
    compile: bool = False
    composite: bool = True
    seam: float = 1.0
    grain: bool = True

    def __post_init__(self) -> None:
        _validate(self)

    def to_json(self) -> str:
        """The request as versioned JSON text."""
        given = {"version": REQUEST_VERSION, **_to_dict(self), "move": self.move.to_dict() if self.move else None}
        return json.dumps(given, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, accepted: tuple[str, ...] = ()) -> RenderRequest:
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
        known = [field.name for field in fields(cls) if field.name != "accepted"]
        if unknown := sorted(set(given) - set(known)):
            raise InputError(f"The request has unknown fields: {', '.join(unknown)}. Known are: {', '.join(known)}.")
        if "clip" not in given:
            raise InputError('The request names no clip; give the path of a video file as "clip".')
        if isinstance(given.get("size"), list):
            given["size"] = tuple(given["size"])
        if given.get("move") is not None:
            given["move"] = Move.from_dict(given["move"])
        return cls(**given, accepted=accepted)


def _to_dict(request: RenderRequest) -> dict[str, Any]:
    given = asdict(request)
    del given["accepted"]
    return given


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
        need(getattr(request, name) in tuple(names), name, f"one of {', '.join(names)}")

    need(isinstance(request.clip, str) and bool(request.clip), "clip", "the path of a video file")
    one_of("camera", MOVES)
    low, high = MOVES[request.camera].range
    unit = MOVES[request.camera].unit
    optional("amount", lambda value: _is_number(value) and low <= value <= high, f"from {low:g} to {high:g} {unit}")
    optional("move", lambda value: isinstance(value, Move), "a camera move")
    optional("fov", lambda value: _is_number(value) and 5 <= value <= 150, "an angle from 5 to 150 degrees")
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
    optional("strength", lambda value: _is_number(value) and 0 < value <= 1, "a noise level above 0, up to 1")
    need(_is_number(request.gamma) and request.gamma > 0, "gamma", "a number above 0")
    need(_is_number(request.tau) and request.tau > 0, "tau", "a number above 0")
    optional("iterations", lambda value: _is_int(value) and 1 <= value <= 100, "a whole number from 1 to 100")
    optional("step_size", lambda value: _is_number(value) and value >= 0, "a number, 0 or more")
    for name in ("guide_from", "guide_until"):
        value = getattr(request, name)
        need(_is_number(value) and 0 <= value <= 1, name, "a noise level from 0 to 1")
    need(request.guide_until <= request.guide_from, "guide_until", f"at most guide_from ({request.guide_from})")
    optional("latent_mask", lambda value: value in LATENT_MASKS, f"one of {', '.join(LATENT_MASKS)}")
    one_of("solver", SOLVERS)
    one_of("phi", PHI)
    one_of("schedule", SCHEDULES)
    one_of("condition", CONDITIONS)
    one_of("fast", FAST)
    one_of("memory", memory.CHOICES)
    need(isinstance(request.compile, bool), "compile", "true or false")
    need(not request.compile or request.fast == "off", "compile", "false with a fast mode, which changes the blocks")
    optional("depth", lambda value: isinstance(value, str) and value, "the path of a depth file or folder")
    optional("depth_model", lambda value: isinstance(value, str) and value, "a name, a folder or a hub id")
    optional("mask", lambda value: isinstance(value, str) and value, "the path of a mask: a picture, a video or an npz")
    optional("first_frame", lambda value: isinstance(value, str) and value, "the path of a picture")
    optional("first_frame_model", lambda value: isinstance(value, str) and value, "a name, a folder or a hub id")
    need(
        request.first_frame is None or request.first_frame_model is None,
        "first_frame_model",
        "left out where a picture of the first frame is given",
    )
    used = (
        request.backbone,
        None if request.depth else request.depth_model,
        request.first_frame_model,
        FEW_STEPS.model if request.fast == "lora" else None,
    )
    for ref in filter(None, used):
        models.check_accepted(ref, request.accepted)
    optional("mask_frame", lambda value: _is_int(value) and value >= 0, "a whole number, 0 or more")
    need(_is_number(request.grow) and -10 <= request.grow <= 25, "grow", "from -10 to 25 percent")
    need(isinstance(request.remove, bool), "remove", "true or false")
    need(isinstance(request.invert, bool), "invert", "true or false")
    need(not request.remove or request.mask is not None, "remove", "false where there is no mask to say what to remove")
    need(isinstance(request.other_frames, bool), "other_frames", "true or false")
    need(isinstance(request.grain, bool), "grain", "true or false")
    need(isinstance(request.composite, bool), "composite", "true or false")
    need(_is_number(request.seam) and 0 <= request.seam <= 20, "seam", "from 0 to 20 percent")


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


@dataclass(frozen=True, eq=False)
class Analysis:
    """What is known of the source before a camera is chosen. T is the number of frames the user gets.

    clip: T 3 h w at working size. full: T 3 H W, the same crop at the clip's resolution. depth: T h w.
    source: camera path in pixels of the working size. distance: from the camera to the subject, in the depth's unit.
    fps: of clip, full and the result. info: of the file. notes: choices made for the user, in plain words.
    hidden: T H W, True where `full` is not to be used, see `hide`; None if all of it is.
    picture: 3 H W, what the first frame of the result is to show where it is unknown; picture_from: where it is from.
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
    hidden: Bool[Tensor, "T H W"] | None = None
    picture: Float[Tensor, "3 H W"] | None = None
    picture_from: str = "your picture"


@dataclass(frozen=True, eq=False)
class Problem:
    """What the sampler is told, in latents of the padded clip. h: None without data consistency; y_full: None if
    it is not needed at all. video, mask: the padded measurement, for solvers that work on pixels. place: where the
    prompt is to be followed, 1 or 0, None for everywhere."""

    y_full: Float[Tensor, "C t h w"] | None
    h: Float[Tensor, "C t h w"] | None
    condition: Float[Tensor, "4+C t h w"]
    image: Float[Tensor, "N D"] | None
    noise: Float[Tensor, "C t h w"]
    video: Float[Tensor, "T 3 H W"] | None = None
    mask: Bool[Tensor, "T 1 H W"] | None = None
    place: Float[Tensor, "1 t h w"] | None = None


FindDepth = Callable[..., Generator[StageEvent | tuple[np.ndarray, bool], None, None]]
Fill = Callable[..., Generator[StageEvent | StepEvent | tuple[str, ...] | np.ndarray, None, None]]
Paint = Callable[..., Float[Tensor, "3 H W"]]


def find_depth(
    ref: str, frames: Float[np.ndarray, "T 3 H W"], size: tuple[int, int]
) -> Generator[StageEvent | tuple[np.ndarray, bool], None, None]:
    """Depth of a clip by the model `ref`: z (float32 T h w, of that size) and whether it is metric come last.

    That the terms of a model that has some are accepted is for the caller to see to. Arrays: see `fill`.
    """
    with _LOADING:
        model = _load_depth_model(ref)
    for event in estimate(torch.from_numpy(frames), model, size):
        if isinstance(event, Depth):
            yield event.z.float().cpu().numpy(), event.metric
        else:
            yield StageEvent("depth", event[0], 0.03 + 0.05 * event[1])


def analyse(request: RenderRequest, *, find_depth: FindDepth = find_depth) -> Iterator[StageEvent | Analysis]:
    """Read the clip and find its depth. Yields stage events, then one `Analysis`. Raises `InputError`.

    find_depth: in place of the function of that name, where its work is done elsewhere.
    """
    info = probe(request.clip)
    yield StageEvent("load", models.loading(request.backbone), 0.0)
    backbone = get_backbone(request.backbone, request)
    yield StageEvent("read", "Reading the clip", 0.02)
    wanted = request.frames or backbone.frames
    whole = read_video(request.clip, start=request.start, frames=wanted, stride=request.stride)
    frames, _, height, width = whole.frames.shape
    size = _checked_size(request, backbone, height, width)
    full = crop_to_aspect(whole, size)
    clip = Clip(resize(full.frames, size), whole.fps)

    fov = request.fov or info.fov or DEFAULT_FOV
    K = default_intrinsics(height, width, frames, fov).clone()
    crop_height, crop_width = full.frames.shape[-2:]
    K[:, 0, 2] -= (width - crop_width) / 2
    K[:, 1, 2] -= (height - crop_height) / 2
    source = static_path(scale_intrinsics(K, (crop_height, crop_width), size))

    if request.depth is None:
        depth = None
        for event in _estimated_depth(request, clip, full, backbone, find_depth):
            if isinstance(event, Depth):
                depth = event
            else:
                yield event
        assert depth is not None, "estimating ends with the depth"
    else:
        yield StageEvent("depth", "Reading your depth", 0.03)
        depth = _given_depth(request, (height, width), (crop_height, crop_width), clip)

    notes = [_frames_note(request, backbone, info, frames)]
    if (crop_height, crop_width) != (height, width):
        notes.append(f"The clip's {height}x{width} picture is cropped at the centre to {crop_height}x{crop_width}.")
    if request.fov is None and info.fov is not None:
        notes.append(f"The file says that the lens saw {fov:.0f} degrees; that is taken for the field of view.")
    elif request.fov is None:
        notes.append(f"The clip's field of view is taken to be {DEFAULT_FOV:g} degrees; give yours for exact motion.")
    yield Analysis(clip, full, depth, source, subject_distance(depth), whole.fps, info, request.start, tuple(notes))


def hide(analysis: Analysis, request: RenderRequest) -> Iterator[StageEvent | Analysis]:
    """Take out of an analysis what the request replaces: yields stage events, then one `Analysis`.

    A mask that shows the object in some frames only is followed through the others. Without a mask and a first frame
    the analysis comes back as it is. Raises `InputError` for files that cannot be used.
    """
    if request.first_frame is not None:
        analysis = replace(analysis, picture=_first_frame(request.first_frame, analysis))
    if request.mask is None:
        yield analysis
        return
    yield StageEvent("mask", "Reading the mask", 0.08)
    given = read_mask(request.mask, analysis, start=request.start, stride=request.stride, frame=request.mask_frame)
    notes = analysis.notes
    if len(given) < len(analysis.full.frames):
        notes += (f"The object was followed from {_painted_words(list(given))} through the clip by {follower()}.",)
    followed = None
    for event in follow(analysis.full.frames, given):
        if isinstance(event, Tensor):
            followed = event
        else:
            yield StageEvent("mask", f"Following the object through the clip, frame {event[0]} of {event[1]}", 0.08)
    assert followed is not None, "following ends with the mask"
    pixels = round(request.grow / 100 * min(followed.shape[1:]))
    hidden = grow(~followed if request.invert else followed, pixels)
    if not hidden.any():
        raise InputError(
            f"Nothing is left of the mask {Path(request.mask).name} in the frames that are used; choose a larger one."
        )
    if hidden.float().mean() > 1 - VISIBLE_AT_LEAST:
        raise InputError(f"The mask {Path(request.mask).name} hides the whole clip; leave something of it to see.")
    analysis = replace(analysis, hidden=hidden, notes=notes)
    if request.remove:
        yield StageEvent("mask", "Looking for what stood behind the object", 0.09)
        analysis = _see_behind(analysis)
    yield replace(analysis, clip=replace(analysis.clip, frames=_clear_of_hidden(analysis)))


def read_mask(
    path: str, analysis: Analysis, *, start: int, stride: int, frame: int | None = None
) -> dict[int, Bool[Tensor, "H W"]]:
    """A mask of the user's for the frames of an analysis that it shows, cut like its pictures; True is the object.

    start, stride: of the request; frame: of the clip, which a single picture shows, None for the first that is used.
    Raises `InputError`.
    """
    info, (height, width) = analysis.info, size_of(analysis.full.frames)
    count = len(analysis.full.frames)
    at, beside = divmod((start if frame is None else frame) - start, stride)
    if beside or not 0 <= at < count:
        raise InputError(
            f"The mask's frame {frame} is not among the frames of the clip that are used, {start} to "
            f"{start + (count - 1) * stride}{f', one in {stride}' if stride > 1 else ''}; choose one of those."
        )
    given = load_mask(path, count, (info.height, info.width), start=start, stride=stride, at=at)
    top, left = (info.height - height) // 2, (info.width - width) // 2
    return {frame: mask[top : top + height, left : left + width] for frame, mask in given.items()}


def measure(analysis: Analysis, request: RenderRequest, *, size: tuple[int, int] | None = None) -> Measurement:
    """The clip seen from the requested camera path, T 3 h w, without any diffusion. size: (h, w), None: working size.

    What is replaced is not in it if the analysis comes from `hide`.
    Raises `InputError` if nothing of the clip is visible from there.
    """
    measurement = _warp(at_moment(analysis, request), request, size or size_of(analysis.clip.frames), slice(None))
    if measurement.mask.float().mean() < VISIBLE_AT_LEAST:
        if request.move is not None:
            raise InputError(
                "Almost nothing of the clip is visible along this camera path; keep it nearer to the clip."
            )
        raise InputError(
            f"Almost nothing of the clip is visible along the camera path {request.camera} with amount "
            f"{_amount(request):g}; choose a smaller amount or check the depth."
        )
    return measurement


def with_depth(measurement: Measurement, analysis: Analysis, request: RenderRequest) -> Measurement:
    """The measurement at working size with its z, by which holes are filled from what is far."""
    return replace(measurement, z=warp_depth(depth_of_seen(analysis), analysis.source, cameras_of(analysis, request)))


def wants_other_frames(analysis: Analysis, request: RenderRequest, measurement: Measurement) -> bool:
    """Whether there is something for other frames to complete: not where time stands still, or where something new is
    all that the picture lacks."""
    frozen = request.move is not None and request.move.frozen is not None
    replaces_alone = analysis.hidden is not None and not request.remove and stands_still(analysis, request)
    return request.other_frames and not frozen and not replaces_alone and not bool(measurement.mask.all())


def see_elsewhere(
    analysis: Analysis, request: RenderRequest, measurement: Measurement, replaced: Bool[Tensor, "T h w"] | None
) -> Gathered | None:
    """The measurement at working size, completed by what other frames of the clip saw, see `gather`.

    replaced: of `replaced_place`; it stays unknown. None where the motion of the clip's own camera cannot be found.
    """
    z, cameras = depth_of_seen(analysis), cameras_of(analysis, request)
    return from_other_frames(analysis.clip.frames, z, analysis.source, cameras, measurement, replaced)


def steadied(
    raw: Float[Tensor, "T 3 h w"],
    found: Gathered,
    own: Measurement,
    z: Float[Tensor, "T h w"],
    replaced: Bool[Tensor, "T h w"] | None,
    reach: int,
) -> Float[Tensor, "T 3 h w"]:
    """The raw result with its frames made to agree, see `gather.steady`; not where something new is to stand.

    own: what each frame saw itself; found: of `see_elsewhere`; z: of `depth_of_seen`; replaced: of `replaced_place`.
    """
    measurement = found.measurement
    settled = measurement.mask if replaced is None else measurement.mask | replaced[:, None]
    known = Measurement(measurement.video, settled)  # what is new moves by itself
    return steady(raw, known, measurement.mask & ~own.mask, z, *found.cameras_at(size_of(raw)), reach)


def _hidden(analysis: Analysis) -> Bool[Tensor, "T h w"] | None:
    """Analysis.hidden at working size."""
    if analysis.hidden is None:
        return None
    return F.adaptive_max_pool2d(analysis.hidden[:, None].float(), size_of(analysis.clip.frames))[:, 0] > 0


def depth_of_seen(analysis: Analysis) -> Float[Tensor, "T h w"]:
    """The clip's depth at working size, nan where an object is hidden: other frames are not to show it either."""
    z, hidden = analysis.depth.z, _hidden(analysis)
    return z if hidden is None else torch.where(hidden, torch.nan, z)


def replaced_place(analysis: Analysis, request: RenderRequest) -> Bool[Tensor, "T h w"] | None:
    """Where the new cameras would see the object that is hidden, with a rim; None if nothing takes its place."""
    hidden = _hidden(analysis)
    if hidden is None or request.remove:
        return None
    cameras = cameras_of(analysis, request)
    seen = warp_to_path(analysis.clip.frames, analysis.depth.z, analysis.source, cameras, ~hidden)
    return F.max_pool2d(seen.mask.float(), 5, 1, 2)[:, 0] > 0


def preview(analysis: Analysis, request: RenderRequest, moment: float) -> np.ndarray:
    """One frame of the measurement at working size, with its holes shown, uint8 h w 3. moment: in [0, 1]."""
    frame = round(min(max(moment, 0.0), 1.0) * (len(analysis.clip.frames) - 1))
    size = size_of(analysis.clip.frames)
    return to_uint8(show_holes(_warp(at_moment(analysis, request), request, size, slice(frame, frame + 1))))[0]


def move_of(request: RenderRequest, analysis: Analysis) -> Move:
    """The camera move of a request: its own, or that of its named one."""
    if request.move is not None:
        return request.move
    return preset_move(request.camera, request.amount, fov_of(analysis.source, size_of(analysis.clip.frames)))


def at_moment(analysis: Analysis, request: RenderRequest) -> Analysis:
    """The analysis with time standing still, where the request's move says so."""
    frozen = request.move.frozen if request.move is not None else None
    if frozen is None:
        return analysis
    frames = len(analysis.clip.frames)
    still = [round(frozen * (frames - 1))] * frames
    clip, full = (replace(video, frames=video.frames[still]) for video in (analysis.clip, analysis.full))
    hidden = None if analysis.hidden is None else analysis.hidden[still]
    depth = replace(analysis.depth, z=analysis.depth.z[still])
    return replace(analysis, clip=clip, full=full, depth=depth, hidden=hidden)


def path_warnings(analysis: Analysis, request: RenderRequest, known: Float[Tensor, "T"]) -> tuple[str, ...]:
    """What is wrong with a camera path, in plain words. known: share of each frame that the clip shows.

    A camera is inside the scene where it stands nearly at, or behind, what the clip shows in its direction.
    """
    analysis = at_moment(analysis, request)
    path, z = cameras_of(analysis, request), analysis.depth.z
    frames, height, width = z.shape
    eyes = (invert_rigid(analysis.source.world_from_cam) @ path.world_from_cam)[:, :3, 3]
    uv, ahead = project(eyes[:, None, None], analysis.source.K)
    u, v = uv[:, 0, 0].unbind(-1)
    inside = (ahead[:, 0, 0] > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    at = torch.arange(frames), v.clamp(0, height - 1).nan_to_num().long(), u.clamp(0, width - 1).nan_to_num().long()
    depth = ahead[:, 0, 0] / z[at]
    back = path.world_from_cam[:, 2, 2] < 0
    found = []
    for hit, words in (
        (inside & (depth > 1), "goes behind what your clip shows"),
        (inside & (depth > 0.9) & (depth <= 1), "nearly touches the scene"),
        (back, "looks back to where the clip was filmed from, and sees only the backs of things"),
        (known < LITTLE, f"sees less than {LITTLE:.0%} of your clip"),
    ):
        if hit.any():
            found.append(f"The camera {words} {_frames_words(hit)}.")
    return tuple(found)


def prepare(
    backbone: Backbone,
    measurement: Measurement,
    source: Float[Tensor, "T 3 H W"],
    request: RenderRequest,
    *,
    target: Float[Tensor, "T 3 H W"] | None = None,
    place: Bool[Tensor, "T H W"] | None = None,
    still: bool = False,
) -> Problem:
    """Take a measurement into the latent space: fill its holes, encode it, and find how far each latent is known.

    source: the clip at working size, for latent masks that look at it. target: the clean video that is wanted, where it
    is known (replacement, evaluation), for the reference latent mask. place: where the prompt's object is to stand,
    None if the prompt is of the whole picture. still: of `stands_still`. Videos are padded to 4n + 1 frames by
    repeating the last one.
    """
    video, mask = _pad(measurement.video), _pad(measurement.mask)
    y_full = h = None
    if request.solver != "none" or _strength(request, backbone) < 1:
        filled = _pad(fill_unknown(measurement))
        y_full = backbone.encode(filled)
        if request.solver != "none":
            kind = LATENT_MASKS[latent_mask_of(request, backbone, still)]
            if kind.needs_target and target is None:
                raise InputError(NO_REFERENCE)
            grid = backbone.latent_shape(len(video), *size_of(video))
            clean = None if target is None else _pad(target)
            inputs = MaskInputs(
                backbone.encode, grid, mask, filled, _pad(source), clean, request.phi, request.tau, request.seed,
                backbone.learned_mask,
            )  # fmt: skip
            h = kind.make(inputs).h.to(backbone.device)
    told = measurement.mask.clone()
    if request.condition == "none":
        told[:] = False
    elif request.condition == "first-frame":
        told[1:] = False
    shown = y_full if request.condition == "warp" else None
    if shown is None and backbone.settings.fill_condition:
        shown = backbone.encode(_pad(fill_unknown(replace(measurement, mask=told))))
    condition = backbone.condition(video, _pad(told), shown)
    complete = bool(told[0].float().mean() > 1 - COMPLETE_BELOW)
    image = backbone.embed_image(fill_unknown(measurement)[0] if complete else None)
    noise = backbone.noise(len(video), *size_of(video), request.seed)
    problem = Problem(y_full, h, condition, image, noise)
    if place is not None:  # every latent that has to do with a pixel of it
        cells = F.max_pool2d(_pad(place[:, None].float()), backbone.spatial)
        prompted = group_mask(cells, backbone.temporal, 1).amax(0, keepdim=True)
        problem = replace(problem, place=prompted.to(backbone.device))
    if SOLVERS[request.solver].pixels:
        problem = replace(problem, video=video.to(backbone.device), mask=mask.to(backbone.device))
    return problem


def windows_of(backbone: Backbone, frames: int) -> tuple[slice, ...]:
    """The windows of latent frames in which a clip of so many frames is sampled; one, if the model takes all at once.

    In the middle of a clip a window is a slice of the clip's state and condition, though the model was trained on
    windows that begin with a latent of a single frame. Tried instead, and no better: before each window the clip's
    first latent, or the latent of a single frame of its own. `pipeline.evaluation.windows` measures seams.
    """
    latents = lambda count: (_padded(count) - 1) // backbone.temporal + 1
    length = max(2, latents(backbone.frames))
    return windows(latents(frames), length, min(length - 1, math.ceil(OVERLAP * length)))


def solve(
    backbone: Backbone, problem: Problem, request: RenderRequest, *, spans: Sequence[slice] | None = None
) -> Iterator[Step]:
    """Sample the posterior, one `Step` at a time; the z of the last one is the solution, for `decode`.

    spans: the windows in which a long clip is sampled, None for `windows_of`.

    Nothing in it waits for the device, see `Backbone.velocity`: on a GPU a step is handed out before it is computed.
    """
    prompt, negative = backbone.embed(request.prompt), backbone.embed(request.negative_prompt)
    scale, place = guidance_scale_of(request, backbone), problem.place

    def velocity(z_t: Tensor, sigma: float, span: slice) -> Tensor:
        condition, context = problem.condition[:, span], str(span.start or "")
        guidance: float | Tensor = scale
        if place is not None and scale != 1:
            # elsewhere what the prompt names is not wanted, and what an own negative prompt names even less
            guidance = torch.where(place[:, span] > 0, scale, 1.0 if request.negative_prompt else 0.0)
        return backbone.velocity(z_t, sigma, condition, prompt, negative, guidance, problem.image, context)

    sigmas = flow_sigmas(steps_of(request, backbone), backbone.shift)
    sigmas = sigmas[sigmas <= max(_strength(request, backbone), sigmas[-2].item())]
    start = sigmas[0].item()
    z = problem.noise if problem.y_full is None else (1 - start) * problem.y_full + start * problem.noise
    spans = spans or windows_of(backbone, (z.shape[1] - 1) * backbone.temporal + 1)
    whole = windowed(velocity, spans)
    if problem.y_full is None or problem.h is None:
        with backbone.fast(request.fast):
            yield from sample(whole, z, sigmas)
        return
    solver, guided = SOLVERS[request.solver], {"guide_from": request.guide_from, "guide_until": request.guide_until}
    iterations = request.iterations or solver.iterations or 1
    generator = torch.Generator().manual_seed(request.seed)
    normal_like(problem.noise, generator)  # the stream goes on after the noise that sampling starts from
    given = Given(
        problem.y_full,
        problem.h,
        whole,
        gamma=request.gamma,
        iterations=iterations,
        step_size=(solver.step_size or 0.0) if request.step_size is None else request.step_size,
        schedule=request.schedule,
        generator=generator,
        video=problem.video,
        mask=problem.mask,
        encode=backbone.encode,
        decode=backbone.decode,
    )
    if solver.resamples:
        sigmas = time_travel(sigmas, iterations, max(1, round(JUMP * (len(sigmas) - 1))), **guided)
    with backbone.fast(request.fast):
        yield from sample(whole, z, sigmas, **solver.hooks(given, **guided), generator=generator)


def steps_of(request: RenderRequest, backbone: Backbone) -> int:
    """The sampling steps of a request: its own, or what the model or the fast mode was made for."""
    return request.steps or (FEW_STEPS.steps if request.fast == "lora" else backbone.steps)


def latent_mask_of(request: RenderRequest, backbone: Backbone, still: bool) -> str:
    """The latent mask of a request: its own, or the learned one, where the model has an encoder for it.

    Where the camera stands `still` the clip is the clean video itself, and the training-free mask is the reference.
    """
    learned = backbone.settings.mask_encoder is not None and not still
    return request.latent_mask or ("learned" if learned else "training-free")


def guidance_scale_of(request: RenderRequest, backbone: Backbone) -> float:
    """As `steps_of`, the scale of classifier-free guidance; 1 where both prompts are the same, which is no guidance."""
    if request.prompt == request.negative_prompt:
        return 1.0
    if request.guidance_scale is not None:
        return request.guidance_scale
    if request.fast == "lora":
        return FEW_STEPS.guidance_scale
    replaces = request.mask is not None and not request.remove
    special = backbone.settings.replace_guidance_scale if replaces else None
    return backbone.guidance_scale if special is None else special


def with_previews(backbone: Backbone, steps: Iterable[Step]) -> Iterator[tuple[Step, np.ndarray]]:
    """Each step with its preview, uint8 t h w 3, once it is computed.

    On a GPU it is waited for while the next step is being computed already, so that the device is never idle.
    """
    waiting: tuple[Step, Tensor, torch.cuda.Event] | None = None
    for step in steps:
        pixels = _bytes(backbone.preview(step.z0_hat)).to("cpu", non_blocking=True)
        if backbone.device.type != "cuda":
            yield step, pixels.numpy()
            continue
        computed = torch.cuda.Event()
        computed.record()
        if waiting is not None:
            waiting[2].synchronize()
            yield waiting[0], waiting[1].numpy()
        waiting = step, pixels, computed
    if waiting is not None:
        waiting[2].synchronize()
        yield waiting[0], waiting[1].numpy()


def _strength(request: RenderRequest, backbone: Backbone) -> float:
    return backbone.settings.strength if request.strength is None else request.strength


def fill(
    request: RenderRequest,
    video: Float[np.ndarray, "T 3 h w"],
    mask: Bool[np.ndarray, "T 1 h w"],
    source: Float[np.ndarray, "T 3 h w"],
    still: bool,
    place: Bool[np.ndarray, "T h w"] | None = None,
    depth: Float[np.ndarray, "T h w"] | None = None,
) -> Generator[StageEvent | StepEvent | tuple[str, ...] | np.ndarray, None, None]:
    """The part of a render that an accelerator does: encode, sample, decode. Notes, then the raw video come last.

    video, mask, depth: of the measurement; source: the clip; still: it is the clean video that is wanted; place: see
    `prepare`. Plain arrays, and all that it needs among its arguments: a shared GPU is another process, and only what
    must be done there should be.
    """
    backbone = get_backbone(request.backbone)
    yield StageEvent("encode", "Encoding the warp", 0.12)
    begun = time.perf_counter()
    seen = None if depth is None else torch.from_numpy(depth)
    measurement = Measurement(torch.from_numpy(video), torch.from_numpy(mask), seen)
    clip = torch.from_numpy(source)
    prompted = None if place is None else torch.from_numpy(place)
    target = clip if still else None
    problem = prepare(backbone, measurement, clip, request, target=target, place=prompted, still=still)
    encoding = time.perf_counter() - begun

    spans = windows_of(backbone, len(video))
    in_windows = f" in {len(spans)} overlapping windows" if len(spans) > 1 else ""
    yield StageEvent("sample", f"Sampling{in_windows}", 0.18)
    begun = time.perf_counter()
    z = problem.noise
    for step, preview in with_previews(backbone, solve(backbone, problem, request)):
        z = step.z
        done = step.index + 1
        left = (time.perf_counter() - begun) / done * (step.total - done)
        # decoding costs about as much as the encodings, and so does the rest
        left += 2 * encoding
        fraction = 0.18 + 0.62 * done / step.total
        yield StepEvent(done, step.total, step.sigma, preview, left, fraction, backbone.preview_by)

    yield tuple(_speed_notes(request, backbone))
    yield StageEvent("decode", "Decoding", 0.8)
    yield backbone.decode(z)[: len(video)].cpu().numpy()


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
        title = models.title_of(request.first_frame_model)
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
        write_video(files.video, Clip(result, analysis.fps), **sound)
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
        ],
    }
    write_report(folder / "report.json", report)
    yield DoneEvent(replace(files, report=report))


def get_backbone(ref: str, request: RenderRequest | None = None, clip: tuple[int, int, int] | None = None) -> Backbone:
    """The backbone of that name, folder or hub id; loaded once, from whichever thread asks first.

    clip: frames (4n + 1), height and width that the request is about to render, for which the model is loaded again if
    it does not fit into the GPU's memory the way it is placed, or if the request wants another placement. Without it
    any will do. Raises `InputError` where the memory is not enough.
    """
    with _LOADING:
        kept = _BACKBONES.get(ref)
        if kept is not None and memory.lent():  # what was loaded again would be lost after the call
            if request is not None:
                _mode(kept.backbone, request, clip)  # refuses another placement
                if request.compile:
                    kept.backbone.compile()  # refuses
            return kept.backbone
        if kept is not None and (request is None or clip is None or _suits(kept, request, clip)):
            return kept.backbone
        kept = None
        _BACKBONES.clear()  # first: two large models would not fit into memory together
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()
        backbone = load_backbone(ref, mode=lambda loaded: _mode(loaded, request, clip))
        compiled = request is not None and request.compile
        if compiled:
            backbone.compile()
        _BACKBONES[ref] = _Kept(backbone, compiled)
        return backbone


def _suits(kept: _Kept, request: RenderRequest, clip: tuple[int, int, int]) -> bool:
    """Whether the model can stay as it is placed: a more frugal mode than needed costs less than loading it again."""
    mode = kept.backbone.mode
    if kept.compiled != request.compile:
        return False
    if mode == _mode(kept.backbone, request, clip):
        return True
    present = kept.backbone.plan(*clip, wanted=mode.name, fast=request.fast)
    fits = present.need is None or present.free is None or present.need <= present.free
    return request.memory == "auto" and not mode.eight_bits and fits


def _mode(backbone: Backbone, request: RenderRequest | None, clip: tuple[int, int, int] | None) -> memory.Mode:
    wanted, fast = (request.memory, request.fast) if request else ("auto", "off")
    if clip is None:
        frames = _padded((request and request.frames) or backbone.frames)
        side = round(math.sqrt(backbone.pixels))
        clip = frames, *((request and request.size) or (side, side))
    return backbone.plan(*clip, wanted=wanted, fast=fast).mode


def size_of(video: Tensor) -> tuple[int, int]:
    """(h, w) of anything that ends in H W."""
    return video.shape[-2], video.shape[-1]


def to_uint8(video: Tensor) -> np.ndarray:
    """T C H W in [0, 1] (or bool) as uint8 T H W C."""
    return _bytes(video).cpu().numpy()


def _bytes(video: Tensor) -> Tensor:
    return (video.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def show_holes(measurement: Measurement) -> Float[Tensor, "T 3 H W"]:
    """The measurement with its holes as a quiet checkerboard of greys, which no one takes for a part of the scene."""
    _, _, height, width = measurement.video.shape
    side = max(4, min(height, width) // 24)
    rows, columns = torch.arange(height) // side, torch.arange(width) // side
    board = 0.42 + 0.08 * ((rows[:, None] + columns) % 2)
    return torch.where(measurement.mask, measurement.video, board)


def sound_of(request: RenderRequest, analysis: Analysis) -> dict[str, Any]:
    """The sound of a result, as arguments of `write_video`: the clip's, none where time stands still."""
    if request.move is not None and request.move.frozen is not None:
        return {}
    return {"audio_from": request.clip, "audio_start": request.start / analysis.info.fps}


def keep_measurement(folder: Path, measurement: Measurement, analysis: Analysis) -> None:
    """Write measurement.npz (video uint8 T H W 3, mask bool T H W, True = observed), depth.npz (z float32 T H W)."""
    mask = measurement.mask[:, 0].cpu().numpy()
    np.savez_compressed(folder / "measurement.npz", video=to_uint8(measurement.video), mask=mask)
    np.savez_compressed(folder / "depth.npz", z=analysis.depth.z.cpu().numpy().astype(np.float32))


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write a report as strict JSON."""
    with writing(path):
        path.write_text(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def make_writable(folder: Path) -> None:
    """Create folder if need be. Raises `InputError` if it cannot be written, before anything long is begun."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turns a failure to write into an `InputError`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"Cannot write to {place}: {error.strerror or error}.") from error


def warm(ref: str, depth_model: str | None = None) -> None:
    """Load what an analysis and a render with the backbone `ref` need, so that the first one need not wait for it.

    depth_model: None for what comes with the backbone.
    """
    backbone = get_backbone(ref)
    model = depth_model or depth_model_of(backbone)
    backbone.preview_by  # noqa: B018  loads what makes the previews
    with _LOADING:
        _load_depth_model(model)


def release_depth_model() -> None:
    """Free the depth model where its memory is a GPU's, which the video model is about to need."""
    if torch.cuda.is_available() and not memory.lent():
        _load_depth_model.cache_clear()


def _new_lock() -> None:
    global _LOADING
    _LOADING = threading.Lock()


_LOADING = threading.Lock()
if hasattr(os, "register_at_fork"):
    # a process that is forked while another thread loads would wait for that thread, which it does not have
    os.register_at_fork(after_in_child=_new_lock)


@dataclass(frozen=True, eq=False)
class _Kept:
    backbone: Backbone
    compiled: bool


_BACKBONES: dict[str, _Kept] = {}  # one at most


@lru_cache(maxsize=1)
def _load_depth_model(ref: str) -> Any:
    return load_depth_model(ref, "cuda" if torch.cuda.is_available() else "cpu")


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


def _amount(request: RenderRequest) -> float:
    return MOVES[request.camera].default if request.amount is None else request.amount


def _padded(frames: int) -> int:
    return 4 * math.ceil((frames - 1) / 4) + 1


def _pad(video: Tensor) -> Tensor:
    missing = _padded(len(video)) - len(video)
    return torch.cat([video, video[-1:].expand(missing, *video.shape[1:])]) if missing else video


def _checked_size(request: RenderRequest, backbone: Backbone, height: int, width: int) -> tuple[int, int]:
    multiple = backbone.multiple
    if request.size is None:
        return working_size(height, width, pixels=backbone.pixels, multiple=multiple)
    if any(side % multiple for side in request.size):
        near = [max(multiple, round(side / multiple) * multiple) for side in request.size]
        raise InputError(
            f"The size {request.size[0]}x{request.size[1]} does not fit the model {request.backbone}, which needs "
            f"multiples of {multiple}; {near[0]}x{near[1]} is near."
        )
    return request.size


def _frames_note(request: RenderRequest, backbone: Backbone, info: VideoInfo, frames: int) -> str:
    last = request.start + (frames - 1) * request.stride
    which = f"Frames {request.start} to {last} of {info.frames}"
    if request.stride > 1:
        which += ", every 2nd" if request.stride == 2 else f", one in {request.stride}"
    wanted = request.frames or backbone.frames
    if frames < wanted:
        return f"{which}: the clip has no more than {frames} from there, {wanted} were wanted."
    if request.frames:
        return f"{which}: as asked."
    which += ": as many as the model was made for"
    there = math.ceil((info.frames - request.start) / request.stride)
    if there <= frames:
        return f"{which}."
    work = lambda count: sum(span.stop - span.start for span in windows_of(backbone, count))
    longer = work(there) / work(frames)
    return f"{which}; all {there} can be had by asking for them, and take about {longer:.1f} times as long."


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


def _speed_notes(request: RenderRequest, backbone: Backbone) -> list[str]:
    passes, notes = backbone.passes, []
    if request.fast == "cache":
        spared = passes.asked - passes.whole
        notes.append(
            f"Fast mode: {spared} of {passes.asked} passes through the model were cut short after their first block."
        )
    if request.fast == "lora":
        spec = models.MODELS[FEW_STEPS.model]
        notes.append(
            f"Fast mode: {steps_of(request, backbone)} steps with {spec.title}, whose licence is {spec.licence}."
        )
    if backbone.mode.eight_bits:
        notes.append("The transformer's weights were kept in 8 bits, which changes the result a little.")
    return notes


def _name_of(model: str | None) -> str | None:
    """A model's name without the place of its folder."""
    return Path(model).name if model and Path(model).is_dir() else model


def depth_model_of(backbone: Backbone) -> str:
    """What estimates depth unless the user chooses: the backbone's own, else the one that comes with the program."""
    ref = backbone.depth or read_settings(Path(models.resolve("nano"))).depth
    if ref is None:
        raise InputError("There is no depth model; give the clip's depth as a file.")
    return ref


def _estimated_depth(
    request: RenderRequest, clip: Clip, full: Clip, backbone: Backbone, find_depth: FindDepth
) -> Iterator[StageEvent | Depth]:
    ref = request.depth_model or depth_model_of(backbone)
    yield StageEvent("depth", "Estimating depth", 0.03)
    key = content_key(
        "depth", 3, Path(request.clip), request.start, request.stride, tuple(clip.frames.shape),
        Path(ref) if Path(ref).exists() else ref,
    )  # fmt: skip
    kept = look_up(key)
    if kept is None:
        size, frames = size_of(clip.frames), clip.frames
        if request.depth_model is not None:
            yield StageEvent("depth", models.loading(ref), 0.03)
            # a small backbone's working size is too little for models that were made for larger pictures
            scale = min(1.0, LONGEST / max(size_of(full.frames)))
            height, width = (max(1, round(side * scale)) for side in size_of(full.frames))
            frames = resize(full.frames, (height, width))
        fetch_depth_model(ref, request.accepted)  # here, since the work may be done where time is lent
        found = None
        for event in find_depth(ref, frames.numpy(), size):
            if isinstance(event, StageEvent):
                yield event
            else:
                found = event
        assert found is not None, "the depth comes last"
        arrays = {"z": found[0], "metric": np.array(found[1])}
        kept = cached(key, lambda: arrays)
    yield Depth(torch.from_numpy(kept["z"]), bool(kept["metric"]))


def _given_depth(request: RenderRequest, picture: tuple[int, int], crop: tuple[int, int], clip: Clip) -> Depth:
    # the file shows the whole picture: bring it to the scale of the working size, then crop it like the clip
    height, width = clip.frames.shape[-2:]
    scaled = round(picture[0] * height / crop[0]), round(picture[1] * width / crop[1])
    depth = load_depth(str(request.depth), len(clip.frames), scaled, start=request.start, stride=request.stride)
    top, left = (scaled[0] - height) // 2, (scaled[1] - width) // 2
    return Depth(depth.z[:, top : top + height, left : left + width].contiguous(), depth.metric)


def cameras_of(analysis: Analysis, request: RenderRequest) -> CameraPath:
    """The target cameras, in pixels of the working size."""
    return target_path(move_of(request, analysis), analysis.source, analysis.distance, size_of(analysis.clip.frames))


def stands_still(analysis: Analysis, request: RenderRequest) -> bool:
    """Whether the target camera is the one that filmed the clip, throughout; however the request says so."""
    path = cameras_of(analysis, request)
    return torch.equal(path.world_from_cam, analysis.source.world_from_cam) and torch.equal(path.K, analysis.source.K)


def _warp(analysis: Analysis, request: RenderRequest, size: tuple[int, int], span: slice) -> Measurement:
    working = size_of(analysis.clip.frames)
    frames, z = analysis.clip.frames[span], analysis.depth.z[span]
    if size != working:
        small, frames = frames, resize(analysis.full.frames[span], size)
        z = resize_depth(z, size, guide=(small, frames))
    source, target = (
        CameraPath(path.world_from_cam[span], scale_intrinsics(path.K[span], working, size))
        for path in (analysis.source, cameras_of(analysis, request))
    )
    hidden = analysis.hidden
    if hidden is not None:
        hidden = F.adaptive_max_pool2d(hidden[span, None].float(), size)[:, 0] > 0
    measurement = warp_to_path(frames, z, source, target, hidden)
    if analysis.picture is not None and span.start in (None, 0):
        first = torch.where(measurement.mask[0], measurement.video[0], resize(analysis.picture[None], size)[0])
        known = torch.cat([torch.ones_like(measurement.mask[:1]), measurement.mask[1:]])
        measurement = Measurement(torch.cat([first[None], measurement.video[1:]]), known)
    return measurement


def _frames_words(hit: Tensor) -> str:
    first, last, count = int(hit.nonzero()[0]), int(hit.nonzero()[-1]), len(hit)
    if hit.all():
        return "all along"
    if first == last:
        return f"in frame {first + 1} of {count}"
    return f"between frames {first + 1} and {last + 1} of {count}"


def _painted_words(frames: list[int]) -> str:
    numbers = [str(frame + 1) for frame in frames]
    if len(numbers) == 1:
        return f"frame {numbers[0]}"
    return f"frames {', '.join(numbers[:-1])} and {numbers[-1]}" if len(numbers) < 6 else f"{len(numbers)} frames"


def _first_frame(path: str, analysis: Analysis) -> Float[Tensor, "3 H W"]:
    """A picture, cropped at its centre to the clip's aspect, at the clip's full resolution."""
    size = size_of(analysis.full.frames)
    return resize(crop_to_aspect(Clip(read_picture(path)[None], 1.0), size).frames, size)[0].clamp(0, 1)


def _lacks_first_frame(measurement: Measurement) -> bool:
    return 1 - measurement.mask[0].float().mean().item() >= COMPLETE_BELOW


def _paint_first_frame(analysis: Analysis, request: RenderRequest, model: str, paint: Paint) -> Analysis:
    """The analysis with its first frame completed by an image model, which sees it at the clip's full resolution."""
    first = _warp(analysis, request, size_of(analysis.full.frames), slice(0, 1))
    picture = paint(first.video[0], first.mask[0], request.prompt, model, seed=request.seed)
    return replace(analysis, picture=picture, picture_from=f"inpainted by {models.title_of(model)}")


def _clear_of_hidden(analysis: Analysis) -> Float[Tensor, "T 3 h w"]:
    """The clip at working size without the fringe of what is hidden: where a pixel's footprint reaches into that, its
    colour is the mean of the rest, or else the model carries the fringe on. Pixels that are all hidden stay."""
    assert analysis.hidden is not None
    cleared = analysis.clip.frames.clone()
    for frame, picture, hidden in zip(cleared, analysis.full.frames, analysis.hidden, strict=True):
        seen = (~hidden).float()[None, None]
        share = resize(seen, size_of(cleared))[0]
        rest = resize(picture * seen, size_of(cleared))[0] / share.clamp_min(1e-6)
        frame.copy_(torch.where((share > 0.01) & (share < 0.999), rest, frame))
    return cleared


def _see_behind(analysis: Analysis) -> Analysis:
    """The analysis with what stood behind the hidden object filled in, as far as other frames saw it."""
    hidden = analysis.hidden
    assert hidden is not None
    frames, left = see_behind(analysis.full.frames, hidden)
    size = size_of(analysis.clip.frames)
    small = F.adaptive_max_pool2d(hidden[:, None].float(), size)[:, 0] > 0
    clip = torch.where(small[:, None], resize(frames, size), analysis.clip.frames)
    # nothing is known of the depth there: as far as what is around it
    around = fill_unknown(Measurement((1 / analysis.depth.z * ~small)[:, None].expand(-1, 3, -1, -1), ~small[:, None]))
    found = 1 - left.sum().item() / max(1, int(hidden.sum()))
    note = f"Of what stood behind the object, {found:.0%} was seen in other frames and is taken from them."
    return replace(
        analysis,
        full=replace(analysis.full, frames=frames),
        clip=replace(analysis.clip, frames=clip),
        depth=replace(analysis.depth, z=torch.where(small, 1 / around[:, 0].clamp(min=1e-6), analysis.depth.z)),
        hidden=left,
        notes=(*analysis.notes, note),
    )


def seam_of(request: RenderRequest, size: tuple[int, int]) -> int:
    """Over how many pixels `composite` blends in pictures of this size (H, W)."""
    pixels = request.seam / 100 * min(size)
    return max(2, round(pixels)) if pixels else 0  # less than two could not be seen


def _composite_full(
    raw: Tensor, analysis: Analysis, request: RenderRequest, found: Gathered | None
) -> tuple[Float[Tensor, "T 3 H W"], Bool[Tensor, "T 1 H W"]]:
    """The result at the clip's own resolution, and where it is painted."""
    size = size_of(analysis.full.frames)
    result = torch.empty_like(analysis.full.frames)
    painted = torch.empty_like(result[:, :1], dtype=torch.bool)

    @lru_cache(max(8, _CACHED // math.prod(size)))
    def picture_of(t: int) -> tuple[Tensor, Tensor]:
        span = slice(t, t + 1)
        small, frame = analysis.clip.frames[span], resize(analysis.full.frames[span], size)
        return frame[0], resize_depth(analysis.depth.z[span], size, guide=(small, frame))[0]

    for first in range(0, len(raw), 4):  # a few frames at a time: full-resolution geometry takes much memory
        span = slice(first, first + 4)
        measurement = _warp(analysis, request, size, span)
        if found is not None:
            measurement = at_size(found, measurement, first, picture_of)
        result[span] = composite(raw[span], measurement, seam_pixels=seam_of(request, size))
        painted[span] = ~measurement.mask
    return result, painted


def _figures(video: Tensor, measurement: Measurement) -> dict[str, float | None]:
    decibels = psnr(video, measurement.video, measurement.mask)
    # JSON knows no infinity; null says that they are equal
    return {
        "psnr": decibels if math.isfinite(decibels) else None,
        "ssim": ssim(video, measurement.video, measurement.mask),
    }
