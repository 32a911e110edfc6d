"""Camera paths: intrinsics, the six preset moves, and the projections between pixels and space.

OpenCV camera axes: x right, y down, z forward. The pixel in row i, column j has its centre at (j + 0.5, i + 0.5), so
resizing an image only scales K. Names cancel: `points_target = transform(target_from_source, points_source)`.
Angles are radians, except the amounts of the presets, which are what a person types: degrees and percent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import einsum, repeat
from jaxtyping import Float
from torch import Tensor

from pipeline import InputError

DEFAULT_FOV = 55.0  # degrees, along the longer side, of a clip whose lens is not known


@dataclass(frozen=True, eq=False)
class CameraPath:
    """One camera per frame.

    `world_from_cam`: T 4 4, rigid, in the unit of the depth. `K`: T 3 3, in pixels of an image size the caller knows.
    """

    world_from_cam: Float[Tensor, "T 4 4"]
    K: Float[Tensor, "T 3 3"]

    def __post_init__(self):
        frames = len(self.world_from_cam)
        if self.world_from_cam.shape != (frames, 4, 4) or self.K.shape != (frames, 3, 3):
            raise ValueError(f"poses {tuple(self.world_from_cam.shape)} and K {tuple(self.K.shape)} do not match")


@dataclass(frozen=True)
class Preset:
    """A named camera move: `label` for people, the `unit` of its amount, the allowed `range`, and the `default`."""

    label: str
    unit: str
    range: tuple[float, float]
    default: float


# The six moves of ReAngle-A-Video (arXiv 2503.09151), which InverseCrafter (arXiv 2512.05672) evaluates on.
PRESETS: dict[str, Preset] = {
    "orbit-left": Preset("Orbit left", "degrees", (0.0, 60.0), 20.0),
    "orbit-right": Preset("Orbit right", "degrees", (0.0, 60.0), 20.0),
    "orbit-up": Preset("Orbit up", "degrees", (0.0, 60.0), 15.0),
    "orbit-down": Preset("Orbit down", "degrees", (0.0, 60.0), 15.0),
    "dolly-in": Preset("Dolly in", "percent", (0.0, 70.0), 30.0),
    "dolly-out": Preset("Dolly out", "percent", (0.0, 100.0), 30.0),
}


# Axis (x, y, z) of the camera's turn about the subject. A positive turn about +y (down) carries a camera that stands
# in front of the subject to its left, a positive turn about +x carries it down.
ORBITS = {
    "orbit-left": (0.0, 1.0, 0.0),
    "orbit-right": (0.0, -1.0, 0.0),
    "orbit-up": (-1.0, 0.0, 0.0),
    "orbit-down": (1.0, 0.0, 0.0),
}


def default_intrinsics(
    height: int, width: int, frames: int, fov_degrees: float = DEFAULT_FOV
) -> Float[Tensor, "T 3 3"]:
    """Intrinsics of a pinhole camera with square pixels whose axis meets the middle of the image.

    `fov_degrees` is the field of view along the longer side. Raises InputError unless it lies in [5, 150].
    """
    if not (math.isfinite(fov_degrees) and 5 <= fov_degrees <= 150):
        raise InputError(f"field of view {fov_degrees} degrees: give a value from 5 to 150")
    focal = 0.5 * max(height, width) / math.tan(math.radians(fov_degrees) / 2)
    K = torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])
    return repeat(K, "i j -> t i j", t=frames).clone()


def scale_intrinsics(
    K: Float[Tensor, "T 3 3"], from_size: tuple[int, int], to_size: tuple[int, int]
) -> Float[Tensor, "T 3 3"]:
    """K for the same image resized from `from_size` to `to_size`, both (h, w)."""
    (h0, w0), (h1, w1) = from_size, to_size
    return K * K.new_tensor([[w1 / w0], [h1 / h0], [1.0]])


def static_path(K: Float[Tensor, "T 3 3"]) -> CameraPath:
    """A camera that stands still at the identity: the world is the first camera."""
    return CameraPath(repeat(torch.eye(4, dtype=K.dtype, device=K.device), "i j -> t i j", t=len(K)).clone(), K)


def stands_still(source: CameraPath, target: CameraPath) -> bool:
    """Whether the target cameras are the source cameras, pose and lens, in every frame."""
    return torch.equal(target.world_from_cam, source.world_from_cam) and torch.equal(target.K, source.K)


def follow(source: CameraPath, motion: Float[Tensor, "T 4 4"]) -> CameraPath:
    """The target path that moves by `motion` (source_cam_from_target_cam) relative to the source, with its K."""
    if len(motion) != len(source.world_from_cam):
        raise ValueError(f"a motion of {len(motion)} frames for a path of {len(source.world_from_cam)}")
    return CameraPath(source.world_from_cam @ motion.to(source.world_from_cam), source.K)


def invert_rigid(b_from_a: Float[Tensor, "*T 4 4"]) -> Float[Tensor, "*T 4 4"]:
    """a_from_b for rigid b_from_a, without a general matrix inverse."""
    R, t = b_from_a[..., :3, :3], b_from_a[..., :3, 3:]
    a_from_b = b_from_a.clone()
    a_from_b[..., :3, :3] = R.mT
    a_from_b[..., :3, 3:] = -R.mT @ t
    return a_from_b


def pixel_rays(height: int, width: int, K: Float[Tensor, "T 3 3"]) -> Float[Tensor, "T H W 3"]:
    """Directions through the pixel centres in camera axes, with z = 1."""
    u = torch.arange(width, dtype=K.dtype, device=K.device) + 0.5
    v = torch.arange(height, dtype=K.dtype, device=K.device) + 0.5
    v, u = torch.meshgrid(v, u, indexing="ij")
    pixels = torch.stack([u, v, torch.ones_like(u)], -1)
    return einsum(torch.linalg.inv(K), pixels, "t i j, h w j -> t h w i")


def unproject(z: Float[Tensor, "T H W"], K: Float[Tensor, "T 3 3"]) -> Float[Tensor, "T H W 3"]:
    """Points in camera axes of pixels at distance z along the optical axis."""
    return pixel_rays(z.shape[-2], z.shape[-1], K.to(z)) * z[..., None]


def transform(b_from_a: Float[Tensor, "T 4 4"], points: Float[Tensor, "T H W 3"]) -> Float[Tensor, "T H W 3"]:
    """Points of frame a expressed in frame b."""
    b_from_a = b_from_a.to(points)
    return einsum(b_from_a[:, :3, :3], points, "t i j, t h w j -> t h w i") + b_from_a[:, None, None, :3, 3]


def project(
    points: Float[Tensor, "T H W 3"], K: Float[Tensor, "T 3 3"]
) -> tuple[Float[Tensor, "T H W 2"], Float[Tensor, "T H W"]]:
    """Pixel coordinates (u, v) and distance z of points in camera axes; uv has no meaning where z <= 0."""
    homogeneous = einsum(K.to(points), points, "t i j, t h w j -> t h w i")
    return homogeneous[..., :2] / homogeneous[..., 2:], homogeneous[..., 2]
