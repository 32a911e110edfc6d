"""Camera paths that clips were filmed along: that of another clip, taken over; a clip's own, smoothed."""

from __future__ import annotations

import math
from collections.abc import Generator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline import InputError
from pipeline.camera.geometry import CameraPath, scale_intrinsics
from pipeline.camera.moves import MAX_KEYFRAMES, Move, move_from_poses
from pipeline.known.ego_motion import ego_motion
from pipeline.media.video import resize, size_of
from pipeline.render.analysis import Analysis
from pipeline.render.events import StageEvent, stage
from pipeline.render.request import RenderRequest


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
    return move_from_poses(poses, origin=f"The clip's own camera path, smoothed over {seconds:g} seconds.")


def smoothed(poses: Float[Tensor, "T 4 4"], frames: float) -> Float[Tensor, "T 4 4"]:
    """Poses in one world, each the mean of those around it by a Gaussian, so many frames wide at half height."""
    from scipy.spatial.transform import Rotation

    if frames <= 0:
        return poses.clone()
    time = np.arange(len(poses))
    weights = np.exp(-0.5 * ((time[:, None] - time) / (frames / 2.355)) ** 2)
    weights /= weights.sum(1, keepdims=True)
    matrices = poses.double().numpy()
    turned, result = Rotation.from_matrix(matrices[:, :3, :3]), matrices.copy()
    result[:, :3, :3] = [turned.mean(row).as_matrix() for row in weights]
    result[:, :3, 3] = weights @ matrices[:, :3, 3]
    return torch.from_numpy(result)
