"""Two views of the same moments, from which the scene encoder and the soft methods learn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pipeline import InputError
from pipeline.camera.files import multicam_poses
from pipeline.camera.geometry import CameraPath, default_intrinsics, scale_intrinsics
from pipeline.media.video import crop_to_aspect, read_video, resize
from pipeline.world.dataset import load


@dataclass(frozen=True, eq=False)
class Recording:
    """What one camera filmed. frames: in [0, 1]. z: distance along the optical axis, None where it is not known."""

    frames: Float[Tensor, "T 3 H W"]
    path: CameraPath
    z: Float[Tensor, "T H W"] | None = None


@dataclass(frozen=True, eq=False)
class Pair:
    """Two recordings of the same moments, and what they show. unit: the length in which poses are told."""

    source: Recording
    target: Recording
    caption: str
    unit: float


def read_world(file: Path, frames: int, size: tuple[int, int], stride: int = 1) -> Pair:
    """A scene of `pipeline.world.dataset` at a size H W; of a still so many frames alike.

    stride: of how many frames one is taken. unit: 1; `varied` makes it the subject's distance.

    Sizes of another aspect are squeezed, and their lenses with them.
    """
    stored = load(file)
    if len(stored.source) > 1 and len(stored.source[::stride]) < frames:
        raise InputError(f"{file} has {len(stored.source)} frames; {frames} at a stride of {stride} are asked for.")

    def recording(pixels: Tensor, z: Tensor, path: CameraPath) -> Recording:
        video, depth = pixels[::stride].float() / 255, z[::stride].float()
        if tuple(video.shape[-2:]) != size:
            video = F.interpolate(video, size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
            depth = F.interpolate(depth[:, None], size, mode="nearest-exact")[:, 0]
        K = scale_intrinsics(path.K, (pixels.shape[-2], pixels.shape[-1]), size)
        long = lambda x: x[:frames] if len(x) > 1 else x.expand(frames, *x.shape[1:])
        return Recording(long(video), CameraPath(long(path.world_from_cam[::stride]), long(K[::stride])), long(depth))

    source = recording(stored.source, stored.source_z, stored.source_path)
    target = recording(stored.target, stored.target_z, stored.target_path)
    return Pair(source, target, stored.caption, 1.0)


def read_multicam(folder: Path, rng: np.random.Generator, frames: int, size: tuple[int, int], stride: int = 1) -> Pair:
    """Two cameras of a scene in the layout of MultiCamVideo (KwaiVGI/ReCamMaster), as the generator draws them.

    The folder has videos/cam01.mp4 ... and cameras/camera_extrinsics.json. Videos are cropped to the aspect of `size`,
    H W. caption: of the folder's caption.txt, "" if there is none. unit: 1 metre. Raises `InputError`.
    """
    poses = multicam_poses(folder / "cameras" / "camera_extrinsics.json")
    videos = {path.stem: path for path in sorted((folder / "videos").glob("*.mp4"))}
    names = sorted(poses.keys() & videos.keys())
    if len(names) < 2:
        raise InputError(f"{folder} has {len(names)} videos whose camera is known; two are needed.")
    chosen = [names[index] for index in rng.choice(len(names), 2, replace=False)]
    caption = folder / "caption.txt"
    views = []
    for name in chosen:
        video = resize(crop_to_aspect(read_video(videos[name], frames=frames, stride=stride), size).frames, size)
        path = poses[name][::stride][:frames]
        if len(video) < frames or len(path) < frames:
            raise InputError(f"{videos[name]} has {len(video)} frames and {len(path)} cameras; {frames} are asked for.")
        K = default_intrinsics(*size, frames)  # the lens takes no part without depth
        views.append(Recording(video, CameraPath(path, K)))
    return Pair(views[0], views[1], caption.read_text(encoding="utf-8").strip() if caption.exists() else "", 1.0)


def varied(pair: Pair, *, swap: bool = False, mirror: bool = False, reverse: bool = False) -> Pair:
    """The same scene with the views exchanged, seen in a mirror, or backwards in time; a new unit where depth tells it.

    The caption stays. A pair without depth keeps its unit.
    """
    views = [pair.target, pair.source] if swap else [pair.source, pair.target]
    if mirror:
        views = [_mirrored(view) for view in views]
    if reverse:
        views = [_reversed(view) for view in views]
    depth = views[0].z
    return Pair(views[0], views[1], pair.caption, pair.unit if depth is None else middle_distance(depth[0]))


def _mirrored(view: Recording) -> Recording:
    width = view.frames.shape[-1]
    sign = torch.tensor([-1.0, 1, 1, 1])
    K = view.path.K.clone()
    K[:, 0, 2] = width - K[:, 0, 2]
    path = CameraPath(sign[:, None] * view.path.world_from_cam * sign, K)
    return Recording(view.frames.flip(-1), path, None if view.z is None else view.z.flip(-1))


def _reversed(view: Recording) -> Recording:
    path = CameraPath(view.path.world_from_cam.flip(0), view.path.K.flip(0))
    return replace(view, frames=view.frames.flip(0), path=path, z=None if view.z is None else view.z.flip(0))


def middle_distance(z: Float[Tensor, "H W"]) -> float:
    """The median over the central half of a frame, as `pipeline.method.lavr.distance_of` has it."""
    top, left = z.shape[0] // 4, z.shape[1] // 4
    return float(z[top : z.shape[0] - top, left : z.shape[1] - left].median())
