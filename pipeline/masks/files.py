"""Masks given by the user as files."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from pipeline import InputError
from pipeline.media.arrays import MAX_BYTES, MAX_SIDE, npy_header
from pipeline.media.video import probe, read_video, resize

_IMAGES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def load_mask(
    path: str | os.PathLike, frames: int, size: tuple[int, int], *, start: int = 0, stride: int = 1, at: int = 0
) -> dict[int, Bool[Tensor, "H W"]]:
    """The frames of a clip, of `frames` frames of `size` = (H, W), whose masks a file gives; True = the object.

    path: an .npz (array `mask`, or the first with two or three dimensions) or .npy of shape H W or T H W; a picture
    (.png, .jpg, .webp): the object is painted on a transparent ground, or white on black; a video, white on black.
    Numbers count as object above 0.5, above 127 where they go to 255; labels 1, 2, ... all count as object.

    A single picture is the mask of frame `at`. A file of the whole clip is picked from with `start` and `stride`, as
    the clip was; one with exactly `frames` frames otherwise is taken as it is. Masks of another size but the same
    proportions (within 2 %) are resized. The frames that are missing in the answer are for `propagate` to find.
    Raises InputError, also if the object is nowhere or everywhere.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"The mask {path.name} does not exist; give an .npz or .npy file, a picture, or a video.")
    suffix = path.suffix.lower()
    if suffix in (".npz", ".npy"):
        values = _read_array(path)
    elif suffix in _IMAGES:
        values = _read_picture(path)
    else:
        values = _read_mask_video(path, frames, start, stride)
    total = len(values)
    picked = range(start, start + frames * stride, stride)
    if total == 1:
        if not 0 <= at < frames:
            raise InputError(f"The mask {path.name} is of frame {at}, but the clip has the frames 0 to {frames - 1}.")
        indices = [at]
    elif total > picked[-1]:
        indices, values = list(range(frames)), values[picked.start : picked.stop : stride]
    elif total == frames:
        indices = list(range(frames))
    else:
        raise InputError(
            f"The mask {path.name} has {total} frames; the clip needs frames {start} to {picked[-1]} (or exactly "
            f"{frames}, those that are used). Give a mask of every frame, or of a single one."
        )
    masks = _as_masks(values, path.name)
    (h, w), (H, W) = masks.shape[1:], size
    if abs(math.log((w / h) / (W / H))) > 0.02 + 0.5 / min(h, w, H, W):
        raise InputError(
            f"The mask {path.name} is {w}x{h}, which has not the proportions of the clip ({W}x{H}); give a mask of the "
            "whole picture, in its proportions."
        )
    some = masks.flatten(1).any(1)
    if not some.any():
        raise InputError(f"The mask {path.name} is empty: paint over the object that is to be replaced.")
    if masks[some].all():
        raise InputError(
            f"The mask {path.name} covers the whole picture: paint only over the object (white, or not transparent)."
        )
    if (h, w) != (H, W):
        masks = resize(masks[:, None].float(), size, mode="area")[:, 0] > 0.5
        if not masks.any():
            raise InputError(f"The mask {path.name} is empty at {W}x{H} pixels: paint over the object more broadly.")
    return dict(zip(indices, masks, strict=True))


def _read_array(path: Path) -> np.ndarray:
    """T H W of an .npz or .npy. What the headers declare is checked before anything is unpacked; no pickles."""
    try:
        if path.suffix.lower() == ".npy":
            with open(path, "rb") as file:
                shape, dtype = npy_header(file)
            _check_array(shape, dtype, path.name)
            values = np.load(path, allow_pickle=False)
        else:
            with zipfile.ZipFile(path) as archive:
                headers = {}
                for entry in archive.infolist():
                    if entry.filename.endswith(".npy"):
                        with archive.open(entry) as file:
                            headers[entry.filename.removesuffix(".npy")] = npy_header(file)
            flat = [key for key, (shape, _) in headers.items() if len(shape) in (2, 3)]
            key = "mask" if "mask" in headers else flat[0] if flat else None
            if key is None:
                raise InputError(
                    f"The mask {path.name} has the arrays {', '.join(sorted(headers)[:8]) or 'none'}; give one named "
                    "mask, of shape frames x height x width."
                )
            shape, dtype = headers[key]
            _check_array(shape, dtype, path.name)
            with np.load(path, allow_pickle=False) as data:
                values = data[key]
    except InputError:
        raise
    except (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"The mask {path.name} cannot be read: {error}; save it again with numpy.") from error
    return values[None] if values.ndim == 2 else values


def _check_array(shape: tuple[int, ...], dtype: np.dtype, name: str) -> None:
    if len(shape) not in (2, 3) or 0 in shape or max(shape[-2:]) > MAX_SIDE or dtype.kind not in "bfiu":
        raise InputError(
            f"The mask {name} has shape {shape} and type {dtype}; give booleans or numbers of shape frames x height x "
            f"width, at most {MAX_SIDE} pixels a side."
        )
    if math.prod(shape) * dtype.itemsize > MAX_BYTES:
        raise InputError(f"The mask {name} is too large to read; give fewer frames, or smaller ones.")


def _read_picture(path: Path) -> np.ndarray:
    """1 H W: booleans, or brightness."""
    from PIL import Image

    try:
        # The kind by name alone: Pillow would also try rare formats whose readers are less trusted.
        with Image.open(path, formats=[_IMAGES[path.suffix.lower()]]) as image:
            if max(image.size) > MAX_SIDE:
                raise InputError(
                    f"The mask {path.name} is {image.width}x{image.height}; at most {MAX_SIDE} pixels a side can be "
                    "read."
                )
            if image.has_transparency_data:
                alpha = np.asarray(image.convert("RGBA").getchannel("A"))
                if (alpha < 255).any():
                    return alpha[None] > 0
                image = image.convert("RGB")
            if image.mode.startswith("I"):  # 16 bits; convert would clip
                grey = np.asarray(image, np.float32)
            else:
                grey = np.asarray(image.convert("L"), np.float32)
    except InputError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"The mask {path.name} cannot be read as a picture; save it as PNG again.") from error
    # Label maps saved as pictures are nearly black; JPEG has noise around black.
    lossless = path.suffix.lower() == ".png"
    return grey[None] > (grey.max() / 2 if lossless else 127)


def _read_mask_video(path: Path, frames: int, start: int, stride: int) -> np.ndarray:
    total = probe(path).frames
    if total == frames and total <= start + (frames - 1) * stride:
        start, stride = 0, 1
    elif total == 1:
        start = 0
    elif start >= total:
        return np.zeros((total, 1, 1), bool)  # of the wrong length, as the caller will say
    video = read_video(path, start=start, stride=stride, frames=frames).frames
    bright = (video.mean(1) > 0.5).numpy()
    if len(bright) in (1, frames):
        if len(bright) == 1:
            return bright
        whole = np.zeros((start + (frames - 1) * stride + 1, *bright.shape[1:]), bool)
        whole[start::stride] = bright
        return whole
    return bright


def _as_masks(values: np.ndarray, name: str) -> Bool[Tensor, "T H W"]:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError(f"The mask {name} has values that are NaN or infinite; give 0 and 1.")
    if values.dtype == bool:
        masks = values
    else:
        most = values.max(initial=0)
        masks = values > (127 if most > 127 else 0.5)
    return torch.from_numpy(np.ascontiguousarray(masks))
