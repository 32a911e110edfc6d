"""How the camera of a clip moves, from its corners and their depths."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.camera.geometry import CameraPath
from pipeline.stop import checked

_CORNERS = 800
_FEWEST, _AGREEING = 24, 0.4  # corners that must agree on a camera's motion, and their share
_WITHIN = 1.5  # pixels that an agreeing corner may be off
_FOLLOWED = 8  # frames through which the same corners are followed
_STANDS = 0.3  # pixels; corners that move less on the median are those of a camera that stands still


def ego_motion(
    frames: Float[Tensor, "T 3 H W"], z: Float[Tensor, "T H W"], K: Float[Tensor, "T 3 3"]
) -> CameraPath | None:
    """The cameras of a clip in one world, that of the first frame, as its corners and their depths tell.

    Corners are followed by optical flow, lifted by their depth, and the camera that sees them where they have got to
    is found by robust least squares (Cauchy's loss): what moves by itself is outvoted. None where too few corners
    agree. A camera whose picture stands still does so exactly. frames in [0, 1]; K in their pixels.
    """
    grey = [cv2.cvtColor(_picture(frame), cv2.COLOR_RGB2GRAY) for frame in frames]
    depth, lens = z.detach().cpu().double().numpy(), K.detach().cpu().double().numpy()
    poses, anchor, motion = [np.eye(4)], 0, None
    points = start = at = np.zeros((0, 2))
    for t in checked(range(1, len(grey))):
        if motion is not None:
            now, kept = _followed(grey[t - 1], grey[t], at)
            motion = _motion(points[kept], start[kept], now, lens[t], motion)
        if motion is None or t - anchor > _FOLLOWED:  # errors add up from anchor to anchor, not in between
            anchor = t - 1
            points, start = _corners(grey[anchor], depth[anchor], lens[anchor])
            now, kept = _followed(grey[anchor], grey[t], start)
            motion = _motion(points[kept], start[kept], now, lens[t], np.zeros(6))
            if motion is None:
                return None
        points, start, at = points[kept], start[kept], now
        poses.append(poses[anchor] @ np.linalg.inv(_matrix(motion)))
    return CameraPath(torch.from_numpy(np.stack(poses)).to(z), K)


def _corners(grey: np.ndarray, z: np.ndarray, K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners of a frame whose depth is known: places in space N 3, and pixels N 2 with centres at whole numbers."""
    found = cv2.goodFeaturesToTrack(grey, _CORNERS, 0.003, 4)
    at = np.zeros((0, 2)) if found is None else found[:, 0].astype(np.float64)
    column, row = at.round().astype(int).T
    depth = z[row.clip(0, z.shape[0] - 1), column.clip(0, z.shape[1] - 1)]
    usable = np.isfinite(depth) & (depth > 0)
    at, depth = at[usable], depth[usable]
    rays = np.concatenate([at + 0.5, np.ones((len(at), 1))], 1) @ np.linalg.inv(K).T
    return rays * depth[:, None], at


def _followed(a: np.ndarray, b: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where pixels N 2 of picture a are in b: those that optical flow leads there and back, and which they are."""
    if not len(at):
        return at, np.zeros(0, bool)
    before = at[:, None].astype(np.float32)
    after, ok, _ = cv2.calcOpticalFlowPyrLK(a, b, before, None)  # type: ignore[call-overload]
    again, ok_back, _ = cv2.calcOpticalFlowPyrLK(b, a, after, None)  # type: ignore[call-overload]
    kept = (ok[:, 0] > 0) & (ok_back[:, 0] > 0) & (np.linalg.norm(again - before, axis=-1)[:, 0] < 0.5)
    return after[kept, 0].astype(np.float64), kept


def _motion(
    points: np.ndarray, start: np.ndarray, at: np.ndarray, K: np.ndarray, guess: np.ndarray
) -> np.ndarray | None:
    """The rotation vector and shift that take `points` N 3 to where the camera with K sees them at pixels `at`."""
    from scipy.optimize import least_squares
    from scipy.spatial.transform import Rotation

    if len(points) < _FEWEST:
        return None
    if np.median(np.linalg.norm(at - start, axis=1)) < _STANDS:
        return np.zeros(6)
    scale = float(np.median(points[:, 2]))  # so that shifts and angles are of one size

    def off(motion: np.ndarray) -> np.ndarray:
        there = (Rotation.from_rotvec(motion[:3]).apply(points / scale) + motion[3:]) @ K.T
        return there[:, :2] / np.maximum(there[:, 2:], 1e-3) - (at + 0.5)

    # from the motion until the frame before the way is short; the loss outvotes what moves by itself
    guess = guess / np.array([1, 1, 1, scale, scale, scale])
    found = least_squares(lambda motion: off(motion).ravel(), guess, loss="cauchy", f_scale=0.5).x
    if (np.linalg.norm(off(found), axis=1) < _WITHIN).sum() < max(_FEWEST, _AGREEING * len(points)):
        return None
    return found * np.array([1, 1, 1, scale, scale, scale])


def _matrix(motion: np.ndarray) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = Rotation.from_rotvec(motion[:3]).as_matrix(), motion[3:]
    return pose


def _picture(frame: Tensor) -> np.ndarray:
    return np.ascontiguousarray((255 * frame).round().byte().permute(1, 2, 0).cpu().numpy())
