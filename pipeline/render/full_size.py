"""The composite at the clip's own resolution."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.finish.composite import composite
from pipeline.known.gather import Gathered, at_size
from pipeline.media.video import size_of
from pipeline.render.analysis import Analysis, depth_at
from pipeline.render.request import RenderRequest, seam_of
from pipeline.render.view import _warp

_CACHED = 2**26  # pixels of depth at the clip's own resolution that are kept while it is composited: 256 MiB


def _composite_full(
    raw: Tensor, analysis: Analysis, request: RenderRequest, found: Gathered | None
) -> tuple[Float[Tensor, "T 3 H W"], Bool[Tensor, "T 1 H W"]]:
    """The result at the clip's own resolution, and where it is painted."""
    size = size_of(analysis.full.frames)
    result = torch.empty_like(analysis.full.frames)
    painted = torch.empty_like(result[:, :1], dtype=torch.bool)

    @lru_cache(max(8, _CACHED // math.prod(size)))
    def picture_of(t: int) -> tuple[Tensor, Tensor]:
        frames, z = depth_at(analysis, slice(t, t + 1), size)
        return frames[0], z[0]

    for first in range(0, len(raw), 4):  # a few frames at a time: full-resolution geometry takes much memory
        span = slice(first, first + 4)
        measurement = _warp(analysis, request, size, span)
        if found is not None:
            measurement = at_size(found, measurement, first, picture_of)
        result[span] = composite(raw[span], measurement, seam_pixels=seam_of(request, size))
        painted[span] = ~measurement.mask
    return result, painted
