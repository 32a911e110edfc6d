"""What is found out about a clip before a camera is chosen: its frames, its depth, the object to be replaced."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline import InputError, relayed
from pipeline.camera.geometry import (
    DEFAULT_FOV,
    CameraPath,
    default_intrinsics,
    scale_intrinsics,
    static_path,
)
from pipeline.depth.depthcrafter import LONGEST
from pipeline.depth.estimate import Depth, estimate, resize_depth, subject_distance
from pipeline.depth.files import KINDS, load_depth
from pipeline.depth.load import fetch_depth_model
from pipeline.depth.shipped import shipped
from pipeline.known.behind import see_behind
from pipeline.known.fill import fill_unknown
from pipeline.known.measurement import Measurement
from pipeline.masks.files import load_mask
from pipeline.masks.follow import follow, follower
from pipeline.masks.shape import grow
from pipeline.media.cache import cached, content_key, look_up
from pipeline.media.video import (
    Clip,
    VideoInfo,
    crop_to_aspect,
    probe,
    read_picture,
    read_video,
    resize,
    size_of,
    working_size,
)
from pipeline.method.problem import windows_of
from pipeline.models import hub
from pipeline.models.table import title_of
from pipeline.prior.backbone import Backbone
from pipeline.render.events import StageEvent, stage
from pipeline.render.loaded import depth_model_of, get_backbone, loaded_depth_model
from pipeline.render.request import RenderRequest
from pipeline.stop import check

DETAIL = 2**18  # pixels of a frame at which depth is kept besides the working size
VISIBLE_AT_LEAST = 0.001  # share of pixels below which a camera path shows nothing of the clip


@dataclass(frozen=True, eq=False)
class Analysis:
    """What is known of the source before a camera is chosen. T is the number of frames the user gets.

    clip: T 3 h w at working size. full: T 3 H W, the same crop at the clip's resolution. depth: T h w. Of a single
    picture (`info.still`) all frames are that picture; those of full share its memory.
    detail: T h' w', the same depth at the larger size at which it was found, None if there is none; see `depth_at`.
    source: camera path in pixels of the working size. distance: from the camera to the subject, in the depth's unit.
    fps: of clip, full and the result. info: of the file. first: the first frame that is used; why: why these frames
    are, in words. notes: choices made for the user, in plain words, that one among them.
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
    why: str = ""
    notes: tuple[str, ...] = ()
    hidden: Bool[Tensor, "T H W"] | None = None
    picture: Float[Tensor, "3 H W"] | None = None
    picture_from: str = "your picture"
    detail: Float[Tensor, "T h' w'"] | None = None


def depth_at(
    analysis: Analysis, span: slice, size: tuple[int, int]
) -> tuple[Float[Tensor, "T 3 H W"], Float[Tensor, "T H W"]]:
    """Frames of the clip and their depth at any size, the depth's edges where the pictures' are."""
    if size == size_of(analysis.clip.frames):
        return analysis.clip.frames[span], analysis.depth.z[span]
    z, small, full = analysis.depth.z, analysis.clip.frames[span], analysis.full.frames[span]
    if analysis.detail is not None:
        z, small = analysis.detail, resize(full, size_of(analysis.detail))
    frames = resize(full, size)
    return frames, resize_depth(z[span], size, guide=(small, frames))


MUCH = 0.9  # of the picture under a mask that may be meant the other way round
FindDepth = Callable[..., Generator[StageEvent, None, tuple[np.ndarray, bool]]]


def find_depth(
    ref: str, frames: Float[np.ndarray, "T 3 H W"], size: tuple[int, int]
) -> Generator[StageEvent, None, tuple[Float[np.ndarray, "T h w"], bool]]:
    """Stage events; returns the depth of a clip by the model `ref` at that size, and whether it is metric.

    That the terms of a model that has some are accepted is for the caller to see to. Arrays: see `worker.fill`.
    """
    events = estimate(torch.from_numpy(frames), loaded_depth_model(ref), size)
    depth = yield from relayed(events, lambda told: stage("depth", *told))
    check()
    return depth.z.float().cpu().numpy(), depth.metric


def analyse(request: RenderRequest, *, find_depth: FindDepth = find_depth) -> Generator[StageEvent, None, Analysis]:
    """Read the clip and find its depth: stage events; returns the `Analysis`. Raises `InputError`.

    find_depth: in place of the function of that name, where its work is done elsewhere.
    """
    info = probe(request.clip)
    yield stage("load", hub.loading(request.backbone))
    backbone = get_backbone(request.backbone, request)
    yield stage("read", "Reading the clip")
    wanted = request.frames or backbone.length
    whole = read_video(request.clip, start=request.start, frames=wanted, stride=request.stride)
    frames, _, height, width = whole.frames.shape
    size = _checked_size(request, backbone, height, width)
    full = crop_to_aspect(whole, size)  # of a picture one frame until the end
    clip = Clip(resize(full.frames, size), whole.fps)

    fov = request.fov or info.fov or DEFAULT_FOV
    K = default_intrinsics(height, width, frames, fov).clone()
    crop_height, crop_width = full.frames.shape[-2:]
    K[:, 0, 2] -= (width - crop_width) / 2
    K[:, 1, 2] -= (height - crop_height) / 2
    source = static_path(scale_intrinsics(K, (crop_height, crop_width), size))

    if request.depth is None:
        by = title_of(request.depth_model) if request.depth_model else "the network that comes with the model"
        how = f"The depth was estimated from the pictures by {by}."
        depth = yield from _estimated_depth(request, clip, full, backbone, find_depth)
    else:
        yield stage("depth", "Reading your depth")
        depth = _given_depth(request, (height, width), full, clip)
        how = f"Your depth was read as {KINDS[depth.kind]}."
    check()
    detail = None
    if size_of(depth.z) != size:
        detail = depth.z
        depth = replace(depth, z=resize_depth(detail, size))

    notes = [why := _frames_note(request, backbone, info, frames), *info.notes, how]
    if (crop_height, crop_width) != (height, width):
        notes.append(f"The clip's {height}x{width} picture is cropped at the centre to {crop_height}x{crop_width}.")
    if request.fov is None and info.fov is not None:
        notes.append(f"The file says that the lens saw {fov:.0f} degrees; that is taken for the field of view.")
    elif request.fov is None:
        notes.append(f"The clip's field of view is taken to be {DEFAULT_FOV:g} degrees; give yours for exact motion.")
    distance = subject_distance(depth)
    found = Analysis(
        clip, full, depth, source, distance, whole.fps, info, request.start, why, tuple(notes), detail=detail
    )
    return _held(found, wanted) if info.still else found


def _held(analysis: Analysis, frames: int) -> Analysis:
    """The analysis of one picture as that of a clip of so many frames."""
    held = lambda values: values.repeat(frames, *[1] * (values.ndim - 1))
    return replace(
        analysis,
        clip=replace(analysis.clip, frames=held(analysis.clip.frames)),
        full=replace(analysis.full, frames=analysis.full.frames.expand(frames, -1, -1, -1)),
        depth=replace(analysis.depth, z=held(analysis.depth.z)),
        detail=None if analysis.detail is None else held(analysis.detail),
        source=CameraPath(held(analysis.source.world_from_cam), held(analysis.source.K)),
    )


def hide(analysis: Analysis, request: RenderRequest) -> Generator[StageEvent, None, Analysis]:
    """Take out of an analysis what the request replaces: stage events; returns the analysis without it.

    A mask that shows the object in some frames only is followed through the others. Without a mask and a first frame
    the analysis comes back as it is. Raises `InputError` for files that cannot be used.
    """
    if request.first_frame is not None:
        analysis = replace(analysis, picture=_first_frame(request.first_frame, analysis))
    if request.mask is None:
        return analysis
    yield stage("mask", "Reading the mask")
    given = read_mask(
        request.mask,
        analysis,
        start=request.start,
        stride=request.stride,
        frame=request.mask_frame,
        label=request.mask_label,
    )
    notes = analysis.notes
    covered = max(mask.float().mean().item() for mask in given.values())
    if covered > MUCH and not request.invert:
        notes += (f"The mask covers {covered:.0%} of the picture; if it shows what is to stay, invert it.",)
    if len(given) < len(analysis.full.frames):
        notes += (f"The object was followed from {_painted_words(list(given))} through the clip by {follower()}.",)
    say = lambda told: stage("mask", f"Following the object through the clip, frame {told[0]} of {told[1]}")
    followed = yield from relayed(follow(analysis.full.frames, given), say)
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
        yield stage("mask", "Looking for what stood behind the object", 1.0)
        analysis = _see_behind(analysis)
    return replace(analysis, clip=replace(analysis.clip, frames=_clear_of_hidden(analysis)))


def read_mask(
    path: str,
    analysis: Analysis,
    *,
    start: int,
    stride: int,
    frame: int | None = None,
    label: int | None = None,
) -> dict[int, Bool[Tensor, "H W"]]:
    """A mask of the user's for the frames of an analysis that it shows, cut like its pictures; True is the object.

    Of a single picture it shows all frames.
    start, stride: of the request; frame: of the clip, which a single picture shows, None for the first that is used;
    label: which of the file's counts, None for all.
    Raises `InputError`.
    """
    info, (height, width) = analysis.info, size_of(analysis.full.frames)
    count = 1 if info.still else len(analysis.full.frames)
    at, beside = divmod((start if frame is None else frame) - start, stride)
    if beside or not 0 <= at < count:
        raise InputError(
            f"The mask's frame {frame} is not among the frames of the clip that are used, {start} to "
            f"{start + (count - 1) * stride}{f', one in {stride}' if stride > 1 else ''}; choose one of those."
        )
    given = load_mask(path, count, (info.height, info.width), start=start, stride=stride, at=at, label=label)
    top, left = (info.height - height) // 2, (info.width - width) // 2
    found = {frame: mask[top : top + height, left : left + width] for frame, mask in given.items()}
    return dict.fromkeys(range(len(analysis.full.frames)), found[0]) if info.still else found


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
    if info.still:
        how = "as asked" if request.frames else "as many as the model was made for; any other number can be asked for"
        wanted = request.frames or backbone.length
        return f"A picture is filmed for {wanted} frames, {info.fps / request.stride:g} a second: {how}."
    last = request.start + (frames - 1) * request.stride
    which = f"Frames {request.start} to {last} of {info.frames}"
    if request.stride > 1:
        which += ", every 2nd" if request.stride == 2 else f", one in {request.stride}"
    wanted = request.frames or backbone.length
    if request.frames and frames < wanted:
        return f"{which}: the clip has no more than {frames} from there, {wanted} were wanted."
    if request.frames:
        return f"{which}: as asked."
    there = math.ceil((info.frames - request.start) / request.stride)
    if there <= frames:
        return f"{which}."
    work = lambda count: sum(span.stop - span.start for span in windows_of(backbone, count))
    longer = work(there) / work(frames)
    return f"{which}; all {there} can be had by asking for them, and take about {longer:.1f} times as long."


def name_of(model: str | None) -> str | None:
    """A model's name without the place of its folder."""
    return Path(model).name if model and Path(model).is_dir() else model


def depth_key(request: RenderRequest, shape: tuple[int, ...], ref: str) -> str:
    """Under which the depth of a clip by the model `ref` is kept. shape: of the clip at working size, T 3 h w."""
    model = Path(ref) if Path(ref).exists() else ref
    return content_key("depth", 6, Path(request.clip), request.start, request.stride, shape, model)


def _estimated_depth(
    request: RenderRequest, clip: Clip, full: Clip, backbone: Backbone, find_depth: FindDepth
) -> Generator[StageEvent, None, Depth]:
    ref = request.depth_model or depth_model_of(backbone)
    yield stage("depth", "Estimating depth")
    key = depth_key(request, tuple(clip.frames.shape), ref)
    kept = look_up(key) or shipped(key)
    if kept is None:
        if request.depth_model is not None:
            yield stage("depth", hub.loading(ref))
        # a small backbone's working size is too little to tell what is in a picture
        scale = min(1.0, LONGEST / max(size_of(full.frames)))
        height, width = (max(1, round(side * scale)) for side in size_of(full.frames))
        size = _detail_size(full, clip)
        frames = clip.frames if size == size_of(clip.frames) else resize(full.frames, (height, width))
        fetch_depth_model(ref, request.accepted)  # here, since the work may be done where time is lent
        z, metric = yield from find_depth(ref, frames.numpy(), size)
        arrays = {"z": z, "metric": np.array(metric)}
        kept = cached(key, lambda: arrays)
    return Depth(torch.from_numpy(kept["z"]), bool(kept["metric"]))


def _given_depth(request: RenderRequest, picture: tuple[int, int], full: Clip, clip: Clip) -> Depth:
    """The user's depth of the clip."""
    # the file shows the whole picture: bring it to the scale of what is kept, then crop it like the clip
    (height, width), crop = _detail_size(full, clip), size_of(full.frames)
    scaled = round(picture[0] * height / crop[0]), round(picture[1] * width / crop[1])
    depth = load_depth(
        str(request.depth),
        len(clip.frames),
        scaled,
        start=request.start,
        stride=request.stride,
        kind=request.depth_kind,
    )
    top, left = (scaled[0] - height) // 2, (scaled[1] - width) // 2
    return replace(depth, z=depth.z[:, top : top + height, left : left + width].contiguous())


def _detail_size(full: Clip, clip: Clip) -> tuple[int, int]:
    """At which size depth is kept: the clip's own, at most `DETAIL` pixels and at least the working size."""
    height, width = size_of(full.frames)
    scale = min(1.0, math.sqrt(DETAIL / (height * width)))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    working = size_of(clip.frames)
    return size if math.prod(size) > math.prod(working) else working


def _painted_words(frames: list[int]) -> str:
    numbers = [str(frame + 1) for frame in frames]
    if len(numbers) == 1:
        return f"frame {numbers[0]}"
    return f"frames {', '.join(numbers[:-1])} and {numbers[-1]}" if len(numbers) < 6 else f"{len(numbers)} frames"


def _first_frame(path: str, analysis: Analysis) -> Float[Tensor, "3 H W"]:
    """A picture, cropped at its centre to the clip's aspect, at the clip's full resolution."""
    size = size_of(analysis.full.frames)
    return resize(crop_to_aspect(Clip(read_picture(path)[None], 1.0), size).frames, size)[0].clamp(0, 1)


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
    found = 1 - left.sum().item() / max(1, int(hidden.sum()))
    note = f"Of what stood behind the object, {found:.0%} was seen in other frames and is taken from them."
    return replace(
        analysis,
        full=replace(analysis.full, frames=frames),
        clip=replace(analysis.clip, frames=clip),
        depth=replace(analysis.depth, z=_depth_behind(analysis.depth.z, hidden)),
        detail=None if analysis.detail is None else _depth_behind(analysis.detail, hidden),
        hidden=left,
        notes=(*analysis.notes, note),
    )


def _depth_behind(z: Float[Tensor, "T h w"], hidden: Bool[Tensor, "T H W"]) -> Float[Tensor, "T h w"]:
    """The depth without an object: nothing is known there, so it is as far as what is around."""
    gone = F.adaptive_max_pool2d(hidden[:, None].float(), size_of(z))[:, 0] > 0
    around = fill_unknown(Measurement((1 / z * ~gone)[:, None].expand(-1, 3, -1, -1), ~gone[:, None]))
    return torch.where(gone, 1 / around[:, 0].clamp(min=1e-6), z)
