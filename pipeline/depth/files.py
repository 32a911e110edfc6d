"""Depth from files of the user's: npz, EXR, 16-bit PNG."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import numpy as np
import torch

from pipeline import InputError
from pipeline.depth.estimate import FAR_ESTIMATED, MEDIAN, Depth, as_positive, repaired, resize_depth, sampled
from pipeline.media import arrays, child

KINDS = {  # what the numbers of a file may mean
    "disparity": "disparity: near is large",
    "depth": "distance in any unit",
    "metric": "distance in metres",
}
_FAR_GIVEN = 1000.0
_SKY = 1000.0  # times the median: so far away is only distance
_PICTURES = (".exr", ".png")


def load_depth(
    path: str | os.PathLike,
    frames: int,
    size: tuple[int, int],
    *,
    start: int = 0,
    stride: int = 1,
    kind: str | None = None,
) -> Depth:
    """The user's depth of `frames` frames at `size` = (H, W).

    path: an .npz with an array T H W named z, depth or disparity, or with a single array of another name (a true scalar
    `metric` says metres); an .npy; or a folder of one .exr or 16-bit .png a frame, in the order of their numbers, or a
    single such picture. Disparity 0 is infinity. Pixels that are NaN or not positive, and 65535 in a PNG, take the
    value of the nearest valid one; infinite ones become very far.

    kind: one of `KINDS`; None to find it out. The names z and distance mean distance, and names with disp or inv mean
    disparity. All else is distance where its values can be nothing else: in a 16-bit picture, or with a sky a thousand
    times beyond the median; or where it is called depth and goes beyond 1. Otherwise programs save either, and
    `InputError` asks.

    A file of the whole clip is picked from with `start` and `stride`, as the clip was; one with exactly `frames` frames
    otherwise is taken as it is. Depth keeps its unit, disparity gets a median depth of 4. Raises InputError.
    """
    path = Path(path)
    if kind is not None and kind not in KINDS:
        raise InputError(f"The kind of depth {kind!r} is unknown: choose one of {', '.join(KINDS)}.")
    if not path.exists():
        raise InputError(
            f"The depth {path.name} does not exist; give an .npz or .npy file, or a folder of .exr or .png pictures."
        )
    if path.is_dir() or path.suffix.lower() in _PICTURES:
        values, named = _read_pictures(path, frames, start, stride)
    elif path.suffix.lower() in (".npz", ".npy"):
        values, named = _read_npz(path, frames, start, stride)
    else:
        raise InputError(
            f"The depth {path.name} is of a kind that cannot be read; give an .npz or .npy file, or a folder of .exr "
            "or 16-bit .png pictures."
        )
    if not np.isfinite(values).any():
        raise InputError(
            f"The depth {path.name} has no valid value in the frames that are used: all are NaN or infinite."
        )
    kind = kind or _kind_of(values, named, path.name)
    (h, w), (H, W) = values.shape[1:], size
    if abs(math.log((w / h) / (W / H))) > 0.03 + 1 / min(h, w, H, W):
        raise InputError(
            f"The depth {path.name} is {w}x{h}, which has not the proportions of the clip ({W}x{H}); give depth of the "
            "whole picture, in its proportions."
        )
    z = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    if kind == "disparity":
        disparity = torch.where(z == math.inf, math.nan, z)  # infinitely near is no place
        # Disparity that was brought to 0 to 1 says no more how far its farthest is: it is not at infinity.
        z = 1 / as_positive(disparity, FAR_ESTIMATED if _is_normalised(values) else _FAR_GIVEN)
    else:
        valid = z[(z > 0) & z.isfinite()]
        if len(valid):
            z = z.clamp(max=float(sampled(valid).quantile(0.01)) * _FAR_GIVEN)  # NaN stays
    z = resize_depth(repaired(z, f"The depth {path.name}"), size)
    return Depth(z * (MEDIAN / sampled(z).median()) if kind == "disparity" else z, kind == "metric", kind)


def _is_normalised(values: np.ndarray) -> bool:
    """Whether the values were brought to 0 to 1."""
    valid = values[np.isfinite(values)]
    return bool(valid.min() >= 0 and valid.max() <= 1.001)


def _kind_of(values: np.ndarray, named: str, name: str) -> str:
    """One of `KINDS`. named: what the file calls the values: one of them, or "" or "maybe depth"."""
    if named in KINDS:
        return named
    valid = values[np.isfinite(values) & (values > 0)]
    if len(valid) and (np.isposinf(values).any() or valid.max() > _SKY * np.median(valid)):
        return "depth"
    if named and not _is_normalised(values):
        return "depth"
    what = "lie between 0 and 1, as disparity often does" if _is_normalised(values) else "may be either"
    raise InputError(
        f"Is near large or small in the depth {name}? Its values {what}: DepthCrafter and Video Depth Anything save "
        "disparity (near is large), renderers and scanners distance. Choose disparity, depth or metric as the kind of "
        "your depth (--depth-kind)."
    )


def _pick(total: int, frames: int, start: int, stride: int, name: str) -> range:
    """Which of a file's `total` frames belong to the clip's."""
    picked = range(start, start + frames * stride, stride)
    if total > picked[-1]:
        return picked
    if total == frames:
        return range(total)
    raise InputError(
        f"The depth {name} has {total} frames; the clip needs frames {start} to {picked[-1]} (or exactly {frames}, "
        "those that are used). Give depth of every frame, or ask for fewer frames."
    )


def _read_npz(path: Path, frames: int, start: int, stride: int) -> tuple[np.ndarray, str]:
    """The picked frames of an .npz or .npy, and what their name says of them."""
    # A visitor's file: what its headers declare is checked before anything is unpacked, and pickles are refused.
    with arrays.guarded(f"The depth {path.name} cannot be read", "save it again with numpy.savez."):
        found = arrays.headers(path)
        key = _array_of_depth(list(found), path.name)
        shape, dtype = found[key]
        if len(shape) == 2:
            shape = (1, *shape)
        if len(shape) == 4 and 1 in (shape[1], shape[3]):  # a channel of its own
            shape = (shape[0], shape[2], shape[3]) if shape[1] == 1 else shape[:3]
        if len(shape) != 3 or 0 in shape or max(shape[1:]) > arrays.MAX_SIDE or dtype.kind not in "fiu":
            raise InputError(
                f"The array {key!r} of {path.name} has shape {found[key][0]} and type {dtype}; give numbers of shape "
                "frames x height x width."
            )
        if arrays.size_of(found[key]) > arrays.MAX_BYTES:
            raise InputError(f"The depth {path.name} is too large to read; give fewer frames, or smaller ones.")
        picked = _pick(shape[0], frames, start, stride, path.name)
        values = arrays.read_array(path, key) if key else np.load(path, allow_pickle=False)
        values = values.reshape(shape)[picked.start : picked.stop : picked.step]
        scalar = "metric" in found and found["metric"][0] == () and found["metric"][1].kind in "biuf"
        metric = scalar and bool(arrays.read_array(path, "metric"))
        values = values.astype(np.float32)
    called = key.lower()
    if "disp" in called or "inv" in called:
        return values, "disparity"
    if metric:
        return values, "metric"
    if called in ("z", "distance"):
        return values, "depth"
    return values, "maybe depth" if called == "depth" else ""


def _array_of_depth(names: list[str], name: str) -> str:
    """Which array of a file is meant."""
    for key in ("z", "depth", "disparity", "depths"):
        if key in names:
            return key
    if len(names) == 1:
        return names[0]
    raise InputError(
        f"The depth {name} has the arrays {', '.join(sorted(names)[:8]) or 'none'}; name the one that is meant z, "
        "depth or disparity."
    )


def _read_pictures(path: Path, frames: int, start: int, stride: int) -> tuple[np.ndarray, str]:
    """The picked frames of a folder of pictures, T H W, and what their kind says of them."""
    found = sorted(path.iterdir(), key=_by_number) if path.is_dir() else [path]
    files: list[Path] = []
    for suffix in _PICTURES:
        files = files or [file for file in found if file.suffix.lower() == suffix]
    if not files:
        raise InputError(
            f"The depth folder {path.name} has no .exr and no .png pictures; put one for each frame into it."
        )
    picked = _pick(len(files), frames, start, stride, path.name)
    maps: list[np.ndarray] = []
    about = {}
    for file in (files[index] for index in picked):
        about, (values,) = child.run("read_depth_picture", file, seconds=60.0)
        maps.append(values)
        if maps[-1].shape != maps[0].shape:
            raise InputError(f"The depth pictures in {path.name} are not all of one size: see {file.name}.")
        if 4 * len(picked) * maps[0].size > arrays.MAX_BYTES:
            raise InputError(f"The depth {path.name} is too large to read; give fewer frames, or smaller ones.")
    values = np.stack(maps)
    if values.dtype != np.uint16:  # renderers name the pass before the channel; others save disparity as a plain Z
        return values, "maybe depth" if "." in about["channel"] or "depth" in about["channel"].lower() else ""
    # The full range of 16 bits is brightness that was stretched to it (MiDaS); sensors count millimetres. Their 65535
    # means that nothing was measured.
    full = values.max() == 65535
    values = np.where(values == 65535, 0, values).astype(np.float32)
    stretched = full and values.max() > 60000
    return values, "" if stretched else "depth"


def _by_number(path: Path) -> list[tuple[int, int, str]]:
    """Sorts frame_2 before frame_10."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]
