"""Videos of visitors to frames. This runs in a process of its own (see `child`), without PyTorch."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.error import BlockingIOError as NotYetError
from av.error import EOFError as EndOfFileError
from av.error import FFmpegError, InvalidDataError
from av.filter import Graph
from av.stream import Disposition

from pipeline import InputError
from pipeline.media import colour, pictures
from pipeline.media.child import Message
from pipeline.media.times import PICTURES_RATE, Times, times_of

# What may be opened. Without the list a text file that is a playlist could make FFmpeg open other files or addresses.
_FORMATS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,gif,h264,hevc,ivf,mxf,dv,3gp,webm,mp4,y4m,yuv4mpegpipe"
_MAX_THREADS = 8
_VOP = b"\x00\x00\x01\xb6"  # the start of a picture of MPEG-4

Image = Callable[[], np.ndarray]  # H W 3 uint8, upright; converted only where it is wanted


@dataclass(frozen=True, eq=False)
class Film:
    """A file that was opened: its times and its frames, each with the index into the times. still: a single picture."""

    times: Times
    frames: Callable[[int], Iterator[tuple[int, Image]]]  # from at most this index on
    lens: dict[str, str]
    notes: tuple[str, ...] = ()
    has_audio: bool = False
    codec: tuple[str, str] = ("", "")  # its name, and the pixel format
    still: bool = False


def probe_video(path: Path) -> Iterator[Message]:
    """One message: width, height, frames, fps, has_audio, lens (metadata that may name it), codec (its name, and the
    pixel format), notes, still.
    """
    film = opened(path, 1 << 15, False)
    found = next(film.frames(0), None)
    if found is None:
        raise _no_picture(path)
    height, width = found[1]().shape[:2]
    about = {"width": width, "height": height, "frames": film.times.total, "fps": film.times.fps, "still": film.still}
    yield about | {"has_audio": film.has_audio, "lens": film.lens, "codec": film.codec, "notes": film.notes}, []


def read_frames(path: Path, start: int, count: int | None, stride: int, max_side: int, mask: bool) -> Iterator[Message]:
    """A message with the rate as `fps`; then one for each picked frame: the picture H W 3 uint8, or `again`: how often
    the one before is meant once more. mask: where the video is a cut-out, what is opaque is white.
    """
    film = opened(path, max_side, mask)
    times = film.times
    if start >= times.total:
        raise InputError(f"start {start} is past the end of {path.name}: it has {times.total} frames, counted from 0")
    wanted = range(start, times.total, stride)[:count]
    yield {"fps": times.fps, "count": len(wanted)}, []
    taken, shown, fresh = 0, None, True  # how many were sent; the image on show; whether it was not yet sent

    def due(before: float) -> Iterator[Message]:
        """What is on show at the wanted places before this one."""
        nonlocal taken, fresh
        again = 0
        while shown is not None and taken < len(wanted) and wanted[taken] < before:
            taken += 1
            if fresh:
                fresh = False
                yield {}, [shown()]
            else:
                again += 1
        if again:
            yield {"again": again}, []

    placed = np.flatnonzero(times.slots >= 0)
    first = int(placed[max(0, np.searchsorted(times.slots[placed], start, side="right") - 1)])
    for index, image in film.frames(first):
        slot = int(times.slots[index]) if index < len(times.slots) else -1
        if slot < 0:
            continue
        yield from due(slot)
        if taken == len(wanted):
            return
        shown, fresh = image, True
    yield from due(math.inf)
    if shown is None:
        raise _no_picture(path)


def _no_picture(path: Path) -> InputError:
    return InputError(f"{path.name} holds no picture that can be decoded: export it again as MP4 (H.264)")


def opened(path: Path, max_side: int, mask: bool) -> Film:
    """A video, an animated picture, or a single one."""
    if path.suffix.lower() not in pictures.SUFFIXES:
        return _film(path, max_side, mask)
    return _photograph(path, max_side) or _animation(path, max_side)


@contextlib.contextmanager
def open_container(path: Path) -> Iterator[InputContainer]:
    """A local media file; everything that FFmpeg cannot do with it becomes an InputError."""
    if path.is_dir():
        raise InputError(f"{path.name} is a folder: give a video file")
    if not path.is_file():
        raise InputError(f"{path.name} does not exist: check the path of the video")
    if path.stat().st_size == 0:
        raise InputError(f"{path.name} is empty: copy or upload the video again")
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    try:
        # Not `options`: those go to the streams, too, and end the process where streams come late (FLV, PyAV 17.0).
        with av.open(str(path.absolute()), container_options=options, metadata_errors="ignore") as container:
            yield container
    except (FFmpegError, OSError) as error:
        raise InputError(
            f"{path.name} cannot be read as a video ({error.strerror or error}): give an MP4, MOV, WebM, MKV, AVI or "
            "GIF that plays elsewhere"
        ) from error


def chosen(streams: Any) -> Any:
    """The stream that a player would take: the one marked as default, else the first. Cover art is none."""
    films = [s for s in streams if not s.disposition & Disposition.attached_pic and s.codec_context is not None]
    default = [s for s in films if s.disposition & Disposition.default]
    return (default or films or [None])[0]


def video_stream(container: InputContainer, path: Path) -> av.VideoStream:
    """Raises InputError where there is none, or where its pictures are too large."""
    stream = chosen(container.streams.video)
    if stream is None:
        raise InputError(f"{path.name} has no pictures that can be decoded: give a video (MP4, MOV, WebM, MKV)")
    if stream.codec_context.width * stream.codec_context.height > pictures.MAX_PIXELS:
        raise pictures.too_many_pixels(path, stream.codec_context.width, stream.codec_context.height)
    stream.thread_type = "AUTO"
    stream.codec_context.thread_count = min(_MAX_THREADS, stream.codec_context.thread_count or _MAX_THREADS)
    return stream


def times_in(container: InputContainer, stream: av.VideoStream) -> Times | None:
    """Of all packets of the stream. The container stands at its beginning afterwards."""
    stamps, cut_off = [], False
    for packet in _packets(container, stream):
        if packet.size and not packet.is_discard:
            stamps.append((packet.pts, packet.dts, packet.duration or 0))
            cut_off = packet.is_corrupt
    if cut_off:  # the last one; others may well be decoded
        stamps.pop()
    declared = [float(rate) for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate) if rate]
    unit = stream.time_base
    assert unit is not None, "a stream that was opened has a time base"
    return times_of(stamps, unit, declared, stream.codec_context.has_b_frames)


def _packets(container: InputContainer, stream: Any) -> Iterator[Any]:
    packets = container.demux(stream)
    last = None
    while True:
        try:
            packet = next(packets, None)
        except (InvalidDataError, EndOfFileError):
            return
        if packet is None:
            return
        if not packet.size and last is not None and _is_packed(stream, last):
            yield _after(last, stream)
        last = packet
        yield packet


def _is_packed(stream: Any, packet: Any) -> bool:
    """Whether a packet holds two pictures (DivX in AVI). FFmpeg gives the second one with the packet that follows."""
    return stream.codec_context.name == "mpeg4" and bytes(packet).count(_VOP) > 1


def _after(packet: Any, stream: Any) -> Any:
    """What should have followed a last packet of two pictures, and is missing where a file was cut."""
    content = _VOP + b"\x50\x7f"
    empty = av.Packet(len(content))  # its own memory: bytes of Python would be freed by a thread of the decoder
    empty.update(content)
    empty.stream, empty.time_base = stream, packet.time_base
    step = packet.duration or 1
    empty.pts, empty.dts = (None if stamp is None else stamp + step for stamp in (packet.pts, packet.dts))
    return empty


def _whole(packets: Iterator[Any]) -> Iterator[Any]:
    """Without a last packet that is cut off: a decoder with threads would lose with it what it still holds."""
    held = None
    for packet in packets:
        if held is not None and packet.size:
            yield held
        held = packet if packet.is_corrupt and packet.size else None
        if held is None:
            yield packet


def decoded(container: InputContainer, stream: Any, context: Any = None) -> Iterator[Any]:
    """All frames that can be decoded; damaged packets, and what follows a cut-off end, are left out."""
    for packet in _whole(_packets(container, stream)):
        try:
            yield from packet.decode() if context is None else context.decode(packet if packet.size else None)
        except (InvalidDataError, EndOfFileError):
            if packet.size == 0:
                return


def _film(path: Path, max_side: int, mask: bool) -> Film:
    with open_container(path) as container:
        stream = video_stream(container, path)
        times = times_in(container, stream)
        lens = {key: value for key, value in (container.metadata | stream.metadata).items() if "focal" in key.lower()}
        has_audio = chosen(container.streams.audio) is not None
    if times is None:
        raise _no_picture(path)
    with open_container(path) as container:
        stream = video_stream(container, path)
        first = next(decoded(container, stream, _own_decoder(container, stream)), None)
        if first is None:
            raise _no_picture(path)
        codec = stream.codec_context.name, first.format.name
        notes, turn, interlaced = _notes(first, stream.codec_context), colour.turned(first), first.interlaced_frame

    def frames(first: int) -> Iterator[tuple[int, Image]]:
        with open_container(path) as container:
            stream = video_stream(container, path)
            context, aspect = stream.codec_context, stream.sample_aspect_ratio
            found = _from(container, stream, times, first)
            index = -1
            for frame in _deinterlaced(found, stream) if interlaced else found:
                index = times.index_of(frame.time, index)
                rgb = lambda frame=frame: colour.to_rgb(frame, context, aspect, max_side, mask)
                yield index, lambda rgb=rgb: colour.upright(rgb(), turn)

    return Film(times, frames, lens, notes, has_audio, codec)


def _own_decoder(container: InputContainer, stream: av.VideoStream) -> Any:
    """For VP8 and VP9 with transparency, which FFmpeg's own decoders leave out; None for all else."""
    decoder = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    if (stream.metadata.get("alpha_mode") or "") != "1" or decoder not in av.codecs_available:
        return None
    return av.CodecContext.create(decoder, "r")


def _notes(frame: av.VideoFrame, context: Any) -> tuple[str, ...]:
    notes = []
    if colour.is_hdr(context):
        notes.append("The clip is HDR: it was brought to the standard range, with diffuse white at 203 nits.")
    if frame.interlaced_frame:
        notes.append("The clip is interlaced: whole pictures were made of its fields.")
    if colour.is_transparent(frame):
        notes.append("The clip has transparent parts: they are shown as a neutral grey.")
    return tuple(notes)


def _from(container: InputContainer, stream: av.VideoStream, times: Times, first: int) -> Iterator[Any]:
    """Frames from the last key frame before index `first` on, or from the beginning if the file has no good index."""
    own = _own_decoder(container, stream)
    time = times.origin + float(times.seconds[first])
    # Near the beginning, decoding on is as fast as seeking.
    if times.seconds[first] > 2 and not times.by_order and own is None:
        with contextlib.suppress(FFmpegError):
            container.seek(int((time - 0.5) * av.time_base), backward=True)
            frames = decoded(container, stream)
            frame = next(frames, None)
            if frame is not None and frame.time is not None and frame.time <= time:
                yield frame
                yield from frames
                return
        with contextlib.suppress(FFmpegError):
            container.seek(0)
    yield from decoded(container, stream, own)


def _deinterlaced(frames: Iterator[Any], stream: Any) -> Iterator[Any]:
    """Whole pictures of the frames that are flagged as interlaced, by FFmpeg's bwdif; the others as they are."""
    graph = Graph()
    source, sink = graph.add_buffer(template=stream), graph.add("buffersink")
    bwdif = graph.add("bwdif", "mode=send_frame:deint=interlaced")
    source.link_to(bwdif)
    bwdif.link_to(sink)
    graph.configure()

    def ready() -> Iterator[Any]:
        with contextlib.suppress(NotYetError, EndOfFileError):
            while True:
                yield graph.pull()

    for frame in frames:
        graph.push(frame)
        yield from ready()
    graph.push(None)
    yield from ready()


# --- pictures ---------------------------------------------------------------------------------------------------------


def _photograph(path: Path, max_side: int) -> Film | None:
    """A single picture as a film of one frame; None for an animated one."""
    found = pictures.read_photograph(path, max_side)
    if found is None:
        return None
    picture, lens, clear = found
    times = Times(np.zeros(1), 0.0, np.zeros(1, np.int64), PICTURES_RATE, 1, by_order=True)
    notes = ("The picture has transparent parts: they are shown as a neutral grey.",) if clear else ()
    return Film(times, lambda first: iter([(0, lambda: picture)]), lens, notes, still=True)


def _animation(path: Path, max_side: int) -> Film:
    """An animated WebP or PNG. Transparency does not count as a mask here."""
    durations = pictures.durations_of(path)
    milliseconds = np.concatenate([[0], np.cumsum([max(1, d) for d in durations])])
    stamps = [(int(at), int(at), int(d)) for at, d in zip(milliseconds, durations, strict=False)]
    times = times_of(stamps, pictures.MILLISECOND, [], False)
    assert times is not None, "there are frames"

    def frames(first: int) -> Iterator[tuple[int, Image]]:
        for index, image in enumerate(pictures.frames_of(path, max_side)):
            yield index, lambda image=image: image

    return Film(times, frames, {})
