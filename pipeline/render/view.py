"""The clip seen from the new cameras: the measurement, and what is wrong with a camera path."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline import InputError
from pipeline.camera.geometry import CameraPath, invert_rigid, project, scale_intrinsics, stands_still
from pipeline.camera.moves import Move, fov_of, frames_at, pace_of, preset_move, target_path
from pipeline.known.gather import Gathered, completed
from pipeline.known.known import Known
from pipeline.known.measurement import Measurement
from pipeline.known.warp import warp_depth, warp_to_path
from pipeline.media.video import resize, size_of, to_uint8
from pipeline.method.lavr import followed
from pipeline.method.problem import COMPLETE_BELOW, check_mask
from pipeline.models import table
from pipeline.render.analysis import VISIBLE_AT_LEAST, Analysis, depth_at
from pipeline.render.events import StageEvent, WarpEvent, stage
from pipeline.render.request import RenderRequest, amount_of

LITTLE = 0.3  # share of a frame below which most of it would be invented
Paint = Callable[..., Float[Tensor, "3 H W"]]


def measure(analysis: Analysis, request: RenderRequest, *, size: tuple[int, int] | None = None) -> Measurement:
    """The clip seen from the requested camera path, T 3 h w, without any diffusion. size: (h, w), None: working size.

    analysis: of the clip as it was filmed. What is replaced is not in it if the analysis comes from `hide`.
    Raises `InputError` if nothing of the clip is visible from there.
    """
    return _measured(retimed(analysis, request), request, size or size_of(analysis.clip.frames))


def _measured(analysis: Analysis, request: RenderRequest, size: tuple[int, int]) -> Measurement:
    measurement = warped(analysis, request, size, slice(None))
    if measurement.mask.float().mean() < VISIBLE_AT_LEAST:
        if request.move is not None:
            raise InputError(
                "Almost nothing of the clip is visible along this camera path; keep it nearer to the clip."
            )
        raise InputError(
            f"Almost nothing of the clip is visible along the camera path {request.camera} with amount "
            f"{amount_of(request):g}; choose a smaller amount or check the depth."
        )
    return measurement


@dataclass(frozen=True, eq=False)
class View:
    """A clip as the new cameras see it.

    analysis: of the clip; without what is replaced, at its moment, with its first frame painted, as it was asked for.
    known: what is known of the target video.
    found: what other frames saw of it; None where they were not asked, or how the camera moves was not found.
    searched: other frames were asked.
    """

    analysis: Analysis
    known: Known
    found: Gathered | None
    searched: bool

    @property
    def unknown(self) -> Float[Tensor, "T"]:
        """The share of each frame that is not known."""
        return 1 - self.known.measurement.mask.float().mean(dim=(1, 2, 3))

    @property
    def elsewhere(self) -> float | None:
        """The share of the picture that other frames saw; None where how the camera moves was not found."""
        if self.found is None:
            return None if self.searched else 0.0
        return self.found.taken.float().mean().item()


def look(
    analysis: Analysis, request: RenderRequest, paint: Paint | None = None
) -> Generator[StageEvent | WarpEvent, None, View]:
    """Measure and complete: stage events, and what is measured; returns what is known along the requested camera path.

    The one way from an analysis to what a method is given, for renders, for `warp` and for evaluations. analysis: from
    `analysis.hide`. paint: an image model's completion of the first frame; None paints none. Raises `InputError`.
    """
    analysis = retimed(analysis, request)
    size = size_of(analysis.clip.frames)
    yield stage("warp", "Warping")
    measurement = _measured(analysis, request, size)
    model = request.first_frame_model
    if paint is not None and model is not None and 1 - measurement.mask[0].float().mean().item() >= COMPLETE_BELOW:
        yield stage("first-frame", f"Inpainting the first frame by {table.title_of(model)}")
        analysis = _paint_first_frame(analysis, request, model, paint)
        measurement = _measured(analysis, request, size)
    yield _seen(measurement, analysis)
    known = known_of(analysis, request, measurement)
    if not wants_other_frames(analysis, request, measurement):
        return View(analysis, known, None, searched=False)
    yield stage("gather", "Looking for what other frames saw")
    known, found = completed(known)
    yield _seen(known.measurement, analysis)
    return View(analysis, known, found, searched=True)


def _seen(measurement: Measurement, analysis: Analysis) -> WarpEvent:
    unknown = 1 - measurement.mask.float().mean().item()
    return WarpEvent(to_uint8(measurement.video), to_uint8(measurement.mask)[..., 0], analysis.fps, unknown)


def known_of(analysis: Analysis, request: RenderRequest, measurement: Measurement) -> Known:
    """What each frame by itself tells of the target video. measurement: of `measure`, at working size."""
    hidden, z, cameras = _hidden(analysis), analysis.depth.z, cameras_of(analysis, request)
    place = None
    if hidden is not None and not request.remove:  # where the new cameras would see the object, with a rim
        seen = warp_to_path(analysis.clip.frames, z, analysis.source, cameras, ~hidden)
        place = F.max_pool2d(seen.mask.float(), 5, 1, 2)[:, 0] > 0
    if hidden is not None:
        z = torch.where(hidden, torch.nan, z)  # other frames are not to show it either
    # holes are filled from what is far, see `fill_unknown`
    measurement = replace(measurement, z=warp_depth(z, analysis.source, cameras))
    return Known(measurement, analysis.clip.frames, z, analysis.source, cameras, place)


def wants_other_frames(analysis: Analysis, request: RenderRequest, measurement: Measurement) -> bool:
    """Whether there is something for other frames to complete: not where time stands still, or where something new is
    all that the picture lacks."""
    if analysis.info.still or pace_of(request.timing, len(analysis.clip.frames)) == 0:
        return False
    still = stands_still(analysis.source, cameras_of(analysis, request))
    replaces_alone = analysis.hidden is not None and not request.remove and still
    return request.other_frames and not replaces_alone and not bool(measurement.mask.all())


def _hidden(analysis: Analysis) -> Bool[Tensor, "T h w"] | None:
    """Analysis.hidden at working size."""
    if analysis.hidden is None:
        return None
    return F.adaptive_max_pool2d(analysis.hidden[:, None].float(), size_of(analysis.clip.frames))[:, 0] > 0


def preview(analysis: Analysis, request: RenderRequest, moment: float) -> np.ndarray:
    """One frame of the measurement at working size, with its holes shown, uint8 h w 3. moment: in [0, 1]."""
    frame = round(min(max(moment, 0.0), 1.0) * (len(analysis.clip.frames) - 1))
    size = size_of(analysis.clip.frames)
    return to_uint8(show_holes(warped(retimed(analysis, request), request, size, slice(frame, frame + 1))))[0]


def check_cameras(request: RenderRequest, source: CameraPath, size: tuple[int, int]) -> None:
    """Raises `InputError` for a camera path along which a clip with these cameras cannot be rendered as asked.

    size: (h, w) of the pictures that source.K belongs to. The depth is not needed.
    """
    move = request.move or preset_move(request.camera, request.amount, fov_of(source, size))
    check_mask(followed(request.guidance), clean=stands_still(source, target_path(move, source, 1.0, size)))


def move_of(request: RenderRequest, analysis: Analysis) -> Move:
    """The camera move of a request: its own, or that of its named one."""
    if request.move is not None:
        return request.move
    return preset_move(request.camera, request.amount, fov_of(analysis.source, size_of(analysis.clip.frames)))


def retimed(analysis: Analysis, request: RenderRequest) -> Analysis:
    """The analysis with the clip's frames in the order of the request's timing, each as often as it is shown."""
    frames = len(analysis.clip.frames)
    order = frames_at(request.timing, frames)
    if analysis.info.still or order == list(range(frames)):
        return analysis
    clip, full = (replace(video, frames=video.frames[order]) for video in (analysis.clip, analysis.full))
    hidden = None if analysis.hidden is None else analysis.hidden[order]
    depth = replace(analysis.depth, z=analysis.depth.z[order])
    detail = None if analysis.detail is None else analysis.detail[order]
    return replace(analysis, clip=clip, full=full, depth=depth, detail=detail, hidden=hidden)


def path_warnings(analysis: Analysis, request: RenderRequest, known: Float[Tensor, "T"]) -> tuple[str, ...]:
    """What is wrong with a camera path, in plain words. known: share of each frame that the clip shows.

    analysis: `retimed`. A camera is inside the scene where it stands nearly at, or behind, what the clip shows in its
    direction.
    """
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


def show_holes(measurement: Measurement) -> Float[Tensor, "T 3 H W"]:
    """The measurement with its holes as a quiet checkerboard of greys, which no one takes for a part of the scene."""
    _, _, height, width = measurement.video.shape
    side = max(4, min(height, width) // 24)
    rows, columns = torch.arange(height) // side, torch.arange(width) // side
    board = 0.42 + 0.08 * ((rows[:, None] + columns) % 2)
    return torch.where(measurement.mask, measurement.video, board)


def cameras_of(analysis: Analysis, request: RenderRequest) -> CameraPath:
    """The target cameras, in pixels of the working size."""
    return target_path(move_of(request, analysis), analysis.source, analysis.distance, size_of(analysis.clip.frames))


def warped(
    analysis: Analysis,
    request: RenderRequest,
    size: tuple[int, int],
    span: slice,
    pictures: tuple[Tensor, Tensor] | None = None,
) -> Measurement:
    """Some frames of the clip seen from the new cameras, at a size (h, w), with the picture of the first frame.

    pictures: these frames and their depth, where they are at hand; see `depth_at`.
    """
    working = size_of(analysis.clip.frames)
    frames, z = pictures or depth_at(analysis, span, size)
    source, target = (
        CameraPath(path.world_from_cam[span], scale_intrinsics(path.K[span], working, size))
        for path in (analysis.source, cameras_of(analysis, request))
    )
    hidden = analysis.hidden
    if hidden is not None:
        hidden = F.adaptive_max_pool2d(hidden[span, None].float(), size)[:, 0] > 0
    measurement = warp_to_path(frames, z, source, target, hidden, tidy=True)
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


def _paint_first_frame(analysis: Analysis, request: RenderRequest, model: str, paint: Paint) -> Analysis:
    """The analysis with its first frame completed by an image model, which sees it at the clip's full resolution."""
    first = warped(analysis, request, size_of(analysis.full.frames), slice(0, 1))
    picture = paint(first.video[0], first.mask[0], request.guidance.prompt, model, seed=request.guidance.seed)
    return replace(analysis, picture=picture, picture_from=f"inpainted by {table.title_of(model)}")
