"""Real clips without depth, for training.

A folder holds `index.jsonl`, one JSON object a line, of which is read: `file`, of the clip, in the folder; `split`
(train or val); `kind`, of which `real` is used.
"""

from __future__ import annotations

import json
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor


def read_clips(folder: Path, split: str) -> list[Path]:
    """The real clips of a split, in the order of the index. Raises SystemExit where there are none."""
    lines = [json.loads(line) for line in (folder / "index.jsonl").read_text(encoding="utf-8").splitlines()]
    clips = [folder / line["file"] for line in lines if (line["split"], line["kind"]) == (split, "real")]
    if not clips:
        raise SystemExit(f"{folder} has no real clips of the split {split}")
    return clips


def read_frames(path: Path, every: int = 1) -> list[np.ndarray]:
    """One in `every` of a clip's frames, uint8 H W 3."""
    with av.open(str(path)) as file:
        return [f.to_ndarray(format="rgb24") for n, f in enumerate(file.decode(video=0)) if n % every == 0]


def real_clip(
    clips: list[Path], rng: np.random.Generator, frames: int = 17, size: tuple[int, int] = (128, 208)
) -> UInt8[Tensor, "T 3 H W"]:
    """A random piece of one of the clips, in space and time; the last frame repeats where the clip is too short."""
    film = read_frames(clips[rng.integers(len(clips))])
    stride = 2 if rng.uniform() < 0.3 else 1
    first = rng.integers(max(1, len(film) - (frames - 1) * stride))
    height, width = size
    full = min(film[0].shape[1], film[0].shape[0] * width / height)
    share = rng.uniform(0.55, 1)
    w, h = max(1, int(share * full)), max(1, int(share * full * height / width))
    top, left = rng.integers(film[0].shape[0] - h + 1), rng.integers(film[0].shape[1] - w + 1)
    cut = [film[min(first + n * stride, len(film) - 1)][top : top + h, left : left + w] for n in range(frames)]
    small = [cv2.resize(np.ascontiguousarray(f), (width, height), interpolation=cv2.INTER_AREA) for f in cut]
    return torch.from_numpy(np.stack(small)).movedim(-1, 1).contiguous()
