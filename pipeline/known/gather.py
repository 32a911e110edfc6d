"""What other frames of a clip saw of the places that its own frame does not see: filmed, not invented.

A frame's warp leaves holes where things were hidden or out of the picture at that moment. The camera or the things may
have moved since: then another frame saw the place. Its pixels are warped to the same target camera, as far as they show
what stands still. What no frame saw is the model's; `steady` makes its frames agree on that. Ours; the papers warp each
frame alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pipeline.camera.geometry import CameraPath, invert_rigid, scale_intrinsics, transform, unproject
from pipeline.known.behind import agreement
from pipeline.known.ego_motion import ego_motion
from pipeline.known.fill import fill_unknown
from pipeline.known.known import Known
from pipeline.known.measurement import Measurement
from pipeline.known.warp import warp_depth, warp_to_path
from pipeline.media.video import resize
from pipeline.stop import check

# Frames that are asked, by their distance in time: near ones closely, since light and depth change least.
_DISTANCES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
# A point that another frame looks through, onto something this much farther away, does not stand still.
_SEEN_THROUGH = 0.05
_AGREES = 0.05  # mean difference of two frames around a place up to which one may complete the other
_AT_ONCE = 16  # frames that are warped together
# At a larger size, where a warp costs more than a step of a small model, only so many frames are asked again for each
# frame, and only for so large a share of it.
_AGAIN, _WORTH = 4, 0.001
SEARCHED_PIXELS = 2**16  # of a frame, at which is searched
_LIKE = 0.2  # difference of colours at which two frames hardly show the same thing any more


@dataclass(frozen=True, eq=False)
class Gathered:
    """measurement: what is known, of all frames together.

    taken: which of its pixels other frames gave. origin: the nearest frame that has a pixel, -1 where that is its own,
    or none. sees: how many of the pixels that
    a frame (row) lacks another one (column) has. source, target: the cameras in one world. still: see `standing`. These
    are of the size at which was searched.
    """

    measurement: Measurement
    taken: Bool[Tensor, "T 1 H W"]
    origin: Int[Tensor, "T H W"]
    sees: Int[Tensor, "T T"]
    source: CameraPath
    target: CameraPath
    still: Bool[Tensor, "T H W"]

    def cameras_at(self, size: tuple[int, int]) -> tuple[CameraPath, CameraPath]:
        """source and target with the K of pictures of another size (H, W)."""
        working = (self.still.shape[-2], self.still.shape[-1])
        source, target = (
            CameraPath(path.world_from_cam, scale_intrinsics(path.K, working, size))
            for path in (self.source, self.target)
        )
        return source, target


def completed(known: Known) -> tuple[Known, Gathered | None]:
    """What is known, with what other frames of the clip saw in its measurement; not in the place of something new.

    None instead of what was gathered where the motion of the clip's own camera cannot be found.
    """
    found = from_other_frames(known.clip, known.z, known.source, known.target, known.measurement, known.place)
    return (known, None) if found is None else (replace(known, measurement=found.measurement), found)


def from_other_frames(
    frames: Float[Tensor, "T 3 H W"],
    z: Float[Tensor, "T H W"],
    source: CameraPath,
    target: CameraPath,
    own: Measurement,
    kept: Bool[Tensor, "T H W"] | None = None,
) -> Gathered | None:
    """`gather` with `own`, the measurement by `warp_to_path` of the same arguments.

    kept: where the target cameras see what is the model's to paint, whatever other frames saw there. Only where each
    target camera is from its source camera need be true: how the clip's camera moved is found. None where it cannot be.
    Large frames are searched at `SEARCHED_PIXELS`, and completed by `at_size`.
    """
    working = (frames.shape[-2], frames.shape[-1])
    scale = math.sqrt(SEARCHED_PIXELS / math.prod(working))
    if scale < 1:
        size = (int(scale * working[0]), int(scale * working[1]))
        like = lambda path: CameraPath(path.world_from_cam, scale_intrinsics(path.K, working, size))
        pictures, depth = resize(frames, size), F.interpolate(z[:, None], size, mode="nearest")[:, 0]
        small = warp_to_path(pictures, depth, like(source), like(target))
        closed = None if kept is None else F.adaptive_max_pool2d(kept[:, None].float(), size)[:, 0] > 0
        found = from_other_frames(pictures, depth, like(source), like(target), small, closed)
        if found is None:
            return None
        measurement = at_size(found, own, 0, lambda t: (frames[t], z[t]))
        return replace(found, measurement=measurement, taken=measurement.mask & ~own.mask)
    cameras = ego_motion(frames, z, source.K)
    if cameras is None:
        return None
    away = invert_rigid(source.world_from_cam) @ target.world_from_cam
    along = CameraPath(cameras.world_from_cam @ away, target.K)
    return gather(frames, z, cameras, along, own, standing(z, cameras), kept)


def gather(
    frames: Float[Tensor, "T 3 H W"],
    z: Float[Tensor, "T H W"],
    source: CameraPath,
    target: CameraPath,
    own: Measurement,
    still: Bool[Tensor, "T H W"],
    kept: Bool[Tensor, "T H W"] | None = None,
) -> Gathered:
    """The measurement with its holes filled by what other frames saw there, by the nearest in time and those like it.

    Their mean is nearer to the truth than the nearest alone, and changes less from a frame to the next. frames, z,
    source, target: of `warp_to_path`; source: the cameras in one world, see `ego_motion`. own: the measurement by that
    function; its known pixels stay as they are, and so do those `kept`. still: see `standing`. Where another frame's
    pixels disagree with what is known around a hole, as they do where depth or cameras are wrong, nothing is taken.
    """
    video, mask = own.video.clone(), own.mask.clone()
    lacks = ~own.mask if kept is None else ~own.mask & ~kept[:, None]
    total, weight = torch.zeros_like(video), torch.zeros_like(z)[:, None]
    origin = torch.full_like(z, -1, dtype=torch.int32)
    sees = origin.new_zeros(len(frames), len(frames))
    # what moves hides what another frame sees there, and is not to be compared with it
    compared = own.mask & warp_to_path(frames, z, source, target, ~still).mask
    for offset in _offsets(len(frames)):
        for now, then in frame_pairs(len(frames), offset):
            if not lacks[now].any():
                continue
            seen = warp_to_path(frames[then], z[then], part_of(source, then), part_of(target, now), ~still[then])
            for t, found, usable in zip(range(now.start, now.stop), seen.video, seen.mask, strict=True):
                check()
                offered = usable & lacks[t]
                if offered.any():
                    offered &= _agrees(found, own.video[t], usable & compared[t])
                    sees[t, t + offset] = offered.sum()
                    origin[t][(offered & ~mask[t])[0]] = t + offset
                    _take(found, offered, video[t], mask[t], total[t], weight[t])
    video = torch.where(weight > 0, total / weight, video)
    return Gathered(replace(own, video=video, mask=mask), mask & ~own.mask, origin, sees, source, target, still)


def _take(
    seen: Float[Tensor, "3 H W"],
    offered: Bool[Tensor, "1 H W"],
    video: Float[Tensor, "3 H W"],
    mask: Bool[Tensor, "1 H W"],
    total: Float[Tensor, "3 H W"],
    weight: Float[Tensor, "1 H W"],
) -> None:
    """Complete a frame, in place, where a pixel is offered: by the first one, and the sum by those like it."""
    again = offered & mask
    like = likeness(seen[None], video[None], offered[None])[0].view(-1) if again.any() else None
    first, again = ((part.view(-1).nonzero()[:, 0]) for part in (offered & ~mask, again))
    found, shown, sums, counts = seen.view(3, -1), video.view(3, -1), total.view(3, -1), weight.view(-1)
    shown[:, first] = sums[:, first] = found[:, first]
    counts[first] = 1
    mask.view(-1)[first] = True
    if like is not None:
        sums[:, again] += like[again] * found[:, again]
        counts[again] += like[again]


def at_size(
    found: Gathered, own: Measurement, first: int, picture_of: Callable[[int], tuple[Tensor, Tensor]]
) -> Measurement:
    """`own`, a measurement of the frames from `first` on at another size, completed where `found` is, by the frames
    that see the most there: the mean of the first and those like it, as in `gather`. The rest is left to the model,
    which had it at the size of `found`.

    picture_of(t): frame t of the clip and its depth, 3 H W and H W, at that size.
    """
    working, size = ((part.shape[-2], part.shape[-1]) for part in (found.still, own.mask))
    video, mask = own.video.clone(), own.mask.clone()
    total, weight = torch.zeros_like(video), torch.zeros_like(video[:, :1])
    enlarged = lambda part: F.interpolate(part[:, None].float(), size, mode="nearest")[:, 0]
    lacks = (enlarged(found.origin[first : first + len(video)] >= 0) > 0) & ~own.mask[:, 0]
    source, target = found.cameras_at(size)
    sees = found.sees[first : first + len(video)].clone()
    for _ in range(_AGAIN):
        most, best = sees.max(1)
        pairs = [(t, int(best[t])) for t in range(len(video)) if most[t] >= _WORTH * math.prod(working)]
        if not pairs:
            break
        here, then = [first + t for t, _ in pairs], [other for _, other in pairs]
        pictures, depths = (torch.stack(part) for part in zip(*map(picture_of, then), strict=True))
        moves, wanted = enlarged(found.still[then]) == 0, lacks[[t for t, _ in pairs]]
        seen = warp_to_path(pictures, depths, part_of(source, then), part_of(target, here), moves, wanted)
        for (t, other), colours, offered in zip(pairs, seen.video, seen.mask, strict=True):
            check()
            _take(colours, offered, video[t], mask[t], total[t], weight[t])
            sees[t, other] = 0
    for frame, colours, count in zip(video, total, weight, strict=True):
        at = count.view(-1).nonzero()[:, 0]
        frame.view(3, -1)[:, at] = colours.view(3, -1)[:, at] / count.view(-1)[at]
    return replace(own, video=video, mask=mask)


def depth_of_all(z: Float[Tensor, "T H W"], source: CameraPath, target: CameraPath) -> Float[Tensor, "T H W"]:
    """The clip's depth as the target cameras see it, see `warp_depth`, and where they see nothing of it filled in
    smoothly, by disparity: a guess, but one that is the same from frame to frame."""
    seen = warp_depth(z, source, target)
    known = seen.isfinite()
    near = seen[known].amin() if known.any() else seen.new_ones(())
    inverse = torch.where(known, near / seen, 0.0)[:, None].expand(-1, 3, -1, -1).contiguous()
    return near / fill_unknown(Measurement(inverse, known[:, None]))[:, 0].clamp_min(1e-4)


def likeness(
    seen: Float[Tensor, "N 3 H W"], video: Float[Tensor, "N 3 H W"], usable: Bool[Tensor, "N 1 H W"]
) -> Float[Tensor, "N 1 H W"]:
    """How much pixels of `seen`, where `usable`, count beside those of `video`: the less the more colours differ around
    them, as in a bilateral filter (Tomasi and Manduchi 1998). So things that move by themselves leave no ghosts."""
    counts = torch.empty_like(video[:, :1])
    around = lambda part: cv2.boxFilter(part, -1, (5, 5), normalize=False, borderType=cv2.BORDER_CONSTANT)
    for here, there, both, count in zip(seen.cpu(), video.cpu(), usable[:, 0].cpu(), counts, strict=True):
        weight = both.numpy().astype(np.float32)
        differs = sum(np.abs(around(part)) for part in ((here - there) * both).numpy())
        differs /= np.maximum(around(weight), 1e-6) * (3 * _LIKE)
        count[0] = torch.from_numpy(weight * np.exp(-differs * differs))
    return counts


def standing(z: Float[Tensor, "T H W"], source: CameraPath) -> Bool[Tensor, "T H W"]:
    """Which pixels of a clip show what stands still, as far as its depths tell: no other frame sees through it.

    What moves leaves its place, and another frame then sees something farther away where it was. A step of depth
    reaches one pixel, since outlines are not exact. The arguments are those of `warp_to_path`.
    """
    T, H, W = z.shape
    still = torch.isfinite(z) & (z > 0)
    z = torch.where(still, z, torch.inf)
    nearest = -F.max_pool2d(-z[:, None], 3, 1, 1)
    for offset in _offsets(T):
        for now, then in frame_pairs(T, offset):
            seen_from = invert_rigid(source.world_from_cam[then]) @ source.world_from_cam[now]
            check()
            place = transform(seen_from, unproject(z[now].nan_to_num(posinf=0), source.K[now]))
            at = torch.einsum("tij,thwj->thwi", source.K[then], place)
            at = at[..., :2] / at[..., 2:].clamp_min(1e-6) * at.new_tensor([2 / W, 2 / H]) - 1
            inside = (at.abs() <= 1).all(-1) & (place[..., 2] > 0)
            behind = F.grid_sample(nearest[then], at, "nearest", "border", align_corners=False)[:, 0]
            still[now] &= ~(inside & behind.isfinite() & (place[..., 2] < behind * (1 - _SEEN_THROUGH)))
    # the rim of what moves is of it too
    return F.max_pool2d((~still).float()[:, None], 3, 1, 1)[:, 0] == 0


def _offsets(frames: int) -> list[int]:
    """How far away the other frames are, the nearest first, before and after alike."""
    distances = [distance for distance in _DISTANCES if distance < frames]
    return [sign * distance for distance in distances for sign in (-1, 1)]


def frame_pairs(frames: int, offset: int) -> list[tuple[slice, slice]]:
    """Slices (now, then) with then = now + offset, a few frames at once."""
    first, last = max(0, -offset), min(frames, frames - offset)
    starts = range(first, last, _AT_ONCE)
    return [(slice(a, min(a + _AT_ONCE, last)), slice(a + offset, min(a + _AT_ONCE, last) + offset)) for a in starts]


def part_of(path: CameraPath, span: slice | list[int]) -> CameraPath:
    return CameraPath(path.world_from_cam[span], path.K[span])


def _agrees(found: Tensor, known: Tensor, both: Tensor) -> Bool[Tensor, "1 H W"]:
    """Where two pictures 3 H W differ little around a place, over the pixels that both have."""
    if not both.any():
        return torch.zeros_like(both)
    a, b = (np.ascontiguousarray(picture.permute(1, 2, 0).cpu().numpy(), np.float32) for picture in (found, known))
    return torch.from_numpy(agreement(a, b, both[0].cpu().numpy()) < _AGREES)[None].to(both.device)
