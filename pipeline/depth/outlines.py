"""Depth edges put where the picture's outlines are: no depth between two surfaces, where nothing is."""

from __future__ import annotations

import cv2
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pipeline.stop import checked

_STEP = 0.15  # of disparity inside a window, as a share of its largest: more is an edge
_BETWEEN = 0.1  # of that step: what is so far from both its ends lies between two surfaces
_COLOUR = 0.08  # difference of colours at which a neighbour counts little
_SPUR = 5  # pixels: outlines keep nothing narrower than half of it
_AT_ONCE = 2**21  # neighbours that are looked at together


def sharpen_outlines(
    z: Float[Tensor, "T h w"], frames: Float[Tensor, "T 3 h w"], radius: int = 4, rounds: int = 2
) -> Float[Tensor, "T h w"]:
    """Depth without values between two surfaces, its steps where the colours change.

    A network's depth edge is a ramp of some pixels: a warp tears it into fringes that hang in the air. Each pixel of a
    ramp takes the weighted median of the disparities around it (Ma et al., Constant Time Weighted Median Filtering,
    ICCV 2013): pixels of its own colour count more, those on a ramp themselves less. A plain median takes off the spurs
    that noise in the colours leaves.

    z > 0; frames in [0, 1]. radius: of the window, in pixels; wider ramps take more rounds.
    """
    for _ in range(rounds):
        z = torch.cat([_sharpen(*pair, radius) for pair in checked(zip(z.split(1), frames.split(1), strict=True))])
    plain = lambda frame: torch.from_numpy(cv2.medianBlur(frame.cpu().numpy(), _SPUR)).to(z)
    return 1 / torch.stack([plain(frame) for frame in checked(1 / z.float())])


def _sharpen(z: Float[Tensor, "1 h w"], frame: Float[Tensor, "1 3 h w"], radius: int) -> Float[Tensor, "1 h w"]:
    w, side = (1 / z)[:, None], 2 * radius + 1
    high, low = F.max_pool2d(w, side, 1, radius), -F.max_pool2d(-w, side, 1, radius)
    step = high - low
    inside = (w - low > _BETWEEN * step) & (high - w > _BETWEEN * step)
    rows, columns = ((step > _STEP * high) & inside)[0, 0].nonzero(as_tuple=True)
    if not len(rows):
        return z
    local = F.max_pool2d(w, 3, 1, 1) + F.max_pool2d(-w, 3, 1, 1)
    firm = torch.exp(-(local / (0.15 * step).clamp_min(1e-9)).square())
    around = lambda x: F.pad(x, [radius] * 4, mode="replicate")[0]
    disparity, colours, firmness = around(w)[0], around(frame), F.pad(firm, [radius] * 4)[0, 0]
    offsets = torch.arange(-radius, radius + 1, 2, device=z.device)  # every other pixel tells as much
    dy, dx = (part.flatten() for part in torch.meshgrid(offsets, offsets, indexing="ij"))
    near = torch.exp(-(dy**2 + dx**2) / (2 * (0.6 * radius) ** 2))
    found = w.clone()
    for part in torch.arange(len(rows), device=z.device).split(_AT_ONCE // len(dy)):
        row, column = rows[part], columns[part]
        y, x = row[:, None] + radius + dy, column[:, None] + radius + dx
        unlike = (colours[:, y, x] - frame[0][:, row, column][..., None]).square().sum(0)
        weight = near * torch.exp(-unlike / (2 * _COLOUR**2)) * (firmness[y, x] + 1e-3)
        values, order = disparity[y, x].sort(1)
        share = weight.gather(1, order).cumsum(1)
        middle = (share >= 0.5 * share[:, -1:]).float().argmax(1, keepdim=True)
        found[0, 0, row, column] = values.gather(1, middle)[:, 0]
    return 1 / found[:, 0]


def grow_near(z: Float[Tensor, "T h w"]) -> Float[Tensor, "T h w"]:
    """Depth whose near surfaces are a pixel wider where they end at a step.

    The rim of a near thing is a mixture of its colour and the background's. Left on the far side it stays behind as a
    line when the camera moves; on the near side it goes unseen.
    """
    nearest = -F.max_pool2d(-z[:, None], 3, 1, 1)[:, 0]
    return torch.where(1 / nearest - 1 / z > _STEP / nearest, nearest, z)
