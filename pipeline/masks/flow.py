"""An object followed by dense optical flow, with a memory of its pixels and of what our click network sees of it."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.masks.appearance import features_of, learned, looks_like
from pipeline.masks.shape import SIDE, Painted, checked
from pipeline.media.video import resize

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


def propagate(
    frames: Float[Tensor, "T 3 H W"], painted: Painted
) -> Generator[tuple[int, int], None, Bool[Tensor, "T H W"]]:
    """Follows the painted object (True) through all frames of a clip in [0, 1]; nothing is downloaded.

    painted: masks H W by frame index, at least one. Yields (done, total) as work goes on, and returns the mask T H W.
    Painted frames come back as they were given. Frames between two painted ones take what came from both sides, each
    the more the nearer it is. An empty painted mask says that the object is not to be seen there.

    Each frame inherits its probabilities from the one before by dense optical flow (DIS), as far as the flow agrees
    with its inverse. Where it does not, and against drift, every pixel is compared with pixels remembered of the
    painted frame and the last few: in colour and in place, which moves on with the object or with its surroundings.
    What the click network sees there counts, too, as far as it tells the painted object from what was around it (see
    `appearance`). The object's motion is that of its flow, or found by looking for its remembered pixels, so that it is
    found again behind what hid it. Raises ValueError if shapes do not match.
    """
    T, H, W = checked(frames, painted)
    scale = min(1.0, SIDE / max(H, W))
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
        sequence = ((small(t), features_of(frames[t])) for t in (start, *others))
        for t, p in zip(others, _follow(sequence, given[start]), strict=True):
            share = 1 - abs(t - start) / abs(ends[1] - start) if len(ends) == 2 else 1.0
            odds[t] += share * _logit(p, 6)
            done += 1
            yield done, total

    mask = resize(torch.from_numpy(odds)[:, None], (H, W), mode="bilinear")[:, 0] > 0
    for t, given_mask in painted.items():
        mask[t] = given_mask
    return mask.to(frames.device)


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


def _follow(frames: Iterator[tuple[np.ndarray, Tensor]], first: np.ndarray) -> Iterator[np.ndarray]:
    """Probabilities H W of the object in each frame after the first; `first` is its share of each pixel there.

    frames: 3 H W in [0, 1], each with its features h w c.
    """
    rng = np.random.default_rng(0)
    shape = first.shape
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    grid = np.stack([x, y], -1)
    dis: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    picture, features = next(frames)
    before, looks = _picture(picture), learned(features, first)
    p = first.astype(np.float32)
    size = math.sqrt(max(float(p.sum()), 1.0))  # of the object, in pixels
    reach = int(max(9, 1.2 * size)) | 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
    anchor = _remember(before, p, reach, rng)
    own = anchor.features[anchor.label]
    recent: list[_Samples] = []
    whole = p  # the object with what hides it taken away
    motion = ground = np.array([[1, 0, 0], [0, 1, 0]], np.float32)  # of the object and of what is around it, 2 3
    for picture, features in frames:
        now = _picture(picture)
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
        odds += looks_like(features, looks, shape)
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
    from scipy.spatial import KDTree

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
