"""Masks made wider and closed, and clicks on a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

SIDE = 432  # pixels of the longer side at which the object is followed
Painted = Mapping[int, Bool[Tensor, "H W"]]


@dataclass(frozen=True)
class Click:
    """A click on a picture. row, column: of the pixel, from 0. positive: it is on the object; else beside it."""

    row: int
    column: int
    positive: bool = True


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
