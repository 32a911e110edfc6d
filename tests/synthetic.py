"""Small inputs that several test modules make anew: a clip with sound, and its depth."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from pipeline.render.report import DepthUsed, FirstFrame, Frames, Measured, Placed, Quality, Report, Sizes
from pipeline.render.request import RenderRequest

FPS = 8


def frames(count: int, height: int, width: int) -> np.ndarray:
    """uint8 T H W 3: smooth colours with a bright square that moves right."""
    v, u = np.mgrid[:height, :width] / max(height, width)
    video = np.stack([np.stack([80 + 120 * u, 60 + 150 * v, 100 + 60 * np.sin(9 * u + 5 * v)], -1)] * count)
    side = height // 4
    for t, frame in enumerate(video):
        left = width // 4 + 2 * t
        frame[side : 2 * side, left : left + side] = (240, 200, 40)
    return video.round().astype(np.uint8)


def write_clip(path: Path, count: int = 12, height: int = 51, width: int = 75) -> Path:
    """A clip of that many frames at 8 a second with a tone, of sides that may be odd (hence 4:4:4)."""
    rate = 16000
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": "1"})
        video.width, video.height, video.pix_fmt = width, height, "yuv444p"
        sound = container.add_stream("aac", rate=rate, layout="mono")
        for picture in frames(count, height, width):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
        tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(rate * count // FPS) / rate)
        samples = av.AudioFrame.from_ndarray(tone.astype(np.float32)[None], format="fltp", layout="mono")
        samples.rate = rate
        container.mux(sound.encode(samples))
        container.mux(sound.encode())
    return path


def write_depth(path: Path, count: int = 12, height: int = 51, width: int = 75) -> Path:
    """The depth of `frames`: a slanted wall, with the square one third nearer."""
    z = np.broadcast_to(np.linspace(3.0, 4.0, width, dtype=np.float32), (count, height, width)).copy()
    side = height // 4
    for t in range(count):
        left = width // 4 + 2 * t
        z[t, side : 2 * side, left : left + side] *= 2 / 3
    np.savez(path, z=z)
    return path


def report(request: RenderRequest) -> Report:
    """The report of a render that never was."""
    return Report(
        request=request,
        backbone="tiny",
        steps=25,
        guidance_scale=1.0,
        strength=1.0,
        latent_mask="learned",
        memory=Placed("whole", None, None, "", "native", "float32"),
        amount=20.0,
        frames=Frames(0, 4, 1, 5, 12, 5, [[0, 4]], "as asked"),
        fps=float(FPS),
        sizes=Sizes([51, 75], [32, 48], [50, 75], [16, 2, 4, 6]),
        depth=DepthUsed(request.depth or "estimated", None, False, 4.0),
        unknown=0.123,
        from_other_frames=0.0,
        hidden=None,
        first_frame=FirstFrame(True, 0.0, "inpainted by a model"),
        measurement=Measured(Quality(21.37, 0.8), Quality(None, 1.0)),
        seconds={"total": 12.34, "sample": 9.0},
        first_preview_seconds=1.0,
        preview_by="a linear map",
        notes=(),
    )
