"""The unknown pixels filled smoothly by what is behind them, for the encoder."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.known.measurement import Measurement
from pipeline.known.warp import AT_ONCE
from pipeline.stop import checked

_LAYERS = 7  # of depth, by which holes are filled
_IN_FRONT = 0.1  # what is that share nearer than a hole lends it nothing


def fill_unknown(measurement: Measurement) -> Float[Tensor, "T 3 H W"]:
    """The video with its holes filled smoothly from their surroundings, frame by frame; known pixels are untouched.

    Pull-push pyramid (Gortler et al., The Lumigraph, 1996). With `measurement.z` a hole takes nothing after what is
    nearer than that which it shows: what a camera uncovers beside a thing was behind it (as Daribo and Pesquet-Popescu,
    MMSP 2010, inpaint such holes). A frame without any known pixel becomes mid grey.
    """
    video, mask = measurement.video, measurement.mask
    if mask.all():
        return video
    unknown = video.new_tensor(torch.nan)
    z = unknown if measurement.z is None else measurement.z
    z = torch.where(mask[:, 0], z, unknown)
    place, layers = _layers(z, ~mask[:, 0])
    filled = torch.empty_like(video)
    for first in range(0, len(video), AT_ONCE):
        span = slice(first, first + AT_ONCE)
        colour, known, depth = video[span], mask[span].to(video.dtype), z[span, None].nan_to_num(torch.inf).log()
        found = torch.zeros_like(colour)
        for number, layer in enumerate(checked(layers)):
            share = (1 - (place[span, None] - number).abs()).clamp_min(0)
            if (share > 0).any():
                lends = known * ((depth - layer) / _IN_FRONT + 1).clamp(1e-6, 1)
                found += share * _pull_push(colour * lends, lends)
        filled[span] = torch.where(mask[span], colour, found)
    return filled


def telea(measurement: Measurement) -> Float[Tensor, "T 3 H W"]:
    """OpenCV's inpainting (Telea 2004, radius 3) of each warped frame."""
    frames = []
    for frame, known in zip(measurement.video, measurement.mask[:, 0], strict=True):
        pixels = np.ascontiguousarray((frame * 255).round().byte().permute(1, 2, 0).numpy())
        holes = (~known).byte().numpy()
        frames.append(torch.from_numpy(cv2.inpaint(pixels, holes, 3, cv2.INPAINT_TELEA)).permute(2, 0, 1).float() / 255)
    return torch.stack(frames)


def _layers(z: Float[Tensor, "T H W"], holes: Bool[Tensor, "T H W"]) -> tuple[Float[Tensor, "T H W"], list[float]]:
    """How deep what holes show is, as a place among layers, and the log depths of these; z is nan in the holes.

    A hole is as deep as the farther of what ends it in its row. Not in its column: there a wall stands behind the
    ground, and does not go on below it. What opens towards the border of the picture was not hidden by anything: layer
    0 takes after all that there is.
    """
    left, right = _last_known(z), _last_known(z.flip(-1)).flip(-1)
    told = holes & (left > 0) & (right > 0)
    if not told.any():
        return torch.zeros_like(z), [-math.inf]
    behind = torch.maximum(left, right).log()
    sample = behind[told][:: max(1, int(told.sum()) >> 20)]
    first, last = sample.quantile(sample.new_tensor([0.02, 0.98])).tolist()
    place = 1 + ((behind - first) * ((_LAYERS - 1) / max(last - first, 1e-6))).clamp(0, _LAYERS - 1)
    place = torch.where(told, place, 0.0)[:, None]
    # no steps from row to row
    around = lambda part: F.avg_pool2d(F.avg_pool2d(part, (5, 1), 1, (2, 0)), (1, 5), 1, (0, 2))
    place = (around(place) / around(holes[:, None].to(z)).clamp_min(1e-6))[:, 0]
    return torch.where(holes, place, 0.0), [-math.inf, *torch.linspace(first, last, _LAYERS).tolist()]


def _last_known(z: Float[Tensor, "T H W"]) -> Float[Tensor, "T H W"]:
    """The last finite value up to each pixel of a row, 0 where there is none."""
    last = torch.where(z.isfinite(), torch.arange(z.shape[-1], device=z.device), -1).cummax(-1).values
    return torch.where(last >= 0, z.gather(-1, last.clamp_min(0)), 0.0)


def _pull_push(colour: Tensor, weight: Tensor) -> Tensor:
    """Colours for all pixels from colours premultiplied by weights in [0, 1]."""
    H, W = colour.shape[-2:]
    if H == 1 and W == 1:
        return torch.where(weight > 0, colour / weight.clamp_min(1e-8), 0.5)
    # Pull: means over 2x2; odd sides repeat their last row or column. One known pixel in four is full confidence.
    pad = (0, W % 2, 0, H % 2)
    small_weight = F.avg_pool2d(F.pad(weight, pad, mode="replicate"), 2)
    small_colour = F.avg_pool2d(F.pad(colour, pad, mode="replicate"), 2)
    gain = (small_weight * 4).clamp(max=1) / small_weight.clamp_min(1e-8)
    below = _pull_push(small_colour * gain, small_weight * gain)
    # Push: what is not known here comes from the level below.
    up = F.interpolate(below, scale_factor=2, mode="bilinear", align_corners=False)[..., :H, :W]
    return colour + (1 - weight) * up
