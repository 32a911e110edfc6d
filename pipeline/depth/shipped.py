"""Depths of the examples, which come with the program: a press on one shows it without waiting for the network.

Each is kept under the key of the clip and the network that it is of (`analysis.depth_key`), so that another network
never finds it. `python -m ui.gallery` makes them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "example-depths"
STEP = 0.001  # of ln z: half of it, 0.05 %, is the most by which a depth differs from what was found


def _file(key: str, folder: Path) -> Path:
    return folder / f"{key[:16]}.npz"


def ship(key: str, z: Float[np.ndarray, "T h w"], metric: bool, folder: Path = FOLDER) -> Path:
    """Write a depth, as the differences of ln z from frame to frame and from pixel to pixel; returns the file."""
    steps = np.round(np.log(z.astype(np.float64)) / STEP).astype(np.int16)
    differences = np.diff(np.diff(steps, axis=2, prepend=np.int16(0)), axis=0, prepend=np.int16(0))
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(_file(key, folder), differences=differences, metric=np.array(metric), key=np.array(key))
    return _file(key, folder)


def shipped(key: str, folder: Path = FOLDER) -> dict[str, np.ndarray] | None:
    """The depth kept under a key: z T h w float32, and metric; None where there is none."""
    if not _file(key, folder).is_file():
        return None
    with np.load(_file(key, folder), allow_pickle=False) as kept:
        if str(kept["key"]) != key:
            return None
        steps = kept["differences"].cumsum(0, dtype=np.int16).cumsum(2, dtype=np.int16)
        return {"z": np.exp(STEP * steps.astype(np.float32)), "metric": kept["metric"]}
