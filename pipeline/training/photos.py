"""Photographs as moving pictures: what the procedural world lacks is the texture of real ones.

A photograph is filmed by a camera that pans, zooms, turns and trembles; in most clips a piece of a second one moves in
front of it, so that there is something to be hidden and uncovered.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import imageio.v3 as iio
import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def load_photos(folder: Path, longest: int = 2400) -> list[np.ndarray]:
    """All pictures of a folder as uint8 H W 3, scaled down to `longest` pixels at most."""
    photos = []
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES):
        picture = iio.imread(path)
        picture = np.repeat(picture[..., None], 3, -1) if picture.ndim == 2 else picture[..., :3]
        shrink = longest / max(picture.shape[:2])
        if shrink < 1:
            picture = cv2.resize(picture, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        photos.append(np.ascontiguousarray(picture))
    if not photos:
        raise FileNotFoundError(f"{folder} holds no pictures ({', '.join(sorted(SUFFIXES))})")
    return photos


def photo_clip(
    photos: list[np.ndarray], rng: np.random.Generator, frames: int = 17, size: tuple[int, int] = (128, 208)
) -> UInt8[Tensor, "T 3 H W"]:
    """One or two of the photographs filmed by cameras of their own."""
    clip = _filmed(photos[rng.integers(len(photos))], rng, frames, size)
    if rng.uniform() < 0.6:
        front = _filmed(photos[rng.integers(len(photos))], rng, frames, size)
        alpha = _moving_shape(rng, frames, size)[..., None]
        clip = alpha * front + (1 - alpha) * clip
    clip = clip * rng.uniform(0.7, 1.2) + rng.uniform(-12, 12)  # light
    if rng.uniform() < 0.3:
        clip = clip + rng.normal(0, rng.uniform(0.5, 3), clip.shape)  # a sensor's noise
    return torch.from_numpy(clip.clip(0, 255).round().astype(np.uint8)).movedim(-1, 1).contiguous()


def _curve(rng: np.random.Generator, frames: int, reach: float) -> np.ndarray:
    """A smooth movement about zero, to at most about `reach` over the clip, with a little tremble."""
    s = np.linspace(-0.5, 0.5, frames)
    speed, bend = reach * rng.normal(0, 0.5, 2)
    return speed * s + bend * (s * s - 1 / 12) + np.cumsum(rng.normal(0, 0.01 * reach, frames))


def _filmed(photo: np.ndarray, rng: np.random.Generator, frames: int, size: tuple[int, int]) -> np.ndarray:
    """T H W 3 float32, 0 to 255: the photograph seen by a moving camera."""
    height, width = size
    most = min(photo.shape[1] / width, photo.shape[0] / height)
    per_pixel = min(most, 1.0) * max(most, 1.0) ** rng.uniform(0.15, 1)  # of the photograph, at the clip's pixels
    small = cv2.resize(photo, None, fx=1 / per_pixel, fy=1 / per_pixel, interpolation=cv2.INTER_AREA)
    x, y = (rng.uniform(0.3, 0.7) * side for side in (small.shape[1], small.shape[0]))
    reach = rng.choice([0.0, 0.05, 0.3]) * width
    xs, ys = x + _curve(rng, frames, reach), y + _curve(rng, frames, 0.6 * reach)
    zoom, turn = np.exp(_curve(rng, frames, 0.15)), _curve(rng, frames, 0.1)
    out = []
    for i in range(frames):
        a, b = zoom[i] * np.cos(turn[i]), zoom[i] * np.sin(turn[i])
        back = np.array([[a, -b, xs[i]], [b, a, ys[i]]]) @ np.array(
            [[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1]]
        )
        how = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        out.append(cv2.warpAffine(small, back, (width, height), flags=how, borderMode=cv2.BORDER_REFLECT))
    return np.stack(out).astype(np.float32)


def _moving_shape(rng: np.random.Generator, frames: int, size: tuple[int, int]) -> np.ndarray:
    """T H W in [0, 1]: a blob with an irregular outline that crosses the picture."""
    height, width = size
    y, x = np.mgrid[:height, :width] + 0.5
    waves, phase = rng.normal(0, 0.12, 5), rng.uniform(0, 2 * np.pi, 5)
    ry, rx = rng.uniform(0.12, 0.45) * height, rng.uniform(0.1, 0.35) * width
    xs = rng.uniform(0.2, 0.8) * width + _curve(rng, frames, 0.6 * width)
    ys = rng.uniform(0.2, 0.8) * height + _curve(rng, frames, 0.3 * height)
    turn, edge = _curve(rng, frames, 1.0), rng.uniform(0.5, 2)
    out = np.empty((frames, height, width), np.float32)
    for i in range(frames):
        dy, dx = (y - ys[i]) / ry, (x - xs[i]) / rx
        angle = np.arctan2(dy, dx) + turn[i]
        outline = 1 + sum(w * np.sin((k + 1) * angle + p) for k, (w, p) in enumerate(zip(waves, phase, strict=True)))
        out[i] = np.clip((outline - np.hypot(dy, dx)) * min(rx, ry) / edge + 0.5, 0, 1)
    return out
