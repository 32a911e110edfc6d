"""Frames and sound to an mp4. This runs in a process of its own (see `child`), without PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import ColorRange, Colorspace

from pipeline.media.child import Message
from pipeline.media.sound import RATE

_BICUBIC, _FULL_CHROMA = 0x4, 0x2000 | 0x4000 | 0x40000  # flags of swscale


def write_frames(path: Path, fps: float, has_sound: bool, sent: Iterator[np.ndarray]) -> Iterator[Message]:
    """H.264 (yuv420p, BT.709, limited range) with AAC. sent: the sound (2, n) float32 if there is any, then the frames
    H W 3 uint8. Odd sides gain a repeated row or column, since yuv420p has only even ones.
    """
    # Common rates (24000/1001) come out exact.
    rate = Fraction(fps).limit_denominator(1001) or Fraction(fps).limit_denominator(10**6)
    sound = next(sent) if has_sound else None
    video = None
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        for image in sent:
            height, width = image.shape[:2]
            image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            if video is None:
                video = container.add_stream("libx264", rate=rate, options={"crf": "16", "preset": "medium"})
                video.width, video.height, video.pix_fmt = image.shape[1], image.shape[0], "yuv420p"
                context = video.codec_context
                context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
                context.color_range = ColorRange.MPEG.value
                # The muxer interleaves by time; the sound is small, so it can wait for the pictures.
                if sound is not None:
                    for packet in _encode_sound(container, sound):
                        container.mux(packet)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24").reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=_BICUBIC | _FULL_CHROMA,
            )
            container.mux(video.encode(frame))
        if video is not None:
            container.mux(video.encode())
    yield {}, []


def _encode_sound(container: OutputContainer, sound: np.ndarray) -> Iterator[av.Packet]:
    stream = container.add_stream("aac", rate=RATE, layout="stereo")
    stream.bit_rate = 192_000
    for at in range(0, sound.shape[1], 1024):  # one AAC frame
        chunk = np.ascontiguousarray(sound[:, at : at + 1024])
        frame = av.AudioFrame.from_ndarray(chunk, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = RATE, at, Fraction(1, RATE)
        yield from stream.encode(frame)
    yield from stream.encode()
