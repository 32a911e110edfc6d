"""What is painted made to agree from frame to frame."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.camera.geometry import CameraPath
from pipeline.known.gather import Gathered, depth_of_all, frame_pairs, likeness, part_of
from pipeline.known.known import Known
from pipeline.known.measurement import Measurement
from pipeline.known.warp import warp_to_path
from pipeline.media.video import size_of
from pipeline.stop import check


def settle(raw: Float[Tensor, "T 3 h w"], known: Known, found: Gathered | None, reach: int) -> Float[Tensor, "T 3 h w"]:
    """The raw result of what is known with its frames made to agree, see `steady`; not where something new is to stand,
    which moves by itself.

    found: of `gather.completed`; None, or a reach of 0, leaves the result as it is.
    """
    if found is None:
        return raw
    measurement = known.measurement
    settled = measurement.mask if known.place is None else measurement.mask | known.place[:, None]
    whole = Measurement(measurement.video, settled)
    return steady(raw, whole, found.taken, known.z, *found.cameras_at(size_of(raw)), reach)


def steady(
    raw: Float[Tensor, "T 3 H W"],
    measurement: Measurement,
    gathered: Bool[Tensor, "T 1 H W"],
    z: Float[Tensor, "T H W"],
    source: CameraPath,
    target: CameraPath,
    reach: int,
) -> Float[Tensor, "T 3 H W"]:
    """A generated video whose frames agree on what is painted: such pixels become means along the camera's motion.

    A small model paints the same place anew in every frame, which flickers. What the `reach` frames on either side
    painted there, or took from others, is warped to the frame's camera, and counts as far as it is `likeness` what the
    frame has. All that is not painted stays as it is. raw in [0, 1]. measurement: what is known, `gathered`: what of it
    other frames saw. z: depth of the clip, from the source cameras, which are in one world with the target's, see
    `Gathered`.
    """
    painted = ~measurement.mask
    if reach < 1 or not painted.any():
        return raw
    depth = depth_of_all(z, source, target)
    video, others = torch.where(gathered, measurement.video, raw), ~(painted | gathered)[:, 0]
    total, weight = video.clone(), torch.ones_like(depth)[:, None]
    for offset in (sign * distance for distance in range(1, min(reach, len(video) - 1) + 1) for sign in (-1, 1)):
        for now, then in frame_pairs(len(video), offset):
            there = warp_to_path(video[then], depth[then], part_of(target, then), part_of(target, now), others[then])
            check()
            like = likeness(there.video, video[now], there.mask)
            total[now] += like * there.video
            weight[now] += like
    return torch.where(painted, total / weight, raw)
