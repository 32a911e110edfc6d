"""The object to be replaced, in every frame of a clip: masks that the user gives, and the frames in between found.

Masks of this module are True (1) where the object is; `measurement` has the other polarity. An object is followed
either without any weights (`propagate`), or by SAM 2 (`track_with_sam2`).
"""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from scipy import ndimage
from scipy.spatial import KDTree
from torch import Tensor

from pipeline import InputError
from pipeline.media.video import probe, read_video, resize
from pipeline.models import memory
from pipeline.models import table as models

SAM2 = "sam2-hiera-tiny"

_IMAGES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_MAX_SIDE = 8192  # pixels
_MAX_BYTES = 2 * 2**30

# --- following, without weights
_SIDE = 432  # pixels of the longer side at which the object is followed
_SAMPLES = (700, 1400)  # pixels of the object and of its surroundings that are kept of one frame
_RECENT = 2  # frames that are remembered besides the painted one
_BLUR, _CONTRAST = 0.5, 0.3  # of the colours that are compared: pixels, and units per unit of CIELAB
_BANDWIDTH = 2.0  # of squared feature distances
# Log-likelihood, negated, of a pixel that is like nothing remembered. New things are rather part of the surroundings:
# every camera move brings some, and an object seldom changes its colours.
_NOVEL_OBJECT, _NOVEL_GROUND = 10.0, 2.0
_ALIEN = 12.0  # squared feature distance beyond which a pixel cannot be one of the painted object
_FAR = 20.0  # squared feature distance at which a place counts as not matched
_NOWHERE = 60.0  # squared feature distance at which looking for a like pixel ends
_FADE = 0.95  # of the memory of hidden parts, per frame

_Painted = Mapping[int, Bool[Tensor, "H W"]]


# --- masks given by the user ------------------------------------------------------------------------------------------


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
                shape, dtype = _npy_header(file)
            _check_array(shape, dtype, path.name)
            values = np.load(path, allow_pickle=False)
        else:
            with zipfile.ZipFile(path) as archive:
                headers = {}
                for entry in archive.infolist():
                    if entry.filename.endswith(".npy"):
                        with archive.open(entry) as file:
                            headers[entry.filename.removesuffix(".npy")] = _npy_header(file)
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


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"its arrays are of the unknown version {version}")
    shape, _, dtype = read(file)
    return shape, dtype


def _check_array(shape: tuple[int, ...], dtype: np.dtype, name: str) -> None:
    if len(shape) not in (2, 3) or 0 in shape or max(shape[-2:]) > _MAX_SIDE or dtype.kind not in "bfiu":
        raise InputError(
            f"The mask {name} has shape {shape} and type {dtype}; give booleans or numbers of shape frames x height x "
            f"width, at most {_MAX_SIDE} pixels a side."
        )
    if math.prod(shape) * dtype.itemsize > _MAX_BYTES:
        raise InputError(f"The mask {name} is too large to read; give fewer frames, or smaller ones.")


def _read_picture(path: Path) -> np.ndarray:
    """1 H W: booleans, or brightness."""
    from PIL import Image

    try:
        # The kind by name alone: Pillow would also try rare formats whose readers are less trusted.
        with Image.open(path, formats=[_IMAGES[path.suffix.lower()]]) as image:
            if max(image.size) > _MAX_SIDE:
                raise InputError(
                    f"The mask {path.name} is {image.width}x{image.height}; at most {_MAX_SIDE} pixels a side can be "
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


# --- shaping masks ----------------------------------------------------------------------------------------------------


def grow(mask: Bool[Tensor, "*T H W"], pixels: float) -> Bool[Tensor, "*T H W"]:
    """The object (True) grown by a disc of radius `pixels`; shrunk if negative. The border counts as neither."""
    if pixels == 0:
        return mask
    if pixels < 0:
        return ~grow(~mask, -pixels)
    return _each(lambda m: _distance_to(m) <= pixels, mask).bool()


def fill_holes(mask: Bool[Tensor, "*T H W"]) -> Bool[Tensor, "*T H W"]:
    """The object (True) with what it encloses entirely, frame by frame."""
    return _each(ndimage.binary_fill_holes, mask).bool()


def _distance_to(mask: np.ndarray) -> np.ndarray:
    """Of each pixel to the nearest one of the mask, in pixels; large if there is none."""
    if not mask.any():
        return np.full(mask.shape, 1e6, np.float32)
    return cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def _each(change: Any, mask: Tensor) -> Tensor:
    flat = mask.reshape(-1, *mask.shape[-2:]).cpu().numpy()
    changed = [np.asarray(change(m), np.float32) for m in flat]
    return torch.from_numpy(np.stack(changed) if changed else flat.astype(np.float32)).view(mask.shape).to(mask.device)


# --- following the object without weights -----------------------------------------------------------------------------


def propagate(frames: Float[Tensor, "T 3 H W"], painted: _Painted) -> Iterator[tuple[int, int] | Bool[Tensor, "T H W"]]:
    """Follows the painted object (True) through all frames of a clip in [0, 1]; nothing is downloaded.

    painted: masks H W by frame index, at least one. Yields (done, total) as work goes on, and at last the mask T H W.
    Painted frames come back as they were given. Frames between two painted ones take what came from both sides, each
    the more the nearer it is. An empty painted mask says that the object is not to be seen there.

    Each frame inherits its probabilities from the one before by dense optical flow (DIS), as far as the flow agrees
    with its inverse. Where it does not, and against drift, every pixel is compared with pixels remembered of the
    painted frame and the last few: in colour and in place, which moves on with the object or with its
    surroundings. The object's motion is that of its flow, or found by looking for its remembered pixels, so that it is
    found again behind what hid it. Raises ValueError if shapes do not match.
    """
    T, H, W = _checked(frames, painted)
    scale = min(1.0, _SIDE / max(H, W))
    size = (max(8, round(H * scale)), max(8, round(W * scale)))
    given = {t: resize(painted[t][None, None].float().cpu(), size)[0, 0].numpy() for t in sorted(painted)}
    times = list(given)
    small = lambda t: resize(frames[t : t + 1].detach().cpu().float(), size)[0].numpy()

    runs: list[tuple[int, range]] = []  # from which frame, over which others
    for t, before, after in zip(times, [None, *times[:-1]], [*times[1:], None], strict=True):
        runs.append((t, range(t - 1, -1 if before is None else before, -1)))
        runs.append((t, range(t + 1, T if after is None else after)))
    runs = [(t, others) for t, others in runs if len(others)]
    total, done = sum(len(others) for _, others in runs), 0
    odds = np.zeros((T, *size), np.float32)
    for start, others in runs:
        ends = [t for t in (others[0] - others.step, others[-1] + others.step) if t in given]
        sequence = (small(t) for t in (start, *others))
        for t, p in zip(others, _follow(sequence, given[start]), strict=True):
            share = 1 - abs(t - start) / abs(ends[1] - start) if len(ends) == 2 else 1.0
            odds[t] += share * _logit(p, 6)
            done += 1
            yield done, total

    mask = resize(torch.from_numpy(odds)[:, None], (H, W), mode="bilinear")[:, 0] > 0
    for t, given_mask in painted.items():
        mask[t] = given_mask
    yield mask.to(frames.device)


def _checked(frames: Tensor, painted: _Painted) -> tuple[int, int, int]:
    T, _, H, W = frames.shape
    if not painted or not all(0 <= t < T for t in painted):
        raise ValueError(f"masks are painted in the frames {sorted(painted)} of a clip of {T}")
    if any(tuple(mask.shape) != (H, W) or mask.dtype != torch.bool for mask in painted.values()):
        raise ValueError(f"painted masks have to be booleans of shape {(H, W)}, as the frames")
    return T, H, W


@dataclass(frozen=True, eq=False)
class _Picture:
    """A frame at working size: `grey` H W uint8 for flow; `features` H W 3, colours."""

    grey: np.ndarray
    features: np.ndarray


@dataclass(frozen=True, eq=False)
class _Samples:
    """Remembered pixels: features N 3, where they should be now N 2 (x, y), label N bool (True = object)."""

    features: np.ndarray
    place: np.ndarray
    label: np.ndarray


def _picture(frame: np.ndarray) -> _Picture:
    """Of a frame 3 H W in [0, 1]. A unit of the features is a small but visible difference."""
    rgb = np.ascontiguousarray(frame.transpose(1, 2, 0), np.float32)
    grey = (cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY) * 255).round().clip(0, 255).astype(np.uint8)
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2Lab) * np.array([0.6, 1, 1], np.float32)  # light and shade change most
    return _Picture(grey, cv2.GaussianBlur(lab, (0, 0), _BLUR) * _CONTRAST)


def _follow(frames: Iterator[np.ndarray], first: np.ndarray) -> Iterator[np.ndarray]:
    """Probabilities H W of the object in each frame after the first; `first` is its share of each pixel there."""
    rng = np.random.default_rng(0)
    shape = first.shape
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    grid = np.stack([x, y], -1)
    dis: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    before = _picture(next(frames))
    p = first.astype(np.float32)
    size = math.sqrt(max(float(p.sum()), 1.0))  # of the object, in pixels
    reach = int(max(9, 1.2 * size)) | 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
    anchor = _remember(before, p, reach, rng)
    own = anchor.features[anchor.label]
    recent: list[_Samples] = []
    whole = p  # the object with what hides it taken away
    motion = ground = np.array([[1, 0, 0], [0, 1, 0]], np.float32)  # of the object and of what is around it, 2 3
    for frame in frames:
        now = _picture(frame)
        if not len(own):
            yield np.zeros(shape, np.float32)
            continue
        back, forth = dis.calc(now.grey, before.grey, None), dis.calc(before.grey, now.grey, None)
        trust = _trust(before, now, back, forth, grid)
        flowed = _look_up(p, grid + back)

        good = np.linalg.norm(forth + _look_up(back, grid + forth, cv2.BORDER_REPLICATE), axis=-1) < 1
        around = cv2.dilate((whole > 0.3).astype(np.uint8), np.ones((5, 5), np.uint8)) == 0
        ground = _motion_of(around & good, forth, grid, ground, rng)
        flow_motion = _motion_of((p > 0.6) & good, forth, grid, motion, rng)
        motion = _search(now.features, [anchor, *recent], [flow_motion, motion, ground], size)
        anchor, *recent = memory = [_advance(samples, motion, ground) for samples in (anchor, *recent)]
        rigid = cv2.warpAffine(whole, motion, shape[::-1])

        expected = np.maximum(flowed, rigid)
        region = cv2.dilate((expected > 0.1).astype(np.uint8), disc) > 0
        prior = trust * _logit(flowed, 3) + (1 - trust) * 0.7 * _logit(0.1 + 0.7 * rigid, 4)
        odds = prior * (0.6 + 0.9 * trust)
        odds += 1.5 * trust * _moves_along(back, grid, motion, ground)
        odds += 0.9 * _alike(now, memory, region, grid, 6 / size)
        p = np.where(region, 1 / (1 + np.exp(-odds)), 0).astype(np.float32)
        p = _drop_islands(p, expected)

        whole = np.maximum(p, _FADE * rigid)
        if (p > 0.5).sum() > 0.3 * (whole > 0.5).sum():
            recent = [*recent, _remember(now, p, reach, rng, own, sure=0.95)][-_RECENT:]
        before = now
        yield p


def _look_up(image: np.ndarray, place: np.ndarray, border: int = cv2.BORDER_CONSTANT) -> np.ndarray:
    return cv2.remap(image, place[..., 0], place[..., 1], cv2.INTER_LINEAR, borderMode=border)


def _logit(p: np.ndarray, most: float) -> np.ndarray:
    """Log odds within -most and most."""
    low = 1 / (1 + math.exp(most))
    p = np.clip(p, low, 1 - low)
    return np.log(p / (1 - p))


def _trust(before: _Picture, now: _Picture, back: np.ndarray, forth: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """In [0, 1], how surely the backward flow leads to the same thing: it returns, colours agree, within the frame."""
    there = grid + back
    error = np.linalg.norm(back + _look_up(forth, there, cv2.BORDER_REPLICATE), axis=-1)
    height, width = now.grey.shape
    x, y = there[..., 0], there[..., 1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    change = np.square(now.features - _look_up(before.features, there, cv2.BORDER_REPLICATE)).sum(-1)
    return np.exp(-np.square(error / 1.5) - cv2.blur(change, (3, 3)) / 8) * inside


def _motion_of(
    mask: np.ndarray, flow: np.ndarray, grid: np.ndarray, before: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The similarity (2 3) of the flow of most pixels of a mask; their median shift, or `before` if they are few."""
    y, x = _pick(mask, 1500, rng)
    if len(x) < 12:
        return before
    source, shift = grid[y, x], flow[y, x]
    motion, inliers = cv2.estimateAffinePartial2D(source, source + shift, ransacReprojThreshold=1.5, maxIters=200)
    if motion is not None and inliers.sum() >= 0.3 * len(x) and 0.8 < math.hypot(motion[0, 0], motion[1, 0]) < 1.25:
        return motion.astype(np.float32)
    return np.column_stack([np.eye(2), np.median(shift, 0)]).astype(np.float32)


def _apply(motion: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ motion[:, :2].T + motion[:, 2]


def _pick(mask: np.ndarray, most: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.nonzero(mask)
    if len(x) > most:
        chosen = rng.choice(len(x), most, replace=False)
        y, x = y[chosen], x[chosen]
    return y, x


def _remember(
    picture: _Picture,
    p: np.ndarray,
    reach: int,
    rng: np.random.Generator,
    own: np.ndarray | None = None,
    sure: float = 0.85,
) -> _Samples:
    """Sure pixels of the object and of its surroundings, these mostly from near by.

    own: features of the painted object; pixels of the object that are like none of them are left out, so that a mistake
    does not confirm itself.
    """
    near = cv2.dilate((p > 0.5).astype(np.uint8), np.ones((reach, reach), np.uint8)) > 0
    few, many = _SAMPLES
    groups = [_pick(p > sure, few, rng), _pick((p < 1 - sure) & near, many, rng)]
    groups.append(_pick((p < 1 - sure) & ~near, many // 4, rng))
    y, x = (np.concatenate(parts) for parts in zip(*groups, strict=True))
    label = np.arange(len(y)) < len(groups[0][0])
    features, place = picture.features[y, x], np.stack([x, y], -1).astype(np.float32)
    if own is not None:
        keep = ~label
        keep[label] = _nearest(features[label], own) <= _ALIEN
        features, place, label = features[keep], place[keep], label[keep]
    return _Samples(features, place, label)


def _advance(samples: _Samples, motion: np.ndarray, ground: np.ndarray) -> _Samples:
    moved = np.where(samples.label[:, None], _apply(motion, samples.place), _apply(ground, samples.place))
    return replace(samples, place=moved)


def _search(features: np.ndarray, memory: list[_Samples], guesses: list[np.ndarray], size: float) -> np.ndarray:
    """The motion, one of `guesses` or a shift of it, that brings the remembered object to pixels most like its own.

    The first guess is preferred where others are hardly better, and so are small shifts.
    """
    H, W = features.shape[:2]
    own, place = (np.concatenate([getattr(s, name)[s.label] for s in memory]) for name in ("features", "place"))
    step = len(own) // 500 + 1
    own, place = own[::step], place[::step]

    def cost(points: np.ndarray) -> np.ndarray:
        x, y = np.rint(points[..., 0]).astype(int), np.rint(points[..., 1]).astype(int)
        inside = (x >= 0) & (x < W) & (y >= 0) & (y < H)
        distance = np.square(features[y.clip(0, H - 1), x.clip(0, W - 1)] - own).sum(-1)
        return np.where(inside, np.minimum(distance / _FAR, 1), 0.8).mean(-1)

    def shifted(motion: np.ndarray, reach: int, step: int) -> tuple[np.ndarray, float]:
        n = np.arange(-reach, reach + 1, step, dtype=np.float32)
        shifts = np.stack(np.meshgrid(n, n), -1).reshape(-1, 2)
        costs = cost(_apply(motion, place) + shifts[:, None]) + 0.04 * np.linalg.norm(shifts, axis=-1) / size
        best = int(costs.argmin())
        return np.column_stack([motion[:, :2], motion[:, 2] + shifts[best]]), float(costs[best])

    costs = [float(cost(_apply(guess, place))) + 0.02 * (n > 0) for n, guess in enumerate(guesses)]
    best = guesses[int(np.argmin(costs))]
    moved, found = shifted(best, int(np.clip(size / 2, 6, 24)) // 2 * 2, 2)
    return shifted(moved, 1, 1)[0] if found < min(costs) - 0.04 else best


def _moves_along(back: np.ndarray, grid: np.ndarray, motion: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """In [-1, 1], whether a pixel's backward flow is the object's motion rather than that of its surroundings."""
    own, other = (_apply(cv2.invertAffineTransform(m), grid) - grid for m in (motion, ground))
    apart = np.linalg.norm(own - other, axis=-1)
    nearer = np.linalg.norm(back - other, axis=-1) - np.linalg.norm(back - own, axis=-1)
    return np.clip(nearer / np.maximum(apart, 1), -1, 1) * np.minimum(apart / 2, 1)


def _alike(now: _Picture, memory: list[_Samples], region: np.ndarray, grid: np.ndarray, weight: float) -> np.ndarray:
    """Log odds H W that a pixel is one of the object, by the remembered pixel most like it in colours and place.

    region: where to look. weight: of a pixel of distance, in units of the features.
    """
    odds = np.zeros(region.shape, np.float32)
    if region.any():
        query = np.concatenate([now.features[region], grid[region] * weight], 1)
        known = np.concatenate([np.concatenate([s.features, s.place * weight], 1) for s in memory])
        label = np.concatenate([s.label for s in memory])
        likely = lambda samples, novel: np.logaddexp(-_nearest(query, samples) / (2 * _BANDWIDTH), -novel)
        odds[region] = likely(known[label], _NOVEL_OBJECT) - likely(known[~label], _NOVEL_GROUND)
    return cv2.GaussianBlur(odds, (0, 0), 0.5)


def _nearest(features: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Squared distance to the nearest sample, about; at most _NOWHERE."""
    if not len(samples):
        return np.full(len(features), _NOWHERE, np.float32)
    tree = KDTree(samples, leafsize=32, balanced_tree=False, compact_nodes=False)
    distance, _ = tree.query(features, eps=0.3, distance_upper_bound=math.sqrt(_NOWHERE))
    return np.minimum(np.square(distance), _NOWHERE).astype(np.float32)


def _drop_islands(p: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Without the parts that lie where the object was not expected, and without specks."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats((p > 0.5).astype(np.uint8), connectivity=8)
    area = stats[:, cv2.CC_STAT_AREA]
    support = np.bincount(labels.ravel(), (expected > 0.3).ravel(), count)
    keep = (support >= 0.1 * area) & (area >= 3)
    keep[0] = True
    return np.where(keep[np.asarray(labels, np.intp)], p, np.minimum(p, 0.3))


# --- SAM 2 ------------------------------------------------------------------------------------------------------------


def load_sam2(ref: str, device: str | torch.device = "cpu") -> Any:
    """The Sam2VideoModel of a folder or hub id. Weights are read from safetensors only, never from pickles.

    Nothing is downloaded: it has to be in the folder or in the hub's cache on this machine. Raises InputError.
    """
    from transformers import Sam2VideoModel

    try:
        model: Any = Sam2VideoModel.from_pretrained(ref, use_safetensors=True, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"The segmentation model {ref!r} could not be loaded: {str(error).splitlines()[0]} Give a folder with a "
            f"Sam2VideoModel, download one first ({models.command_for(models.MODELS[SAM2])}), or follow the "
            "object without a model."
        ) from error
    return model.eval().requires_grad_(False).to(device)


@torch.no_grad()
def track_with_sam2(
    frames: Float[Tensor, "T 3 H W"], painted: _Painted, model: Any
) -> Iterator[tuple[int, int] | Bool[Tensor, "T H W"]]:
    """As `propagate`, by a model of `load_sam2`: painted masks are its prompts, the walk goes both ways from the first.

    The model keeps the clip at its own size on the CPU, 12 MB a frame at 1024x1024.
    """
    # Not by its processor, which asks for torchvision: scaling and these means and deviations are all that it does.
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

    T, H, W = _checked(frames, painted)
    side = model.config.image_size
    size = (side, side) if isinstance(side, int) else (side[0], side[1])
    mean, deviation = (torch.tensor(c).view(3, 1, 1) for c in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    video = torch.cat([resize(frame[None].detach().cpu().float(), size) for frame in frames])
    session = Sam2VideoInferenceSession(
        video=video.sub_(mean).div_(deviation),
        video_height=H,
        video_width=W,
        inference_device=model.device,
        inference_state_device=model.device,
        video_storage_device="cpu",
        dtype=model.dtype,
    )
    thing = session.obj_id_to_idx(1)
    times = sorted(painted)
    for t in times:
        prompt = resize(painted[t][None, None].float(), size) >= 0.5
        session.add_mask_inputs(thing, t, prompt.to(model.device, torch.float32))
        session.obj_with_new_inputs = [1]
        model(session, frame_idx=t)  # at once: the model takes up one new prompt of an object, and forgets the others

    mask = torch.zeros(T, H, W, dtype=torch.bool)
    done = 0
    for reverse in (False, True):
        for found in model.propagate_in_video_iterator(session, start_frame_idx=times[0], reverse=reverse):
            logits = found.pred_masks.float().cpu().view(1, 1, *found.pred_masks.shape[-2:])
            mask[found.frame_idx] = resize(logits, (H, W), mode="bilinear")[0, 0] > 0
            if not reverse or found.frame_idx != times[0]:  # which comes twice
                done += 1
                yield done, T
    for t in times:
        mask[t] = painted[t]
    yield mask.to(frames.device)


# --- whichever there is -----------------------------------------------------------------------------------------------


_load_sam2 = lru_cache(maxsize=1)(load_sam2)


def _sam2_at_hand() -> Any:
    folder = models.at_hand(SAM2)  # asked each time: it may be fetched while the app runs
    # where a GPU is lent, CUDA is there only in the processes that it is lent to, and this runs outside
    return folder and _load_sam2(str(folder), "cuda" if torch.cuda.is_available() and not memory.lent() else "cpu")


def follower() -> str:
    """What `follow` uses on this machine, in words."""
    return "optical flow" if _sam2_at_hand() is None else "SAM 2"


def follow(frames: Float[Tensor, "T 3 H W"], painted: _Painted) -> Iterator[tuple[int, int] | Bool[Tensor, "T H W"]]:
    """The painted object through a clip, by SAM 2 if its weights are in the hub's cache, else as `propagate` does.

    Nothing is downloaded: `python -m pipeline models --download sam2-hiera-tiny` brings the weights. What surrounds
    itself in a frame that was not painted is filled.
    """
    model = _sam2_at_hand()
    for event in propagate(frames, painted) if model is None else track_with_sam2(frames, painted, model):
        if isinstance(event, Tensor):
            given = torch.tensor([t in painted for t in range(len(event))]).view(-1, 1, 1)
            event = torch.where(given, event, fill_holes(event))
        yield event


def complete(frame: Float[Tensor, "3 H W"], marks: Bool[Tensor, "H W"]) -> Bool[Tensor, "H W"]:
    """The whole object from dots or strokes on it (True), in a frame in [0, 1].

    GrabCut (Rother, Kolmogorov and Blake 2004): the marks are object for certain, what is far from them, by the marks'
    own size and at least a quarter of the picture, is surroundings for certain. Of what is found, the parts that hold a
    mark are kept. Raises `InputError` without marks.
    """
    if not marks.any():
        raise InputError("There is no mark on the object; put a dot or a stroke on it.")
    H, W = marks.shape
    scale = min(1.0, _SIDE / max(H, W))
    size = (max(8, round(H * scale)), max(8, round(W * scale)))
    picture = resize(frame[None].float().cpu(), size)[0].clamp(0, 1)
    bgr = np.ascontiguousarray((picture.permute(1, 2, 0).numpy()[..., ::-1] * 255).round().astype(np.uint8))
    sure = F.adaptive_max_pool2d(marks[None, None].float().cpu(), size)[0, 0].numpy() > 0
    rows, columns = np.nonzero(sure)
    extent = max(np.ptp(rows), np.ptp(columns), max(size) / 4)
    near = _distance_to(sure) < extent
    labels = np.where(sure, cv2.GC_FGD, np.where(near, cv2.GC_PR_BGD, cv2.GC_BGD)).astype(np.uint8)
    # begin with what looks like the marks: GrabCut only refines
    lab = cv2.cvtColor(cv2.GaussianBlur(bgr, (0, 0), 1.0), cv2.COLOR_BGR2Lab).astype(np.float32)
    tree = KDTree(lab[sure][:: max(1, sure.sum() // 500)])
    labels[near & ~sure & (tree.query(lab.reshape(-1, 3))[0].reshape(size) < 18)] = cv2.GC_PR_FGD
    cv2.setRNGSeed(0)
    cv2.grabCut(bgr, labels, None, np.zeros((1, 65)), np.zeros((1, 65)), 5, cv2.GC_INIT_WITH_MASK)  # type: ignore
    found = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    parts = cv2.connectedComponents(found.astype(np.uint8))[1]
    found = ndimage.binary_fill_holes(np.isin(parts, np.unique(parts[sure])) & found)
    whole = torch.from_numpy(found)[None, None].float()
    return (resize(whole, (H, W))[0, 0] > 0.5) | marks.cpu()
