"""Masks made wider, closed, and completed from marks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline import InputError
from pipeline.media.video import resize

SIDE = 432  # pixels of the longer side at which the object is followed
Painted = Mapping[int, Bool[Tensor, "H W"]]


def grow(mask: Bool[Tensor, "*T H W"], pixels: float) -> Bool[Tensor, "*T H W"]:
    """The object (True) grown by a disc of radius `pixels`; shrunk if negative. The border counts as neither."""
    if pixels == 0:
        return mask
    if pixels < 0:
        return ~grow(~mask, -pixels)
    return _each(lambda m: _distance_to(m) <= pixels, mask).bool()


def fill_holes(mask: Bool[Tensor, "*T H W"]) -> Bool[Tensor, "*T H W"]:
    """The object (True) with what it encloses entirely, frame by frame."""
    from scipy import ndimage

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


def checked(frames: Tensor, painted: Painted) -> tuple[int, int, int]:
    T, _, H, W = frames.shape
    if not painted or not all(0 <= t < T for t in painted):
        raise ValueError(f"masks are painted in the frames {sorted(painted)} of a clip of {T}")
    if any(tuple(mask.shape) != (H, W) or mask.dtype != torch.bool for mask in painted.values()):
        raise ValueError(f"painted masks have to be booleans of shape {(H, W)}, as the frames")
    return T, H, W


def complete(frame: Float[Tensor, "3 H W"], marks: Bool[Tensor, "H W"]) -> Bool[Tensor, "H W"]:
    """The whole object from dots or strokes on it (True), in a frame in [0, 1].

    GrabCut (Rother, Kolmogorov and Blake 2004): the marks are object for certain, what is far from them, by the marks'
    own size and at least a quarter of the picture, is surroundings for certain. Of what is found, the parts that hold a
    mark are kept. Raises `InputError` without marks.
    """
    from scipy import ndimage
    from scipy.spatial import KDTree

    if not marks.any():
        raise InputError("There is no mark on the object; put a dot or a stroke on it.")
    H, W = marks.shape
    scale = min(1.0, SIDE / max(H, W))
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
