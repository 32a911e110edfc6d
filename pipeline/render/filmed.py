"""Camera paths that come from clips: that of another clip, taken over; a clip's own, smoothed; one that looks at what
moves in it."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline import InputError
from pipeline.camera.geometry import CameraPath, scale_intrinsics
from pipeline.camera.moves import (
    MAX_KEYFRAMES,
    Move,
    fov_of,
    frames_at,
    keyframe_from_pose,
    move_from_poses,
    sample_move,
)
from pipeline.known.ego_motion import ego_motion
from pipeline.media.video import resize, size_of
from pipeline.render.analysis import Analysis
from pipeline.render.events import StageEvent, stage
from pipeline.render.request import RenderRequest

CALM = 0.4  # seconds over which it is smoothed how an object moves that the camera looks at


def filmed_path(analysis: Analysis) -> CameraPath:
    """The cameras along which a clip was filmed, in the world of its first one and the unit of its depth.

    They are found at the size at which the depth was. Raises `InputError` where they are not found.
    """
    z, working = analysis.depth.z if analysis.detail is None else analysis.detail, size_of(analysis.clip.frames)
    frames = resize(analysis.full.frames, size_of(z))
    found = ego_motion(frames, z, scale_intrinsics(analysis.source.K, working, size_of(z)))
    if found is None:
        raise InputError(
            "How the camera of this clip moves was not found: it shows too few corners that stand still. Choose a clip "
            "with more of them, or fewer frames of it."
        )
    return CameraPath(found.world_from_cam, analysis.source.K)


def move_of_clip(
    request: RenderRequest, analysed: Generator[StageEvent, None, Analysis]
) -> Generator[StageEvent, None, Move]:
    """Stage events; returns the camera move of a clip, frame for frame, its subject's distance as the unit.

    request: of that clip, whose move is asked for. analysed: its analysis, see `analysis.analyse`. Of more frames than
    a move has keyframes some are left out, evenly. Raises `InputError`.
    """
    name = Path(request.clip).name
    analysis = yield from analysed
    if analysis.info.still or len(analysis.clip.frames) < 2:
        raise InputError(f"{name} is a single picture, whose camera does not move: give a video.")
    yield stage("warp", f"Finding how the camera of {name} moves")
    poses = filmed_path(analysis).world_from_cam.double()
    poses[:, :3, 3] /= analysis.distance
    kept = np.linspace(0, len(poses) - 1, min(len(poses), MAX_KEYFRAMES)).round().astype(int)
    return move_from_poses(
        poses[torch.from_numpy(kept)],
        origin=f"The camera moves as in {name}, over {len(poses)} of its frames: what was one distance to the subject "
        "there is one distance to the subject here.",
    )


def stabilised(analysis: Analysis, seconds: float) -> Move:
    """The move that leads the camera of a clip along its own path, smoothed over so many seconds. Raises `InputError`.

    A clip whose camera stands still is left as it is. The move is of these very frames, each with a keyframe.
    """
    if not (math.isfinite(seconds) and 0 <= seconds <= 60):
        raise InputError(f"A clip is stabilised over 0 to 60 seconds; {seconds:g} were asked for.")
    frames = len(analysis.clip.frames)
    if analysis.info.still or not 2 <= frames <= MAX_KEYFRAMES:
        raise InputError(f"From 2 to {MAX_KEYFRAMES} frames of a video can be stabilised; there are {frames}.")
    own = filmed_path(analysis).world_from_cam.double()
    poses = torch.linalg.inv(own) @ smoothed(own, seconds * analysis.fps)
    poses[:, :3, 3] /= analysis.distance
    return move_from_poses(poses, origin=f"The clip's own camera path, smoothed over {seconds:g} s.")


def looking_at(move: Move, analysis: Analysis, seen: Bool[Tensor, "T H W"]) -> Move:
    """The move that stands where this one does and looks at an object wherever that has got to. Raises `InputError`.

    seen: where the object is, in the frames of `analysis.full`. Between frames that show it, it goes straight on; how
    it moves is smoothed over `CALM` seconds.
    """
    frames, own = len(seen), fov_of(analysis.source, size_of(analysis.clip.frames))
    z = analysis.depth.z.double().cpu()
    small = F.adaptive_max_pool2d(seen[:, None].float(), size_of(z))[:, 0].cpu() > 0
    K, there, places = analysis.source.K.double().cpu(), [], []
    for t in range(frames):
        v, u = torch.nonzero(small[t], as_tuple=True)
        if len(u):
            pixel = torch.stack([u.double().mean() + 0.5, v.double().mean() + 0.5, torch.ones(()).double()])
            places.append((torch.linalg.inv(K[t]) @ pixel * z[t][small[t]].median() / analysis.distance).numpy())
            there.append(t)
    if not there:
        raise InputError("The object is nowhere to be seen in the frames that are used; choose a mask of them.")
    at = np.stack([np.interp(np.arange(frames), there, axis) for axis in np.stack(places, 1)], 1)
    poses, fov = sample_move(move, frames, own)
    shown, timed = frames_at(move.timing, frames), np.linspace(0, 1, frames) if frames > 1 else np.zeros(1)
    path = torch.eye(4).double().repeat(frames, 1, 1)
    path[:, :3, 3] = torch.from_numpy(at[shown])
    targets = smoothed(path, CALM * analysis.fps)[:, :3, 3].numpy()
    keyframes = []
    for t in np.unique(np.linspace(0, frames - 1, min(frames, 33)).round().astype(int)):
        lens = None if abs(float(fov[t]) - own) < 1e-9 else float(fov[t])
        keyframe = keyframe_from_pose(poses[t].numpy(), float(timed[t]), lens)
        keyframes.append(replace(keyframe, target=tuple(float(x) for x in targets[t])))
    origin = f"{move.origin} The camera looks at the object, wherever that has got to.".strip()
    return replace(move, keyframes=tuple(keyframes), speed="keyframes", origin=origin)


def smoothed(poses: Float[Tensor, "T 4 4"], frames: float) -> Float[Tensor, "T 4 4"]:
    """Poses in one world, each the mean of those around it by a Gaussian, so many frames wide at half height."""
    from scipy.spatial.transform import Rotation

    reach = min(len(poses) - 1, math.ceil(2 * frames))
    if reach < 1:
        return poses.clone()
    time = np.arange(-reach, len(poses) + reach)
    weights = np.exp(-0.5 * ((time[reach:-reach, None] - time) / (frames / 2.355)) ** 2)
    weights /= weights.sum(1, keepdims=True)
    matrices = poses.double().numpy()
    result = matrices.copy()
    # beyond its ends a path goes on as it came, turned about: what moves evenly is not held back there
    turned_about = lambda end, others: end @ np.linalg.inv(others) @ end
    before = turned_about(matrices[0], matrices[reach:0:-1])
    after = turned_about(matrices[-1], matrices[-2 : -reach - 2 : -1])
    matrices = np.concatenate([before, matrices, after])
    turned = Rotation.from_matrix(matrices[:, :3, :3])
    result[:, :3, :3] = [turned.mean(row).as_matrix() for row in weights]
    result[:, :3, 3] = weights @ matrices[:, :3, 3]
    return torch.from_numpy(result)
