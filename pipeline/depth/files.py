"""Depth from files of the user's: npz, EXR, 16-bit PNG."""

from __future__ import annotations

import math
import os
import re
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from pipeline import InputError
from pipeline.depth.estimate import MEDIAN, Depth, as_positive, repaired, resize_depth, sampled
from pipeline.media.arrays import MAX_BYTES, MAX_SIDE, npy_header

_FAR_GIVEN = 1000.0
_PICTURES = (".exr", ".png")


def load_depth(
    path: str | os.PathLike, frames: int, size: tuple[int, int], *, start: int = 0, stride: int = 1
) -> Depth:
    """The user's depth of `frames` frames at `size` = (H, W).

    path: an .npz with an array T H W named z, depth or disparity (or with a single array of another name, which is
    depth unless its name contains "disp"; a true scalar `metric` says metres), or a folder of one .exr or 16-bit .png a
    frame, in the order of their numbers, or a single such picture. Disparity 0 is infinity. Pixels that are NaN or not
    positive take the value of the nearest valid one; infinite ones become very far.

    A file of the whole clip is picked from with `start` and `stride`, as the clip was; one with exactly `frames` frames
    otherwise is taken as it is. Depth keeps its unit, disparity gets a median depth of 4. Raises InputError.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(
            f"The depth {path.name} does not exist; give an .npz file or a folder of .exr or .png pictures."
        )
    if path.is_dir() or path.suffix.lower() in _PICTURES:
        values, inverse, metric = _read_pictures(path, frames, start, stride), False, False
    elif path.suffix.lower() == ".npz":
        values, inverse, metric = _read_npz(path, frames, start, stride)
    else:
        raise InputError(
            f"The depth {path.name} is of a kind that cannot be read; give an .npz file, or a folder of .exr or 16-bit "
            ".png pictures."
        )
    if not np.isfinite(values).any():
        raise InputError(
            f"The depth {path.name} has no valid value in the frames that are used: all are NaN or infinite."
        )
    (h, w), (H, W) = values.shape[1:], size
    if abs(math.log((w / h) / (W / H))) > 0.03 + 1 / min(h, w, H, W):
        raise InputError(
            f"The depth {path.name} is {w}x{h}, which has not the proportions of the clip ({W}x{H}); give depth of the "
            "whole picture, in its proportions."
        )
    z = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    if inverse:
        disparity = torch.where(z == math.inf, math.nan, z)  # infinitely near is no place
        z = 1 / as_positive(disparity, _FAR_GIVEN)
    else:
        valid = z[(z > 0) & z.isfinite()]
        if len(valid):
            z = z.clamp(max=float(sampled(valid).quantile(0.01)) * _FAR_GIVEN)  # NaN stays
    z = resize_depth(repaired(z, f"The depth {path.name}"), size)
    return Depth(z * (MEDIAN / sampled(z).median()) if inverse else z, metric)


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


def _read_npz(path: Path, frames: int, start: int, stride: int) -> tuple[np.ndarray, bool, bool]:
    """The picked frames of an .npz, whether they are disparity, and whether they are in metres."""
    try:
        # A visitor's file: what its headers declare is checked before anything is unpacked, and pickles are refused.
        with zipfile.ZipFile(path) as archive:
            shapes = {}
            for entry in archive.infolist():
                if entry.filename.endswith(".npy"):
                    with archive.open(entry) as file:
                        shapes[entry.filename.removesuffix(".npy")] = npy_header(file)
        key, inverse = _array_of_depth(list(shapes), path.name)
        shape, dtype = shapes[key]
        if len(shape) == 2:
            shape = (1, *shape)
        if len(shape) == 4 and 1 in (shape[1], shape[3]):  # a channel of its own
            shape = (shape[0], shape[2], shape[3]) if shape[1] == 1 else shape[:3]
        if len(shape) != 3 or 0 in shape or max(shape[1:]) > MAX_SIDE or dtype.kind not in "fiu":
            raise InputError(
                f"The array {key!r} of {path.name} has shape {shapes[key][0]} and type {dtype}; give numbers of shape "
                "frames x height x width."
            )
        if math.prod(shape) * dtype.itemsize > MAX_BYTES:
            raise InputError(f"The depth {path.name} is too large to read; give fewer frames, or smaller ones.")
        picked = _pick(shape[0], frames, start, stride, path.name)
        with np.load(path, allow_pickle=False) as data:
            values = data[key].reshape(shape)[picked.start : picked.stop : picked.step]
            scalar = "metric" in shapes and shapes["metric"][0] == () and shapes["metric"][1].kind in "biuf"
            metric = bool(data["metric"]) if scalar else False
    except InputError:
        raise
    except (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"The depth {path.name} cannot be read as .npz: {error}") from error
    return values.astype(np.float32), inverse, metric and not inverse


def _array_of_depth(names: list[str], name: str) -> tuple[str, bool]:
    """Which array of a file is meant, and whether it is disparity."""
    for key in ("z", "depth", "disparity"):
        if key in names:
            return key, key == "disparity"
    if len(names) == 1:
        return names[0], "disp" in names[0].lower()
    raise InputError(
        f"The depth {name} has the arrays {', '.join(sorted(names)[:8]) or 'none'}; name the one that is meant z, "
        "depth or disparity."
    )


def _read_pictures(path: Path, frames: int, start: int, stride: int) -> np.ndarray:
    """The picked frames of a folder of pictures, T H W."""
    found = sorted(path.iterdir(), key=_by_number) if path.is_dir() else [path]
    files: list[Path] = []
    for suffix in _PICTURES:
        files = files or [file for file in found if file.suffix.lower() == suffix]
    if not files:
        raise InputError(
            f"The depth folder {path.name} has no .exr and no .png pictures; put one for each frame into it."
        )
    read = _read_exr if files[0].suffix.lower() == ".exr" else _read_png
    picked = _pick(len(files), frames, start, stride, path.name)
    maps: list[np.ndarray] = []
    for file in (files[index] for index in picked):
        maps.append(read(file))
        if maps[-1].shape != maps[0].shape:
            raise InputError(f"The depth pictures in {path.name} are not all of one size: see {file.name}.")
        if len(picked) * maps[0].nbytes > MAX_BYTES:
            raise InputError(f"The depth {path.name} is too large to read; give fewer frames, or smaller ones.")
    return np.stack(maps)


def _by_number(path: Path) -> list[tuple[int, int, str]]:
    """Sorts frame_2 before frame_10."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def _checked_size(width: int, height: int, file: Path) -> None:
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise InputError(
            f"The depth picture {file.name} is {width}x{height}; at most {MAX_SIDE} pixels a side can be read."
        )


def _read_png(file: Path) -> np.ndarray:
    import cv2

    with open(file, "rb") as stream:
        header = stream.read(26)
    if len(header) < 26 or not header.startswith(b"\x89PNG") or header[12:16] != b"IHDR":
        raise InputError(f"The depth picture {file.name} is not a PNG file.")
    width, height, bits, kind = struct.unpack(">IIBB", header[16:26])
    if bits != 16 or kind != 0:
        raise InputError(
            f"The depth picture {file.name} is not a grey PNG of 16 bits; save depth with 16 bits, as grey."
        )
    _checked_size(width, height, file)
    image = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    if image is None or image.shape != (height, width):
        raise InputError(f"The depth picture {file.name} is damaged; save it again.")
    return image.astype(np.float32)


def _read_exr(file: Path) -> np.ndarray:
    import OpenEXR  # OpenCV 5 is built without it

    try:
        with OpenEXR.File(str(file), header_only=True) as headers:
            low, high = headers.header()["dataWindow"]
        width, height = (int(n) for n in high - low + 1)
        _checked_size(width, height, file)
        with OpenEXR.File(str(file), separate_channels=True) as picture:
            channels = {name: channel.pixels for name, channel in picture.channels().items()}
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"The depth picture {file.name} cannot be read as EXR: {error}") from error
    # Renderers name it "Z" or "ViewLayer.Depth.Z"; a picture saved as grey or as colour holds it in Y, V or R.
    by_tail = {name.rsplit(".", 1)[-1].upper(): name for name in sorted(channels, reverse=True)}
    name = next((by_tail[tail] for tail in ("Z", "DEPTH", "Y", "V", "R") if tail in by_tail), None)
    if name is None and len(channels) != 1:
        raise InputError(f"The depth picture {file.name} has no channel Z, but {', '.join(sorted(channels)[:8])}.")
    values = channels[name or next(iter(channels))]
    if values.ndim != 2:
        raise InputError(f"The depth picture {file.name} is not a plain picture (shape {values.shape}).")
    return values.astype(np.float32)
