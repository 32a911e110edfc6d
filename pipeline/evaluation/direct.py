"""The camera that a result shows, found from the brightness of all its pixels, and how it follows a path.

Features, as `metrics.camera_error` matches them, are missing in what a soft method paints at this scale. Direct image
alignment needs none: the source's pixels are lifted to space by its depth, and the camera is moved until they fall on
their own colours in the result (Lucas-Kanade in 6 degrees of freedom, after DVO, Steinbruecker et al. 2011).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.camera.geometry import CameraPath
from pipeline.media.quality import checked

LEVELS = (8, 4, 2)  # pixels of a cell, from coarse to fine
ITERATIONS = 12  # on each level at most
LEAST_SEEN = 0.3  # share of the cells that must fall into the picture
_DAMPING = 1e-3


@dataclass(frozen=True)
class PathError:
    """How a found path lies to the one that was asked for. Lengths are in distances of the subject.

    absolute: mean distance of the camera's places, after the best scale about the source's first camera. step: mean
    difference of the motions from a frame to the next, after that scale, and turn: of their rotations, in degrees; both
    zero for a single frame. asked, own: mean distance to the asked path and to the source's own, lengths and radians
    added up, without a scale.
    """

    absolute: float
    step: float
    turn: float
    asked: float
    own: float

    @property
    def follows(self) -> bool:
        """Whether the found path is nearer to the asked one than to the source's own."""
        return self.asked < self.own


def found_path(
    result: Float[Tensor, "T 3 H W"],
    source_frames: Float[Tensor, "T 3 H W"],
    z: Float[Tensor, "T H W"],
    source: CameraPath,
    target: CameraPath,
    unit: float,
) -> Float[Tensor, "T 4 4"]:
    """world_from_cam of each frame of a result, by alignment with the source's frame of the same moment.

    Videos in [0, 1]; z: true distance along the optical axis of the source; unit: the subject's distance. The search
    starts both at the asked camera and at the source's own, and keeps the end that fits better where both see
    something, so that neither is favoured. A result that shows nothing of the source gives poses that mean nothing.
    """
    checked(result, source_frames, None)
    pictures, sources = (video.detach().cpu().movedim(1, -1).double().numpy() for video in (result, source_frames))
    depth, K_source, own, K, asked = (
        one.detach().cpu().double().numpy()
        for one in (z, source.K, source.world_from_cam, target.K, target.world_from_cam)
    )
    poses = []
    for t, picture in enumerate(pictures):
        ends = []
        for start in (asked[t], own[t]):
            pose = np.linalg.inv(start)
            for cell in LEVELS:
                points, colours = _lifted(sources[t], depth[t], K_source[t], own[t], cell)
                pose = _aligned(points, colours, _smaller(picture, cell), _lens(K[t], cell), pose, unit)
            ends.append(pose)
        points, colours = _lifted(sources[t], depth[t], K_source[t], own[t], LEVELS[-1])
        errors = [_off(points, colours, _smaller(picture, LEVELS[-1]), _lens(K[t], LEVELS[-1]), end) for end in ends]
        both = np.isfinite(errors[0]) & np.isfinite(errors[1])
        worse = both.any() and np.median(errors[1][both]) < np.median(errors[0][both])
        poses.append(np.linalg.inv(ends[1 if worse else 0]))
    return torch.from_numpy(np.stack(poses)).to(source.world_from_cam)


def path_error(found: Float[Tensor, "T 4 4"], source: CameraPath, target: CameraPath, unit: float) -> PathError:
    """A path of world_from_cam against the asked one and the source's own. unit: the subject's distance."""
    poses, asked, own = (one.detach().cpu().double() for one in (found, target.world_from_cam, source.world_from_cam))
    centre = own[0, :3, 3]
    places, wanted = (poses[:, :3, 3] - centre) / unit, (asked[:, :3, 3] - centre) / unit
    power = places.square().sum().item()
    scale = (places * wanted).sum().item() / power if power > 1e-12 else 1.0
    absolute = (scale * places - wanted).norm(dim=1).mean().item()
    step = turn = 0.0
    if len(poses) > 1:
        moved, meant = (torch.linalg.inv(one[:-1]) @ one[1:] for one in (poses, asked))
        step = (scale * moved[:, :3, 3] - meant[:, :3, 3]).norm(dim=1).mean().item() / unit
        turn = math.degrees(_angle(moved, meant).mean().item())
    return PathError(absolute, step, turn, _apart(poses, asked, unit), _apart(poses, own, unit))


def _apart(a: Tensor, b: Tensor, unit: float) -> float:
    return ((a[:, :3, 3] - b[:, :3, 3]).norm(dim=1) / unit + _angle(a, b)).mean().item()


def _angle(a: Tensor, b: Tensor) -> Tensor:
    """Radians between the rotations of poses T 4 4."""
    between = a[:, :3, :3].mT @ b[:, :3, :3]
    skew = torch.stack([between[:, 2, 1] - between[:, 1, 2], between[:, 0, 2] - between[:, 2, 0],
                        between[:, 1, 0] - between[:, 0, 1]], 1)  # fmt: skip
    return torch.atan2(skew.norm(dim=1), between.diagonal(dim1=1, dim2=2).sum(1) - 1)


def _smaller(picture: np.ndarray, cell: int) -> np.ndarray:
    """H W 3 as means of cells."""
    height, width = picture.shape[:2]
    return cv2.resize(picture, (width // cell, height // cell), interpolation=cv2.INTER_AREA)


def _lens(K: np.ndarray, cell: int) -> np.ndarray:
    return np.diag([1 / cell, 1 / cell, 1.0]) @ K


def _lifted(
    picture: np.ndarray, z: np.ndarray, K: np.ndarray, world_from_cam: np.ndarray, cell: int
) -> tuple[np.ndarray, np.ndarray]:
    """Places N 3 in the world and colours N 3 of the cells of a picture whose depth is known."""
    small = _smaller(picture, cell)
    rows, columns = (np.arange(n) for n in small.shape[:2])
    x, y = np.meshgrid((columns + 0.5) * cell, (rows + 0.5) * cell)
    depth = z[y.astype(int), x.astype(int)].ravel()
    rays = np.stack([x.ravel(), y.ravel(), np.ones(x.size)], 1) @ np.linalg.inv(K).T
    usable = np.isfinite(depth) & (depth > 0)
    points = (rays * depth[:, None]) @ world_from_cam[:3, :3].T + world_from_cam[:3, 3]
    return points[usable], small.reshape(-1, 3)[usable]


def _seen(
    points: np.ndarray, picture: np.ndarray, K: np.ndarray, cam_from_world: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points in the camera, what `picture` h w c has where they fall, and whether they fall into it."""
    there = points @ cam_from_world[:3, :3].T + cam_from_world[:3, 3]
    deep = np.maximum(there[:, 2:], 1e-6)
    at = (there / deep) @ K.T
    height, width = picture.shape[:2]
    inside = (there[:, 2] > 1e-3) & (at[:, 0] > 0.5) & (at[:, 1] > 0.5)
    inside &= (at[:, 0] < width - 0.5) & (at[:, 1] < height - 0.5)
    places = np.where(inside[:, None], at[:, :2] - 0.5, 0)
    left, top = places[:, 0].astype(int).clip(0, width - 2), places[:, 1].astype(int).clip(0, height - 2)
    u, v = (places[:, 0] - left)[:, None], (places[:, 1] - top)[:, None]
    upper = picture[top, left] * (1 - u) + picture[top, left + 1] * u
    lower = picture[top + 1, left] * (1 - u) + picture[top + 1, left + 1] * u
    return there, upper * (1 - v) + lower * v, inside


def _off(points: np.ndarray, colours: np.ndarray, picture: np.ndarray, K: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Mean absolute difference of colour of each point; NaN where it falls outside."""
    _, found, inside = _seen(points, picture, K, pose)
    return np.where(inside, np.abs(found - colours).mean(1), np.nan)


def _aligned(
    points: np.ndarray, colours: np.ndarray, picture: np.ndarray, K: np.ndarray, pose: np.ndarray, unit: float
) -> np.ndarray:
    """The cam_from_world, from `pose` on, under which the points fall on their colours in a picture h w 3."""
    down, right = np.gradient(picture, axis=(0, 1))
    layers = np.concatenate([picture, right, down], 2)
    for _ in range(ITERATIONS):
        there, found, inside = _seen(points, layers, K, pose)
        if inside.mean() < LEAST_SEEN:
            return pose
        x, y, deep = there[inside].T
        off = found[inside, :3] - colours[inside]
        size = np.abs(off)
        weight = 1 / np.maximum(1, size / max(1e-3, 2 * float(np.median(size))))  # Huber's
        slope = np.stack([found[inside, 3:6] * K[0, 0], found[inside, 6:9] * K[1, 1]], -1)  # N 3 2
        zero, one = np.zeros_like(x), 1 / deep
        rate = np.stack(  # of the place by a small motion: shift in units, then turn
            [np.stack([one * unit, zero, -x * one**2 * unit, -x * y * one**2, 1 + (x * one) ** 2, -y * one], 1),
             np.stack([zero, one * unit, -y * one**2 * unit, -1 - (y * one) ** 2, x * y * one**2, x * one], 1)], 1
        )  # fmt: skip
        J = (slope @ rate).reshape(-1, 6)
        w = weight.reshape(-1, 1)
        normal = J.T @ (w * J)
        normal[np.diag_indices(6)] *= 1 + _DAMPING
        change = -np.linalg.lstsq(normal, J.T @ (w[:, 0] * off.ravel()), rcond=1e-9)[0]
        length = float(np.linalg.norm(change))
        change *= min(1.0, 0.1 / max(length, 1e-12))  # a tenth of the subject's distance, or of a radian
        moved: Any = np.eye(4)
        moved[:3, :3], moved[:3, 3] = cv2.Rodrigues(change[3:])[0], change[:3] * unit
        pose = moved @ pose
        if length < 1e-4:
            break
    return pose
