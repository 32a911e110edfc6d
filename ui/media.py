"""Arrays to what a page shows: looping pictures, the coloured depth, the file of the point cloud."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.media.video import read_video, to_uint8
from pipeline.render.analysis import Analysis

MAX_LOOP_WIDTH = 480
MAX_LOOP_FRAMES = 49
CLOUD_POINTS = 20_000
CLOUD_MOMENTS = 17
# Far to near: ink, teal, sand. Perceptually even enough, and at home beside the accent colour.
DEPTH_COLOURS = np.array([[18, 24, 38], [22, 78, 99], [45, 150, 140], [160, 205, 160], [252, 240, 205]], np.float32)


def loop_webp(frames: np.ndarray, fps: float, *, width: int | None = None, quality: int = 82) -> bytes:
    """uint8 T H W 3 -> an animated WebP that loops for ever, at most MAX_LOOP_WIDTH wide and MAX_LOOP_FRAMES long."""
    every = -(-len(frames) // MAX_LOOP_FRAMES)
    frames = frames[::every]
    height, own_width = frames.shape[1:3]
    shown_width = min(width or own_width, MAX_LOOP_WIDTH)
    size = (shown_width, max(1, round(height * shown_width / own_width)))
    images = [Image.fromarray(np.ascontiguousarray(frame)).resize(size, Image.Resampling.BICUBIC) for frame in frames]
    milliseconds = max(20, round(1000 * every / max(fps, 0.1)))
    file = io.BytesIO()
    rest = {"save_all": True, "append_images": images[1:], "duration": milliseconds, "loop": 0}
    images[0].save(file, "WEBP", quality=quality, method=2, **rest)
    return file.getvalue()


def data_url(content: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def picture_url(picture: np.ndarray) -> str:
    """uint8 H W 3 -> a still small enough to travel inside an update."""
    return data_url(loop_webp(picture[None], 1), "image/webp")


def preview_url(preview: np.ndarray) -> str:
    """uint8 t h w 3 at latent size -> a smooth loop; a few kilobytes, so it travels inside the update."""
    return data_url(loop_webp(preview, 6, width=416, quality=70), "image/webp")


def depth_frames(z: np.ndarray) -> np.ndarray:
    """T H W distances -> uint8 T H W 3, near bright and far dark, one scale for the whole clip."""
    disparity = 1.0 / np.maximum(z, 1e-6)
    low, high = np.percentile(disparity, [1, 99])
    near = np.clip((disparity - low) / max(high - low, 1e-9), 0, 1) * (len(DEPTH_COLOURS) - 1)
    stops = np.arange(len(DEPTH_COLOURS))
    return np.stack([np.interp(near, stops, DEPTH_COLOURS[:, c]) for c in range(3)], -1).round().astype(np.uint8)


def cloud_files(analysis: Analysis, *, points: int = CLOUD_POINTS, moments: int = CLOUD_MOMENTS) -> list[bytes]:
    """Point clouds of up to `moments` frames, evenly spread; `static/camera_editor.js` reads them (little endian).

    Each: uint32 n; float32 minimum xyz, extent xyz (of all frames), subject distance; uint8 palette 256 x 3; uint16 xyz
    n x 3 from minimum (0) to minimum + extent (65535); uint8 palette index n. Axes are those of the plot: x right,
    y forward, z up.
    """
    frames, height, width = analysis.depth.z.shape
    shown = np.linspace(0, frames - 1, min(frames, moments)).round().astype(int)
    images = to_uint8(analysis.clip.frames[shown])
    # Even in the picture: what the source camera saw in detail is what the eye will look for. A sky at a thousand
    # times the subject's distance would shrink everything else to a dot: draw it nearer, along its own ray.
    step = max(1.0, (height * width / points) ** 0.5)
    rows, columns = (np.arange(0, side, step).astype(int) for side in (height, width))
    i, j = (grid.reshape(-1) for grid in np.meshgrid(rows, columns, indexing="ij"))
    z = analysis.depth.z[shown].float().cpu().numpy()[:, i, j]
    K = analysis.source.K[shown].double().cpu().numpy()[:, :, :, None]
    z = np.minimum(z, 6 * analysis.distance)
    x = (j + 0.5 - K[:, 0, 2]) / K[:, 0, 0] * z
    y = (i + 0.5 - K[:, 1, 2]) / K[:, 1, 1] * z
    xyz = np.stack([x, z, -y], -1).astype(np.float32)
    minimum = xyz.min((0, 1))
    extent = np.maximum(xyz.max((0, 1)) - minimum, 1e-6)
    count = np.array([len(i)], "<u4")
    header = np.array([*minimum, *extent, analysis.distance], "<f4")
    packed = ((xyz - minimum) / extent * 65535).round().astype("<u2")
    files = []
    for image, place in zip(images, packed, strict=True):
        quantised = Image.fromarray(image).quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        palette = np.zeros(768, np.uint8)
        colours = np.array(quantised.getpalette(), np.uint8)[:768]
        palette[: len(colours)] = colours
        index = np.asarray(quantised, np.uint8)[i, j]
        files.append(b"".join(part.tobytes() for part in (count, header, palette, place, index)))
    return files


def poster(path: str | Path, *, width: int = 240) -> bytes:
    """The first frame of a video as a small JPEG."""
    image = Image.fromarray(to_uint8(read_video(path, frames=1, max_side=2 * width).frames)[0])
    image.thumbnail((width, width))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return file.getvalue()
