"""What stood behind a hidden object, as far as other frames saw it."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.stop import check, checked

_AGREES = 0.06  # mean difference of two aligned frames, around a place, up to which they show the same background
_FEATURES = 1500  # corners that frames are aligned by


def see_behind(
    frames: Float[Tensor, "T 3 H W"], hidden: Bool[Tensor, "T H W"]
) -> tuple[Float[Tensor, "T 3 H W"], Bool[Tensor, "T H W"]]:
    """The clip with what is hidden taken from other frames that saw it, nearest in time first, and what is left hidden.

    frames in [0, 1]; hidden: True where an object stands that is to go. Frames are aligned by a homography (corners
    outside of the object, RANSAC), exact for a camera that stands, pans or zooms and for flat backgrounds; where two
    aligned frames disagree around the hole, as they do under parallax, nothing is taken.
    """
    pictures = [np.ascontiguousarray(f.permute(1, 2, 0).cpu().numpy(), np.float32) for f in frames]
    holes = [h.cpu().numpy() for h in hidden]
    to_next = [
        _homography(pictures[i], pictures[i + 1], holes[i], holes[i + 1]) for i in checked(range(len(pictures) - 1))
    ]  # None: the frames cannot be aligned, and nothing is carried across
    filled, left = [p.copy() for p in pictures], [h.copy() for h in holes]
    for t in range(len(pictures)):
        order = sorted(range(len(pictures)), key=lambda s, t=t: (abs(s - t), s))
        chains = {t: np.eye(3)}
        for s in order[1:]:
            check()
            if not left[t].any():
                break
            link = to_next[s] if s < t else to_next[s - 1]
            beside = chains.get(s + 1 if s < t else s - 1)
            if link is None or beside is None:
                continue
            chains[s] = beside @ (link if s < t else np.linalg.inv(link))
            found, usable = _aligned(pictures[s], holes[s], chains[s])
            agrees = agreement(found, pictures[t], usable & ~holes[t]) < _AGREES
            take = left[t] & usable & agrees
            filled[t][take] = found[take]
            left[t] &= ~take
    video = torch.stack([torch.from_numpy(p).permute(2, 0, 1) for p in filled]).to(frames)
    return video, torch.stack([torch.from_numpy(h) for h in left]).to(hidden.device)


def _homography(a: np.ndarray, b: np.ndarray, hidden_a: np.ndarray, hidden_b: np.ndarray) -> np.ndarray | None:
    """From pixels of a to pixels of b (3 3), of what is not hidden; the identity where the camera stood still."""
    known = ~(hidden_a | hidden_b)
    if known.sum() < 64:
        return None
    if np.abs(a - b).mean(-1)[known].mean() < 0.004:  # less than the noise of a compressed video
        return np.eye(3)
    grey = [cv2.cvtColor((255 * x).round().astype(np.uint8), cv2.COLOR_RGB2GRAY) for x in (a, b)]
    corners = cv2.goodFeaturesToTrack(grey[0], _FEATURES, 0.01, 5, mask=(255 * ~hidden_a).astype(np.uint8))
    if corners is None or len(corners) < 12:
        return None
    moved, ok, _ = cv2.calcOpticalFlowPyrLK(grey[0], grey[1], corners, None)  # type: ignore[call-overload]
    ok = ok[:, 0] > 0
    if ok.sum() < 12:
        return None
    matrix, inliers = cv2.findHomography(corners[ok], moved[ok], cv2.RANSAC, 1.0)
    if matrix is None or inliers.mean() < 0.4:
        return None
    return matrix


def _aligned(picture: np.ndarray, hidden: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A picture brought into another frame, and where it may be used there."""
    if np.array_equal(matrix, np.eye(3)):
        return picture, ~hidden
    size = picture.shape[1], picture.shape[0]
    found = cv2.warpPerspective(picture, matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    usable = cv2.warpPerspective((~hidden).astype(np.float32), matrix, size, flags=cv2.INTER_LINEAR)
    return found.clip(0, 1), usable > 0.999


def agreement(a: np.ndarray, b: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Mean absolute difference of two pictures near each pixel, over what is known; infinite where nothing is near."""
    sigma = max(4.0, min(known.shape) / 24)
    weight = cv2.GaussianBlur(known.astype(np.float32), (0, 0), sigma)
    # finer than the misalignment that can be seen, coarser than noise
    difference = np.abs(cv2.GaussianBlur(np.where(known[..., None], a - b, 0), (0, 0), 1.0)).mean(-1)
    near = cv2.GaussianBlur(np.where(known, difference, 0).astype(np.float32), (0, 0), sigma)
    return np.where(weight > 1e-4, near / np.maximum(weight, 1e-4), np.inf)
