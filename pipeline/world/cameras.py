"""The cameras of the procedural world."""

from __future__ import annotations

import math

import numpy as np
import torch
from einops import repeat
from jaxtyping import Float
from scipy.spatial.transform import Rotation
from torch import Tensor

from pipeline import InputError
from pipeline.camera.geometry import ORBITS, PRESETS, CameraPath
from pipeline.world.raycast import Scene


def _look_at(eye: np.ndarray, target: np.ndarray, roll: float = 0.0) -> np.ndarray:
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(np.array([0.0, 1.0, 0.0]), forward)
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, down, forward], axis=1) @ Rotation.from_euler("z", roll).as_matrix()
    pose[:3, 3] = eye
    return pose


CAMERAS = {
    "static": "static camera",
    "pan": "panning camera",
    "move": "moving camera",
    "hand-held": "hand-held camera",
    "track": "tracking camera",
}


def source_path(rng: np.random.Generator, scene: Scene, frames: int, size: tuple[int, int]) -> tuple[CameraPath, str]:
    """The recording camera: static, panning, moving, hand-held or following a mover; with the words for the caption."""
    height, width = size
    focal = 0.5 * max(size) / math.tan(math.radians(scene.viewpoint.angle) / 2)
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]]).repeat(frames, 1, 1)
    eye, target = np.array(scene.viewpoint.eye), np.array(scene.viewpoint.target)
    away = float(np.linalg.norm(target - eye)) / 4.5
    movers = [s for s in scene.solids if s.motion not in ("still", "spin")]
    kind = str(rng.choice(list(CAMERAS), p=[0.3, 0.17, 0.2, 0.2, 0.13]))
    if kind == "track" and not movers:
        kind = "move"
    s = np.linspace(0, 1, frames) if frames > 1 else np.zeros(1)
    still = np.repeat(eye[None], frames, 0), np.repeat(target[None], frames, 0), np.zeros(frames)
    way, wobble = rng.uniform(-1, 1, 3), np.cumsum(np.cumsum(rng.normal(0, 1, (frames, 7)), 0), 0)
    wobble = (wobble - wobble[:1]) / (np.abs(wobble).max() + 1e-6)
    amount = away * rng.uniform(0.5, 1.5)
    while True:
        eyes, targets, rolls = still
        if kind == "pan":
            targets = targets + amount * s[:, None] * way * np.array([1.2, 0.2, 0])
        elif kind == "move":
            eyes = eyes + amount * s[:, None] * way * np.array([0.8, 0.28, 0.8])
        elif kind == "hand-held":
            eyes = eyes + 0.25 * amount * wobble[:, :3] * np.array([1, 0.4, 1])
            targets = targets + 0.3 * amount * wobble[:, 3:6]
            rolls = 0.04 * wobble[:, 6]
        elif kind == "track":
            mover = movers[0].parts[0].world_from_part[:, :3, 3].cpu().numpy().astype(float)
            shift = (mover - mover[:1]) * np.array([1, 0, 1])
            eyes, targets = eyes + min(0.5 * amount, 0.6) * shift, targets + 0.9 * shift
        poses = np.stack([_look_at(e, t, r) for e, t, r in zip(eyes, targets, rolls, strict=True)])
        path = CameraPath(torch.from_numpy(poses).float(), K)
        if _free(path, scene) or amount < 0.02:
            return path, CAMERAS[kind]
        amount *= 0.6


def target_path(rng: np.random.Generator, source: CameraPath, scene: Scene, move: str | None = None) -> CameraPath:
    """A second path: one of the six presets relative to the source, sometimes shown from its far end throughout."""
    frames = source.K.shape[0]
    drawn = str(rng.choice(list(PRESETS)))
    name = move or drawn
    amount = rng.uniform(8, 30) if name.startswith("orbit") else rng.uniform(10, 35)
    subject = math.dist(scene.viewpoint.eye, scene.viewpoint.target)
    distance = rng.uniform(0.7, 1.1) * min(subject, 5.0)
    constant = rng.uniform() < 0.25
    while True:
        motion = preset_motion(name, amount, frames, distance)
        if constant:
            motion = motion[-1:].expand(frames, 4, 4)
        path = CameraPath(source.world_from_cam @ motion.to(source.world_from_cam), source.K)
        if _free(path, scene) or amount < 1:
            return path
        amount *= 0.6  # into a solid or under the ground: a smaller move


def _free(path: CameraPath, scene: Scene) -> bool:
    """Whether the camera keeps clear of all surfaces."""
    eye = path.world_from_cam[:, :3, 3]
    if (eye[:, 1] > -0.15).any():
        return False
    for plane in scene.planes:
        if ((eye @ torch.tensor(plane.normal, dtype=eye.dtype)) - plane.offset < 0.15).any() and plane.height is None:
            return False
    for _, part in scene.parts():
        pose = part.world_from_part.cpu()
        local = ((eye - pose[:, :3, 3])[:, None] @ pose[:, :3, :3])[:, 0]
        outside = (local.abs() - torch.tensor(part.extent)).clamp(min=0)
        if (outside.norm(dim=1) < 0.25).any():
            return False
    return True


def preset_motion(name: str, amount: float | None, frames: int, distance: float) -> Float[Tensor, "T 4 4"]:
    """The motion source_cam_from_target_cam of a preset, linear over the frames; frame 0 is exactly the identity.

    Orbits turn by `amount` degrees about the point at `distance` on the optical axis and keep looking at it; dollies
    move by `amount` percent of `distance` along the axis. `amount=None` is the preset's default. A clip of a single
    frame gets the end pose, so that the move shows. Raises InputError for an unknown name, an amount that is not finite
    or out of the preset's range, and a distance that is not a positive finite number.
    """
    if name not in PRESETS:
        raise InputError(f"camera {name!r} is unknown: choose one of {', '.join(PRESETS)}")
    preset = PRESETS[name]
    low, high = preset.range
    amount = preset.default if amount is None else float(amount)
    if not low <= amount <= high:  # also refuses NaN
        raise InputError(f"amount {amount:g} for {name}: give {preset.unit} from {low:g} to {high:g}")
    if not (math.isfinite(distance) and distance > 0):
        raise InputError(f"subject distance {distance}: give a positive number, in the unit of the depth")
    if frames < 1:
        raise InputError(f"{frames} frames: a camera path needs at least one")

    progress = torch.linspace(0, 1, frames, dtype=torch.float64) if frames > 1 else torch.ones(1, dtype=torch.float64)
    motion = repeat(torch.eye(4, dtype=torch.float64), "i j -> t i j", t=frames).clone()
    if name in ORBITS:
        angles = progress * math.radians(amount)
        turns = Rotation.from_rotvec(angles[:, None].numpy() * [ORBITS[name]])
        pivot = torch.tensor([0.0, 0.0, distance], dtype=torch.float64)
        motion[:, :3, :3] = torch.from_numpy(turns.as_matrix())
        motion[:, :3, 3] = pivot - motion[:, :3, :3] @ pivot
    else:
        motion[:, 2, 3] = progress * distance * (amount / 100) * (1 if name == "dolly-in" else -1)
    return motion.float()
