"""Masks given by the user as files."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from pipeline import InputError
from pipeline.media import arrays, child
from pipeline.media.video import pictures_of, probe, read_video, resize

_PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
_ANIMATED = {".png", ".webp"}  # which may hold more than one
_VOID = 255  # a rim that belongs to nothing, in PASCAL VOC and after it
_VOID_COLOUR = (224, 224, 192)  # of that label in its palette
_MOST_LABEL = 90  # of label maps of 8 bits that have a void; what is lighter is brightness
_MOST_OBJECTS = 32  # beside each other in an array
_MOST_LABELS = 64  # that are told apart by their values alone


def load_mask(
    path: str | os.PathLike,
    frames: int,
    size: tuple[int, int],
    *,
    start: int = 0,
    stride: int = 1,
    at: int = 0,
    label: int | None = None,
) -> dict[int, Bool[Tensor, "H W"]]:
    """The frames of a clip, of `frames` frames of `size` = (H, W), whose masks a file gives; True = the object.

    path: an .npz or .npy of shape H W, T H W or T N H W, of which all N objects count (in an .npz the array `mask` or
    `masks`, else all of truth values, else the one that looks like a mask); a picture (.png, .jpg, .webp, .bmp, .tif):
    the object is painted on a transparent ground, or in white or a colour on black; a folder of such pictures, or a
    TIFF of several pages, one a frame (DAVIS); a video or an animated picture, white on black or a cut-out.
    Numbers count as object above 0.5, above 127 where they go to 255, above 0 where they go below. Label maps, as
    palette indices or as small numbers, count with all their labels but the void of PASCAL VOC (255); label: only
    this one.

    A single picture is the mask of frame `at`. A file of the whole clip is picked from with `start` and `stride`, as
    the clip was; one with exactly `frames` frames otherwise is taken as it is. Masks of another size but the same
    proportions (within 2 %) are resized. The frames that are missing in the answer are for `propagate` to find.
    Raises InputError, also if the object is nowhere or everywhere.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(
            f"The mask {path.name} does not exist; give an .npz or .npy file, a picture, a folder of pictures, or a "
            "video."
        )
    picked = range(start, start + frames * stride, stride)
    suffix = path.suffix.lower()
    if path.is_dir():
        files = pictures_of(path)
        wanted = _pick(len(files), picked, at, path.name)
        masks = _of_pictures([(files[index], 0) for index in wanted.values()], path.name, label)
    elif _is_picture(path):
        pages = child.run("pages_of", path, seconds=60.0)[0]["pages"]
        wanted = _pick(len(pages), picked, at, path.name)
        masks = _of_pictures([(path, pages[index]) for index in wanted.values()], path.name, label)
    elif suffix in (".npz", ".npy"):
        values = _read_array(path)
        wanted = _pick(len(values), picked, at, path.name)
        masks = _of_numbers(values[list(wanted.values())], path.name, label)
    else:
        with _as_video():
            total = probe(path).frames
        wanted = _pick(total, picked, at, path.name)
        masks = _of_video(path, list(wanted.values()))
    if label is not None and not masks.any():
        raise InputError(f"The mask {path.name} has no label {label} in the frames that are used; choose another.")
    return dict(zip(wanted, _fitted(masks, size, path.name), strict=True))


def check_mask_file(path: str | os.PathLike, label: int | None = None) -> None:
    """Raises `InputError` for a mask file that cannot be read, without its clip: of a video only the first frame is."""
    path = Path(path)
    if path.is_dir():
        _of_pictures([(file, 0) for file in pictures_of(path)[:1]], path.name, label)
    elif path.suffix.lower() in (".npz", ".npy"):
        _read_array(path)
    elif _is_picture(path):
        _of_pictures([(path, 0)], path.name, label)
    else:
        _of_video(path, [0])


def _is_picture(path: Path) -> bool:
    """Whether a file holds a picture, or pages; one that is animated counts as a video."""
    suffix = path.suffix.lower()
    return suffix in _PICTURES and (suffix not in _ANIMATED or probe(path).still)


@contextmanager
def _as_video() -> Iterator[None]:
    """Says what else a mask may be, where a file cannot be read as a video."""
    try:
        yield
    except InputError as error:
        other = "A mask may also be an .npz or .npy file, a picture, or a folder of pictures."
        raise InputError(f"{str(error).rstrip('.')}. {other}") from error


def _pick(total: int, picked: range, at: int, name: str) -> dict[int, int]:
    """Which frame of a file of `total` frames each frame of the clip has its mask in. picked: of the clip."""
    if total == 1:
        if not 0 <= at < len(picked):
            raise InputError(f"The mask {name} is of frame {at}, but the clip has the frames 0 to {len(picked) - 1}.")
        return {at: 0}
    if total > picked[-1]:
        return dict(enumerate(picked))
    if total == len(picked):
        return {index: index for index in range(total)}
    raise InputError(
        f"The mask {name} has {total} frames; the clip needs frames {picked[0]} to {picked[-1]} (or exactly "
        f"{len(picked)}, those that are used). Give a mask of every frame, or of a single one."
    )


def _fitted(masks: Bool[Tensor, "T h w"], size: tuple[int, int], name: str) -> Bool[Tensor, "T H W"]:
    """At the clip's size. Raises InputError for other proportions, and where the object is nowhere or everywhere."""
    (h, w), (H, W) = masks.shape[1:], size
    if abs(math.log((w / h) / (W / H))) > 0.02 + 0.5 / min(h, w, H, W):
        raise InputError(
            f"The mask {name} is {w}x{h}, which has not the proportions of the clip ({W}x{H}); give a mask of the "
            "whole picture, in its proportions."
        )
    some = masks.flatten(1).any(1)
    if not some.any():
        raise InputError(f"The mask {name} is empty: paint over the object that is to be replaced.")
    if masks[some].all():
        raise InputError(
            f"The mask {name} covers the whole picture: paint only over the object (white, or not transparent)."
        )
    if (h, w) != (H, W):
        masks = resize(masks[:, None].float(), size, mode="area")[:, 0] > 0.5
        if not masks.any():
            raise InputError(f"The mask {name} is empty at {W}x{H} pixels: paint over the object more broadly.")
    return masks


# --- arrays -----------------------------------------------------------------------------------------------------------


def _read_array(path: Path) -> np.ndarray:
    """T H W of an .npz or .npy. What the headers declare is checked before anything is unpacked; no pickles."""
    with arrays.guarded(f"The mask {path.name} cannot be read", "save it again with numpy."):
        found = arrays.headers(path)
        keys = _arrays_of_mask(found, path.name)
        key, (shape, dtype) = keys[0], found[keys[0]]
        flat = _without_channel(shape)
        if len(flat) not in (2, 3) or 0 in flat or max(flat[-2:]) > arrays.MAX_SIDE or dtype.kind not in "bfiu":
            raise InputError(
                f"The mask {path.name} has shape {shape} and type {dtype}; give booleans or numbers of shape frames x "
                f"height x width, at most {arrays.MAX_SIDE} pixels a side."
            )
        if sum(arrays.size_of(found[name]) for name in keys) > arrays.MAX_BYTES:
            raise InputError(f"The mask {path.name} is too large to read; give fewer frames, or smaller ones.")
        values = arrays.read_array(path, key) if key else np.load(path, allow_pickle=False)
        for other in keys[1:]:
            values = values | arrays.read_array(path, other)
        if len(shape) == 4 and 1 not in (shape[0], shape[1], shape[3]):
            return values.max(1)
        return values.reshape(flat if len(flat) == 3 else (1, *flat))


def _arrays_of_mask(found: dict[str, arrays.Header], name: str) -> list[str]:
    """The array that is meant: by its name, by its type, else the first that has the shape of a mask.

    Several of truth values, alike in shape, are an object each (obj1, obj2): all of them, where no name says mask.
    """
    fits = [key for key, (shape, _) in found.items() if len(_without_channel(shape)) in (2, 3)]
    called = [key for key in fits if key.lower() in ("", "mask", "masks")]
    called += [key for key in fits if any(word in key.lower() for word in ("mask", "segm", "matte", "alpha"))]
    truths = [key for key in fits if found[key][1].kind == "b"]
    chosen = called + truths + fits
    if not chosen:
        raise InputError(
            f"The mask {name} has the arrays {', '.join(sorted(found)[:8]) or 'none'}; give one named mask, of shape "
            "frames x height x width."
        )
    return [key for key in truths if found[key] == found[truths[0]]] if truths and not called else chosen[:1]


def _without_channel(shape: tuple[int, ...]) -> tuple[int, ...]:
    """T H W of T 1 H W (SAM 2), 1 T H W, T H W 1 and T N H W, of a few objects."""
    if len(shape) == 4:
        for axis in (1, 0, 3):
            if shape[axis] == 1:
                return shape[:axis] + shape[axis + 1 :]
        if shape[1] <= _MOST_OBJECTS and shape[3] > 4:
            return (shape[0], *shape[2:])
    return shape


def _of_numbers(values: np.ndarray, name: str, label: int | None) -> Bool[Tensor, "T H W"]:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError(f"The mask {name} has values that are NaN or infinite; give 0 and 1.")
    if values.dtype == bool:
        masks = values
    elif label is not None:
        masks = values == label
    elif values.min(initial=0) < 0:  # logits
        masks = values > 0
    elif values.dtype.kind == "f":
        most = values.max(initial=0)
        masks = values > (127 if most > 127 else 0.5)
    else:
        masks = _object_of(values, lossless=True)
    return torch.from_numpy(np.ascontiguousarray(masks))


# --- pictures ---------------------------------------------------------------------------------------------------------


def _of_pictures(files: list[tuple[Path, int]], name: str, label: int | None) -> Bool[Tensor, "T H W"]:
    """Of one picture a frame: a file, and its page. What is a label and what is brightness is decided for all of them
    together."""
    read = [child.run("read_levels", file, seconds=60.0, page=page) for file, page in files]
    shapes = {found[0].shape[:2] for _, found in read}
    if len(shapes) > 1:
        raise InputError(f"The pictures of the mask {name} are not all of one size; give them as large as the clip.")
    if max(next(iter(shapes))) > arrays.MAX_SIDE:
        height, width = next(iter(shapes))
        raise InputError(f"The mask {name} is {width}x{height}; at most {arrays.MAX_SIDE} pixels a side can be read.")
    lossless = all(about["lossless"] for about, _ in read)
    if label is None and all(len(found) > 1 for _, found in read):  # painted on a transparent ground
        return torch.from_numpy(np.stack([found[1] > 0 for _, found in read]))
    palettes = [about["palette"] for about, _ in read]
    if all(palettes) and lossless and not all(_is_grey(palette) for palette in palettes):
        objects = [_of_indices(found[0], about["palette"], label) for about, found in read]
        return torch.from_numpy(np.stack(objects))
    levels = []
    for palette, (_, found) in zip(palettes, read, strict=True):
        values = np.array(palette, np.uint8)[found[0].clip(max=len(palette) - 1)] if palette else found[0]
        if values.ndim == 3:  # a colour counts by its brightest channel: red paint is an object too
            void = (values == _VOID_COLOUR).all(-1) & lossless
            values = np.where(void, 0, values.max(-1))
        levels.append(values)
    stack = np.stack(levels)
    if stack.dtype == bool:
        return torch.from_numpy(stack)
    return torch.from_numpy(stack == label if label is not None else _object_of(stack, lossless))


def _is_grey(palette: list[list[int]]) -> bool:
    return all(max(colour) - min(colour) < 3 for colour in palette)


def _of_indices(indices: np.ndarray, palette: list[list[int]], label: int | None) -> np.ndarray:
    """A label map in a palette (DAVIS, PASCAL VOC): black is the ground, whatever its index."""
    if label is not None:
        return indices == label
    ground = [index for index, colour in enumerate(palette) if max(colour) == 0]
    if any(max(palette[index]) == 0 for index in np.unique(indices).tolist() if index < len(palette)):
        seen = ~np.isin(indices, ground)
    else:
        seen = indices != 0
    other = seen & (indices != _VOID)
    return other if other.any() else seen


def _object_of(values: np.ndarray, lossless: bool) -> np.ndarray:
    """Labels, or brightness against half of it. Compression blurs labels, so that only lossless files can hold some."""
    if not lossless:
        return values > 127
    if values.dtype.kind == "f":
        return values > values.max(initial=0) / 2
    levels = np.unique(values)
    most = int(levels.max(initial=0))
    if most <= _MOST_LABEL:
        return values > 0
    others = levels[(levels > 0) & (levels != _VOID)]
    if most == _VOID and len(others) and others.max() <= _MOST_LABEL:
        return (values > 0) & (values != _VOID)
    if len(levels) <= _MOST_LABELS and all(_is_solid(values == level) for level in levels[levels > 0]):
        return values > 0
    return values > most / 2


def _is_solid(area: np.ndarray) -> bool:
    """Whether some place of an area T H W is more than a rim: three pixels wide and high."""
    inner = area
    for axis in (1, 2):
        inner = inner & np.roll(inner, 1, axis) & np.roll(inner, -1, axis)
    return bool(inner.any())


# --- videos -----------------------------------------------------------------------------------------------------------


def _of_video(path: Path, wanted: list[int]) -> Bool[Tensor, "T H W"]:
    step = wanted[1] - wanted[0] if len(wanted) > 1 else 1
    with _as_video():
        video = read_video(path, start=wanted[0], stride=step, frames=len(wanted), mask=True).frames
    if len(video) < len(wanted):
        raise InputError(
            f"The mask {path.name} is damaged: only {len(video)} of its frames can be read; export it again."
        )
    return video.amax(1) > 0.5
