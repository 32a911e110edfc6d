"""Real pictures and clips with the depth that others' models or sensors gave them, for training and validation.

A folder holds `index.jsonl`, one JSON object a line, of which is read: `id`; `kind` (image, clip); `value` (disparity,
metric, or depth, of which only the order means something); `quality`; `source`; `split` (train or val). An image is
`images/ID.jpg` with `images/ID.png`, 16-bit grey, 0 = invalid, larger = nearer. A clip is `clips/ID/rgb.mp4` with
`clips/ID/depth.mp4`, 10-bit luma whose codes below 32 are invalid, 64 is 0 and 1023 is 1.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Pair:
    """A line of the index. `ordinal`: its values tell which is nearer, not how much. `soft`: its edges are blurred."""

    id: str
    clip: bool
    ordinal: bool
    soft: bool
    source: str


@dataclass(frozen=True, eq=False)
class Example:
    """A piece of a clip. frames: in [0, 1]. disparity: >= 0, relative. valid: where it is known."""

    frames: Float[Tensor, "T 3 h w"]
    disparity: Float[Tensor, "T h w"]
    valid: Bool[Tensor, "T h w"]


def read_index(folder: Path, split: str) -> list[Pair]:
    """The items of a split, in the order of the index. Raises SystemExit where there are none."""
    rows = [json.loads(line) for line in (folder / "index.jsonl").read_text(encoding="utf-8").splitlines()]
    pairs = [
        Pair(row["id"], row["kind"] == "clip", row["value"] == "depth", row["quality"] == "medium", row["source"])
        for row in rows
        if row["split"] == split
    ]
    if not pairs:
        raise SystemExit(f"{folder} has no items of the split {split}")
    return pairs


def read_pair(folder: Path, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Frames uint8 T H W 3, and disparity float16 T H W in [0, 1], NaN where invalid."""
    if not pair.clip:
        picture = cv2.imread(str(folder / "images" / f"{pair.id}.jpg"))
        grey = cv2.imread(str(folder / "images" / f"{pair.id}.png"), cv2.IMREAD_UNCHANGED)
        if picture is None or grey is None:
            raise SystemExit(f"{folder} has not both images of {pair.id}")
        disparity = np.where(grey == 0, np.nan, grey / np.float32(65535))
        return np.ascontiguousarray(picture[None, :, :, ::-1]), disparity[None].astype(np.float16)
    frames = [frame.to_ndarray(format="rgb24") for frame in _decoded(folder / "clips" / pair.id / "rgb.mp4")]
    codes = [_luma(frame) for frame in _decoded(folder / "clips" / pair.id / "depth.mp4")]
    count = min(len(frames), len(codes))
    code = np.stack(codes[:count]).astype(np.float32)
    disparity = np.where(code < 32, np.nan, ((code - 64) / 959).clip(0, 1))
    return np.stack(frames[:count]), disparity.astype(np.float16)


def _decoded(path: Path):
    with av.open(str(path)) as file:
        yield from file.decode(video=0)


def _luma(frame: av.VideoFrame) -> np.ndarray:
    """Codes of the brightness, uint16 H W, as they stand in the file: a conversion would stretch them."""
    plane: Any = frame.planes[0]
    return np.frombuffer(plane, np.uint16).reshape(plane.height, -1)[:, : plane.width].copy()


def cut_out(
    frames: np.ndarray, disparity: np.ndarray, count: int, size: tuple[int, int], rng: random.Random
) -> Example:
    """A random piece of a clip (frames uint8 T H W 3, disparity T H W, NaN: unknown) of `count` frames at `size`.

    Random stride, direction, crop, aspect and mirroring; sometimes one frame repeated, which must give steady depth.
    """
    index = _frames(len(frames), count, rng)
    height, width = size
    share = rng.uniform(0.55, 1) if rng.random() < 0.75 else 1.0
    aspect = math.exp(rng.uniform(-0.15, 0.15)) * width / height
    full = min(frames.shape[2], frames.shape[1] * aspect)
    w, h = max(1, int(share * full)), max(1, int(share * full / aspect))
    top, left = rng.randint(0, frames.shape[1] - h), rng.randint(0, frames.shape[2] - w)
    area = np.s_[top : top + h, left : left + w]
    flip = -1 if rng.random() < 0.5 else 1

    pictures, maps = [], []
    for t in index:
        picture = cv2.resize(np.ascontiguousarray(frames[t][area]), (width, height), interpolation=cv2.INTER_AREA)
        given = disparity[t][area].astype(np.float32)
        # a mean over an unknown pixel would be nothing
        how = cv2.INTER_NEAREST if np.isnan(given).any() else cv2.INTER_AREA
        pictures.append(picture[:, ::flip])
        maps.append(cv2.resize(given, (width, height), interpolation=how)[:, ::flip])
    found = torch.from_numpy(np.stack(maps))
    cut = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    return Example(cut, found.nan_to_num(0.0), ~found.isnan())


def _frames(total: int, count: int, rng: random.Random) -> list[int]:
    if count == 1 or rng.random() < 0.1:
        return [rng.randrange(total)] * count
    stride = rng.choice([1, 1, 2, 3])
    first = rng.randint(0, max(0, total - 1 - (count - 1) * stride))
    index = [min(first + stride * n, total - 1) for n in range(count)]
    return index if rng.random() < 0.5 else index[::-1]
