"""What an object looks like to the click network, learned from one frame whose mask is known."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pipeline.masks.click import at_working_size, load_clicker, see

_RIDGE = 0.02  # of the mean square of a feature


@torch.no_grad()
def features_of(frame: Float[Tensor, "3 H W"]) -> Float[Tensor, "h w c"]:
    """Of places of a frame in [0, 1], at a quarter of the size at which the network sees it: the trunk's at stride 4,
    what the network compares clicks by at strides 8 and 16, and a constant."""
    net, depth = load_clicker()
    small = at_working_size(frame)
    seen = see(small, depth)
    fine = seen.features[1]
    parts = [fine / fine.square().sum(1, keepdim=True).mean().sqrt(), torch.ones_like(fine[:, :1])]
    for compared, features in zip(net.compared[:2], seen.features[2:4], strict=True):
        parts.append(F.interpolate(F.normalize(compared(features), dim=1), fine.shape[-2:], mode="bilinear"))
    h, w = (-(-n // 4) for n in small.shape[-2:])
    return torch.cat(parts, 1)[0, :, :h, :w].permute(1, 2, 0)


def learned(x: Float[Tensor, "h w c"], p: Float[np.ndarray, "H W"]) -> Float[Tensor, "c"]:
    """Weights by which features tell the object (1) from what is around it (-1): regularised least squares, as in FRTM
    (arXiv 2003.00908). Both have the same weight in all; a place that is partly either counts less.

    p: the object's share of each pixel of that frame.
    """
    h, w, _ = x.shape
    share = F.adaptive_avg_pool2d(torch.from_numpy(p)[None, None].float(), (h, w)).flatten()
    flat, sure, target = x.flatten(0, 1), (2 * share - 1).abs(), (2 * share - 1).sign()
    weight = torch.zeros_like(share)
    for side in (target > 0, target <= 0):
        weight += sure * side / (sure * side).sum().clamp(min=1e-6)
    square = flat.T @ (flat * weight[:, None])
    ridge = _RIDGE * square.diagonal().mean() * torch.eye(len(square))
    return torch.linalg.solve(square + ridge, flat.T @ (weight * target))


def looks_like(
    x: Float[Tensor, "h w c"], weights: Float[Tensor, "c"], size: tuple[int, int]
) -> Float[np.ndarray, "H W"]:
    """About 1 where a frame of those features shows the object, about -1 elsewhere; within these."""
    return F.interpolate((x @ weights)[None, None], size, mode="bilinear")[0, 0].clamp(-1, 1).numpy()
