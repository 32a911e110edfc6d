"""What can be measured of a video without any weights: closeness to another one, steadiness, the camera it shows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from pipeline import InputError
from pipeline.camera.geometry import CameraPath, invert_rigid, project, transform, unproject
from pipeline.depth.estimate import Depth, subject_distance
from pipeline.media.quality import FEWEST_PIXELS, checked, pixels_under

FEWEST_INLIERS = 20  # of which a camera is estimated


def texture_distance(
    a: Float[Tensor, "T 3 H W"], b: Float[Tensor, "T 3 H W"], mask: Bool[Tensor, "T 1 H W"], levels: int = 3
) -> list[float]:
    """How unlike the texture of two videos in [0, 1] is about the pixels where mask is True, wherever exactly it lies.

    Sliced Wasserstein distance of the patches of 7x7 pixels there (Karras et al. 2018, arXiv 1710.10196, section 5), a
    value for each level of a Laplacian pyramid, the finest first, times 1000 as there. Unlike there, colours are not
    normalised, and patches of the two are of the same places, at most 8192. Raises `InputError` as `psnr` does, or if
    nothing of the mask is farther than 3 pixels from the border at a level.
    """
    mask = checked(a, b, mask)
    generator, found = torch.Generator().manual_seed(0), []
    a, b, share = a.float(), b.float(), mask.float()
    for level in range(levels):
        coarse = [F.avg_pool2d(video, 2) for video in (a, b)]
        bands = [a, b]
        if level < levels - 1:
            size = a.shape[-2:]
            bands = [v - F.interpolate(c, size, mode="bilinear") for v, c in zip((a, b), coarse, strict=True)]
        t, y, x = (share[:, 0, 3:-3, 3:-3] > 0.5).nonzero(as_tuple=True)
        if not len(t):
            raise InputError("The mask is too small, or too near to the border, for its texture to be compared.")
        some = torch.randperm(len(t), generator=generator)[:8192]
        patches = [band.unfold(2, 7, 1).unfold(3, 7, 1)[t[some], :, y[some], x[some]].flatten(1) for band in bands]
        directions = F.normalize(torch.randn(patches[0].shape[1], 512, generator=generator), dim=0)
        one, other = ((patch @ directions).sort(0).values for patch in patches)
        found.append(1000 * (one - other).abs().mean().item())
        (a, b), share = coarse, F.avg_pool2d(share, 2)
    return found


# --- steadiness -------------------------------------------------------------------------------------------------------


def flow_errors(
    video: Float[Tensor, "T 3 H W"], z: Float[Tensor, "T H W"], path: CameraPath, counted: Bool[Tensor, "T H W"]
) -> tuple[Float[Tensor, " T-1"], Float[Tensor, " T-1"]]:
    """Absolute change of colour from frame to frame along the true motion of what stands still in the scene, where
    `counted`: the sum over pixels, and their number, of each pair of frames.

    The motion follows from the true depth `z` and cameras of the view that the video shows; what is hidden in the next
    frame is left out. Objects that move by themselves should not be among what is counted.
    """
    points = transform(path.world_from_cam, unproject(z, path.K))[:-1]
    uv, ahead = project(transform(invert_rigid(path.world_from_cam[1:]), points), path.K[1:])
    height, width = z.shape[1:]
    grid = torch.stack([uv[..., 0] * (2 / width) - 1, uv[..., 1] * (2 / height) - 1], -1)
    next_z = F.grid_sample(z[1:, None], grid, mode="nearest", align_corners=False)[:, 0]
    next_colour = F.grid_sample(video[1:], grid, mode="bilinear", padding_mode="border", align_corners=False)
    inside = (grid.abs() <= 1).all(-1) & ((next_z - ahead).abs() < 0.02 * ahead) & counted[:-1]
    change = (next_colour - video[:-1]).abs().mean(1)
    return torch.where(inside, change, 0.0).sum((1, 2)), inside.float().sum((1, 2))


def flicker(
    video: Float[Tensor, "T 3 H W"],
    truth: Float[Tensor, "T 3 H W"],
    z: Float[Tensor, "T H W"],
    path: CameraPath,
    counted: Bool[Tensor, "T H W"],
) -> float | None:
    """A video's change from frame to frame, see `flow_errors`, as a multiple of the true video's: 1 is as steady.

    None if fewer than `FEWEST_PIXELS` are counted.
    """
    (ours, pixels), (true, _) = (flow_errors(frames, z, path, counted) for frames in (video, truth))
    count = pixels.sum().item()
    return None if count < FEWEST_PIXELS else (ours.sum() / count).item() / max((true.sum() / count).item(), 1e-4)


def motion_smoothness(video: Float[Tensor, "T 3 H W"]) -> float | None:
    """How well every other frame of a video in [0, 1] follows from its neighbours: 1 less the mean absolute difference.

    As VBench's motion smoothness (arXiv 2311.17982), but interpolated along the optical flow of OpenCV (DIS, arXiv
    1603.03590, midway as arXiv 1712.00080) where VBench has the network AMT: the figures of the two do not compare.
    None of fewer than three frames.
    """
    frames = pixels_under(video)
    scores = []
    for before, middle, after in zip(frames[:-2:2], frames[1:-1:2], frames[2::2], strict=True):
        scores.append(1 - np.abs(_midway(before, after) - middle.astype(np.float32)).mean() / 255)
    return float(np.mean(scores)) if scores else None


def _midway(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The frame in the middle between two, H W 3 uint8, as float32."""
    dis: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    remap: Any = cv2.remap
    a, b = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (before, after))
    back = (dis.calc(b, a, None) - dis.calc(a, b, None)) / 4  # from the middle to the frame before; forth is minus that
    height, width = a.shape
    at = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    one, other = (
        remap(frame.astype(np.float32), xy, None, cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE)
        for frame, xy in ((before, at + back), (after, at - back))
    )
    return (one + other) / 2


# --- the camera -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CameraError:
    """rotation: degrees, translation: share of the distance to the subject; medians over the `found` of all `frames`,
    since a single wrong pose may be anywhere; NaN if there are none."""

    rotation: float
    translation: float
    found: int
    frames: int


def camera_error(
    result: Float[Tensor, "T 3 H W"],
    source_frames: Float[Tensor, "T 3 H W"],
    z: Float[Tensor, "T H W"],
    source: CameraPath,
    target: CameraPath,
) -> CameraError:
    """How far the camera that a result shows is from the one that was asked for.

    Of each pair of frames SIFT features are matched (nearest neighbour both ways, ratio 0.8). The source's are lifted
    to space with its depth `z` (along the optical axis, in the unit of the paths), and the camera that sees them where
    the result has them is found by PnP with RANSAC, given `target.K`, and refined on the inliers. Things that move are
    outliers as long as the still ones prevail. Frames with fewer than `FEWEST_INLIERS` are left out.
    All videos in [0, 1], K in their pixels. The error of the depth is part of the figure.
    """
    sift: Any = cv2.SIFT.create(contrastThreshold=0.01)
    numbers = (a.detach().cpu().double().numpy() for a in (z, source.K, source.world_from_cam, target.K))
    depth, K_source, world_from_source, K = numbers
    world_from_cam = target.world_from_cam.detach().cpu().double().numpy()
    distance = subject_distance(Depth(z, metric=False))
    errors = []
    for t, (seen, shown) in enumerate(zip(pixels_under(source_frames), pixels_under(result), strict=True)):
        uv, uv_shown = _matches(sift, seen, shown)
        column, row = uv.astype(int).T
        rays = np.concatenate([uv, np.ones((len(uv), 1))], 1) @ np.linalg.inv(K_source[t]).T
        points = rays * depth[t, row, column, None] @ world_from_source[t, :3, :3].T + world_from_source[t, :3, 3]
        found = _pose(points, uv_shown, K[t], max(1.5, 0.003 * math.hypot(*z.shape[1:])))
        if found is not None:
            turn, centre = found
            turned = np.linalg.norm(cv2.Rodrigues(turn @ world_from_cam[t, :3, :3].T)[0])
            moved = np.linalg.norm(centre - world_from_cam[t, :3, 3]) / distance
            errors.append((math.degrees(turned), float(moved)))
    rotation, translation = np.median(errors, 0).tolist() if errors else (math.nan, math.nan)
    return CameraError(rotation, translation, len(errors), len(z))


def _matches(sift: Any, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places N 2 of the same things in two frames H W 3 uint8; pixel centres at +0.5."""
    (points_a, a_is), (points_b, b_is) = (
        sift.detectAndCompute(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), None) for f in (a, b)
    )
    none = np.zeros((0, 2))
    if min(len(points_a), len(points_b)) < 2:
        return none, none
    matcher = cv2.BFMatcher(cv2.NORM_L2)
    back = {match.queryIdx: match.trainIdx for match in matcher.match(b_is, a_is)}
    pairs = [
        (points_a[best.queryIdx].pt, points_b[best.trainIdx].pt)
        for best, second in matcher.knnMatch(a_is, b_is, k=2)
        if best.distance < 0.8 * second.distance and back[best.trainIdx] == best.queryIdx
    ]
    return tuple(np.array(pairs).transpose(1, 0, 2) + 0.5) if pairs else (none, none)


def _pose(points: np.ndarray, uv: np.ndarray, K: np.ndarray, pixels: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Rotation world_from_cam and centre of the camera with K that sees `points` N 3 at `uv` N 2, within `pixels`."""
    usable = np.isfinite(points).all(1)
    points, uv = points[usable], uv[usable]
    if len(points) < FEWEST_INLIERS:
        return None
    solve: Any = cv2.solvePnPRansac
    solved, turn, shift, inliers = solve(
        points, uv, K, None, iterationsCount=2000, reprojectionError=pixels, confidence=0.9999, flags=cv2.SOLVEPNP_AP3P
    )
    if not solved or inliers is None or len(inliers) < FEWEST_INLIERS:
        return None
    chosen = inliers[:, 0]
    turn, shift = cv2.solvePnPRefineLM(points[chosen], uv[chosen], K, None, turn, shift)
    cam_from_world = cv2.Rodrigues(turn)[0]
    return cam_from_world.T, -cam_from_world.T @ shift[:, 0]
