"""Camera paths that clips were filmed along: that of another clip, taken over."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import numpy as np
import torch

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
