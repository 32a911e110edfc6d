"""Videos in and out: any ordinary file to a `Clip`, a `Clip` to an mp4 that browsers play, and sizes."""

from __future__ import annotations

import contextlib
import math
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.container import InputContainer, OutputContainer
from av.error import EOFError as EndOfFileError
from av.error import FFmpegError, InvalidDataError
from av.stream import Disposition
from av.video.reformatter import ColorRange, Colorspace
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from pipeline import InputError

# What may be opened. Without the list a text file that is a playlist could make FFmpeg open other files or addresses.
_FORMATS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,gif,h264,hevc,ivf,mxf,dv,3gp,webm,mp4,y4m,yuv4mpegpipe"
_IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif"}
_MAX_BYTES = 12 * 2**30  # of float frames; more is a mistake, or needs a choice of frames
_MAX_COUNT = 2**31
MAX_PICTURE = 2**26  # pixels
_MAX_RATE = 1000  # Hz; containers with broken time bases claim 90000
_AUDIO_RATE = 48000
PICTURES_RATE = 24.0  # frames per second of a folder of pictures, which says nothing of it; DAVIS was filmed so
# Flags of swscale. By default it doubles chroma samples instead of interpolating them, which costs 5 dB or more.
_BICUBIC, _AREA, _FULL_CHROMA = 0x4, 0x20, 0x2000 | 0x4000 | 0x40000


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames T 3 H W, RGB in [0, 1], float32, at a constant rate of `fps` frames per second."""

    frames: Float[Tensor, "T 3 H W"]
    fps: float


@dataclass(frozen=True)
class VideoInfo:
    """Size in pixels as shown (after rotation), frames on the uniform time grid, Hz, seconds.

    fov: field of view in degrees along the longer side, where the file says what lens it was filmed with.
    """

    width: int
    height: int
    frames: int
    fps: float
    duration: float
    has_audio: bool
    fov: float | None = None


def probe(path: str | os.PathLike) -> VideoInfo:
    """What `read_video` would find, from the header and the first frame only.

    Raises InputError if the file is missing, empty, or not a video that can be decoded.
    """
    if Path(path).is_dir():
        pictures = pictures_of(path)
        height, width = read_picture(pictures[0]).shape[1:]
        return VideoInfo(width, height, len(pictures), PICTURES_RATE, len(pictures) / PICTURES_RATE, False)
    with _open(path) as container:
        stream = _video_stream(container, path)
        fps = _frame_rate(stream)
        first = next(_decoded(container, stream), None)
        if first is None:
            raise InputError(f"{_name(path)} holds no picture that can be decoded: export it again as MP4 (H.264)")
        height, width = _square_pixels(first, stream)
        if _quarter_turns(first) % 2:
            height, width = width, height
        duration = _duration(container, stream)
        frames = max(1, round(duration * fps) if duration else stream.frames)
        fov = _lens_fov(container.metadata | stream.metadata, width, height)
        return VideoInfo(width, height, frames, fps, duration or frames / fps, bool(container.streams.audio), fov)


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
    path: str | os.PathLike, *, start: int = 0, frames: int | None = None, stride: int = 1, max_side: int = 1920
) -> Clip:
    """Frames start, start + stride, ... of the file's uniform time grid, upright, in shown proportions.

    The grid has the file's average rate: a variable frame rate becomes constant, each grid time takes the frame on show
    then. At most `frames` are returned, fewer when the video ends sooner; None reads to the end. Longer sides than
    `max_side` pixels are scaled down while decoding. `Clip.fps` = source rate / stride, so motion keeps its speed.
    A folder of numbered pictures, as data sets have them, counts as a video of `PICTURES_RATE`.

    Raises InputError if the file cannot be decoded, `start` lies past its end, or a number makes no sense.
    """
    for label, value, least in (("start", start, 0), ("stride", stride, 1), ("max_side", max_side, 16)):
        _check_count(label, value, least)
    if frames is not None:
        _check_count("frames", frames, 1)
    if Path(path).is_dir():
        return _read_pictures(path, start, frames, stride, max_side)

    with _open(path) as container:
        stream = _video_stream(container, path)
        fps = _frame_rate(stream)
        origin = _start_time(stream)
        picked: list[Tensor] = []
        shown: av.VideoFrame | None = None
        image: Tensor | None = None  # of `shown`, once converted
        wanted = start  # index on the grid of the next frame to pick
        last = -1  # index on the grid of the latest decoded frame
        budget = _MAX_BYTES
        done = False

        def pick_until(end: float) -> bool:
            """Picks `shown` for all wanted grid times before `end`; True once nothing more is wanted."""
            nonlocal wanted, image, budget
            while shown is not None and wanted < end:
                if frames is not None and len(picked) == frames:
                    return True
                image = _to_rgb(shown, stream, max_side) if image is None else image
                budget -= 4 * image.numel()
                if budget < 0:
                    raise InputError(
                        f"{_name(path)} does not fit into memory: ask for at most {len(picked)} frames, a larger "
                        f"stride, or a max_side below {max_side}"
                    )
                picked.append(image)
                wanted += stride
            return frames is not None and len(picked) == frames

        for frame in _decoded_from(container, stream, origin + start / fps - 0.5):
            if frame.pts is None or frame.time is None:
                index = last + 1
            else:
                # The rounding tolerates time stamps in coarse units (Matroska: milliseconds).
                index = math.floor((frame.time - origin) * fps + 0.5)
            if shown is not None and index <= last:
                continue  # two frames for one grid time: the first stays
            if done := pick_until(index):
                break
            shown, image, last = frame, None, index
        if not done and shown is not None:
            # The last frame stays on show for its own duration.
            hold = round(float((shown.duration or 0) * (shown.time_base or 0)) * fps)
            pick_until(last + min(max(1, hold), math.ceil(fps)))

    if last < 0:
        raise InputError(f"{_name(path)} holds no picture that can be decoded: export it again as MP4 (H.264)")
    if not picked:
        raise InputError(f"start {start} is past the end of {_name(path)}: it has {last + 1} frames, counted from 0")
    size = picked[0].shape
    if any(image.shape != size for image in picked):  # a stream may change its size on the way
        picked = [_fit(image, size) for image in picked]
    return Clip(torch.stack(picked).permute(0, 3, 1, 2).contiguous().float().div_(255), fps / stride)


def pictures_of(folder: str | os.PathLike) -> list[Path]:
    """The pictures in a folder in the order of their numbers. Raises `InputError` if there are none."""
    found = [
        file for file in Path(folder).iterdir() if file.suffix.lower() in _IMAGES and not file.name.startswith(".")
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
    """A picture of the user's in [0, 1], upright; transparency is ignored. Raises `InputError`."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PICTURE:
                raise InputError(
                    f"{_name(path)} has {image.width}x{image.height} pixels; give a picture of at most 64 megapixels."
                )
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError as error:
        raise InputError(f"There is no file {_name(path)}.") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{_name(path)} is not a picture that can be read: give a PNG, JPEG or WebP.") from error
    return torch.from_numpy(np.array(upright)).permute(2, 0, 1).float() / 255


def write_video(
    path: str | os.PathLike, clip: Clip, *, audio_from: str | os.PathLike | None = None, audio_start: float = 0.0
) -> None:
    """Writes an H.264 (yuv420p, BT.709, limited range) mp4 that browsers play and start before it is loaded.

    Odd sides gain a repeated row or column, since yuv420p has only even ones. The sound of `audio_from`, if it has any,
    is taken from `audio_start` seconds on for the clip's length, as AAC. The file appears at `path` complete or not at
    all. Raises InputError for a clip without frames or rate, an `audio_start` that is not a time, and an `audio_from`
    that cannot be opened.
    """
    path = Path(path)
    T, C, H, W = clip.frames.shape
    if T == 0 or C != 3 or H * W == 0:
        raise InputError(f"{path.name}: a clip of shape {(T, C, H, W)} cannot be written: give T 3 H W with frames")
    if not 0 < clip.fps <= _MAX_RATE:
        raise InputError(f"{path.name}: {clip.fps} frames per second: give a rate above 0, up to {_MAX_RATE}")
    if not (math.isfinite(audio_start) and audio_start >= 0):
        raise InputError(f"audio start {audio_start}: give a time in seconds, 0 or more")
    sound = None if audio_from is None else _read_sound(audio_from, audio_start, T / clip.fps)

    path.parent.mkdir(parents=True, exist_ok=True)
    # mkstemp makes the file private; a plain name next to the target keeps os.replace atomic and the usual permissions.
    with tempfile.TemporaryDirectory(prefix=".write-", dir=path.parent) as folder:
        part = Path(folder) / "part.mp4"
        _encode(part, clip, sound)
        os.replace(part, path)


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


@contextlib.contextmanager
def _open(path: str | os.PathLike) -> Iterator[InputContainer]:
    """Opens a local media file; everything that FFmpeg cannot do with it becomes an InputError."""
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{_name(path)} does not exist: check the path of the video")
    if file.stat().st_size == 0:
        raise InputError(f"{_name(path)} is empty: copy or upload the video again")
    if file.suffix.lower() in _IMAGES:
        raise InputError(f"{_name(path)} is an image: give a video")
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    try:
        with av.open(str(file.absolute()), options=options, metadata_errors="ignore") as container:
            yield container
    except (FFmpegError, OSError) as error:
        raise InputError(
            f"{_name(path)} cannot be read as a video ({error.strerror or error}): give an MP4, MOV, WebM, MKV, AVI or "
            "GIF that plays elsewhere"
        ) from error


def _video_stream(container: InputContainer, path: str | os.PathLike) -> av.VideoStream:
    # Cover art of a song counts as a video stream for FFmpeg.
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams or streams[0].codec_context is None:
        raise InputError(f"{_name(path)} has no pictures that can be decoded: give a video (MP4, MOV, WebM, MKV)")
    streams[0].thread_type = "AUTO"
    return streams[0]


def _frame_rate(stream: av.VideoStream) -> float:
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate and 0 < rate <= _MAX_RATE:
            return float(rate)
    return 25.0  # a single picture, or a broken header


def _start_time(stream: av.VideoStream) -> float:
    return float((stream.start_time or 0) * (stream.time_base or 0))


def _duration(container: InputContainer, stream: av.VideoStream) -> float:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.duration:
        return container.duration / av.time_base
    return 0.0


def _decoded(container: InputContainer, stream: av.VideoStream | av.AudioStream) -> Iterator[Any]:
    """All frames that can be decoded; damaged packets, and what follows a cut-off end, are left out."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            yield from packet.decode()
        except (InvalidDataError, EndOfFileError):
            if packet is None or packet.size == 0:
                return


def _decoded_from(container: InputContainer, stream: av.VideoStream | av.AudioStream, time: float) -> Iterator[Any]:
    """Frames from the last key frame before `time` seconds on, or from the beginning if the file has no good index."""
    if time > 2:  # near the beginning, decoding on is as fast as seeking
        with contextlib.suppress(FFmpegError):
            container.seek(int(time * av.time_base), backward=True)
            frames = _decoded(container, stream)
            first = next(frames, None)
            if first is not None and first.time is not None and first.time <= time:
                yield first
                yield from frames
                return
        container.seek(0)
    yield from _decoded(container, stream)


def _square_pixels(frame: av.VideoFrame, stream: av.VideoStream) -> tuple[int, int]:
    """(h, w) of the stored picture with the pixel aspect undone by width."""
    aspect = stream.sample_aspect_ratio
    if aspect and 0.1 < aspect < 10:
        return frame.height, max(1, round(frame.width * float(aspect)))
    return frame.height, frame.width


def _quarter_turns(frame: av.VideoFrame) -> int:
    return round(frame.rotation / 90) % 4


def _to_rgb(frame: av.VideoFrame, stream: av.VideoStream, max_side: int) -> Tensor:
    """H W 3 uint8, upright, in square pixels, no side above max_side."""
    height, width = _square_pixels(frame, stream)
    scale = min(1.0, max_side / max(height, width))
    height, width = max(1, round(height * scale)), max(1, round(width * scale))
    # Untagged: players take BT.709 for HD and BT.601 below. Values as in AVColorSpace.
    tag = int(frame.colorspace)
    hd = tag == 1 or (tag not in (4, 5, 6, 7, 9, 10) and frame.height >= 720)
    space = Colorspace.ITU709 if hd else Colorspace.ITU601 if tag not in (4, 7, 9, 10) else None
    rgb = frame.reformat(
        width=width,
        height=height,
        format="rgb24",
        src_colorspace=space,
        interpolation=(_AREA if scale < 1 else _BICUBIC) | _FULL_CHROMA,
    ).to_ndarray()
    return torch.from_numpy(np.ascontiguousarray(np.rot90(rgb, _quarter_turns(frame))))


def _fit(image: Tensor, size: tuple[int, ...]) -> Tensor:
    video = resize(image.permute(2, 0, 1)[None].float(), (size[0], size[1]))
    return video[0].permute(1, 2, 0).round().clamp(0, 255).byte()


def _encode(path: Path, clip: Clip, sound: np.ndarray | None) -> None:
    frames = clip.frames.detach()
    H, W = frames.shape[-2:]
    # Common rates (24000/1001) come out exact.
    rate = Fraction(clip.fps).limit_denominator(1001) or Fraction(clip.fps).limit_denominator(10**6)
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        video = container.add_stream("libx264", rate=rate, options={"crf": "16", "preset": "medium"})
        video.width, video.height, video.pix_fmt = W + W % 2, H + H % 2, "yuv420p"
        context = video.codec_context
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        context.color_range = ColorRange.MPEG.value
        # The muxer interleaves by time; the sound is small, so it can wait for the pictures.
        if sound is not None:
            for packet in _encode_sound(container, sound):
                container.mux(packet)
        for image in frames:
            image = F.pad(image[None].float(), (0, W % 2, 0, H % 2), mode="replicate")[0]
            image = torch.nan_to_num(image).clamp(0, 1).mul(255).round().byte().permute(1, 2, 0)
            frame = av.VideoFrame.from_ndarray(image.contiguous().cpu().numpy(), format="rgb24")
            frame = frame.reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=_BICUBIC | _FULL_CHROMA,
            )
            container.mux(video.encode(frame))
        container.mux(video.encode())


def _read_sound(path: str | os.PathLike, start: float, duration: float) -> np.ndarray | None:
    """Stereo samples (2, n) float32 at 48 kHz of a span counted from the first picture; None for a silent file."""
    if Path(path).is_dir():
        return None
    with _open(path) as container:
        if not container.streams.audio or container.streams.audio[0].codec_context is None:
            return None
        stream = container.streams.audio[0]
        start += _start_time(container.streams.video[0]) if container.streams.video else 0.0
        sound = np.zeros((2, round(duration * _AUDIO_RATE)), np.float32)
        resampler = av.AudioResampler("fltp", "stereo", _AUDIO_RATE)
        at = None  # where the next sample goes, in samples from `start`
        heard = False
        for frame in _decoded_from(container, stream, start - 1):
            stamp = at if frame.time is None else round((frame.time - start) * _AUDIO_RATE)
            # Time stamps jitter by a sample or so; only a real gap may break the stream of samples.
            if stamp is not None and (at is None or abs(stamp - at) > _AUDIO_RATE // 50):
                at = stamp
            at = at or 0
            if at >= sound.shape[1]:
                break
            frame.pts = None
            for part in resampler.resample(frame):
                samples = part.to_ndarray()
                first, last = max(0, -at), min(samples.shape[1], sound.shape[1] - at)
                if last > first:
                    sound[:, at + first : at + last] = samples[:, first:last]
                    heard = True
                at += samples.shape[1]
        return sound if heard else None


def _encode_sound(container: OutputContainer, sound: np.ndarray) -> Iterator[av.Packet]:
    stream = container.add_stream("aac", rate=_AUDIO_RATE, layout="stereo")
    stream.bit_rate = 192_000
    for at in range(0, sound.shape[1], 1024):  # one AAC frame
        chunk = np.ascontiguousarray(sound[:, at : at + 1024])
        frame = av.AudioFrame.from_ndarray(chunk, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = _AUDIO_RATE, at, Fraction(1, _AUDIO_RATE)
        yield from stream.encode(frame)
    yield from stream.encode()


def size_of(video: Tensor) -> tuple[int, int]:
    """(h, w) of anything that ends in H W."""
    return video.shape[-2], video.shape[-1]


def to_uint8(video: Tensor) -> np.ndarray:
    """T C H W in [0, 1] (or bool) as uint8 T H W C."""
    return to_bytes(video).cpu().numpy()


def to_bytes(video: Tensor) -> Tensor:
    """As `to_uint8`, left on its device."""
    return (video.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
