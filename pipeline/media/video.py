"""Videos in and out: any ordinary file to a `Clip`, a `Clip` to an mp4 that browsers play, and sizes."""

from __future__ import annotations

import math
import os
import re
import tempfile
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pipeline import InputError
from pipeline.media import child
from pipeline.media.times import PICTURES_RATE
from pipeline.stop import checked

_PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif"}
_PLAYED = {  # by browsers: codecs by the ending of the file
    ".mp4": ("h264", "av1", "libdav1d", "vp9"),
    ".m4v": ("h264",),
    ".mov": ("h264",),
    ".webm": ("vp8", "vp9", "av1", "libdav1d"),
}
_MAX_BYTES = 12 * 2**30  # of float frames; more is a mistake, or needs a choice of frames
_MAX_COUNT = 2**31
_MAX_RATE = 1000  # Hz
PACES = 0.5, 2.0  # how much slower and faster sound can be played and still be followed
_PICTURE_SECONDS = 60.0  # that reading one picture may take


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames T 3 H W, RGB in [0, 1], float32, at a constant rate of `fps` frames per second."""

    frames: Float[Tensor, "T 3 H W"]
    fps: float


@dataclass(frozen=True)
class VideoInfo:
    """Size in pixels as shown (after rotation), frames on the uniform time grid, Hz, seconds.

    fov: field of view in degrees along the longer side, where the file says what lens it was filmed with.
    playable: whether browsers play the file as it is. still: it is a single picture, which stands for one frame.
    notes: what was done to show it as meant (HDR, interlaced, transparent), and what cannot be used of it.
    """

    width: int
    height: int
    frames: int
    fps: float
    duration: float
    has_audio: bool
    fov: float | None = None
    notes: tuple[str, ...] = ()
    playable: bool = True
    still: bool = False


def probe(path: str | os.PathLike) -> VideoInfo:
    """What `read_video` would find: all packets are counted, the first frame is decoded.

    Raises InputError if the file is missing, empty, or not a video that can be decoded.
    """
    if Path(path).is_dir():
        pictures = pictures_of(path)
        height, width = read_picture(pictures[0]).shape[1:]
        return VideoInfo(width, height, len(pictures), PICTURES_RATE, len(pictures) / PICTURES_RATE, False)
    found, _ = child.run("probe_video", path)
    width, height, frames, fps = found["width"], found["height"], found["frames"], found["fps"]
    notes, has_audio = tuple(found["notes"]), found["has_audio"]
    if has_audio:
        try:
            child.run("read_sound", path, start=0.0, duration=0.1)
        except InputError:
            has_audio = False
            notes += (f"The sound of {_name(path)} cannot be decoded: the result is silent.",)
    fov = _lens_fov(found["lens"], width, height)
    codec, pixels = found["codec"]
    playable = codec in _PLAYED.get(Path(path).suffix.lower(), ()) and pixels in ("yuv420p", "yuvj420p", "yuva420p")
    return VideoInfo(width, height, frames, fps, frames / fps, has_audio, fov, notes, playable, found["still"])


def _lens_fov(metadata: dict[str, str], width: int, height: int) -> float | None:
    """Of the focal length that phones write, equivalent to 35 mm film, whose picture has a diagonal of 43.27 mm."""
    for key, value in metadata.items():
        if key.lower().endswith("focal_length.35mm_equivalent"):
            try:
                tangent = 43.27 / 2 / float(value) * max(width, height) / math.hypot(width, height)
            except (ValueError, ZeroDivisionError):
                return None
            fov = math.degrees(2 * math.atan(tangent))
            return fov if 5 <= fov <= 150 else None
    return None


def read_video(
    path: str | os.PathLike,
    *,
    start: int = 0,
    frames: int | None = None,
    stride: int = 1,
    max_side: int = 1920,
    mask: bool = False,
) -> Clip:
    """Frames start, start + stride, ... of the file's uniform time grid, upright, in shown proportions.

    The grid has the shortest interval that is common in the file: a variable frame rate becomes constant, each grid
    time takes the frame on show then. At most `frames` are returned, fewer when the video ends sooner; None reads to
    the end. Longer sides than `max_side` pixels are scaled down while decoding. `Clip.fps` = grid rate / stride, so
    motion keeps its speed. HDR becomes BT.709, interlaced fields become whole pictures, what is transparent becomes
    neutral grey; mask: what is opaque becomes white instead, and the rest black. A folder of numbered pictures, as data
    sets have them, counts as a video of `PICTURES_RATE`, and a single picture as one frame of such a video.

    Raises InputError if the file cannot be decoded, `start` lies past its end, or a number makes no sense.
    """
    for label, value, least in (("start", start, 0), ("stride", stride, 1), ("max_side", max_side, 16)):
        _check_count(label, value, least)
    if frames is not None:
        _check_count("frames", frames, 1)
    if Path(path).is_dir():
        return _read_pictures(path, start, frames, stride, max_side)
    options = {"start": int(start), "count": frames, "stride": int(stride), "max_side": int(max_side), "mask": mask}
    picked: list[Tensor] = []
    budget, fps = _MAX_BYTES, 0.0
    with closing(child.stream("read_frames", path, **options)) as messages:
        for values, arrays in messages:
            fps = values.get("fps", fps)
            new = [torch.from_numpy(array) for array in arrays] or picked[-1:] * values.get("again", 0)
            budget -= 4 * sum(image.numel() for image in new)
            if budget < 0:
                raise InputError(
                    f"{_name(path)} does not fit into memory: ask for at most {len(picked)} frames, a larger "
                    f"stride, or a max_side below {max_side}"
                )
            picked += new
    size = picked[0].shape
    if any(image.shape != size for image in picked):  # a stream may change its size on the way
        picked = [_fit(image, size) for image in picked]
    return Clip(torch.stack(picked).permute(0, 3, 1, 2).contiguous().float().div_(255), fps / stride)


def pictures_of(folder: str | os.PathLike) -> list[Path]:
    """The pictures in a folder in the order of their numbers. Raises `InputError` if there are none."""
    found = [
        file for file in Path(folder).iterdir() if file.suffix.lower() in _PICTURES and not file.name.startswith(".")
    ]
    if not found:
        raise InputError(f"The folder {_name(folder)} holds no pictures: give a video, or a folder of numbered frames.")
    number = lambda file: int((re.findall(r"\d+", file.stem) or ["0"])[-1])
    return sorted(found, key=lambda file: (number(file), file.name))


def _read_pictures(folder: str | os.PathLike, start: int, frames: int | None, stride: int, max_side: int) -> Clip:
    pictures = pictures_of(folder)
    picked = pictures[start::stride][:frames]
    if not picked:
        raise InputError(f"start {start} is past the end of {_name(folder)}: it has {len(pictures)} frames, from 0")
    read, size = [], None
    for picture in picked:
        image = read_picture(picture)
        if size is None:
            scale = min(1.0, max_side / max(image.shape))
            size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[2] * scale))
            if 12 * size[0] * size[1] * len(picked) > _MAX_BYTES:
                raise InputError(f"{_name(folder)} does not fit into memory: ask for fewer frames, or a larger stride")
        read.append(resize(image[None], size)[0].clamp(0, 1))
    return Clip(torch.stack(read), PICTURES_RATE / stride)


def read_picture(path: str | os.PathLike) -> Float[Tensor, "3 H W"]:
    """A picture of the user's in [0, 1], upright; what is transparent is neutral grey. Raises `InputError`."""
    _, (image,) = child.run("read_colours", path, seconds=_PICTURE_SECONDS)
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255


def read_paint(picture: bytes | str | os.PathLike) -> np.ndarray:
    """Where there is paint in a picture that comes from a browser, H W bool. picture: its bytes, or a file.

    Raises `InputError`.
    """
    if isinstance(picture, bytes):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "painted.png"
            path.write_bytes(picture)
            return read_paint(path)
    _, (opacity,) = child.run("read_paint", picture, seconds=_PICTURE_SECONDS)
    return opacity > 0


def write_video(
    path: str | os.PathLike,
    clip: Clip,
    *,
    audio_from: str | os.PathLike | None = None,
    audio_start: float = 0.0,
    audio_pace: float = 1.0,
) -> bool:
    """Writes an H.264 (yuv420p, BT.709, limited range) mp4 that browsers play and start before it is loaded.

    Odd sides gain a repeated row or column, since yuv420p has only even ones. The sound of `audio_from`, if it has any,
    is taken from `audio_start` seconds on for the clip's length, `audio_pace` (0.5 to 2) times as fast at its pitch, as
    AAC. The file appears at `path` complete or not at all. Returns whether it has sound: where decoding that ends its
    process, the pictures are written without. Raises InputError for a clip without frames or rate, an `audio_start`
    that is not a time, another pace, and an `audio_from` that cannot be opened.
    """
    path = Path(path)
    T, C, H, W = clip.frames.shape
    if T == 0 or C != 3 or H * W == 0:
        raise InputError(f"{path.name}: a clip of shape {(T, C, H, W)} cannot be written: give T 3 H W with frames")
    if not 0 < clip.fps <= _MAX_RATE:
        raise InputError(f"{path.name}: {clip.fps} frames per second: give a rate above 0, up to {_MAX_RATE}")
    if not (math.isfinite(audio_start) and audio_start >= 0):
        raise InputError(f"audio start {audio_start}: give a time in seconds, 0 or more")
    if not PACES[0] <= audio_pace <= PACES[1]:
        raise InputError(f"audio pace {audio_pace}: give a number from {PACES[0]:g} to {PACES[1]:g}")
    sound: list[np.ndarray] = []
    if audio_from is not None and not Path(audio_from).is_dir():
        with suppress(child.Died):
            span = {"start": float(audio_start), "duration": T / clip.fps, "pace": float(audio_pace)}
            _, sound = child.run("read_sound", audio_from, **span)

    path.parent.mkdir(parents=True, exist_ok=True)
    # mkstemp makes the file private; a plain name next to the target keeps os.replace atomic and the usual permissions.
    with tempfile.TemporaryDirectory(prefix=".write-", dir=path.parent) as folder:
        part = Path(folder) / "part.mp4"
        images = (to_uint8(torch.nan_to_num(image[None]))[0] for image in checked(clip.frames))
        options = {"fps": float(clip.fps), "has_sound": bool(sound)}
        child.run("write_frames", part, seconds=None, arrays=chain(sound, images), **options)
        os.replace(part, path)
    return bool(sound)


def working_size(height: int, width: int, *, pixels: int, multiple: int) -> tuple[int, int]:
    """The model size (h, w): multiples of `multiple`, about `pixels` in area (at most 10 % more), closest in aspect."""
    for label, value in (("height", height), ("width", width), ("pixels", pixels), ("multiple", multiple)):
        _check_count(label, value, 1)
    cells = 1.1 * pixels / multiple**2
    sizes = [(rows, cols) for rows in range(1, int(cells) + 1) for cols in range(1, int(cells / rows) + 1)]

    def cost(size: tuple[int, int]) -> float:
        rows, cols = size
        # A change of aspect loses picture to the crop, a smaller area only loses detail: hence the weight.
        aspect = abs(math.log(rows / cols * width / height))
        return aspect + 0.5 * abs(math.log(rows * cols * multiple**2 / pixels))

    rows, cols = min(sizes, key=cost, default=(1, 1))
    return rows * multiple, cols * multiple


def crop_to_aspect(clip: Clip, size: tuple[int, int]) -> Clip:
    """The largest centred part of the clip with the aspect of size = (h, w), at full resolution, with even sides.

    Raises InputError if the clip has a side of less than two pixels.
    """
    H, W = clip.frames.shape[-2:]
    if min(H, W) < 2:
        raise InputError(f"the video is only {W}x{H} pixels: give one with at least 2 pixels a side")
    h, w = size
    scale = min(H / h, W / w)
    height, width = (max(2, min(side - side % 2, round(scale * n / 2) * 2)) for side, n in ((H, h), (W, w)))
    top, left = (H - height) // 2, (W - width) // 2
    return replace(clip, frames=clip.frames[..., top : top + height, left : left + width])


def resize(
    video: Float[Tensor, "T C H W"],
    size: tuple[int, int],
    *,
    mode: Literal["area", "bilinear", "bicubic", "nearest"] = "area",
) -> Float[Tensor, "T C h w"]:
    """Resizes float images to size = (h, w), aligned at the image borders.

    "area" weighs every source pixel under the (triangular) footprint of a target pixel, so that shrinking does not
    alias; enlarging, it equals "bilinear". "nearest" takes the pixel at the centre, for labels.
    """
    if tuple(video.shape[-2:]) == tuple(size):
        return video
    if mode == "nearest":
        return F.interpolate(video, size, mode="nearest-exact")
    # adaptive_avg_pool (interpolate's own "area") shifts the picture unevenly when the ratio is not whole.
    kernel = "bilinear" if mode == "area" else mode
    return F.interpolate(video, size, mode=kernel, align_corners=False, antialias=mode == "area")


def _name(path: str | os.PathLike) -> str:
    return Path(path).name or str(path)


def _check_count(label: str, value: int, least: int) -> None:
    whole = not isinstance(value, bool) and isinstance(value, (int, np.integer))
    if not whole or not least <= value <= _MAX_COUNT:
        raise InputError(f"{label} {value}: give a whole number from {least} to {_MAX_COUNT}")


def _fit(image: Tensor, size: tuple[int, ...]) -> Tensor:
    video = resize(image.permute(2, 0, 1)[None].float(), (size[0], size[1]))
    return video[0].permute(1, 2, 0).round().clamp(0, 255).byte()


def size_of(video: Tensor) -> tuple[int, int]:
    """(h, w) of anything that ends in H W."""
    return video.shape[-2], video.shape[-1]


def to_uint8(video: Tensor) -> np.ndarray:
    """T C H W in [0, 1] (or bool) as uint8 T H W C."""
    return to_bytes(video).cpu().numpy()


def to_bytes(video: Tensor) -> Tensor:
    """As `to_uint8`, left on its device."""
    return (video.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
